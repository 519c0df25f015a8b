/*
 * The block-swap store: slots, their references and checksums, private I/O,
 * and the journal that makes indirections last
 *
 * The store is a qcow2 image (or any format whose mapping is total and does
 * not move) on a local file or host device.  It is opened through the block
 * layer, which gives locks, format and permissions; its mapping is resolved
 * once; from then on all I/O goes to a private descriptor of the protocol
 * file, past the block graph (see docs: otherwise swap-in could wait for the
 * graph lock while the graph lock's holder waits for swap-in).
 *
 * Locking: a store is created, looked up, referenced and released in the main
 * thread under the BQL (GLOBAL_STATE_CODE).  Everything else is thread-safe.
 * The store's own lock is a leaf: nothing else is taken under it.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#ifndef BSST_STORE_H
#define BSST_STORE_H

#include "block/block-common.h"
#include "qemu/iov.h"
#include "bsst/bsst-journal.h"
#include "bsst/pager.h"
#include "bsst/types.h"
#include "qapi/qapi-types-bsst.h"
#include "qemu/uuid.h"

typedef struct BsstStore BsstStore;

/*
 * Create the store file @path (qcow2, preallocation=metadata, mode 0600) with
 * room for @size bytes of slots.  @path must not exist.  It becomes a store
 * when it is first opened as one.  Returns false and sets @errp on failure,
 * leaving no file behind.
 */
bool bsst_store_create(const char *path, uint64_t size, Error **errp);

/*
 * Open the store on the block node @node_name, or reference it if it is open
 * already.  @aio applies to a store that was not open yet.
 *
 * A store that was not closed is recovered.  A read-only node is read only:
 * nothing is written, not even then.
 *
 * Refuses a node that is not a store, a damaged one, a protocol without a host
 * file, an incomplete mapping.  Returns NULL and sets @errp on failure.
 */
BsstStore *bsst_store_open(const char *node_name, BlockdevAioOptions aio,
                           Error **errp);
void bsst_store_ref(BsstStore *s);
void bsst_store_unref(BsstStore *s);

/* Iterate over open stores: NULL starts; NULL ends. */
BsstStore *bsst_store_next(BsstStore *s);

const char *bsst_store_node_name(const BsstStore *s);
const QemuUUID *bsst_store_uuid(const BsstStore *s);
/* The file that the store is in. */
const char *bsst_store_filename(const BsstStore *s);
bool bsst_store_read_only(const BsstStore *s);

/* The journal, with all images; as long as the store is open. */
BsstJournal *bsst_store_journal(BsstStore *s);

/*
 * The node name of the store that -drive bsst=on uses.  Set by the one
 * swapper, which adds and deletes it.  Getting it sets @errp and returns NULL
 * if no swapper was created, or more than one.
 */
void bsst_default_store_add(const char *node_name);
void bsst_default_store_del(const char *node_name);
const char *bsst_default_store(Error **errp);

/* Number of slots in all. */
uint32_t bsst_store_nslots(const BsstStore *s);

/* True if (@dev, @ino) is the store's own file. */
bool bsst_store_is_inode(const BsstStore *s, dev_t dev, ino_t ino);

/*
 * Allocate up to @want slots in one contiguous run, one reference each.
 * Returns the number, at @first; 0 if the store is full.
 */
uint32_t bsst_slot_alloc(BsstStore *s, uint32_t want, BsstSlot *first);
/*
 * For those who can do without: allocate @want slots in a row as low as
 * possible, or at least @min, all below @limit, if bsst_store_reserve_slots()
 * stay free.  Returns the number, at @first, or 0.
 */
uint32_t bsst_slot_alloc_low(BsstStore *s, uint32_t want, uint32_t min,
                             BsstSlot limit, BsstSlot *first);
/* Slots that are not free. */
uint32_t bsst_store_used_slots(BsstStore *s);
/* What is left to those who cannot */
uint32_t bsst_store_reserve_slots(const BsstStore *s);
/* Take one more reference of each of @n slots, which are in use. */
void bsst_slot_ref(BsstStore *s, const BsstSlot *slot, unsigned n);
/* Drop one reference of each of @n slots.  @s may be NULL if there are none. */
void bsst_slot_unref(BsstStore *s, const BsstSlot *slot, unsigned n);

/*
 * Write @n contiguous slots from @buf, which is private memory aligned to
 * BSST_PAGE_SIZE and does not change meanwhile; remember their checksums.
 * The caller owns a reference of each.  Returns 0 or -errno.
 */
int coroutine_fn bsst_store_co_write(BsstStore *s, BsstSlot first, uint32_t n,
                                     const void *buf);
/* The same from @qiov (private memory only), n * BSST_PAGE_SIZE bytes. */
int coroutine_fn bsst_store_co_writev(BsstStore *s, BsstSlot first, uint32_t n,
                                      QEMUIOVector *qiov);

/*
 * Read @n contiguous slots into @buf (private, aligned) and verify their
 * checksums.  The caller owns a reference of each.
 *
 * Returns 0 or -errno; -EILSEQ if a checksum does not match.
 */
int coroutine_fn bsst_store_co_read(BsstStore *s, BsstSlot first, uint32_t n,
                                    void *buf);

/* The same, but a read that fails is repeated a few times at once. */
int coroutine_fn bsst_store_co_read_retry(BsstStore *s, BsstSlot first,
                                          uint32_t n, void *buf);
/* The same into @qiov (private memory only), n * BSST_PAGE_SIZE bytes. */
int coroutine_fn bsst_store_co_readv_retry(BsstStore *s, BsstSlot first,
                                           uint32_t n, QEMUIOVector *qiov);

/*
 * Does @buf, one page, have the checksum of what was written to @slot, which the
 * caller references?
 */
bool bsst_store_slot_matches(BsstStore *s, BsstSlot slot, const void *buf);

/* Aligned private memory for store I/O; NULL on failure. */
void *bsst_store_buffer(BsstStore *s, size_t bytes);

/*
 * Hang @pager on the store.  Returns false and sets @errp if there is another
 * one already.
 */
bool bsst_store_set_pager(BsstStore *s, BsstPager *pager, Error **errp);
/* Take @pager off if it hangs there. */
void bsst_store_clear_pager(BsstStore *s, BsstPager *pager);
/* The pager has been armed, before a page may leave, or disarmed. */
void bsst_store_set_armed(BsstStore *s, bool armed);

/*
 * Get a reference of the pager if there is one and it is armed, else NULL.
 * Cheap; any thread.
 */
BsstPager *bsst_store_get_pager(BsstStore *s);
void bsst_pager_ref(BsstPager *pager);
void bsst_pager_unref(BsstPager *pager);

/* Enough slots are free to go on after the store was full. */
bool bsst_store_has_space(BsstStore *s);

BsstStoreStats *bsst_store_query(BsstStore *s);

#endif /* BSST_STORE_H */

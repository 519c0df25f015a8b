/*
 * Open a store that somebody has made up
 *
 * Any bytes describe a store; nearly all of them one whose checksums are right,
 * so that what is behind them is reached.  They are read as pieces
 *
 *     what (1 byte), index (1 byte), length (2 bytes), that many bytes
 *
 * which add an entry of the image table, a block to the body of a checkpoint or
 * to the journal, or overwrite fields of the superblock, a checkpoint's header,
 * or anything.  Sequence, chain, checksums and counts are made to fit, unless a
 * piece says otherwise.
 *
 * The store is opened, looked at by who salvages, and if it was opened, its
 * references are taken as bsst-store-start.c does it, a block is changed, a
 * checkpoint written, and it is opened again: it must be the same then.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "bsst-open-store.h"
#include "bsst/bsst-journal.h"
#include "bsst/slot-table.h"
#include "qapi/error.h"
#include "qemu/bswap.h"
#include "qemu/lockable.h"

/* What is in memory; the disk is larger, zero, and forgets. */
#define META_BYTES      (256u << 10)
#define DISK_BYTES      (16ull << 20)
#define SECTOR          512u
#define NIMAGES         8u
#define GENERATION      3u
#define RECORD_BYTES    12u
#define MAX_PIECES      64u

enum { SUPERBLOCK, ENTRY, HEADER, BODY, JOURNAL, ANY, WHATS };

/* First byte of BODY and JOURNAL */
#define WRONG_CHECKSUM  1u
#define WRONG_CHAIN     2u
#define NEXT_GENERATION 4u

typedef struct Piece {
    unsigned what, index;
    size_t n;
    const uint8_t *data;
} Piece;

typedef struct World {
    uint8_t *meta;
    BsstSuperblock sb;
    SlotTable *slots;
    BsstJournalIO io;
    BsstJournal *j;
    bool read_only, done;
    uint64_t hash;              /* of what is indirected */
    unsigned damage;
} World;

/* Disk */

static int coroutine_fn disk_read(void *opaque, uint64_t offset, void *buf,
                                  size_t bytes)
{
    World *w = opaque;
    size_t n = offset < META_BYTES ? MIN(bytes, META_BYTES - offset) : 0;

    g_assert(offset <= DISK_BYTES && bytes <= DISK_BYTES - offset);
    if (n) {
        memcpy(buf, w->meta + offset, n);
    }
    memset((uint8_t *)buf + n, 0, bytes - n);
    return 0;
}

static int coroutine_fn disk_write(void *opaque, uint64_t offset,
                                   const void *buf, size_t bytes)
{
    World *w = opaque;
    size_t n = offset < META_BYTES ? MIN(bytes, META_BYTES - offset) : 0;

    g_assert(offset <= DISK_BYTES && bytes <= DISK_BYTES - offset);
    if (n) {
        memcpy(w->meta + offset, buf, n);
    }
    return 0;
}

static int coroutine_fn disk_flush(void *opaque)
{
    return 0;
}

/* Slots */

static void slots_unref(void *opaque, const BsstSlot *slot, unsigned n)
{
    World *w = opaque;

    for (unsigned i = 0; i < n; i++) {
        slot_table_unref(w->slots, slot[i]);
    }
}

static void slots_checksums(void *opaque, BsstSlot first, unsigned n,
                            uint64_t *sum)
{
    memset(sum, 0, n * sizeof(*sum));
}

static const BsstJournalSlots slots_ops = {
    .unref = slots_unref,
    .get_checksums = slots_checksums,
};

/* Make it up */

static unsigned read_pieces(const uint8_t *data, size_t size, Piece *piece)
{
    unsigned n;

    for (n = 0; n < MAX_PIECES && size >= 4; n++) {
        piece[n] = (Piece) {
            .what = data[0] % WHATS,
            .index = data[1],
            .n = MIN(lduw_le_p(data + 2) % 4096, size - 4),
            .data = data + 4,
        };
        data += 4 + piece[n].n;
        size -= 4 + piece[n].n;
    }
    return n;
}

static void put_checksum(uint8_t *buf, size_t n)
{
    stq_le_p(buf + n, bsst_checksum(buf, n));
}

/* Overwrite what starts at byte @at of @buf, of @size. */
static void overwrite(uint8_t *buf, size_t size, size_t at, const Piece *p)
{
    if (at < size) {
        memcpy(buf + at, p->data, MIN(p->n, size - at));
    }
}

/* Where @bytes of the disk lie, or NULL if we do not keep them. */
static uint8_t *disk_at(World *w, uint64_t offset, size_t bytes)
{
    return offset <= META_BYTES && bytes <= META_BYTES - offset
           ? w->meta + offset : NULL;
}

static bool make_superblock(World *w, const Piece *piece, unsigned n)
{
    uint64_t at = BSST_SUPERBLOCK_BYTES;
    BsstSuperblock sb = {
        .uuid = { 1 },
        .generation = GENERATION,
        .nimages = NIMAGES,
        .nslots = BSST_MIN_SLOTS,
        .checkpoint_bytes = bsst_checkpoint_bytes_for(BSST_MIN_SLOTS, NIMAGES),
        .journal_bytes = BSST_MIN_JOURNAL_BLOCKS * BSST_JOURNAL_BLOCK_BYTES,
    };

    sb.images_offset = at;
    at += NIMAGES * BSST_IMAGE_ENTRY_BYTES;
    sb.checksums_offset = at;
    at += BSST_PAGE_SIZE;
    sb.checkpoint_offset[0] = at;
    at += sb.checkpoint_bytes;
    sb.checkpoint_offset[1] = at;
    at += sb.checkpoint_bytes;
    sb.journal_offset = at;
    at += sb.journal_bytes;
    sb.slots_offset = at;
    bsst_superblock_encode(&sb, w->meta);
    for (unsigned i = 0; i < n; i++) {
        if (piece[i].what == SUPERBLOCK) {
            overwrite(w->meta, SECTOR - 8, piece[i].index * 4, &piece[i]);
        }
    }
    put_checksum(w->meta, SECTOR - 8);
    return !bsst_superblock_decode(&w->sb, w->meta, DISK_BYTES) &&
           !w->sb.unfinished;
}

static void make_entry(World *w, const Piece *p)
{
    uint32_t index = p->index % w->sb.nimages;
    uint64_t offset = w->sb.images_offset +
                      (uint64_t)index * BSST_IMAGE_ENTRY_BYTES;
    uint8_t *buf = disk_at(w, offset, BSST_IMAGE_ENTRY_BYTES);
    BsstImageEntry e = {
        .in_use = true,
        .uuid = { index + 1, index >> 8 },
        .generation = 1,
        .announced = 1,
        .first_sequence = 1,
        .name = "x",
    };

    if (buf) {
        bsst_image_entry_encode(&e, buf);
        overwrite(buf, BSST_IMAGE_ENTRY_BYTES - 8, 8, p);
        put_checksum(buf, BSST_IMAGE_ENTRY_BYTES - 8);
    }
}

/*
 * Make a block that comes after @h; @p has its records.  Returns their sum of
 * blocks.
 */
static uint64_t make_block(uint8_t *buf, BsstBlockHeader *h, uint64_t max,
                           const Piece *p)
{
    unsigned flags = p->n ? p->data[0] : 0;
    unsigned i, n = p->n ? (p->n - 1) / RECORD_BYTES : 0;
    uint64_t sum = 0;

    n = MIN(n, BSST_JOURNAL_RECORDS);
    memset(buf, 0, BSST_JOURNAL_BLOCK_BYTES);
    memcpy(buf, h->kind == BSST_BLOCK_JOURNAL ? "BSSTJRNL" : "BSSTBODY", 8);
    if (flags & NEXT_GENERATION) {
        h->generation = MIN(h->generation + 1, max);
    }
    stl_le_p(buf + 8, n);
    stl_le_p(buf + 12, p->index);
    stq_le_p(buf + 16, h->sequence);
    stq_le_p(buf + 24, h->generation);
    stq_le_p(buf + 32, h->chain ^ !!(flags & WRONG_CHAIN));
    memcpy(buf + 64, p->data + 1, n * RECORD_BYTES);
    for (i = 0; i < n; i++) {
        sum += lduw_le_p(buf + 64 + i * RECORD_BYTES + 6);
    }
    put_checksum(buf, BSST_JOURNAL_BLOCK_BYTES - 8);
    h->chain = ldq_le_p(buf + BSST_JOURNAL_BLOCK_BYTES - 8);
    h->sequence++;
    buf[BSST_JOURNAL_BLOCK_BYTES - 1] ^= flags & WRONG_CHECKSUM;
    return sum;
}

/* The body of the checkpoint in @area, and its header. */
static void make_checkpoint(World *w, unsigned area, const Piece *piece,
                            unsigned n)
{
    uint64_t at = w->sb.checkpoint_offset[area];
    uint64_t end = at + w->sb.checkpoint_bytes;
    uint8_t *header = disk_at(w, at, BSST_JOURNAL_BLOCK_BYTES);
    BsstBlockHeader h = {
        .kind = BSST_BLOCK_CHECKPOINT,
        .sequence = 1,
        .generation = MIN(w->sb.generation, GENERATION - 1),
    };
    BsstCheckpoint c = {
        .number = area + 1,
        .generation = h.generation,
        .journal_sequence = 1,
        .journal_chain = 5,
        .journal_generation = MIN(w->sb.generation, 1),
    };
    bool wanted = area == 0;
    unsigned i;

    for (i = 0; i < n; i++) {
        Piece p = piece[i];
        uint8_t *buf;

        wanted |= p.what == HEADER && p.index % 2 == area;
        if (p.what != BODY || p.index % 2 != area) {
            continue;
        }
        wanted = true;
        at += BSST_JOURNAL_BLOCK_BYTES;
        buf = at < end ? disk_at(w, at, BSST_JOURNAL_BLOCK_BYTES) : NULL;
        if (buf) {
            p.index /= 2;
            c.nindirections += make_block(buf, &h, h.generation, &p);
            c.nblocks++;
            c.chain = h.chain;
        }
    }
    if (!header || !wanted) {
        return;
    }
    bsst_checkpoint_encode(&c, header);
    for (i = 0; i < n; i++) {
        if (piece[i].what == HEADER && piece[i].index % 2 == area) {
            overwrite(header, 80, 8 + piece[i].index / 2 % 9 * 8, &piece[i]);
        }
    }
    put_checksum(header, 80);
}

/* Where the newer checkpoint says, if that can be. */
static void make_journal(World *w, const Piece *piece, unsigned n)
{
    uint64_t nblocks = w->sb.journal_bytes / BSST_JOURNAL_BLOCK_BYTES;
    BsstCheckpoint c, newest = { 0 };
    BsstBlockHeader h = { .kind = BSST_BLOCK_JOURNAL };
    uint64_t block;
    unsigned i;

    for (i = 0; i < 2; i++) {
        uint8_t *buf = disk_at(w, w->sb.checkpoint_offset[i],
                               BSST_JOURNAL_BLOCK_BYTES);

        if (buf && bsst_checkpoint_decode(&c, buf, w->sb.generation,
                                          UINT32_MAX, nblocks) &&
            c.number > newest.number) {
            newest = c;
        }
    }
    block = newest.journal_block;
    h.sequence = newest.journal_sequence;
    h.chain = newest.journal_chain;
    h.generation = newest.journal_generation;
    for (i = 0; i < n; i++) {
        uint8_t *buf = disk_at(w, w->sb.journal_offset + block % nblocks *
                               BSST_JOURNAL_BLOCK_BYTES,
                               BSST_JOURNAL_BLOCK_BYTES);

        if (piece[i].what == JOURNAL && buf) {
            make_block(buf, &h, w->sb.generation, &piece[i]);
            block++;
        }
    }
}

static bool make_store(World *w, const Piece *piece, unsigned n)
{
    unsigned i;

    if (!make_superblock(w, piece, n)) {
        return false;
    }
    for (i = 0; i < n; i++) {
        if (piece[i].what == ENTRY) {
            make_entry(w, &piece[i]);
        }
    }
    make_checkpoint(w, 0, piece, n);
    make_checkpoint(w, 1, piece, n);
    make_journal(w, piece, n);
    for (i = 0; i < n; i++) {
        if (piece[i].what == ANY) {
            overwrite(w->meta, META_BYTES, BSST_SUPERBLOCK_BYTES +
                      piece[i].index * 1000, &piece[i]);
        }
    }
    return true;
}

/* Look at it */

static void note_damage(void *opaque, unsigned rule, const char *message)
{
    World *w = opaque;

    g_assert(rule <= 15 && *message);
    w->damage++;
}

/* Take all references; a number for what is indirected. */
static void take_references(World *w)
{
    BsstImage *image = NULL;
    uint64_t total = 0;

    slot_table_free(w->slots);
    w->slots = slot_table_new(w->sb.nslots);
    w->hash = 0;
    while ((image = bsst_journal_next_image(w->j, image))) {
        uint64_t image_hash = bsst_checksum(image->entry.uuid, 16);
        BsstRecord r = { 0 };

        while (durable_map_next_committed(image->map, false, r.block + r.n,
                                          &r)) {
            for (unsigned i = 0; i < r.n; i++) {
                uint64_t word[] = { image_hash, r.block + i, r.slot + i };
                BsstSlot slot = r.slot + i;

                slot_table_restore_refs(w->slots, &slot, 1);
                w->hash += bsst_checksum(word, sizeof(word));
            }
            total += r.n;
        }
    }
    slot_table_restore_done(w->slots, true);
    g_assert_cmpuint(total, <=, w->sb.nslots);
}

static void coroutine_fn co_open(void *opaque)
{
    World *w = opaque;
    Error *err = NULL;

    w->j = bsst_journal_co_open(&w->sb, &w->io, &slots_ops, w, w->read_only,
                                &err);
    g_assert(!w->j == !!err);
    error_free(err);
    if (w->j) {
        take_references(w);
    }
    w->done = true;
}

/* True if what is written can be read again: it is all in memory. */
static bool store_is_kept(const World *w)
{
    const BsstSuperblock *sb = &w->sb;
    uint64_t end = MAX(sb->journal_offset + sb->journal_bytes,
                       MAX(sb->checkpoint_offset[0],
                           sb->checkpoint_offset[1]) + sb->checkpoint_bytes);

    end = MAX(end, sb->images_offset +
                   (uint64_t)sb->nimages * BSST_IMAGE_ENTRY_BYTES);
    return MAX(end, sb->checksums_offset + (uint64_t)sb->nslots * 8) <=
           META_BYTES;
}

static int coroutine_fn data_flush(void *opaque)
{
    return 0;
}

/* Take a block out of an image, or put one in; and a checkpoint. */
static void coroutine_fn co_change(void *opaque)
{
    World *w = opaque;
    BsstImage *image = bsst_journal_next_image(w->j, NULL);

    if (image && bsst_journal_reserve(w->j, 1)) {
        BsstSlot slot, old, drop;

        if (!slot_table_alloc(w->slots, 1, &slot)) {
            slot = BSST_SLOT_NONE;
        }
        WITH_QEMU_LOCK_GUARD(&image->lock) {
            bsst_image_set_locked(image, 5, &slot, 1, &old, &drop);
        }
        bsst_journal_unreserve(w->j, 1);
        if (drop != BSST_SLOT_NONE) {
            slots_unref(w, &drop, 1);
        }
        g_assert_cmpint(bsst_image_co_flush(image, data_flush, NULL), ==, 0);
    }
    g_assert_cmpint(bsst_journal_co_checkpoint(w->j), ==, 0);
    take_references(w);
    w->done = true;
}

static void coroutine_fn co_salvage(void *opaque)
{
    World *w = opaque;

    w->j = bsst_journal_co_salvage(&w->sb, &w->io, w, note_damage,
                                   &error_abort);
    w->done = true;
}

/* Nothing here has to wait. */
static void run(World *w, CoroutineEntry *entry)
{
    w->done = false;
    qemu_coroutine_enter(qemu_coroutine_create(entry, w));
    g_assert(w->done);
}

static void close_store(World *w)
{
    bsst_journal_free(w->j);
    w->j = NULL;
}

/* No store comes here in its life. */
static bool numbers_run_out(const World *w)
{
    const BsstCheckpoint *c = bsst_journal_checkpoint(w->j, &(unsigned) { 0 });
    uint64_t max = MAX(MAX(c->number, c->journal_sequence), w->sb.generation);

    return max >= BSST_MAX_NUMBER - 1000;
}

static StoreFate try_store(World *w)
{
    bool opened, go_on;
    uint64_t hash;

    w->read_only = true;
    run(w, co_open);
    opened = w->j;
    go_on = opened && store_is_kept(w) && !numbers_run_out(w);
    hash = w->hash;
    close_store(w);
    run(w, co_salvage);
    g_assert(opened || w->damage);
    close_store(w);
    if (!go_on) {
        return opened ? STORE_OPENED : STORE_REFUSED;
    }

    w->read_only = false;
    w->sb.generation++;
    run(w, co_open);
    g_assert(w->j && w->hash == hash);
    run(w, co_change);
    hash = w->hash;
    close_store(w);
    w->sb.generation++;
    run(w, co_open);
    g_assert(w->j && w->hash == hash);
    close_store(w);
    return STORE_OPENED;
}

StoreFate open_made_up_store(const uint8_t *data, size_t size)
{
    World w = {
        .io = {
            .co_read = disk_read,
            .co_write = disk_write,
            .co_flush = disk_flush,
        },
    };
    Piece piece[MAX_PIECES];
    unsigned n = read_pieces(data, size, piece);
    StoreFate fate = STORE_NONE;

    w.meta = g_malloc0(META_BYTES);
    if (make_store(&w, piece, n)) {
        fate = try_store(&w);
        slot_table_free(w.slots);
    }
    g_free(w.meta);
    return fate;
}

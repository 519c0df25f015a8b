/*
 * Pager: who is where, and how a page comes back
 *
 * Internal interface of the swapper's parts:
 *   pager.c     page lock, what the block driver may ask, discards
 *   fault.c     fault threads: event in, one pager call out
 *   install.c   the ways in: from a frame, from the store, zeroes, a disk read
 *   evict.c     the way out: choose, move to frames, write to the store
 *   bound.c     clean pages keep their slot
 *   restore.c   coming back without being asked for
 *   arm.c       taking guest RAM under control, and letting it go
 *   record.c    writing down what happens
 *
 * Lock order: region lock, page lock, the store's lock, which is a leaf.  The
 * page lock is never held across an ioctl or I/O.  The region lock keeps the
 * list of regions stable while it is scanned, armed or disarmed; the fault
 * path never takes it.
 *
 * Threads: S shard threads (faults, installs, restores) and a writer thread
 * (evictions), all IOThreads of our own.  None of them ever takes the BQL,
 * the graph lock or a reference on a BlockBackend, waits for RCU, or touches
 * guest RAM; so any thread of QEMU may fault and wait for them.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#ifndef HW_SWAPPER_PAGER_H
#define HW_SWAPPER_PAGER_H

#include "bsst/bsst-store.h"
#include "bsst/latency.h"
#include "bsst/page-state.h"
#include "bsst/policy.h"
#include "frames.h"
#include "qapi/qapi-types-host-swapper.h"
#include "qemu/coroutine.h"
#include "qemu/thread.h"
#include "record.h"
#include "system/iothread.h"

/* Pages that are restored or populated together at most, aligned. */
#define PAGER_WINDOW        32
/* Pages of one write to the store, and such writes under way. */
#define PAGER_WRITE_BATCH   256
#define PAGER_WRITES        2
/* Restores under way at once, a shard. */
#define PAGER_RESTORES      8
/* The frames' area: bounds victim-cache-size. */
#define PAGER_MAX_VICTIM_BYTES  (256ull << 20)
#define PAGER_SPARE_FRAMES  (PAGER_WRITE_BATCH * (PAGER_WRITES + 1))

typedef struct Pager Pager;

/* A piece of guest RAM: one RAMBlock. */
typedef struct PagerRegion {
    uint8_t *host;
    uint64_t first;             /* page; a multiple of chunk_pages */
    uint64_t npages;
} PagerRegion;

/* A shard resolves the faults of every nshards-th chunk. */
typedef struct PagerShard {
    /* Set once */
    Pager *p;
    unsigned index;
    int uffd;
    IOThread *iothread;
    AioContext *ctx;
    QEMUBH *restore_bh;

    /* Under the page lock */
    GArray *restore;            /* of uint32_t: intercepted pages */
    unsigned restoring;
} PagerShard;

/* What became of a page that came back unasked (restore.c) */
typedef enum RestoreOutcome {
    RESTORE_WANTED,             /* somebody waited for it already */
    RESTORE_WRITTEN,
    RESTORE_READ_OVER,          /* by a disk read */
    RESTORE_DISCARDED,
    RESTORE_UNWRITTEN,          /* it left again as it came */
    RESTORE_OUTCOME__MAX
} RestoreOutcome;

typedef struct PagerCounters {
    uint64_t evicted, swap_outs, swap_out_requests, zero_outs;
    uint64_t swap_ins, swap_in_requests;
    uint64_t faults_victim, faults_store, faults_zero, faults_raced;
    uint64_t intercepted, intercepted_restored, intercepted_restore_pages;
    uint64_t intercepted_faults, intercepted_read_faults;
    uint64_t installed, discarded;
    uint64_t clean_outs, clean_refuted, clean_claims;
    uint64_t unbound_written, unbound_given_up;
    /* [0]: neighbours; [1]: pages that were intercepted themselves */
    uint64_t restored[2][RESTORE_OUTCOME__MAX];
    uint64_t refused_pinned, refused_absent, refused_retry;
    uint64_t refused_no_frame, refused_store_full, refused_other;
} PagerCounters;

struct Pager {
    BsstPager base;

    /* Set once */
    char *id;
    BsstStore *store;
    unsigned nshards;
    PagerShard *shard;
    IOThread *writer_thread;
    AioContext *writer_ctx;
    QEMUBH *writer_bh;
    QEMUTimer *tick;            /* writer thread */
    int pagemap_fd;
    void *zeroes;               /* PAGER_WINDOW pages */
    bool keep_clean;            /* pages are bound */
    bool claim_clean;           /* bound pages can be claimed */
    Record *record;             /* or NULL */

    QemuMutex region_lock;

    /* Changed under both locks while disarmed; stable while armed */
    PagerRegion *region;
    unsigned nregions;
    uint64_t chunk_pages;

    /* Under @lock, the page lock */
    QemuMutex lock;
    QemuCond transit_cond;      /* a page has left a transit state */
    unsigned transit_waiters;
    PageTable pages;
    Frames frames;
    uint64_t limit;             /* pages; 0: none */
    uint64_t victim_target;     /* pages */
    unsigned cluster;           /* pages of a store fault */
    HostSwapperState state;
    bool arming;
    bool releasing;             /* restore everything, then disarm */
    bool disarming;             /* nothing is out, and nothing may leave */
    unsigned stray_refills;     /* zeroing of pages that are not controlled */
    bool reclaiming;            /* between the watermarks */
    bool store_full;
    bool slots_short;           /* no more bindings */
    bool write_error;
    bool read_error;
    bool starved;               /* nothing can be evicted for now */
    bool stopping;
    unsigned writes;            /* writes to the store under way */
    unsigned loads;             /* reads from the store under way */
    unsigned failing;           /* of these: have failed, and are repeated */
    CoQueue admit;              /* faults waiting for memory below the limit */
    uint64_t over_since_ns;
    uint64_t over_ns, over_max_ns;
    int64_t event_ns;           /* time of the last store-error event */
    uint64_t release_at;        /* page */
    Policy policy;
    PagerCounters n;

    /* Atomic */
    unsigned io;                /* coroutines under way */

    /* Writer thread */
    uint64_t sweep_at;          /* page: where to look for written ones next */
    uint64_t anon_overhead;     /* anonymous memory outside guest RAM, bytes */
    int64_t next_scan_ns;

    /* Thread-safe API */
    BsstLatency lat_victim, lat_store, lat_zero, lat_raced;
};

/* pager.c */

Pager *pager_new(const char *id, unsigned nshards, Error **errp);
/*
 * Main thread.  Ends all threads; whoever waits for a page is woken.  Either
 * no page is out or the guest is gone.  The memory goes with the last
 * reference.
 */
void pager_stop(Pager *p);
void pager_set_limit(Pager *p, uint64_t bytes);
void pager_set_victim_bytes(Pager *p, uint64_t bytes);

/* Page of the host address @addr.  False if it is not under control. */
bool pager_lookup(const Pager *p, const void *addr, uint64_t *page);
void *pager_addr(const Pager *p, uint64_t page);
PagerShard *pager_shard(const Pager *p, uint64_t page);

/* Pages that count against the limit. */
static inline uint64_t pager_charged_locked(const Pager *p)
{
    return p->pages.count[PAGE_RESIDENT] + p->pages.count[PAGE_INSTALLING] +
           p->pages.count[PAGE_LOADING] + frames_used(&p->frames);
}

/* Nothing can be evicted at the moment: the limit does not bind. */
static inline bool pager_yields_locked(const Pager *p)
{
    return !p->limit || p->store_full || p->write_error || p->releasing ||
           p->starved || p->stopping;
}

/* What comes from a slot, and nobody wants to write, is bound. */
static inline bool pager_binds_locked(const Pager *p)
{
    return p->keep_clean && !p->slots_short && !p->releasing && !p->stopping;
}

uint64_t pager_high_locked(const Pager *p);
uint64_t pager_low_locked(const Pager *p);

/* Start a coroutine in @ctx that pager_stop() waits for. */
void pager_co_start(Pager *p, AioContext *ctx, CoroutineEntry *entry,
                    void *opaque);
/* The last thing that such a coroutine does. */
void pager_co_end(Pager *p);

/* Pages may be out from now on, or none is any more. */
void pager_set_armed_locked(Pager *p, bool armed);

/* A page left a transit state. */
void pager_transit_done_locked(Pager *p);
/* Wait until one does.  Not in a shard thread. */
void pager_wait_transit_locked(Pager *p);

/* Guest RAM [host, host + bytes) is about to be discarded. */
void pager_discard(Pager *p, void *host, size_t bytes);
/* Forget the content of @n pages; with @release they are PAGE_NONE then. */
void pager_discard_pages(Pager *p, uint64_t page, uint64_t n, bool release);

/* Tell the management about a store error, once a second at most. */
void pager_store_error(Pager *p, bool is_write, int err);

/* fault.c */
bool pager_shard_start(PagerShard *sh, Error **errp);
/* No new faults and restores. */
void pager_shard_quiesce(PagerShard *sh);
/* Quiesced, and its coroutines have ended.  Wakes whoever still waits. */
void pager_shard_stop(PagerShard *sh);

/* install.c */

/* Resolve a fault at @addr that was read at @start_ns.  Shard thread. */
void pager_fault(PagerShard *sh, void *addr, bool is_write, int64_t start_ns);
/* Load at most @max pages around @page, which is SWAPPED, and install them. */
void pager_load_locked(PagerShard *sh, uint64_t page, unsigned max,
                       bool restoring);
/* Bring @page, an intercepted VICTIM, back.  Drops the lock meanwhile. */
void pager_recall_locked(PagerShard *sh, uint64_t page);
/* Let @page's shard do what it would do if @page were touched. */
void pager_touch_locked(Pager *p, uint64_t page);
/* BsstPagerOps */
void coroutine_fn pager_co_admit(BsstPager *pager);
/* BsstPagerOps */
bool pager_install(BsstPager *pager, void *addr, const void *buf);

/* evict.c */
void pager_writer_init(Pager *p);
/* Nothing leaves any more. */
void pager_writer_quiesce(Pager *p);
/* Main thread, before the first arming.  At most one pager a store. */
bool pager_attach_store(Pager *p, BsstStore *store, Error **errp);
/* Main thread, after pager_stop(). */
void pager_detach_store(Pager *p);
/* Under the lock, or in one of our threads, or in the main thread. */
void pager_kick_writer(Pager *p);
/* BsstPagerOps */
void pager_space(BsstPager *pager);
/* Move up to @want pages into frames.  Returns the number. */
unsigned pager_evict(Pager *p, unsigned want);
/* Give the memory of dropped frames back, let faults in that wait for it. */
void pager_reclaim_frames(Pager *p);
/* For tests.  Main thread.  Returns pages of the range that are out. */
uint64_t pager_evict_range(Pager *p, uint64_t page, uint64_t n, bool to_store);

/* restore.c */
void pager_restore_bh(void *opaque);
void pager_written(BsstPager *pager, void *const *addr, unsigned n);
/* @outcome of @page, if it came back unasked and nothing was known of it. */
void pager_restored_locked(Pager *p, uint64_t page, RestoreOutcome outcome);
/* The same, of a page that had @flags. */
void pager_count_restored_locked(Pager *p, uint32_t flags,
                                 RestoreOutcome outcome);
/* Bring the next pages back.  Returns false if all are back. */
bool pager_release_some(Pager *p);

/* bound.c */

/*
 * If @page is bound, end that and put its slot into @slot[], whose reference
 * passes to the caller.  Returns the number of slots: 0 or 1.
 */
unsigned pager_unbind_locked(Pager *p, uint64_t page, BsstSlot *slot);
/*
 * Confirm claims of pages that are there and bound.  Each of @claim that is
 * marked @bound has a reference of its page's slot.  It becomes BSST_PAGE_SLOT if
 * the page has not been written since it came; else it is a claim of a page that
 * is present, and the reference is dropped.
 */
void pager_confirm_claims(Pager *p, void *const *addr, BsstPageClaim *claim,
                          unsigned n);
/*
 * A disk read to @n pages is about to begin: what were those of them good for that
 * came back unasked?  Most guests zero a page before they read into it.
 */
void pager_count_read_over(Pager *p, void *const *addr, unsigned n);
/* Writer thread: let go of slots whose pages have been written, bit by bit. */
void pager_sweep_bound(Pager *p);
/* Let go of up to @want slots, the oldest first.  Returns the number. */
unsigned pager_give_up_bound(Pager *p, unsigned want);

/* arm.c */

/*
 * Let @list (@n regions) be what is taken under control when the limit comes
 * near.  Does nothing while armed: new RAM waits for the next time.
 */
void pager_set_regions(Pager *p, const PagerRegion *list, unsigned n);
/* Main thread: the RAM at @host is about to go away. */
void pager_remove_region(Pager *p, void *host);
/*
 * Writer thread.  Returns false if there is no limit (unless @forced) or we
 * are about to end.
 */
bool pager_arm(Pager *p, bool forced);
/* Writer thread.  Returns false if pages are out, or meant to be again. */
bool pager_disarm(Pager *p);
/* Writer thread; disarmed.  True if guest RAM comes near the limit. */
bool pager_near_limit(Pager *p);

#endif /* HW_SWAPPER_PAGER_H */

/*
 * Pager and bsst driver together under stress: real faults, a real store, a
 * real qcow2 image, and threads that behave like guest kernels short of memory
 *
 * Each "guest" thread owns page frames (registered RAM), blocks of the disk,
 * and more pages than frames.  It touches pages, writes them out in requests
 * of 1 to 128 scattered or neighbouring frames, several at once, reuses the
 * frames at once, writes to pages whose page-out is under way, and reads
 * pages back into any free frame, alone or with the blocks around them.  A
 * "file" thread writes and reads ranges of any alignment.  Meanwhile the main
 * thread changes the limit, the victim cache and tesseract, evicts ranges,
 * discards, flushes, takes the limit away altogether, and starts, pauses, slows
 * down and cancels jobs that move blocks out of the store or within it; else
 * they are moved by themselves.
 *
 * Every word of a page says which page and version it belongs to, and is
 * compared on every touch.  What is wrong is reported with the page, frame and
 * block, what was found instead, the pager's view, and the latest events.
 *
 * BSST_TEST_SEED=N repeats the random choices, BSST_TEST_SECONDS=N is the time
 * for each case.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "block/aio.h"
#include "block/aio-wait.h"
#include "block/block.h"
#include "block/blockjob.h"
#include "bsst-seed.h"
#include "bsst-watchdog.h"
#include "hw/swapper/pager.h"
#include "hw/swapper/uffd.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-bsst.h"
#include "qapi/util.h"
#include "qemu/cutils.h"
#include "qemu/job.h"
#include "qemu/main-loop.h"
#include "qemu/memalign.h"
#include "qemu/module.h"
#include "qemu/timer.h"
#include "qemu/units.h"
#include "qobject/qdict.h"
#include "system/block-backend.h"

#define WORDS           (BSST_PAGE_SIZE / sizeof(uint64_t))
#define KEY             0x9e3779b97f4a7c15ull
#define NONE            UINT32_MAX
#define BUSY            (UINT32_MAX - 1)
#define WATCHDOG_S      100

#define GUESTS_MAX      6
#define IOTHREADS_MAX   3
#define REGIONS         3
#define REQUEST_MAX     128
/* Requests of one guest that are under way at most */
#define DEPTH           12
/* Disk blocks of the file thread, in front of those of the guests */
#define FILE_BLOCKS     256
#define FILE_FRAMES     96
#define FILE_BYTES      (FILE_BLOCKS * BSST_PAGE_SIZE)

static uint32_t seed;
static unsigned seconds = 2;

/* What happened lately, for reports */

typedef enum EventKind {
    EV_FILL, EV_REWRITE, EV_CHECK, EV_OUT, EV_OUT_DONE, EV_IN, EV_IN_DONE,
    EV_DROP_CLEAN, EV_SCRIBBLE, EV_DISCARD_RAM, EV_FORGET, EV_DISCARD_DISK,
    EV_ZERO_DISK, EV_FLUSH, EV_EVICT, EV_LIMIT, EV_TESSERACT, EV_VICTIM,
    EV_JOB,
} EventKind;

static const char *const event_name[] = {
    "fill", "rewrite", "check", "page-out", "page-out done", "page-in",
    "page-in done", "drop clean", "scribble", "discard RAM", "forget",
    "discard disk", "zero disk", "flush", "evict", "limit", "tesseract",
    "victim-cache", "job",
};

typedef struct Event {
    int64_t ns;
    uint8_t kind, guest;
    uint32_t page, version, frame, block;
} Event;

#define EVENTS          (1u << 19)
#define EVENTS_SHOWN    200

static Event *event_log;
static uint32_t event_next;

static void event(EventKind kind, unsigned guest, uint32_t page,
                  uint32_t version, uint32_t frame, uint32_t block)
{
    uint32_t i = qatomic_fetch_inc(&event_next) % EVENTS;

    event_log[i] = (Event) {
        .ns = get_clock(), .kind = kind, .guest = guest, .page = page,
        .version = version, .frame = frame, .block = block,
    };
}

/* The test bed */

typedef struct Guest Guest;

typedef struct Stress {
    GRand *rand;
    const char *aio;
    char *dir, *store_path, *image;
    BlockDriverState *store_bs;
    BlockBackend *blk;
    BsstStore *store;
    Pager *p;
    uint8_t *mem;
    uint32_t nframes, nblocks;
    unsigned nguests;
    Guest *guest;
    IOThread *iothread[IOTHREADS_MAX];
    unsigned niothreads;            /* 0: the main loop */
    AioContext *ctx[IOTHREADS_MAX];
    unsigned nctx;
    bool stop;                      /* atomic */
    uint64_t file_requests;         /* atomic */
    QEMUTimer *timer;
    unsigned jobs, job_changes;     /* begun; paused, resumed ... */
} Stress;

typedef enum Where {
    NOWHERE,        /* has no content */
    IN_FRAME,       /* perhaps with a copy in a block */
    ON_DISK,
    GOING_OUT,      /* in its frame, which is being written to a block */
    COMING_IN,      /* in its block, which is being read into a frame */
} Where;

typedef struct Page {
    Where where;
    uint32_t version;
    uint32_t frame, block;          /* of the guest's; NONE */
    bool dirtied;                   /* GOING_OUT: changed since */
    bool hands_off;                 /* GOING_OUT: will be scribbled over */
} Page;

typedef enum RequestKind {
    PAGE_OUT, PAGE_IN, DISCARD, ZERO, FLUSH
} RequestKind;

typedef struct Request {
    Guest *g;
    RequestKind kind;
    uint32_t first;                 /* of the disk's blocks */
    unsigned n;
    QEMUIOVector qiov;
    int scribble;                   /* when the request completes */
    int ret;
    uint32_t page[REQUEST_MAX];     /* NONE: junk */
    uint32_t frame[REQUEST_MAX];
    QSIMPLEQ_ENTRY(Request) next;
} Request;

struct Guest {
    Stress *s;
    unsigned index;
    QemuThread thread;
    GRand *rand;

    Page *page;
    uint32_t npages;

    /* Frames and blocks, by number within the guest: the global number */
    uint32_t *frame, *block;
    uint32_t nframes, nblocks;
    /* and the page in it or on its way to or from it; NONE, BUSY */
    uint32_t *frame_page, *block_page;

    uint32_t *free;                 /* frames */
    uint32_t nfree;
    uint32_t nfree_blocks;
    uint32_t hand;                  /* where touches go on */
    unsigned inflight;

    QemuMutex lock;
    QemuCond cond;
    QSIMPLEQ_HEAD(, Request) done;  /* under lock */

    uint64_t touches, outs, out_requests, ins, in_requests, dirtied, forgotten;
    uint64_t clean_drops, discards, flushes, ram_discards;
};

static unsigned below(GRand *rand, unsigned n)
{
    return g_rand_int_range(rand, 0, n);
}

static bool one_in(GRand *rand, unsigned n)
{
    return below(rand, n) == 0;
}

static uint64_t *frame_addr_of(const Stress *s, uint32_t frame)
{
    return (uint64_t *)(s->mem + (size_t)frame * BSST_PAGE_SIZE);
}

static uint64_t *addr_of(const Guest *g, uint32_t frame)
{
    return frame_addr_of(g->s, g->frame[frame]);
}

/* Content */

static uint32_t id_of(const Guest *g, uint32_t page)
{
    return g->index << 20 | page;
}

/* Some versions of a page are all zeroes. */
static bool is_zeroes(uint32_t id, uint32_t version)
{
    return !version || (id * 7 + version * 13) % 23 == 0;
}

static uint64_t word_of(uint32_t id, uint32_t version, unsigned i)
{
    return is_zeroes(id, version)
           ? 0 : ((uint64_t)id << 40 | (uint64_t)version << 16 | i) ^ KEY;
}

static void describe(uint64_t raw, char *text, size_t bytes)
{
    uint64_t clear = raw ^ KEY;

    if (!raw) {
        snprintf(text, bytes, "zero");
    } else {
        snprintf(text, bytes, "guest %u page %u version %u word %u",
                 (unsigned)(clear >> 60), (unsigned)(clear >> 40) & 0xfffff,
                 (unsigned)(clear >> 16) & 0xffffff,
                 (unsigned)clear & 0xffff);
    }
}

static void show_pager_page(Stress *s, uint32_t frame)
{
    void *addr = frame_addr_of(s, frame);
    unsigned char in = 0;
    uint64_t page;

    mincore(addr, BSST_PAGE_SIZE, &in);
    QEMU_LOCK_GUARD(&s->p->lock);
    if (!pager_lookup(s->p, addr, &page)) {
        fprintf(stderr, "frame %u is not under control\n", frame);
        return;
    }
    fprintf(stderr, "frame %u at %p is pager page %" PRIu64 ": %s, word 0x%"
            PRIx64 ", %s; armed %d arming %d releasing %d limit %" PRIu64
            " charged %" PRIu64 " tesseract %d\n", frame, addr, page,
            page_state_str(page_state(&s->p->pages, page)),
            s->p->pages.word[page], in & 1 ? "present" : "absent",
            s->p->base.armed, s->p->arming, s->p->releasing, s->p->limit,
            pager_charged_locked(s->p), s->p->base.tesseract);
}

static void show_events(const Guest *g, uint32_t page, uint32_t frame,
                        uint32_t block)
{
    uint32_t end = qatomic_read(&event_next);
    uint32_t i = end, shown[EVENTS_SHOWN];
    unsigned n = 0;

    while (n < EVENTS_SHOWN && i && end - i < EVENTS - 64) {
        const Event *e = &event_log[--i % EVENTS];

        if (e->kind >= EV_LIMIT || e->kind == EV_FLUSH ||
            (e->guest == g->index && e->page == page) ||
            (frame != NONE && e->frame == frame) ||
            (block != NONE && e->block == block)) {
            shown[n++] = i;
        }
    }
    while (n--) {
        const Event *e = &event_log[shown[n] % EVENTS];

        fprintf(stderr, "  %" PRId64 " us ago: guest %u %s page %d version %u "
                "frame %d block %d\n", (get_clock() - e->ns) / 1000, e->guest,
                event_name[e->kind], (int)e->page, e->version, (int)e->frame,
                (int)e->block);
    }
}

/* @i is the first wrong word of @buf.  Ends the test. */
static G_NORETURN void report(Guest *g, uint32_t page, const uint64_t *buf,
                              unsigned i, const char *when)
{
    static QemuMutex once;
    static bool ready;
    Stress *s = g->s;
    const Page *pg = &g->page[page];
    uint32_t id = id_of(g, page), wrong = 0, last = i;
    uint32_t frame = pg->frame == NONE ? NONE : g->frame[pg->frame];
    uint32_t block = pg->block == NONE ? NONE : g->block[pg->block];
    char want[80], found[80];

    if (!qatomic_xchg(&ready, true)) {
        qemu_mutex_init(&once);
    } else {
        g_usleep(G_USEC_PER_SEC * 30);
    }
    qemu_mutex_lock(&once);
    describe(word_of(id, pg->version, i), want, sizeof(want));
    describe(buf[i], found, sizeof(found));
    for (unsigned k = i; k < WORDS; k++) {
        if (buf[k] != word_of(id, pg->version, k)) {
            wrong++;
            last = k;
        }
    }
    fprintf(stderr, "\nWRONG DATA (%s): seed %u guest %u page %u version %u "
            "frame %d block %d where %d: words %u to %u, %u of them\n"
            "  wanted %s\n  found %s (0x%" PRIx64 ")\n", when, seed, g->index,
            page, pg->version, (int)frame, (int)block, pg->where, i, last,
            wrong, want, found, buf[i]);
    if (frame != NONE) {
        show_pager_page(s, frame);
    }
    show_events(g, page, frame, block);
    fprintf(stderr, "what was found there: %s\n", found);
    if (buf[i] && (buf[i] ^ KEY) >> 60 < s->nguests) {
        Guest *o = &s->guest[(buf[i] ^ KEY) >> 60];
        uint32_t op = (buf[i] ^ KEY) >> 40 & 0xfffff;

        if (op < o->npages && (o != g || op != page)) {
            const Page *q = &o->page[op];

            fprintf(stderr, "that page is at version %u where %d frame %d "
                    "block %d now\n", q->version, q->where, q->frame == NONE
                    ? -1 : (int)o->frame[q->frame], q->block == NONE ? -1
                    : (int)o->block[q->block]);
            show_events(o, op, NONE, NONE);
        }
    }
    g_usleep(100000);
    fprintf(stderr, "a moment later: %s\n",
            buf[i] == word_of(id, pg->version, i) ? "right" : "still wrong");
    if (g_getenv("BSST_TEST_HOLD")) {
        g_usleep(G_USEC_PER_SEC * 3600ull);
    }
    abort();
}

static void check(Guest *g, uint32_t page, const uint64_t *buf,
                  const char *when)
{
    uint32_t id = id_of(g, page), version = g->page[page].version;

    for (unsigned i = 0; i < WORDS; i++) {
        if (buf[i] != word_of(id, version, i)) {
            report(g, page, buf, i, when);
        }
    }
}

static void check_frame(Guest *g, uint32_t page, const char *when)
{
    check(g, page, addr_of(g, g->page[page].frame), when);
}

static void fill(Guest *g, uint32_t page)
{
    const Page *pg = &g->page[page];
    uint64_t *at = addr_of(g, pg->frame);
    uint32_t id = id_of(g, page);

    if (one_in(g->rand, 4)) {
        for (unsigned i = WORDS; i-- > 0; ) {
            at[i] = word_of(id, pg->version, i);
        }
    } else {
        for (unsigned i = 0; i < WORDS; i++) {
            at[i] = word_of(id, pg->version, i);
        }
    }
}

/* Spoil a frame that nobody needs. */
static void scribble(void *frame, int how)
{
    uint64_t *at = frame;

    switch (how) {
    case 1:
        memset(at, 0, BSST_PAGE_SIZE);
        break;
    case 2:
        at[WORDS / 2] = 0x1122334455667788;
        break;
    case 3:
        memset(at, 0xee, BSST_PAGE_SIZE);
        break;
    default:
        break;
    }
}

/* Requests */

static void coroutine_fn request_co_entry(void *opaque)
{
    Request *r = opaque;
    Guest *g = r->g;
    BlockBackend *blk = g->s->blk;
    int64_t offset = (int64_t)r->first * BSST_PAGE_SIZE;
    int64_t bytes = (int64_t)r->n * BSST_PAGE_SIZE;

    switch (r->kind) {
    case PAGE_OUT:
        r->ret = blk_co_pwritev(blk, offset, bytes, &r->qiov, 0);
        for (unsigned i = 0; i < r->n && r->scribble; i++) {
            scribble(addr_of(g, r->frame[i]), r->scribble);
        }
        break;
    case PAGE_IN:
        r->ret = blk_co_preadv(blk, offset, bytes, &r->qiov, 0);
        break;
    case DISCARD:
        r->ret = blk_co_pdiscard(blk, offset, bytes, 0);
        break;
    case ZERO:
        r->ret = blk_co_pwrite_zeroes(blk, offset, bytes,
                                      r->scribble ? BDRV_REQ_MAY_UNMAP : 0);
        break;
    case FLUSH:
        r->ret = blk_co_flush(blk);
        break;
    }
    WITH_QEMU_LOCK_GUARD(&g->lock) {
        QSIMPLEQ_INSERT_TAIL(&g->done, r, next);
        qemu_cond_signal(&g->cond);
    }
}

static Request *request_new(Guest *g, RequestKind kind, uint32_t first,
                            unsigned n)
{
    Request *r = g_new0(Request, 1);

    r->g = g;
    r->kind = kind;
    r->first = first;
    r->n = n;
    return r;
}

/* Frames that happen to be neighbours share an element, or not. */
static void request_add_memory(Request *r)
{
    bool merge = g_rand_boolean(r->g->rand);

    qemu_iovec_init(&r->qiov, r->n);
    for (unsigned i = 0; i < r->n; i++) {
        struct iovec *last = r->qiov.niov ? &r->qiov.iov[r->qiov.niov - 1]
                                          : NULL;
        void *at = addr_of(r->g, r->frame[i]);

        if (merge && last && (uint8_t *)last->iov_base + last->iov_len == at) {
            last->iov_len += BSST_PAGE_SIZE;
            r->qiov.size += BSST_PAGE_SIZE;
        } else {
            qemu_iovec_add(&r->qiov, at, BSST_PAGE_SIZE);
        }
    }
}

static void request_start(Request *r)
{
    Guest *g = r->g;
    Stress *s = g->s;

    if (r->kind == PAGE_OUT || r->kind == PAGE_IN) {
        request_add_memory(r);
    }
    g->inflight++;
    aio_co_schedule(s->ctx[below(g->rand, s->nctx)],
                    qemu_coroutine_create(request_co_entry, r));
}

/* Frames and blocks */

static void spoil_free_frame(Guest *g, uint32_t frame)
{
    void *at = addr_of(g, frame);
    int how = below(g->rand, 8);

    if (how == 7 && one_in(g->rand, 4)) {
        /* As the balloon or free page reporting would do */
        pager_discard(g->s->p, at, BSST_PAGE_SIZE);
        g_assert_cmpint(madvise(at, BSST_PAGE_SIZE, MADV_DONTNEED), ==, 0);
        event(EV_DISCARD_RAM, g->index, NONE, 0, g->frame[frame], NONE);
        g->ram_discards++;
        if (one_in(g->rand, 4)) {
            g_assert(buffer_is_zero(at, BSST_PAGE_SIZE));
        }
    } else if (how <= 3 && how) {
        event(EV_SCRIBBLE, g->index, NONE, how, g->frame[frame], NONE);
        scribble(at, how);
    }
}

static void frame_put(Guest *g, uint32_t frame)
{
    g->frame_page[frame] = NONE;
    spoil_free_frame(g, frame);
    g->free[g->nfree++] = frame;
}

/* The latest, the oldest or any */
static uint32_t frame_get(Guest *g, uint32_t page)
{
    uint32_t i = one_in(g->rand, 3) ? below(g->rand, g->nfree) : g->nfree - 1;
    uint32_t frame = g->free[i];

    g->free[i] = g->free[--g->nfree];
    g->frame_page[frame] = page;
    return frame;
}

static void block_put(Guest *g, uint32_t block)
{
    g->block_page[block] = NONE;
    g->nfree_blocks++;
}

/* Find up to @want free blocks that follow each other.  0: none. */
static unsigned blocks_find(Guest *g, unsigned want, uint32_t *first)
{
    uint32_t at = below(g->rand, g->nblocks);

    for (uint32_t k = 0; k < g->nblocks; k++, at++) {
        unsigned n = 0;

        at = at == g->nblocks ? 0 : at;
        while (n < want && at + n < g->nblocks &&
               g->block_page[at + n] == NONE &&
               g->block[at + n] == g->block[at] + n) {
            n++;
        }
        if (n) {
            *first = at;
            return n;
        }
    }
    return 0;
}

/* Page out */

static bool may_go(Guest *g, uint32_t page)
{
    return g->page[page].where == IN_FRAME;
}

static void drop_clean(Guest *g, uint32_t page)
{
    Page *pg = &g->page[page];

    if (one_in(g->rand, 4)) {
        check_frame(g, page, "drop clean");
    }
    event(EV_DROP_CLEAN, g->index, page, pg->version, g->frame[pg->frame],
          g->block[pg->block]);
    pg->where = ON_DISK;
    frame_put(g, pg->frame);
    pg->frame = NONE;
    g->clean_drops++;
}

/* Choose up to @want pages to go, neighbouring or scattered. */
static unsigned choose_pages(Guest *g, unsigned want, uint32_t *list)
{
    bool runs = g_rand_boolean(g->rand);
    uint32_t at = below(g->rand, g->nframes);
    unsigned n = 0;

    for (unsigned t = 0; t < 2 * want && n < want; t++) {
        uint32_t page = g->frame_page[at];

        if (page != NONE && may_go(g, page)) {
            if (g->page[page].block != NONE) {
                drop_clean(g, page);
            } else if (one_in(g->rand, 16) && !g->page[page].hands_off) {
                /* stays */
            } else {
                bool twice = false;

                for (unsigned i = 0; i < n; i++) {
                    twice |= list[i] == page;
                }
                if (!twice) {
                    list[n++] = page;
                }
            }
        }
        at = runs ? (at + 1) % g->nframes : below(g->rand, g->nframes);
    }
    return n;
}

static void new_content(Guest *g, uint32_t page);

/* What a kernel allows: the page is written to while it goes out. */
static void dirty_some(Guest *g, const uint32_t *list, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        if (one_in(g->rand, 3)) {
            g->page[list[i]].dirtied = true;
            g->dirtied++;
            new_content(g, list[i]);
        }
    }
}

static void start_out(Guest *g, const uint32_t *list, unsigned n,
                      uint32_t first)
{
    Request *r = request_new(g, PAGE_OUT, g->block[first], n);

    if (one_in(g->rand, 3)) {
        r->scribble = 1 + below(g->rand, 3);
    }
    for (unsigned i = 0; i < n; i++) {
        Page *pg = &g->page[list[i]];

        r->page[i] = list[i];
        r->frame[i] = pg->frame;
        pg->where = GOING_OUT;
        pg->block = first + i;
        pg->dirtied = false;
        pg->hands_off = r->scribble;
        g->block_page[first + i] = list[i];
        g->nfree_blocks--;
        event(EV_OUT, g->index, list[i], pg->version, g->frame[pg->frame],
              g->block[pg->block]);
    }
    g->outs += n;
    g->out_requests++;
    request_start(r);
    if (!g->page[list[0]].hands_off && one_in(g->rand, 4)) {
        dirty_some(g, list, n);
    }
}

static void page_out(Guest *g)
{
    static const unsigned sizes[] = { 1, 8, 8, 32, 64, REQUEST_MAX };
    uint32_t list[REQUEST_MAX], first;
    unsigned want = sizes[below(g->rand, ARRAY_SIZE(sizes))];
    unsigned n, done, k;

    if (one_in(g->rand, 3)) {
        want = 1 + below(g->rand, REQUEST_MAX);
    }
    n = choose_pages(g, want, list);
    for (done = 0; done < n && g->inflight < DEPTH; done += k) {
        k = blocks_find(g, n - done, &first);
        if (!k) {
            break;
        }
        start_out(g, list + done, k, first);
    }
}

static void out_done(Guest *g, Request *r)
{
    bool stays = !r->scribble && one_in(g->rand, 8);

    g_assert_cmpint(r->ret, ==, 0);
    for (unsigned i = 0; i < r->n; i++) {
        Page *pg = &g->page[r->page[i]];

        event(EV_OUT_DONE, g->index, r->page[i], pg->version,
              g->frame[pg->frame], g->block[pg->block]);
        g_assert(pg->where == GOING_OUT && pg->frame == r->frame[i]);
        if (pg->dirtied) {
            /* The block has the old content, the new, or some of both. */
            check_frame(g, r->page[i], "dirtied during its page-out");
            pg->where = IN_FRAME;
            block_put(g, pg->block);
            pg->block = NONE;
        } else if (stays) {
            pg->where = IN_FRAME;
        } else {
            pg->where = ON_DISK;
            frame_put(g, pg->frame);
            pg->frame = NONE;
        }
        pg->hands_off = false;
    }
}

/* Page in */

static bool is_on_disk(Guest *g, uint32_t block)
{
    uint32_t page = g->block_page[block];

    return page < g->npages && g->page[page].where == ON_DISK;
}

static void start_in(Guest *g, uint32_t page)
{
    uint32_t block = g->page[page].block, first = block, end = block + 1;
    Request *r;

    if (!g->nfree) {
        return;
    }
    if (!one_in(g->rand, 3)) {
        /* Readahead: the aligned cluster of 8, as far as it is pages */
        uint32_t lo = g->block[block] & ~7u, hi = lo + 8;

        while (first && g->block[first - 1] + 1 == g->block[first] &&
               g->block[first - 1] >= lo && end - first < g->nfree &&
               is_on_disk(g, first - 1)) {
            first--;
        }
        while (end < g->nblocks && g->block[end - 1] + 1 == g->block[end] &&
               g->block[end] < hi && end - first < g->nfree &&
               is_on_disk(g, end)) {
            end++;
        }
    }
    r = request_new(g, PAGE_IN, g->block[first], end - first);
    for (uint32_t b = first; b < end; b++) {
        uint32_t p = g->block_page[b];
        Page *pg = &g->page[p];

        pg->where = COMING_IN;
        pg->frame = frame_get(g, p);
        r->page[b - first] = p;
        r->frame[b - first] = pg->frame;
        event(EV_IN, g->index, p, pg->version, g->frame[pg->frame],
              g->block[b]);
    }
    g->ins += r->n;
    g->in_requests++;
    request_start(r);
}

static void in_done(Guest *g, Request *r)
{
    g_assert_cmpint(r->ret, ==, 0);
    for (unsigned i = 0; i < r->n; i++) {
        Page *pg = &g->page[r->page[i]];

        g_assert(pg->where == COMING_IN && pg->frame == r->frame[i]);
        event(EV_IN_DONE, g->index, r->page[i], pg->version,
              g->frame[pg->frame], g->block[pg->block]);
        if (!one_in(g->rand, 4)) {
            check_frame(g, r->page[i], "paged in");
        }
        pg->where = IN_FRAME;
        if (one_in(g->rand, 2)) {
            block_put(g, pg->block);
            pg->block = NONE;
        }
    }
}

/* Other requests on free blocks */

static void start_discard(Guest *g)
{
    RequestKind kind = g_rand_boolean(g->rand) ? DISCARD : ZERO;
    uint32_t first;
    unsigned n = blocks_find(g, 1 + below(g->rand, REQUEST_MAX), &first);
    Request *r;

    if (!n || g->nfree_blocks < g->nblocks / 8) {
        return;
    }
    r = request_new(g, kind, g->block[first], n);
    r->scribble = g_rand_boolean(g->rand);
    for (unsigned i = 0; i < n; i++) {
        g->block_page[first + i] = BUSY;
        g->nfree_blocks--;
        r->frame[i] = first + i;                /* a block */
        event(kind == DISCARD ? EV_DISCARD_DISK : EV_ZERO_DISK, g->index,
              NONE, 0, NONE, g->block[first + i]);
    }
    g->discards++;
    request_start(r);
}

static void start_flush(Guest *g)
{
    event(EV_FLUSH, g->index, NONE, 0, NONE, NONE);
    g->flushes++;
    request_start(request_new(g, FLUSH, 0, 0));
}

static void discard_done(Guest *g, Request *r)
{
    g_assert_cmpint(r->ret, ==, 0);
    for (unsigned i = 0; i < r->n; i++) {
        block_put(g, r->frame[i]);
    }
}

/* Complete what has arrived.  @wait: until something does. */
static void complete(Guest *g, bool wait)
{
    for (;;) {
        Request *r;

        WITH_QEMU_LOCK_GUARD(&g->lock) {
            while (wait && g->inflight && QSIMPLEQ_EMPTY(&g->done)) {
                qemu_cond_wait(&g->cond, &g->lock);
            }
            r = QSIMPLEQ_FIRST(&g->done);
            if (r) {
                QSIMPLEQ_REMOVE_HEAD(&g->done, next);
            }
        }
        if (!r) {
            return;
        }
        wait = false;
        g->inflight--;
        switch (r->kind) {
        case PAGE_OUT:
            out_done(g, r);
            break;
        case PAGE_IN:
            in_done(g, r);
            break;
        default:
            discard_done(g, r);
            break;
        }
        if (r->qiov.niov) {
            qemu_iovec_destroy(&r->qiov);
        }
        g_free(r);
    }
}

/* Touches */

static void new_content(Guest *g, uint32_t page)
{
    Page *pg = &g->page[page];

    pg->version++;
    fill(g, page);
    event(EV_REWRITE, g->index, page, pg->version, g->frame[pg->frame],
          pg->block == NONE ? NONE : g->block[pg->block]);
}

static void first_touch(Guest *g, uint32_t page)
{
    Page *pg = &g->page[page];
    uint64_t *at;

    if (!g->nfree) {
        return;
    }
    pg->frame = frame_get(g, page);
    pg->where = IN_FRAME;
    at = addr_of(g, pg->frame);
    if (g_rand_boolean(g->rand)) {
        /* init_on_alloc=1 */
        memset(at, 0, BSST_PAGE_SIZE);
        if (one_in(g->rand, 4)) {
            uint32_t version = pg->version;

            pg->version = 0;
            check_frame(g, page, "zeroed");
            pg->version = version;
        }
    }
    pg->version++;
    event(EV_FILL, g->index, page, pg->version, g->frame[pg->frame], NONE);
    fill(g, page);
}

/* The page's content is not needed any more. */
static void forget(Guest *g, uint32_t page)
{
    Page *pg = &g->page[page];

    if (pg->where != IN_FRAME && pg->where != ON_DISK) {
        return;
    }
    event(EV_FORGET, g->index, page, pg->version, pg->frame == NONE
          ? NONE : g->frame[pg->frame], pg->block == NONE
          ? NONE : g->block[pg->block]);
    if (pg->frame != NONE) {
        frame_put(g, pg->frame);
    }
    if (pg->block != NONE) {
        block_put(g, pg->block);
    }
    pg->frame = pg->block = NONE;
    pg->where = NOWHERE;
    g->forgotten++;
}

static void touch(Guest *g, uint32_t page)
{
    Page *pg = &g->page[page];
    bool rewrite = g_rand_boolean(g->rand);

    g->touches++;
    switch (pg->where) {
    case NOWHERE:
        first_touch(g, page);
        break;
    case IN_FRAME:
        check_frame(g, page, "touch");
        if (rewrite) {
            if (pg->block != NONE) {
                block_put(g, pg->block);
                pg->block = NONE;
            }
            new_content(g, page);
        }
        break;
    case ON_DISK:
        start_in(g, page);
        break;
    case GOING_OUT:
        if (pg->hands_off) {
            break;
        }
        check_frame(g, page, "touch during page-out");
        if (rewrite) {
            pg->dirtied = true;
            g->dirtied++;
            new_content(g, page);
        }
        break;
    case COMING_IN:
        break;
    }
}

static uint32_t choose_page(Guest *g)
{
    unsigned dice = below(g->rand, 8);

    if (dice < 4) {
        g->hand = (g->hand + 1) % g->npages;
        return g->hand;
    }
    if (dice < 6) {
        return below(g->rand, MAX(g->npages / 8, 1));
    }
    return below(g->rand, g->npages);
}

static void *guest_run(void *opaque)
{
    Guest *g = opaque;
    uint32_t low = MAX(g->nframes / 16, 8);

    while (!qatomic_read(&g->s->stop)) {
        unsigned dice = below(g->rand, 10000);

        complete(g, false);
        if (g->inflight >= DEPTH || (!g->nfree && g->inflight)) {
            complete(g, true);
        } else if (g->nfree < low) {
            page_out(g);
        } else if (dice < 20) {
            page_out(g);
        } else if (dice < 60) {
            forget(g, below(g->rand, g->npages));
        } else if (dice < 70) {
            start_discard(g);
        } else if (dice < 72) {
            if (one_in(g->rand, 5)) {
                start_flush(g);
            }
        } else if (dice < 80 && g->inflight) {
            complete(g, true);
        }
        touch(g, choose_page(g));
    }
    while (g->inflight) {
        complete(g, true);
    }
    for (uint32_t i = 0; i < g->npages; i++) {
        if (g->page[i].where == IN_FRAME) {
            check_frame(g, i, "at the end");
        }
    }
    return NULL;
}

/* The file thread: requests of any alignment, one after the other */

typedef struct File {
    Stress *s;
    QemuThread thread;
    GRand *rand;
    uint32_t frame[FILE_FRAMES];
    uint8_t *shadow;
    uint64_t requests;
} File;

typedef struct FileRequest {
    Stress *s;
    QEMUIOVector qiov;
    int64_t offset, bytes;
    int kind;                       /* 0 read, 1 write, 2 write zeroes */
    int ret;
    QemuSemaphore done;
} FileRequest;

static void coroutine_fn file_co_entry(void *opaque)
{
    FileRequest *r = opaque;
    BlockBackend *blk = r->s->blk;

    if (r->kind == 2) {
        r->ret = blk_co_pwrite_zeroes(blk, r->offset, r->bytes, 0);
    } else if (r->kind == 1) {
        r->ret = blk_co_pwritev(blk, r->offset, r->bytes, &r->qiov, 0);
    } else {
        r->ret = blk_co_preadv(blk, r->offset, r->bytes, &r->qiov, 0);
    }
    qemu_sem_post(&r->done);
}

/* Pieces of the file's frames, none of which is used twice. */
static int64_t file_memory(File *f, QEMUIOVector *qiov, int64_t want)
{
    uint32_t at = below(f->rand, FILE_FRAMES);
    bool whole = g_rand_boolean(f->rand);
    int64_t bytes = 0;

    for (unsigned i = 0; i < FILE_FRAMES && bytes < want; i++) {
        uint8_t *page = (uint8_t *)frame_addr_of(f->s, f->frame[at]);
        unsigned skip = 0, len = BSST_PAGE_SIZE;

        if (!whole && one_in(f->rand, 4)) {
            skip = below(f->rand, 8) * BDRV_SECTOR_SIZE;
            len = (1 + below(f->rand, 8)) * BDRV_SECTOR_SIZE;
        }
        len = MIN(len, BSST_PAGE_SIZE - skip);
        len = MIN(len, want - bytes);
        qemu_iovec_add(qiov, page + skip, len);
        bytes += len;
        at = (at + 1) % FILE_FRAMES;
    }
    return bytes;
}

static void file_compare(File *f, FileRequest *r)
{
    const uint8_t *want = f->shadow + r->offset;
    size_t at = 0;

    for (int i = 0; i < r->qiov.niov; i++) {
        const struct iovec *v = &r->qiov.iov[i];
        const uint8_t *got = v->iov_base;

        for (size_t k = 0; k < v->iov_len; k++) {
            if (got[k] != want[at + k]) {
                fprintf(stderr, "\nWRONG DATA (file): seed %u offset %" PRId64
                        " of request %" PRId64 "+%" PRId64 ": wanted %02x, "
                        "found %02x\n", seed, r->offset + at + k, r->offset,
                        r->bytes, want[at + k], got[k]);
                show_pager_page(f->s, (got - f->s->mem) / BSST_PAGE_SIZE);
                abort();
            }
        }
        at += v->iov_len;
    }
}

static void file_request(File *f)
{
    FileRequest r = { .s = f->s };
    int64_t want = (1 + below(f->rand, 256)) * BDRV_SECTOR_SIZE;

    if (g_rand_boolean(f->rand)) {
        want = (1 + below(f->rand, 32)) * BSST_PAGE_SIZE;
    }
    r.kind = one_in(f->rand, 20) ? 2 : g_rand_boolean(f->rand);
    qemu_sem_init(&r.done, 0);
    qemu_iovec_init(&r.qiov, 32);
    r.bytes = file_memory(f, &r.qiov, want);
    r.offset = below(f->rand, (FILE_BYTES - r.bytes) / BDRV_SECTOR_SIZE + 1) *
               BDRV_SECTOR_SIZE;
    if (g_rand_boolean(f->rand)) {
        r.offset &= -(int64_t)BSST_PAGE_SIZE;
    }
    if (r.kind == 1) {
        for (int i = 0; i < r.qiov.niov; i++) {
            uint8_t *at = r.qiov.iov[i].iov_base;

            for (size_t k = 0; k < r.qiov.iov[i].iov_len; k += 4) {
                stl_he_p(at + k, g_rand_int(f->rand));
            }
        }
        qemu_iovec_to_buf(&r.qiov, 0, f->shadow + r.offset, r.bytes);
        if (one_in(f->rand, 2)) {
            g_usleep(below(f->rand, 5000));     /* they may leave now */
        }
    } else if (r.kind == 2) {
        memset(f->shadow + r.offset, 0, r.bytes);
    }
    aio_co_schedule(f->s->ctx[below(f->rand, f->s->nctx)],
                    qemu_coroutine_create(file_co_entry, &r));
    qemu_sem_wait(&r.done);
    g_assert_cmpint(r.ret, >=, 0);
    if (r.kind == 0) {
        file_compare(f, &r);
    }
    qemu_iovec_destroy(&r.qiov);
    qemu_sem_destroy(&r.done);
    f->requests++;
}

static void *file_run(void *opaque)
{
    File *f = opaque;

    while (!qatomic_read(&f->s->stop)) {
        file_request(f);
    }
    return NULL;
}

/* Dealing out frames and blocks: in runs, so that neighbours are mixed */

static unsigned deal_run(GRand *rand)
{
    static const unsigned runs[] = { 1, 2, 8, 8, 32, 64, 256 };

    return runs[below(rand, ARRAY_SIZE(runs))];
}

static void deal(Stress *s, uint32_t first, uint32_t end, bool blocks)
{
    while (first < end) {
        Guest *g = &s->guest[below(s->rand, s->nguests)];
        unsigned n = MIN(deal_run(s->rand), end - first);

        while (n--) {
            if (blocks) {
                g->block[g->nblocks++] = first++;
            } else {
                g->frame[g->nframes++] = first++;
            }
        }
    }
}

static void guests_init(Stress *s, File *f)
{
    s->guest = g_new0(Guest, s->nguests);
    for (unsigned i = 0; i < s->nguests; i++) {
        Guest *g = &s->guest[i];

        *g = (Guest) { .s = s, .index = i };
        g->rand = g_rand_new_with_seed(g_rand_int(s->rand));
        g->frame = g_new(uint32_t, s->nframes);
        g->block = g_new(uint32_t, s->nblocks);
        qemu_mutex_init(&g->lock);
        qemu_cond_init(&g->cond);
        QSIMPLEQ_INIT(&g->done);
    }
    for (unsigned i = 0; i < FILE_FRAMES; i++) {
        f->frame[i] = i;
    }
    deal(s, FILE_FRAMES, s->nframes, false);
    deal(s, FILE_BLOCKS, s->nblocks, true);
    for (unsigned i = 0; i < s->nguests; i++) {
        Guest *g = &s->guest[i];

        g_assert(g->nframes > 64 && g->nblocks > 256);
        g->npages = MIN(g->nframes * 2, g->nframes / 2 + g->nblocks * 3 / 4);
        g->page = g_new0(Page, g->npages);
        g->frame_page = g_new(uint32_t, g->nframes);
        g->block_page = g_new(uint32_t, g->nblocks);
        g->free = g_new(uint32_t, g->nframes);
        for (uint32_t k = 0; k < g->npages; k++) {
            g->page[k].frame = g->page[k].block = NONE;
        }
        for (uint32_t k = 0; k < g->nframes; k++) {
            g->frame_page[k] = NONE;
            g->free[g->nfree++] = k;
        }
        for (uint32_t k = 0; k < g->nblocks; k++) {
            g->block_page[k] = NONE;
        }
        g->nfree_blocks = g->nblocks;
    }
}

static void guests_free(Stress *s)
{
    for (unsigned i = 0; i < s->nguests; i++) {
        Guest *g = &s->guest[i];

        g_rand_free(g->rand);
        qemu_mutex_destroy(&g->lock);
        qemu_cond_destroy(&g->cond);
        g_free(g->page);
        g_free(g->frame);
        g_free(g->block);
        g_free(g->frame_page);
        g_free(g->block_page);
        g_free(g->free);
    }
    g_free(s->guest);
}

/* Set up */

static void put_file(QDict *opts, const char *prefix, const char *path,
                     const char *aio, bool direct)
{
    g_autofree char *driver = g_strconcat(prefix, "driver", NULL);
    g_autofree char *name = g_strconcat(prefix, "filename", NULL);
    g_autofree char *aio_key = g_strconcat(prefix, "aio", NULL);
    g_autofree char *cache = g_strconcat(prefix, "cache.direct", NULL);

    qdict_put_str(opts, driver, "file");
    qdict_put_str(opts, name, path);
    qdict_put_str(opts, aio_key, aio);
    qdict_put_str(opts, cache, direct ? "on" : "off");
}

static void open_disk(Stress *s)
{
    bool direct = !strcmp(s->aio, "native") || g_rand_boolean(s->rand);
    QDict *opts = qdict_new();

    qdict_put_str(opts, "driver", "bsst");
    qdict_put_str(opts, "store", "store0");
    qdict_put_str(opts, "drain-on-close", "on");
    qdict_put_str(opts, "file.driver", "qcow2");
    qdict_put_str(opts, "file.discard", "unmap");
    put_file(opts, "file.file.", s->image, s->aio, direct);
    s->blk = blk_new_open(NULL, NULL, opts, BDRV_O_RDWR | BDRV_O_UNMAP,
                          &error_abort);
    blk_set_enable_write_cache(s->blk, true);
    g_test_message("image: aio=%s direct=%d", s->aio, direct);
}

static bool open_store(Stress *s, uint64_t bytes, char **skip)
{
    BlockdevAioOptions aio = qapi_enum_parse(&BlockdevAioOptions_lookup,
                                             s->aio, -1, &error_abort);
    QDict *opts = qdict_new();
    Error *err = NULL;

    bsst_store_create(s->store_path, bytes, &error_abort);
    qdict_put_str(opts, "driver", "qcow2");
    qdict_put_str(opts, "node-name", "store0");
    put_file(opts, "file.", s->store_path, "threads", false);
    s->store_bs = bdrv_open(NULL, NULL, opts, BDRV_O_RDWR, &error_abort);
    s->store = bsst_store_open("store0", aio, &err);
    if (!s->store) {
        *skip = g_strdup(error_get_pretty(err));
        error_free(err);
        return false;
    }
    return true;
}

static void start_pager(Stress *s)
{
    PagerRegion region[REGIONS];
    uint32_t at = 0;

    s->p = pager_new("stress", 1 + below(s->rand, 4), &error_abort);
    s->p->cluster = 1u << below(s->rand, 6);
    if (g_rand_boolean(s->rand)) {
        s->p->cluster = 8;
    }
    s->p->base.tesseract = true;
    pager_attach_store(s->p, s->store, &error_abort);
    pager_set_victim_bytes(s->p, 1 * MiB);
    /* Regions begin with a chunk each, so that all shards have work. */
    for (unsigned i = 0; i < REGIONS; i++) {
        uint32_t n = i < REGIONS - 1 ? s->nframes / REGIONS + i * 3
                                     : s->nframes - at;

        region[i] = (PagerRegion) {
            .host = (uint8_t *)frame_addr_of(s, at), .npages = n,
        };
        at += n;
    }
    pager_set_regions(s->p, region, REGIONS);
    g_test_message("%u shards, cluster %u", s->p->nshards, s->p->cluster);
}

static void start_iothreads(Stress *s)
{
    s->niothreads = below(s->rand, IOTHREADS_MAX + 1);
    s->nctx = MAX(s->niothreads, 1);
    s->ctx[0] = qemu_get_aio_context();
    for (unsigned i = 0; i < s->niothreads; i++) {
        g_autofree char *name = g_strdup_printf("io%u", i);

        s->iothread[i] = iothread_create(name, &error_abort);
        s->ctx[i] = iothread_get_aio_context(s->iothread[i]);
    }
    g_test_message("%u IOThreads", s->niothreads);
    /*
     * As for a device with an IOThread the disk stays there when a job ends.
     * (Else QEMU would drain it with the graph lock held, and might hang.)
     */
    blk_set_aio_context(s->blk, s->ctx[0], &error_abort);
}

static void tick(void *opaque)
{
    Stress *s = opaque;

    timer_mod(s->timer, qemu_clock_get_ms(QEMU_CLOCK_REALTIME) + 5);
}

static bool setup(Stress *s, uint64_t ram, uint64_t disk, uint64_t store,
                  char **skip)
{
    g_autofree char *why = NULL;

    s->rand = g_rand_new_with_seed(seed);
    s->nframes = ram / BSST_PAGE_SIZE;
    s->nblocks = disk / BSST_PAGE_SIZE;
    s->nguests = 1 + below(s->rand, GUESTS_MAX);
    s->dir = g_dir_make_tmp("bsst-stress-XXXXXX", NULL);
    g_assert_nonnull(s->dir);
    s->store_path = g_build_filename(s->dir, "store.qcow2", NULL);
    s->image = g_build_filename(s->dir, "disk.qcow2", NULL);
    bdrv_img_create(s->image, "qcow2", NULL, NULL, NULL, disk, 0, true,
                    &error_abort);
    if (!open_store(s, store, skip)) {
        return false;
    }
    open_disk(s);
    s->mem = mmap(NULL, ram, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    g_assert(s->mem != MAP_FAILED);
    madvise(s->mem, ram, g_rand_boolean(s->rand) ? MADV_HUGEPAGE
                                                 : MADV_NOHUGEPAGE);
    start_pager(s);
    start_iothreads(s);
    s->timer = aio_timer_new(qemu_get_aio_context(), QEMU_CLOCK_REALTIME,
                             SCALE_MS, tick, s);
    tick(s);
    return true;
}

/* The main thread's part */

static void set_limit(Stress *s, unsigned percent)
{
    uint64_t bytes = (uint64_t)s->nframes * BSST_PAGE_SIZE / 100 * percent;

    event(EV_LIMIT, 0, NONE, percent, NONE, NONE);
    pager_set_limit(s->p, bytes);
}

static void set_victims(Stress *s)
{
    static const unsigned kib[] = { 0, 64, 256, 1024, 2048, 8192 };
    unsigned k = kib[below(s->rand, ARRAY_SIZE(kib))];

    event(EV_VICTIM, 0, NONE, k, NONE, NONE);
    pager_set_victim_bytes(s->p, k * KiB);
}

static void evict_some(Stress *s)
{
    PagerRegion *r = &s->p->region[below(s->rand, REGIONS)];
    uint64_t n = 1 + below(s->rand, 256);
    uint64_t at = below(s->rand, r->npages - n);
    bool to_store = !one_in(s->rand, 4);

    if (one_in(s->rand, 2)) {
        /* What the file thread has in hand */
        r = &s->p->region[0];
        at = 0;
        n = FILE_FRAMES;
    }

    event(EV_EVICT, 0, NONE, to_store, (r->host - s->mem) / BSST_PAGE_SIZE +
          at, n);
    pager_evict_range(s->p, r->first + at, n, to_store);
}

/* Jobs */

typedef enum StressJob {
    JOB_GUEST, JOB_GUEST_PLANNED, JOB_STORE, JOB_STORE_PLANNED, JOB_DRAIN,
    JOB_KINDS,
} StressJob;

static void start_job(Stress *s, StressJob kind)
{
    bool store = kind == JOB_STORE || kind == JOB_STORE_PLANNED;
    bool planned = kind == JOB_GUEST_PLANNED || kind == JOB_STORE_PLANNED;
    int64_t speed = one_in(s->rand, 2) ? 0 : 256 * KiB << below(s->rand, 8);

    event(EV_JOB, 0, NONE, kind, NONE, NONE);
    s->jobs++;
    if (kind == JOB_DRAIN) {
        qmp_bsst_drain(&(BsstDrainOptions) {
            .job_id = (char *)"j",
            .node = (char *)bdrv_get_node_name(blk_bs(s->blk)),
            .has_speed = true,
            .speed = speed,
        }, &error_abort);
    } else {
        qmp_bsst_defrag(&(BsstDefragOptions) {
            .job_id = (char *)"j",
            .node = (char *)bdrv_get_node_name(blk_bs(s->blk)),
            .has_speed = true,
            .speed = speed,
            .mode = store ? BSST_DEFRAG_MODE_STORE : BSST_DEFRAG_MODE_GUEST,
            .has_continuous = true,
            .continuous = one_in(s->rand, 2),
            .has_force = true,
            .force = !planned,
            /* A small store has no room for it */
            .has_on_error = true,
            .on_error = BLOCKDEV_ON_ERROR_IGNORE,
        }, &error_abort);
    }
}

static void change_job(Stress *s)
{
    unsigned dice = below(s->rand, 4);
    BlockJob *job;

    JOB_LOCK_GUARD();
    job = block_job_get_locked("j");
    if (!job) {
        return;
    }
    event(EV_JOB, 0, NONE, JOB_KINDS + dice, NONE, NONE);
    s->job_changes++;
    /* The state that it is in may forbid it, which is as good. */
    if (dice == 0) {
        job_user_pause_locked(&job->job, NULL);
    } else if (dice == 1) {
        job_user_resume_locked(&job->job, NULL);
    } else if (dice == 2) {
        block_job_set_speed_locked(job, below(s->rand, 2) * 16 * MiB, NULL);
    } else {
        job_user_cancel_locked(&job->job, false, NULL);
    }
}

static void end_job(void)
{
    WITH_JOB_LOCK_GUARD() {
        BlockJob *job = block_job_get_locked("j");

        if (job) {
            job_user_cancel_locked(&job->job, true, NULL);
        }
    }
    AIO_WAIT_WHILE_UNLOCKED(NULL, block_job_get("j"));
}

static void interfere(Stress *s)
{
    static const unsigned percents[] = { 30, 40, 50, 60, 75, 90 };
    unsigned dice = below(s->rand, 100);

    if (dice < 10) {
        set_limit(s, percents[below(s->rand, ARRAY_SIZE(percents))]);
    } else if (dice < 11) {
        set_limit(s, 0);
    } else if (dice < 20) {
        set_victims(s);
    } else if (dice < 24) {
        event(EV_TESSERACT, 0, NONE, 0, NONE, NONE);
        qatomic_set(&s->p->base.tesseract, false);
    } else if (dice < 35) {
        event(EV_TESSERACT, 0, NONE, 1, NONE, NONE);
        qatomic_set(&s->p->base.tesseract, true);
    } else if (dice < 60) {
        evict_some(s);
    } else if (dice < 75) {
        if (!block_job_get("j")) {
            start_job(s, below(s->rand, JOB_KINDS));
        }
    } else if (dice < 90) {
        change_job(s);
    }
}

/* Let the main loop run, so that requests are served, for a while. */
static void run_main_loop(unsigned ms)
{
    int64_t end = g_get_monotonic_time() + ms * 1000;

    do {
        aio_poll(qemu_get_aio_context(), true);
    } while (g_get_monotonic_time() < end);
}

typedef struct Joiner {
    QemuThread *thread;
    bool joined;
} Joiner;

static void *joiner_run(void *opaque)
{
    Joiner *j = opaque;

    qemu_thread_join(j->thread);
    qatomic_store_release(&j->joined, true);
    return NULL;
}

/* Join a thread that may need the main loop until it ends. */
static void join(QemuThread *thread)
{
    Joiner j = { .thread = thread };
    QemuThread helper;

    qemu_thread_create(&helper, "joiner", joiner_run, &j,
                       QEMU_THREAD_JOINABLE);
    while (!qatomic_load_acquire(&j.joined)) {
        aio_poll(qemu_get_aio_context(), true);
    }
    qemu_thread_join(&helper);
}

static void nothing(void *opaque)
{
}

static void check_disk(Stress *s, File *f, BlockBackend *blk, const char *when)
{
    uint64_t *buf = qemu_memalign(BSST_PAGE_SIZE, FILE_BYTES);

    for (unsigned i = 0; i < s->nguests; i++) {
        Guest *g = &s->guest[i];

        for (uint32_t k = 0; k < g->npages; k++) {
            Page *pg = &g->page[k];

            if (pg->block != NONE) {
                g_assert_cmpint(blk_pread(blk, (int64_t)g->block[pg->block] *
                                          BSST_PAGE_SIZE, BSST_PAGE_SIZE, buf,
                                          0), ==, 0);
                check(g, k, buf, when);
            }
        }
    }
    g_assert_cmpint(blk_pread(blk, 0, FILE_BYTES, buf, 0), ==, 0);
    g_assert_cmpint(memcmp(buf, f->shadow, FILE_BYTES), ==, 0);
    qemu_vfree(buf);
}

static void show_counters(Stress *s, File *f)
{
    g_autoptr(BsstInfo) info = qmp_query_bsst(&error_abort);
    BsstNodeStats *n = info->nodes->value;
    PagerCounters c = s->p->n;
    Guest sum = { 0 };

    for (unsigned i = 0; i < s->nguests; i++) {
        Guest *g = &s->guest[i];

        sum.touches += g->touches;
        sum.outs += g->outs;
        sum.out_requests += g->out_requests;
        sum.ins += g->ins;
        sum.in_requests += g->in_requests;
        sum.dirtied += g->dirtied;
        sum.discards += g->discards;
        sum.flushes += g->flushes;
        sum.ram_discards += g->ram_discards;
        sum.clean_drops += g->clean_drops;
    }
    g_test_message("%u guests: %" PRIu64 " touches, %" PRIu64 " pages out in %"
                   PRIu64 " requests (%" PRIu64 " dirtied meanwhile, %" PRIu64
                   " more were clean), %" PRIu64 " in in %" PRIu64 "; %" PRIu64
                   " disk and %" PRIu64 " RAM discards, %" PRIu64 " flushes, %"
                   PRIu64 " file requests", s->nguests, sum.touches, sum.outs,
                   sum.out_requests, sum.dirtied, sum.clean_drops, sum.ins,
                   sum.in_requests, sum.discards, sum.ram_discards,
                   sum.flushes, f->requests);
    g_test_message("pager: %" PRIu64 " evicted, %" PRIu64 " written, %" PRIu64
                   " zero, %" PRIu64 " read, faults %" PRIu64 " victim %"
                   PRIu64 " store %" PRIu64 " zero %" PRIu64 " raced, %" PRIu64
                   " restored, refused %" PRIu64 " pinned %" PRIu64 " absent %"
                   PRIu64 " retry", c.evicted, c.swap_outs, c.zero_outs,
                   c.swap_ins, c.faults_victim, c.faults_store, c.faults_zero,
                   c.faults_raced, c.intercepted_restore_pages,
                   c.refused_pinned, c.refused_absent, c.refused_retry);
    g_test_message("bsst: %" PRIu64 " indirections made, removed: %" PRIu64
                   " overwritten %" PRIu64 " discarded %" PRIu64 " drained; %"
                   PRIu64 " copied up; pages: %" PRIu64 " from buffers %"
                   PRIu64 " zero %" PRIu64 " loaded %" PRIu64 " installed; "
                   "reads: %" PRIu64 " split %" PRIu64 " from the store",
                   n->made, n->removed_overwrite, n->removed_discard,
                   n->removed_drain, n->copy_ups, n->buffered_pages,
                   n->zero_pages, n->loaded_pages, n->installed_pages,
                   n->split_reads, n->store_reads);
    g_test_message("defrag: %u jobs, %u times changed; %" PRIu64 " blocks "
                   "moved, %" PRIu64 " re-laid, %" PRIu64 " failed; %" PRIu64
                   " slices, %" PRIu64 " cut", s->jobs, s->job_changes,
                   n->defrag->moved, n->defrag->relaid, n->defrag->failed,
                   n->defrag->slices, n->defrag->cuts);
}

static uint64_t slots_in_use(const Stress *s)
{
    g_autoptr(BsstStoreStats) st = bsst_store_query(s->store);

    g_assert_cmpuint(st->checksum_errors, ==, 0);
    g_assert_cmpuint(st->io_errors, ==, 0);
    return st->slots - st->slots_free;
}

static void teardown(Stress *s, File *f)
{
    BlockBackend *blk;
    QDict *opts = qdict_new();

    blk_set_aio_context(s->blk, qemu_get_aio_context(), &error_abort);
    pager_set_limit(s->p, 0);
    AIO_WAIT_WHILE_UNLOCKED(NULL, qatomic_read(&s->p->base.armed));
    for (unsigned i = 0; i < s->niothreads; i++) {
        iothread_destroy(s->iothread[i]);
    }
    blk_unref(s->blk);

    /* The image is complete without us. */
    qdict_put_str(opts, "driver", "qcow2");
    put_file(opts, "file.", s->image, "threads", false);
    blk = blk_new_open(NULL, NULL, opts, 0, &error_abort);
    check_disk(s, f, blk, "in the image alone");
    blk_unref(blk);

    for (int i = 0; i < 500 && slots_in_use(s); i++) {
        run_main_loop(10);
    }
    g_assert_cmpuint(slots_in_use(s), ==, 0);
    pager_stop(s->p);
    pager_detach_store(s->p);
    g_assert_cmpuint(s->p->base.refcnt, ==, 1);
    bsst_pager_unref(&s->p->base);
    munmap(s->mem, (size_t)s->nframes * BSST_PAGE_SIZE);
}

/* Cases */

typedef struct Case {
    const char *name;
    const char *aio;
    unsigned ram_mib, disk_mib, store_mib;
} Case;

static const Case test_case[] = {
    { "/bsst-stress/threads", "threads", 24, 96, 128 },
    { "/bsst-stress/native", "native", 24, 96, 128 },
    { "/bsst-stress/io_uring", "io_uring", 40, 160, 256 },
    { "/bsst-stress/small-store", "threads", 24, 64, 12 },
};

static void run_stress(Stress *s, File *f)
{
    int64_t end;

    *f = (File) { .s = s, .shadow = g_malloc0(FILE_BYTES) };
    f->rand = g_rand_new_with_seed(seed + 1);
    guests_init(s, f);
    set_limit(s, 50);
    for (unsigned i = 0; i < s->nguests; i++) {
        qemu_thread_create(&s->guest[i].thread, "guest", guest_run,
                           &s->guest[i], QEMU_THREAD_JOINABLE);
    }
    qemu_thread_create(&f->thread, "file", file_run, f, QEMU_THREAD_JOINABLE);
    end = g_get_monotonic_time() + seconds * (int64_t)G_USEC_PER_SEC;
    while (g_get_monotonic_time() < end) {
        run_main_loop(1 + below(s->rand, 30));
        interfere(s);
    }
    qatomic_set(&s->stop, true);
    for (unsigned i = 0; i < s->nguests; i++) {
        join(&s->guest[i].thread);
    }
    join(&f->thread);
    for (unsigned i = 0; i < s->nctx; i++) {
        aio_wait_bh_oneshot(s->ctx[i], nothing, NULL);
    }
    end_job();
    check_disk(s, f, s->blk, "on the disk at the end");
    show_counters(s, f);
}

static void run_case(const void *opaque)
{
    const Case *c = opaque;
    g_autofree char *skip = NULL;
    Stress s = { .aio = c->aio };
    File f;

    watchdog_begin(c->name, WATCHDOG_S + 2 * seconds);
    event_log = g_new0(Event, EVENTS);
    event_next = 0;
    if (setup(&s, c->ram_mib * MiB, c->disk_mib * MiB, c->store_mib * MiB,
              &skip)) {
        run_stress(&s, &f);
        teardown(&s, &f);
        guests_free(&s);
        timer_free(s.timer);
        g_rand_free(f.rand);
        g_free(f.shadow);
    } else {
        g_test_skip(skip);
    }
    bsst_store_unref(s.store);
    bdrv_unref(s.store_bs);
    unlink(s.image);
    unlink(s.store_path);
    rmdir(s.dir);
    g_free(s.image);
    g_free(s.store_path);
    g_free(s.dir);
    g_rand_free(s.rand);
    g_free(event_log);
    watchdog_end();
}

/*
 * Several threads move groups of pages out of the same huge pages, which have
 * to be split for it: what has moved, and what is said to have?
 */

#define HUGE_BYTES      (2 * MiB)
#define HUGE_PAGES      (HUGE_BYTES / BSST_PAGE_SIZE)
#define HUGE_GROUP      8

typedef struct HugeMove {
    int uffd, pagemap_fd;
    uint8_t *src, *dst;
    unsigned next;                  /* atomic: page */
    uint64_t moved;                 /* atomic */
} HugeMove;

static void move_group(HugeMove *h, size_t at)
{
    size_t bytes = HUGE_GROUP * BSST_PAGE_SIZE, done;
    unsigned char in[HUGE_GROUP];
    int err;

    done = uffd_swapper_move(h->uffd, h->pagemap_fd, h->dst + at, h->src + at,
                             bytes, &err) / BSST_PAGE_SIZE;
    g_assert_cmpint(mincore(h->dst + at, bytes, in), ==, 0);
    for (unsigned i = 0; i < HUGE_GROUP; i++) {
        if ((in[i] & 1) != (i < done)) {
            g_error("%zu of %u pages are said to have moved (%s), but page %u "
                    "has%s", done, HUGE_GROUP, strerror(err), i,
                    in[i] & 1 ? "" : " not");
        }
    }
    qatomic_add(&h->moved, done);
}

static void *huge_move_run(void *opaque)
{
    HugeMove *h = opaque;

    for (;;) {
        unsigned page = qatomic_fetch_add(&h->next, HUGE_GROUP);

        if (page >= HUGE_PAGES) {
            return NULL;
        }
        move_group(h, (size_t)page * BSST_PAGE_SIZE);
    }
}

static void test_huge_pages(void)
{
    int64_t end = g_get_monotonic_time() + seconds * (int64_t)G_USEC_PER_SEC;
    size_t bytes = 2 * HUGE_BYTES;
    uint8_t *mem = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    HugeMove h = { .uffd = uffd_swapper_open(false, &error_abort) };
    unsigned rounds;

    h.pagemap_fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    g_assert_cmpint(h.pagemap_fd, >=, 0);
    h.src = QEMU_ALIGN_PTR_UP(mem, HUGE_BYTES);
    h.dst = mmap(NULL, HUGE_BYTES, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    g_assert(mem != MAP_FAILED && h.dst != MAP_FAILED);
    madvise(h.src, HUGE_BYTES, MADV_HUGEPAGE);
    madvise(h.dst, HUGE_BYTES, MADV_NOHUGEPAGE);
    g_assert_cmpint(uffd_swapper_register(h.uffd, h.dst, HUGE_BYTES, false), ==, 0);
    for (rounds = 0; g_get_monotonic_time() < end; rounds++) {
        QemuThread thread[3];

        memset(h.src, 1, HUGE_BYTES);
        h.next = 0;
        for (int i = 0; i < ARRAY_SIZE(thread); i++) {
            qemu_thread_create(&thread[i], "mover", huge_move_run, &h,
                               QEMU_THREAD_JOINABLE);
        }
        for (int i = 0; i < ARRAY_SIZE(thread); i++) {
            qemu_thread_join(&thread[i]);
        }
        madvise(h.src, HUGE_BYTES, MADV_DONTNEED);
        madvise(h.dst, HUGE_BYTES, MADV_DONTNEED);
    }
    g_test_message("%u huge pages, %" PRIu64 " pages moved", rounds, h.moved);
    g_assert_cmpuint(h.moved, >, 0);
    close(h.uffd);
    close(h.pagemap_fd);
    munmap(mem, bytes);
    munmap(h.dst, HUGE_BYTES);
}

static void unavailable(const void *opaque)
{
    g_test_skip(opaque);
}

int main(int argc, char **argv)
{
    g_autofree char *why = NULL;
    const char *env;
    Error *err = NULL;
    int fd;

    bdrv_init();
    module_call_init(MODULE_INIT_QOM);
    qemu_init_main_loop(&error_abort);
    g_test_init(&argc, &argv, NULL);

    seed = bsst_test_seed();
    env = g_getenv("BSST_TEST_SECONDS");
    seconds = env ? g_ascii_strtoull(env, NULL, 0) : seconds;
    watchdog_init();

    fd = uffd_swapper_open(false, &err);
    if (fd < 0) {
        why = g_strdup(error_get_pretty(err));
        error_free(err);
    } else {
        close(fd);
    }
    for (size_t i = 0; i < ARRAY_SIZE(test_case); i++) {
        if (why) {
            g_test_add_data_func(test_case[i].name, why, unavailable);
        } else {
            g_test_add_data_func(test_case[i].name, &test_case[i], run_case);
        }
    }
    if (why) {
        g_test_add_data_func("/bsst-stress/huge-pages", why, unavailable);
    } else {
        g_test_add_func("/bsst-stress/huge-pages", test_huge_pages);
    }
    return g_test_run();
}

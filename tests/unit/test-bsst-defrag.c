/*
 * bsst block driver: moving blocks out of the store, against everything else
 *
 * A move is held at each of its steps (its first read of the store, its first
 * write, the flush at its end), and every kind of request, or another job, a
 * drained section, a cancellation come meanwhile; also the other way round: the
 * request is held, and the move comes.  What must wait has to wait, what must
 * not has to end, and the disk is what the guest wrote.
 *
 * Steps are held, and errors made, in the C library's functions, which are
 * replaced here; store and image use thread pools.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include <sys/syscall.h>
#include <sys/uio.h>
#include "block/aio-wait.h"
#include "block/block.h"
#include "block/blockjob.h"
#include "block/bsst-int.h"
#include "bsst-driver-fixture.h"
#include "iothread.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-bsst.h"
#include "qemu/cutils.h"
#include "qemu/iov.h"
#include "qemu/job.h"
#include "qemu/lockable.h"
#include "qemu/main-loop.h"
#include "qemu/memalign.h"
#include "qemu/timer.h"
#include "qemu/units.h"

/* What is indirected; the rest of the disk is not. */
#define MOVED_BLOCKS    128
/* What requests are about: within that; behind it */
#define OP_BLOCK        8
#define OP_BLOCKS       12
#define OTHER_BLOCK     700

#define TIMEOUT_NS      (20 * NANOSECONDS_PER_SECOND)
/* Long enough for whatever can end without us */
#define SOON_NS         (20 * SCALE_MS)

/* Steps */

typedef enum Step {
    STEP_STORE_READ, STEP_STORE_WRITE, STEP_STORE_FLUSH,
    STEP_IMAGE_READ, STEP_IMAGE_WRITE, STEP_IMAGE_FLUSH,
    STEP_NONE,
} Step;

static const char *const step_name[] = {
    "store-read", "store-write", "store-flush",
    "image-read", "image-write", "image-flush", "none",
};

static struct {
    QemuMutex lock;
    QemuCond cond;
    ino_t store, image;
    Step hold;                  /* the next one of this kind stays */
    bool held;                  /* there it is */
    bool open;
    Step fail;                  /* all of this kind do ... */
    int64_t fail_block;         /* ... that touch this block; -1: any */
    unsigned count[STEP_NONE];
} gate;

static int gate_pass(Step step, off_t offset, size_t bytes)
{
    int64_t at = gate.fail_block * BSST_PAGE_SIZE;
    bool hit;

    QEMU_LOCK_GUARD(&gate.lock);

    gate.count[step]++;
    hit = gate.fail_block < 0 ||
          (at < offset + bytes && at + BSST_PAGE_SIZE > offset);
    if (gate.fail == step && hit) {
        return -EIO;
    }
    if (gate.hold != step) {
        return 0;
    }
    gate.hold = STEP_NONE;
    gate.held = true;
    while (!gate.open) {
        qemu_cond_wait(&gate.cond, &gate.lock);
    }
    gate.held = false;
    return gate.fail == step && hit ? -EIO : 0;
}

static int gate_io(int fd, Step store, Step image, off_t offset, size_t bytes)
{
    struct stat st;

    if (fstat(fd, &st) < 0 || !gate.store) {
        return 0;
    }
    if (st.st_ino == gate.store) {
        return gate_pass(store, offset, bytes);
    }
    return st.st_ino == gate.image ? gate_pass(image, offset, bytes) : 0;
}

ssize_t preadv(int fd, const struct iovec *iov, int n, off_t offset)
{
    int err = gate_io(fd, STEP_STORE_READ, STEP_IMAGE_READ, offset,
                      iov_size(iov, n));

    if (err) {
        errno = -err;
        return -1;
    }
    return syscall(SYS_preadv, fd, iov, n, offset, 0);
}

ssize_t pread(int fd, void *buf, size_t bytes, off_t offset)
{
    int err = gate_io(fd, STEP_STORE_READ, STEP_IMAGE_READ, offset, bytes);

    if (err) {
        errno = -err;
        return -1;
    }
    return syscall(SYS_pread64, fd, buf, bytes, offset);
}

ssize_t pwritev(int fd, const struct iovec *iov, int n, off_t offset)
{
    int err = gate_io(fd, STEP_STORE_WRITE, STEP_IMAGE_WRITE, offset,
                      iov_size(iov, n));

    if (err) {
        errno = -err;
        return -1;
    }
    return syscall(SYS_pwritev, fd, iov, n, offset, 0);
}

ssize_t pwrite(int fd, const void *buf, size_t bytes, off_t offset)
{
    int err = gate_io(fd, STEP_STORE_WRITE, STEP_IMAGE_WRITE, offset, bytes);

    if (err) {
        errno = -err;
        return -1;
    }
    return syscall(SYS_pwrite64, fd, buf, bytes, offset);
}

int fdatasync(int fd)
{
    int err = gate_io(fd, STEP_STORE_FLUSH, STEP_IMAGE_FLUSH, 0, 0);

    if (err) {
        errno = -err;
        return -1;
    }
    return syscall(SYS_fdatasync, fd);
}

static void gate_hold(Step step)
{
    QEMU_LOCK_GUARD(&gate.lock);
    gate.hold = step;
    gate.open = false;
}

static void gate_fail_block(Step step, int64_t block)
{
    QEMU_LOCK_GUARD(&gate.lock);
    gate.fail = step;
    gate.fail_block = block;
}

static void gate_fail(Step step)
{
    gate_fail_block(step, -1);
}

static void gate_release(void)
{
    QEMU_LOCK_GUARD(&gate.lock);
    gate.hold = STEP_NONE;
    gate.open = true;
    qemu_cond_broadcast(&gate.cond);
}

static bool gate_is_held(void)
{
    QEMU_LOCK_GUARD(&gate.lock);
    return gate.held;
}

static unsigned gate_count(Step step)
{
    QEMU_LOCK_GUARD(&gate.lock);
    return gate.count[step];
}

static ino_t inode(const char *path)
{
    struct stat st;

    g_assert(stat(path, &st) == 0);
    return st.st_ino;
}

/* Time */

static void poll_for(int64_t ns)
{
    int64_t end = get_clock() + ns;

    while (get_clock() < end) {
        while (aio_poll(qemu_get_aio_context(), false)) {
            /* whatever there is */
        }
        g_usleep(200);
    }
}

static bool job_is_gone(void *opaque)
{
    return !block_job_get("j");
}

static bool held(void *opaque)
{
    return gate_is_held();
}

static void poll_until(bool (*what)(void *opaque), void *opaque)
{
    int64_t end = get_clock() + TIMEOUT_NS;

    while (!what(opaque)) {
        g_assert_cmpint(get_clock(), <, end);
        poll_for(SCALE_MS);
    }
}

static void release_timer(void *opaque)
{
    gate_release();
}

/* Let go while the main thread waits within what comes next. */
static QEMUTimer *release_later(void)
{
    QEMUTimer *t = aio_timer_new(qemu_get_aio_context(), QEMU_CLOCK_REALTIME,
                                 SCALE_NS, release_timer, NULL);

    timer_mod(t, qemu_clock_get_ns(QEMU_CLOCK_REALTIME) + SOON_NS);
    return t;
}

/* The disk */

static uint64_t indirections(void)
{
    g_autoptr(BsstInfo) info = qmp_query_bsst(&error_abort);

    return info->nodes->value->indirections;
}

static BsstDefragStats *defrag_stats(BsstInfo *info)
{
    return info->nodes->value->defrag;
}

/* Indirect MOVED_BLOCKS, in pieces of 4 whose slots are in another order. */
static void scatter(Fixture *f)
{
    unsigned k, n = MOVED_BLOCKS / 4;

    shuffle(f->p, BSST_PAGE_SLOT);
    for (k = 0; k < n; k++) {
        write_pages(f, k * 4, 4, k * 13 % n * 4);
    }
    g_assert_cmpint(blk_flush(f->blk), ==, 0);
    g_assert_cmpint(indirections(), ==, MOVED_BLOCKS);
}

static void begin(Fixture *f, const char *defrag)
{
    gate.store = 0;
    gate.fail = gate.hold = STEP_NONE;
    gate.open = true;
    f->aio = "threads";
    f->defrag = defrag;
    setup(f);
    gate.store = inode(f->store_path);
    gate.image = inode(f->image);
    shuffle(f->p, BSST_PAGE_PRESENT);
    write_pages(f, 0, PAGES, OTHER_BLOCK);
    scatter(f);
}

static void end(Fixture *f)
{
    gate_release();
    teardown(f);
    gate.store = 0;
}

static void start_job(Fixture *f, BsstDefragMode mode, bool dismiss,
                      Error **errp)
{
    BsstDefragOptions o = {
        .job_id = (char *)"j",
        .node = (char *)bdrv_get_node_name(blk_bs(f->blk)),
        .mode = mode,
        .has_auto_dismiss = true,
        .auto_dismiss = dismiss,
    };

    qmp_bsst_defrag(&o, errp);
}

/* It stays where it is until it is finalized, and then dismissed. */
static void start_drain(Fixture *f, const char *id, Error **errp)
{
    BsstDrainOptions o = {
        .job_id = (char *)id,
        .node = (char *)bdrv_get_node_name(blk_bs(f->blk)),
        .has_auto_finalize = true,
        .has_auto_dismiss = true,
    };

    qmp_bsst_drain(&o, errp);
}

/* Requests */

typedef struct Request Request;
struct Request {
    const char *name;
    int coroutine_fn (*fn)(Request *r);
    bool (*prepare)(Fixture *f);    /* the shadow; false: it is unknown */
    bool waits;                     /* for a move of the same blocks */
    Step step;                      /* its first one, if it can be held */
    /* Of a run */
    Fixture *f;
    bool done;
};

#define OP_OFFSET   (OP_BLOCK * BSST_PAGE_SIZE)
#define OP_BYTES    (OP_BLOCKS * BSST_PAGE_SIZE)
#define PART        777

static int coroutine_fn op_write(Request *r)
{
    return blk_co_pwrite(r->f->blk, OP_OFFSET, OP_BYTES, r->f->p->mem, 0);
}

static bool prepare_write(Fixture *f)
{
    shuffle(f->p, BSST_PAGE_PRESENT);
    memcpy(f->shadow + OP_OFFSET, page_content(f->p, 0), OP_BYTES);
    return true;
}

/* Pages are evicted, and intercepted when they are written. */
static bool prepare_indirect(Fixture *f)
{
    shuffle(f->p, BSST_PAGE_SLOT);
    memcpy(f->shadow + OP_OFFSET, page_content(f->p, 0), OP_BYTES);
    return true;
}

static int coroutine_fn op_part(Request *r)
{
    return blk_co_pwrite(r->f->blk, OP_OFFSET + PART, PART, r->f->p->mem, 0);
}

static bool prepare_part(Fixture *f)
{
    shuffle(f->p, BSST_PAGE_PRESENT);
    memcpy(f->shadow + OP_OFFSET + PART, page_content(f->p, 0), PART);
    return true;
}

static int coroutine_fn op_other(Request *r)
{
    return blk_co_pwrite(r->f->blk, OTHER_BLOCK * BSST_PAGE_SIZE, OP_BYTES,
                         r->f->p->mem, 0);
}

static bool prepare_other(Fixture *f)
{
    shuffle(f->p, BSST_PAGE_PRESENT);
    memcpy(f->shadow + OTHER_BLOCK * BSST_PAGE_SIZE, page_content(f->p, 0),
           OP_BYTES);
    return true;
}

static int coroutine_fn op_zeroes(Request *r)
{
    return blk_co_pwrite_zeroes(r->f->blk, OP_OFFSET, OP_BYTES, 0);
}

static bool prepare_zeroes(Fixture *f)
{
    memset(f->shadow + OP_OFFSET, 0, OP_BYTES);
    return true;
}

static int coroutine_fn op_discard(Request *r)
{
    return blk_co_pdiscard(r->f->blk, OP_OFFSET, OP_BYTES, 0);
}

/* A discard may have an effect or not, block by block. */
static bool prepare_discard(Fixture *f)
{
    return false;
}

static int coroutine_fn op_resize(Request *r)
{
    int ret = blk_co_truncate(r->f->blk, OP_OFFSET + PART, true,
                              PREALLOC_MODE_OFF, 0, NULL);

    return ret < 0 ? ret : blk_co_truncate(r->f->blk, sizeof(r->f->shadow),
                                           true, PREALLOC_MODE_OFF, 0, NULL);
}

static bool prepare_resize(Fixture *f)
{
    memset(f->shadow + OP_OFFSET + PART, 0,
           sizeof(f->shadow) - OP_OFFSET - PART);
    return true;
}

static int coroutine_fn op_flush(Request *r)
{
    return blk_co_flush(r->f->blk);
}

static bool prepare_nothing(Fixture *f)
{
    return true;
}

static int coroutine_fn op_read(Request *r)
{
    g_autofree uint8_t *buf = g_malloc(OP_BYTES);
    int ret = blk_co_pread(r->f->blk, OP_OFFSET, OP_BYTES, buf, 0);

    g_assert_cmpint(memcmp(buf, r->f->shadow + OP_OFFSET, OP_BYTES), ==, 0);
    return ret;
}

static const Request requests[] = {
    { "write", op_write, prepare_write, true, STEP_IMAGE_WRITE },
    { "indirect", op_write, prepare_indirect, true, STEP_NONE },
    { "part", op_part, prepare_part, true, STEP_STORE_READ },
    { "other", op_other, prepare_other, false, STEP_IMAGE_WRITE },
    { "zeroes", op_zeroes, prepare_zeroes, true, STEP_NONE },
    { "discard", op_discard, prepare_discard, true, STEP_NONE },
    { "resize", op_resize, prepare_resize, true, STEP_STORE_READ },
    { "flush", op_flush, prepare_nothing, false, STEP_NONE },
    { "read", op_read, prepare_nothing, false, STEP_STORE_READ },
};

static void coroutine_fn request_entry(void *opaque)
{
    Request *r = opaque;

    g_assert_cmpint(r->fn(r), >=, 0);
    r->done = true;
}

static void request_start(Request *r)
{
    r->done = false;
    qemu_coroutine_enter(qemu_coroutine_create(request_entry, r));
}

static bool request_done(void *opaque)
{
    Request *r = opaque;

    return r->done;
}

/* After a discard: each block is what it was, or zeroes. */
static void accept_discard(Fixture *f)
{
    g_autofree uint8_t *buf = g_malloc(OP_BYTES);
    unsigned i;

    g_assert_cmpint(blk_pread(f->blk, OP_OFFSET, OP_BYTES, buf, 0), ==, 0);
    for (i = 0; i < OP_BLOCKS; i++) {
        if (buffer_is_zero(buf + i * BSST_PAGE_SIZE, BSST_PAGE_SIZE)) {
            memset(f->shadow + OP_OFFSET + i * BSST_PAGE_SIZE, 0,
                   BSST_PAGE_SIZE);
        }
    }
}

static void check_run(Fixture *f, bool known)
{
    if (!known) {
        accept_discard(f);
    }
    check_disk(f);
    g_assert_cmpint(blk_flush(f->blk), ==, 0);
    check_disk(f);
}

static const struct {
    BsstDefragMode mode;
    Step step;
} moves[] = {
    { BSST_DEFRAG_MODE_GUEST, STEP_STORE_READ },
    { BSST_DEFRAG_MODE_GUEST, STEP_IMAGE_WRITE },
    { BSST_DEFRAG_MODE_GUEST, STEP_STORE_FLUSH },
    { BSST_DEFRAG_MODE_GUEST, STEP_IMAGE_FLUSH },
    { BSST_DEFRAG_MODE_STORE, STEP_STORE_READ },
    { BSST_DEFRAG_MODE_STORE, STEP_STORE_WRITE },
    { BSST_DEFRAG_MODE_STORE, STEP_STORE_FLUSH },
};

static bool is_flush(Step step)
{
    return step == STEP_STORE_FLUSH || step == STEP_IMAGE_FLUSH;
}

static void note(const char *what, BsstDefragMode mode, Step step)
{
    g_test_message("%s, mode=%s, %s", what, BsstDefragMode_str(mode),
                   step_name[step]);
}

/* The move is held, the request comes. */
static void move_first(Fixture *f, Request r, BsstDefragMode mode, Step step)
{
    bool known, waits = r.waits;

    note(r.name, mode, step);
    r.f = f;
    gate_hold(step);
    start_job(f, mode, true, &error_abort);
    poll_until(held, NULL);
    known = r.prepare(f);
    request_start(&r);
    if (is_flush(step)) {
        /* The moves are over.  A flush waits for the one in progress. */
        waits = r.fn == op_flush || r.fn == op_resize;
    }
    if (waits) {
        poll_for(SOON_NS);
        g_assert(!r.done);
    } else {
        poll_until(request_done, &r);
    }
    gate_release();
    poll_until(request_done, &r);
    poll_until(job_is_gone, NULL);
    check_run(f, known);
}

static bool job_is_concluded(void *opaque)
{
    JOB_LOCK_GUARD();
    return block_job_get_locked("j")->job.status == JOB_STATUS_CONCLUDED;
}

static int finish_job(void)
{
    Job *job;
    int ret;

    poll_until(job_is_concluded, NULL);
    JOB_LOCK_GUARD();
    job = &block_job_get_locked("j")->job;
    ret = job->ret;
    job_dismiss_locked(&job, &error_abort);
    return ret;
}

/* Before it has done anything: a job that starts waits for all requests. */
static void start_paused_job(Fixture *f, BsstDefragMode mode)
{
    start_job(f, mode, false, &error_abort);
    JOB_LOCK_GUARD();
    job_user_pause_locked(&block_job_get_locked("j")->job, &error_abort);
}

static void resume_job(void)
{
    JOB_LOCK_GUARD();
    job_user_resume_locked(&block_job_get_locked("j")->job, &error_abort);
}

/* The request is held, the move comes. */
static void request_first(Fixture *f, Request r, BsstDefragMode mode)
{
    bool known = r.prepare(f);

    note(r.name, mode, STEP_NONE);
    r.f = f;
    start_paused_job(f, mode);
    gate_hold(r.step);
    request_start(&r);
    poll_until(held, NULL);
    g_assert_cmpint(indirections(), ==, MOVED_BLOCKS);
    resume_job();
    if (r.waits) {
        poll_for(SOON_NS);
        g_assert(!job_is_concluded(NULL));
    } else {
        poll_until(job_is_concluded, NULL);
    }
    g_assert(!r.done);
    gate_release();
    poll_until(request_done, &r);
    g_assert_cmpint(finish_job(), ==, 0);
    check_run(f, known);
}

static void test_races(void)
{
    g_autofree Fixture *f = g_new0(Fixture, 1);
    unsigned i, k;

    begin(f, "off");
    for (k = 0; k < ARRAY_SIZE(moves); k++) {
        for (i = 0; i < ARRAY_SIZE(requests); i++) {
            move_first(f, requests[i], moves[k].mode, moves[k].step);
            scatter(f);
        }
    }
    for (i = 0; i < ARRAY_SIZE(requests); i++) {
        if (requests[i].step != STEP_NONE) {
            request_first(f, requests[i], BSST_DEFRAG_MODE_GUEST);
            scatter(f);
            request_first(f, requests[i], BSST_DEFRAG_MODE_STORE);
            scatter(f);
        }
    }
    end(f);
}

/* Indirect each second of MOVED_BLOCKS; the image has data between them. */
static void scatter_gaps(Fixture *f)
{
    unsigned k;

    shuffle(f->p, BSST_PAGE_PRESENT);
    write_pages(f, 0, MOVED_BLOCKS, 0);
    shuffle(f->p, BSST_PAGE_SLOT);
    for (k = 0; k < MOVED_BLOCKS; k += 2) {
        write_pages(f, k, 1, k);
    }
    g_assert_cmpint(blk_flush(f->blk), ==, 0);
    g_assert_cmpint(indirections(), ==, MOVED_BLOCKS / 2);
}

/* What is between the blocks to be moved is written, too. */
static void test_gaps(void)
{
    static const Step steps[] = { STEP_IMAGE_READ, STEP_IMAGE_WRITE };
    g_autofree Fixture *f = g_new0(Fixture, 1);
    unsigned i, k, before;

    begin(f, "off");
    for (k = 0; k < ARRAY_SIZE(steps); k++) {
        for (i = 0; i < ARRAY_SIZE(requests); i++) {
            scatter_gaps(f);
            move_first(f, requests[i], BSST_DEFRAG_MODE_GUEST, steps[k]);
        }
        /* If that does not work it is done piece by piece, or not at all */
        scatter_gaps(f);
        gate_fail_block(steps[k], 5);
        start_job(f, BSST_DEFRAG_MODE_GUEST, false, &error_abort);
        g_assert_cmpint(finish_job(), ==, 0);
        g_assert_cmpint(indirections(), ==, 0);
        gate_fail(STEP_NONE);
        check_disk(f);
        scatter_gaps(f);
        gate_fail_block(STEP_IMAGE_WRITE, 6);
        start_job(f, BSST_DEFRAG_MODE_GUEST, false, &error_abort);
        g_assert_cmpint(finish_job(), ==, -EIO);
        g_assert_cmpint(indirections(), ==, 1);
        gate_fail(STEP_NONE);
        check_disk(f);
    }
    scatter_gaps(f);
    before = gate_count(STEP_IMAGE_WRITE);
    start_job(f, BSST_DEFRAG_MODE_GUEST, true, &error_abort);
    poll_until(job_is_gone, NULL);
    g_assert_cmpint(gate_count(STEP_IMAGE_WRITE) - before, <=, 3);
    end(f);
}

/* Everything is where it should be. */
static void test_modes(void)
{
    g_autofree Fixture *f = g_new0(Fixture, 1);
    g_autoptr(BsstInfo) info = NULL;

    begin(f, "off");
    start_job(f, BSST_DEFRAG_MODE_STORE, true, &error_abort);
    poll_until(job_is_gone, NULL);
    check_disk(f);
    info = qmp_query_bsst(&error_abort);
    g_assert_cmpint(info->nodes->value->indirections, ==, MOVED_BLOCKS);
    g_assert_cmpint(info->nodes->value->held_slots, ==, 0);
    g_assert_cmpint(defrag_stats(info)->relaid, ==, MOVED_BLOCKS);
    touch_all(f->p);
    g_assert_cmpint(slots_in_use(f), ==, MOVED_BLOCKS);
    start_job(f, BSST_DEFRAG_MODE_GUEST, true, &error_abort);
    poll_until(job_is_gone, NULL);
    check_disk(f);
    g_assert_cmpint(indirections(), ==, 0);
    g_assert_cmpint(slots_in_use(f), ==, 0);
    end(f);
}

/* A slot that a page has, too, stays as long as the page is out. */
static void test_shared(void)
{
    g_autofree Fixture *f = g_new0(Fixture, 1);
    BsstDefragMode mode;

    begin(f, "off");
    for (mode = 0; mode < BSST_DEFRAG_MODE__MAX; mode++) {
        scatter(f);
        start_job(f, mode, true, &error_abort);
        poll_until(job_is_gone, NULL);
        g_assert_cmpint(slots_in_use(f), ==, PAGES + indirections());
        /* The pages have kept their content */
        write_pages(f, 0, MOVED_BLOCKS, 0);
        check_disk(f);
    }
    end(f);
}

static void test_second_job(void)
{
    g_autofree Fixture *f = g_new0(Fixture, 1);
    unsigned k;

    begin(f, "off");
    for (k = 0; k < ARRAY_SIZE(moves); k++) {
        Error *err = NULL;

        gate_hold(moves[k].step);
        start_job(f, moves[k].mode, true, &error_abort);
        poll_until(held, NULL);
        start_drain(f, "k", &err);
        error_free_or_abort(&err);
        gate_release();
        poll_until(job_is_gone, NULL);
        check_disk(f);
        scatter(f);
    }
    end(f);
}

/* A drained section begins when the move has stopped. */
static void test_drained(void)
{
    g_autofree Fixture *f = g_new0(Fixture, 1);
    unsigned k;

    begin(f, "off");
    for (k = 0; k < ARRAY_SIZE(moves); k++) {
        QEMUTimer *t;
        unsigned count, left;

        gate_hold(moves[k].step);
        start_job(f, moves[k].mode, true, &error_abort);
        poll_until(held, NULL);
        t = release_later();
        bdrv_drained_begin(blk_bs(f->blk));
        g_assert(!gate_is_held());
        count = gate_count(STEP_STORE_READ) + gate_count(STEP_STORE_WRITE) +
                gate_count(STEP_IMAGE_WRITE);
        left = indirections();
        poll_for(SOON_NS);
        g_assert_cmpint(count, ==, gate_count(STEP_STORE_READ) +
                                   gate_count(STEP_STORE_WRITE) +
                                   gate_count(STEP_IMAGE_WRITE));
        g_assert_cmpint(left, ==, indirections());
        bdrv_drained_end(blk_bs(f->blk));
        poll_until(job_is_gone, NULL);
        timer_free(t);
        check_disk(f);
        scatter(f);
    }
    end(f);
}

/* The disk goes to an IOThread, or comes back, when the move has stopped. */
static void change_context(Fixture *f, AioContext *ctx)
{
    QEMUTimer *t = release_later();

    g_assert(bdrv_get_aio_context(blk_bs(f->blk)) != ctx);
    blk_set_aio_context(f->blk, ctx, &error_abort);
    g_assert(!gate_is_held());
    g_assert(bdrv_get_aio_context(blk_bs(f->blk)) == ctx);
    timer_free(t);
}

static void test_context(void)
{
    g_autofree Fixture *f = g_new0(Fixture, 1);
    IOThread *iothread = iothread_new();
    unsigned k;

    begin(f, "off");
    for (k = 0; k < ARRAY_SIZE(moves); k++) {
        note("context", moves[k].mode, moves[k].step);
        gate_hold(moves[k].step);
        start_job(f, moves[k].mode, true, &error_abort);
        poll_until(held, NULL);
        change_context(f, iothread_get_aio_context(iothread));
        poll_until(job_is_gone, NULL);
        check_disk(f);
        scatter(f);
        gate_hold(moves[k].step);
        start_job(f, moves[k].mode, true, &error_abort);
        poll_until(held, NULL);
        change_context(f, qemu_get_aio_context());
        poll_until(job_is_gone, NULL);
        check_disk(f);
        scatter(f);
    }
    end(f);
    iothread_join(iothread);
}

static void test_cancel(void)
{
    g_autofree Fixture *f = g_new0(Fixture, 1);
    unsigned k;

    begin(f, "off");
    for (k = 0; k < ARRAY_SIZE(moves); k++) {
        gate_hold(moves[k].step);
        start_job(f, moves[k].mode, true, &error_abort);
        poll_until(held, NULL);
        WITH_JOB_LOCK_GUARD() {
            job_cancel_locked(&block_job_get_locked("j")->job, false);
        }
        gate_release();
        poll_until(job_is_gone, NULL);
        check_disk(f);
        scatter(f);
    }
    end(f);
}

/* An error at each step, or from there on; then it works. */
static void test_errors(void)
{
    g_autofree Fixture *f = g_new0(Fixture, 1);
    unsigned k;

    begin(f, "off");
    for (k = 0; k < ARRAY_SIZE(moves); k++) {
        if (moves[k].step == STEP_IMAGE_FLUSH) {
            continue;           /* fails for ever, then: see below */
        }
        note("error", moves[k].mode, moves[k].step);
        gate_fail(moves[k].step);
        start_job(f, moves[k].mode, false, &error_abort);
        g_assert_cmpint(finish_job(), ==, -EIO);
        gate_fail(STEP_NONE);
        check_disk(f);
        if (!is_flush(moves[k].step)) {
            g_assert_cmpint(indirections(), ==, MOVED_BLOCKS);
        }
        g_assert_cmpint(blk_flush(f->blk), ==, 0);
        check_disk(f);
        start_job(f, moves[k].mode, false, &error_abort);
        g_assert_cmpint(finish_job(), ==, 0);
        check_disk(f);
        scatter(f);
    }
    end(f);
}

/*
 * What was moved was not durable in the image: the store still has it.  (After
 * a flush that failed the protocol driver never says again that one succeeded.)
 */
static void test_image_flush_error(void)
{
    g_autofree Fixture *f = g_new0(Fixture, 1);

    begin(f, "off");
    gate_fail(STEP_IMAGE_FLUSH);
    start_job(f, BSST_DEFRAG_MODE_GUEST, false, &error_abort);
    g_assert_cmpint(finish_job(), ==, -EIO);
    check_disk(f);
    close_disk(f);
    gate_fail(STEP_NONE);
    open_disk(f, "on");
    g_assert_cmpint(indirections(), ==, MOVED_BLOCKS);
    check_disk(f);
    start_job(f, BSST_DEFRAG_MODE_GUEST, false, &error_abort);
    g_assert_cmpint(finish_job(), ==, 0);
    check_disk(f);
    end(f);
}

static bool job_is_pending(void *opaque)
{
    JOB_LOCK_GUARD();
    return block_job_get_locked("j")->job.status == JOB_STATUS_PENDING;
}

static void finalize_job(void)
{
    JOB_LOCK_GUARD();
    job_finalize_locked(&block_job_get_locked("j")->job, &error_abort);
}

/*
 * Writes of pages that are out go on while a drain is at its end: they wait for
 * that, and then make no indirections as long as the job exists.
 */
static void test_drain_end(void)
{
    g_autofree Fixture *f = g_new0(Fixture, 1);
    Request r = requests[1];

    begin(f, "off");
    gate_hold(STEP_STORE_FLUSH);
    start_drain(f, "j", &error_abort);
    poll_until(held, NULL);
    r.f = f;
    r.prepare(f);
    /* What a write that is not intercepted would bring in */
    memcpy(f->p->mem, page_content(f->p, 0), PAGES * BSST_PAGE_SIZE);
    request_start(&r);
    poll_for(SOON_NS);
    g_assert(!r.done);
    gate_release();
    poll_until(request_done, &r);
    poll_until(job_is_pending, NULL);
    g_assert_cmpint(indirections(), ==, 0);
    check_disk(f);

    finalize_job();
    g_assert_cmpint(finish_job(), ==, 0);
    request_start(&r);
    poll_until(request_done, &r);
    g_assert_cmpint(indirections(), ==, OP_BLOCKS);
    check_disk(f);
    end(f);
}

/* What has not begun when a move is told to stop stays where it is. */
typedef struct StopRun {
    BlockDriverState *bs;
    BsstMoveResult res;
    bool stop;
    bool done;
} StopRun;

static void coroutine_fn stop_entry(void *opaque)
{
    StopRun *r = opaque;
    BsstMoveLimits limits = { .parallel = 1, .stop = &r->stop };

    GRAPH_RDLOCK_GUARD();
    bsst_co_move_out(r->bs, &(BsstMoveRun) { 0, MOVED_BLOCKS }, 1, &limits,
                     &r->res);
    r->done = true;
}

static bool stop_done(void *opaque)
{
    StopRun *r = opaque;

    return r->done;
}

static void test_stop(void)
{
    static const Step steps[] = { STEP_STORE_READ, STEP_IMAGE_WRITE };
    g_autofree Fixture *f = g_new0(Fixture, 1);
    unsigned i, before;

    begin(f, "off");
    for (i = 0; i < ARRAY_SIZE(steps); i++) {
        StopRun r = { .bs = blk_bs(f->blk) };

        gate_hold(steps[i]);
        qemu_coroutine_enter(qemu_coroutine_create(stop_entry, &r));
        poll_until(held, NULL);
        before = gate_count(steps[i]);
        qatomic_set(&r.stop, true);
        gate_release();
        poll_until(stop_done, &r);
        g_assert_cmpint(gate_count(steps[i]), ==, before);
        g_assert_cmpint(r.res.ret, ==, 0);
        g_assert_cmpint(r.res.failed, ==, 0);
        g_assert_cmpint(indirections(), ==, MOVED_BLOCKS - r.res.moved);
        g_assert_true(r.res.moved < MOVED_BLOCKS || i == 1);
        check_disk(f);
        scatter(f);
    }
    end(f);
}

/* The automatic.  What was found in the store is old, and moved at once. */

static void begin_auto(Fixture *f, Step step)
{
    begin(f, "off");
    close_disk(f);              /* which drains */
    open_disk(f, "off");
    scatter(f);
    close_disk(f);
    f->defrag = "auto";
    open_disk(f, "on");
    gate_hold(step);
    g_assert_cmpint(indirections(), ==, MOVED_BLOCKS);
    poll_until(held, NULL);
}

static bool map_is_empty(void *opaque)
{
    return !indirections();
}

static void test_auto(void)
{
    g_autofree Fixture *f = g_new0(Fixture, 1);
    g_autoptr(BsstInfo) info = NULL;

    begin_auto(f, STEP_IMAGE_WRITE);
    gate_release();
    poll_until(map_is_empty, NULL);
    check_disk(f);
    info = qmp_query_bsst(&error_abort);
    g_assert_true(defrag_stats(info)->automatic);
    g_assert_cmpint(defrag_stats(info)->moved, ==, MOVED_BLOCKS);
    g_assert_cmpint(defrag_stats(info)->slices, >, 0);
    end(f);
}

/* Steps of a move out of the store */
static bool step_is_out(Step step)
{
    return step != STEP_STORE_WRITE && step != STEP_IMAGE_READ;
}

static void test_auto_races(void)
{
    g_autofree Fixture *f = NULL;
    Step step;
    unsigned i;

    for (step = 0; step < STEP_NONE; step++) {
        if (!step_is_out(step)) {
            continue;
        }
        for (i = 0; i < ARRAY_SIZE(requests); i++) {
            Request r = requests[i];
            bool known;

            f = g_new0(Fixture, 1);
            begin_auto(f, step);
            note(r.name, BSST_DEFRAG_MODE_GUEST, step);
            r.f = f;
            known = r.prepare(f);
            request_start(&r);
            poll_for(SOON_NS);
            gate_release();
            poll_until(request_done, &r);
            check_run(f, known);
            end(f);
            g_clear_pointer(&f, g_free);
        }
    }
}

static unsigned io_count(void)
{
    return gate_count(STEP_STORE_READ) + gate_count(STEP_IMAGE_WRITE) +
           gate_count(STEP_STORE_FLUSH);
}

/* Drained, it is quiet; afterwards it goes on. */
static void test_auto_drained(void)
{
    g_autofree Fixture *f = g_new0(Fixture, 1);
    unsigned count;
    QEMUTimer *t;

    begin_auto(f, STEP_IMAGE_WRITE);
    t = release_later();
    bdrv_drained_begin(blk_bs(f->blk));
    g_assert(!gate_is_held());
    count = io_count();
    poll_for(5 * SOON_NS);
    g_assert_cmpint(count, ==, io_count());
    g_assert_cmpint(indirections(), >, 0);
    bdrv_drained_end(blk_bs(f->blk));
    poll_until(map_is_empty, NULL);
    check_disk(f);
    timer_free(t);
    end(f);
}

static void test_auto_context(void)
{
    IOThread *iothread = iothread_new();
    Step step;

    for (step = 0; step < STEP_NONE; step++) {
        g_autofree Fixture *f = NULL;

        if (!step_is_out(step)) {
            continue;
        }
        f = g_new0(Fixture, 1);
        begin_auto(f, step);
        note("context", BSST_DEFRAG_MODE_GUEST, step);
        change_context(f, iothread_get_aio_context(iothread));
        check_disk(f);
        change_context(f, qemu_get_aio_context());
        poll_until(map_is_empty, NULL);
        check_disk(f);
        end(f);
    }
    iothread_join(iothread);
}

static void test_auto_close(void)
{
    Step step;

    for (step = 0; step < STEP_NONE; step++) {
        g_autofree Fixture *f = NULL;
        QEMUTimer *t;

        if (!step_is_out(step)) {
            continue;
        }
        f = g_new0(Fixture, 1);
        begin_auto(f, step);
        t = release_later();
        close_disk(f);
        timer_free(t);
        gate_release();
        open_disk(f, "on");
        check_disk(f);
        end(f);
    }
}

static void test_auto_job(void)
{
    g_autofree Fixture *f = g_new0(Fixture, 1);

    QEMUTimer *t;

    begin_auto(f, STEP_IMAGE_WRITE);
    t = release_later();
    start_job(f, BSST_DEFRAG_MODE_GUEST, true, &error_abort);
    poll_until(job_is_gone, NULL);
    timer_free(t);
    g_assert_cmpint(indirections(), ==, 0);
    check_disk(f);
    end(f);
}

/* After errors it tries again, later and later, and loses nothing. */
static void test_auto_errors(void)
{
    g_autofree Fixture *f = g_new0(Fixture, 1);
    unsigned count;

    begin_auto(f, STEP_IMAGE_WRITE);
    gate_fail(STEP_IMAGE_WRITE);
    gate_release();
    poll_for(300 * SCALE_MS);
    count = gate_count(STEP_IMAGE_WRITE);
    poll_for(300 * SCALE_MS);
    g_assert_cmpint(gate_count(STEP_IMAGE_WRITE), ==, count);
    check_disk(f);
    g_assert_cmpint(indirections(), ==, MOVED_BLOCKS);
    gate_fail(STEP_NONE);
    poll_until(map_is_empty, NULL);
    check_disk(f);
    end(f);
}

/* Requests that a read is split into */

/* Of pages: the content of blocks 0, 3, 6 ..., in slots that are in a row */
#define JOINED      64

static void read_parts(Fixture *f, unsigned block, unsigned n, unsigned images,
                       unsigned stores)
{
    unsigned images_before = gate_count(STEP_IMAGE_READ);
    unsigned stores_before = gate_count(STEP_STORE_READ);
    void *buf = qemu_memalign(BSST_PAGE_SIZE, n * BSST_PAGE_SIZE);

    g_assert_cmpint(blk_pread(f->blk, (int64_t)block * BSST_PAGE_SIZE,
                              n * BSST_PAGE_SIZE, buf, 0), ==, 0);
    g_assert_cmpint(memcmp(buf, f->shadow + block * BSST_PAGE_SIZE,
                           n * BSST_PAGE_SIZE), ==, 0);
    g_assert_cmpint(gate_count(STEP_IMAGE_READ) - images_before, ==, images);
    g_assert_cmpint(gate_count(STEP_STORE_READ) - stores_before, ==, stores);
    qemu_vfree(buf);
}

static void test_joined_reads(void)
{
    g_autofree Fixture *f = g_new0(Fixture, 1);
    unsigned k;

    begin(f, "off");
    shuffle(f->p, BSST_PAGE_PRESENT);
    write_pages(f, 0, 3 * JOINED, 0);
    shuffle(f->p, BSST_PAGE_SLOT);
    for (k = 0; k < JOINED; k++) {
        write_pages(f, k, 1, 3 * k);
    }
    touch_all(f->p);
    read_parts(f, 0, 3 * JOINED, 1, 1);
    /* The first and the last are indirected: nothing is read for them */
    read_parts(f, 3, 4, 1, 1);
    read_parts(f, 1, 2, 1, 0);

    /* What nobody needs cannot be read: it is left out */
    gate_fail_block(STEP_IMAGE_READ, 9);
    read_parts(f, 7, 9, 1 + 3, 1);
    gate_fail_block(STEP_IMAGE_READ, 10);
    g_assert_cmpint(blk_pread(f->blk, 7 * BSST_PAGE_SIZE, 9 * BSST_PAGE_SIZE,
                              f->p->mem, 0), ==, -EIO);
    gate_fail(STEP_NONE);

    /* Slots in a row, blocks in another order */
    shuffle(f->p, BSST_PAGE_SLOT);
    for (k = 0; k < JOINED; k++) {
        write_pages(f, k, 1, 3 * (k * 29 % JOINED));
    }
    touch_all(f->p);
    read_parts(f, 0, 3 * JOINED, 1, 1);

    /* So much is not read in vain */
    shuffle(f->p, BSST_PAGE_SLOT);
    write_pages(f, 0, 32, 32);
    touch_all(f->p);
    read_parts(f, 31, 34, 2, 1);
    end(f);
}

int main(int argc, char **argv)
{
    qemu_mutex_init(&gate.lock);
    qemu_cond_init(&gate.cond);
    bdrv_init();
    qemu_init_main_loop(&error_abort);

    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/bsst-defrag/modes", test_modes);
    g_test_add_func("/bsst-defrag/shared", test_shared);
    g_test_add_func("/bsst-defrag/races", test_races);
    g_test_add_func("/bsst-defrag/gaps", test_gaps);
    g_test_add_func("/bsst-defrag/second-job", test_second_job);
    g_test_add_func("/bsst-defrag/drained", test_drained);
    g_test_add_func("/bsst-defrag/context", test_context);
    g_test_add_func("/bsst-defrag/cancel", test_cancel);
    g_test_add_func("/bsst-defrag/errors", test_errors);
    g_test_add_func("/bsst-defrag/image-flush-error", test_image_flush_error);
    g_test_add_func("/bsst-defrag/drain-end", test_drain_end);
    g_test_add_func("/bsst-defrag/stop", test_stop);
    g_test_add_func("/bsst-defrag/joined-reads", test_joined_reads);
    g_test_add_func("/bsst-defrag/auto", test_auto);
    g_test_add_func("/bsst-defrag/auto-races", test_auto_races);
    g_test_add_func("/bsst-defrag/auto-drained", test_auto_drained);
    g_test_add_func("/bsst-defrag/auto-context", test_auto_context);
    g_test_add_func("/bsst-defrag/auto-close", test_auto_close);
    g_test_add_func("/bsst-defrag/auto-job", test_auto_job);
    g_test_add_func("/bsst-defrag/auto-errors", test_auto_errors);
    return g_test_run();
}

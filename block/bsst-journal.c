/*
 * The journal of a block-swap store: the order of metadata writes and flushes
 *
 * The image's data, the slots and the metadata that name them are written in
 * an order such that a crash at any moment leaves each sector of a guest disk
 * old or new, and new if it was flushed.  A flush of an image with changes is
 *
 *   durable_map_prepare()              the snapshot to be written    (J2, J4)
 *        |
 *        +------------------------+
 *   checksums of slots       image flush
 *   store flush              (the driver's)                          (J1)
 *        +------------------------+
 *        |
 *   append to the journal, store flush; or a checkpoint              (J3, J5)
 *        |
 *   durable_map_commit(), drop the slots that were replaced          (J3)
 *
 * Both store flushes serve all images that wait for one when they begin, and
 * one writer appends for all who wait.
 *
 * Invariants (asserts and tests quote the numbers):
 *
 *   J1  A record is written only when what it relies on is durable: content
 *       and checksums of the slots that it names, and the image's data that
 *       replace what it removes.
 *   J2  Records are taken from a snapshot.  The flushes of J1 begin after it,
 *       so that they cover all that the snapshot relies on.
 *   J3  A commit has succeeded when a store flush that began after its last
 *       write has.  Only then are the slots dropped that it replaced, and only
 *       then may the guest's flush return.  After a failure these slots and
 *       those that it named are kept until a commit has succeeded.
 *   J4  An image has one commit at a time.
 *   J5  Journal blocks are numbered without a gap.  A commit before the tail is
 *       part of its map's committed state; one that is not is behind it.
 *   J6  Behind the tail there is no valid block, and what is written there
 *       cannot make an old one valid: what an append may have left that failed,
 *       or one that was torn by a crash, is scrubbed, durably, before the next
 *       append or checkpoint.
 *   J7  A valid header of a checkpoint has a complete body: the body is durable
 *       before the header is written, the newest checkpoint is never written
 *       to, and the header of one that failed is blanked, durably, before its
 *       body is written again.
 *   J8  A checkpoint notes the tail first and dumps the maps then, while
 *       commits go on: what it misses is behind the noted tail, and the last
 *       record for a block wins.  The journal from there on is kept until the
 *       header of the next checkpoint is durable.
 *   J9  A block of the checksum table is composed and written under one lock,
 *       from memory, which has the checksum of every slot that is in use.
 *   J10 An image is in the image table, durably, before its first record, and
 *       until no record of it counts.  Its place goes to another image only
 *       when neither the newest checkpoint nor the journal behind it name it.
 *   J11 What recovery has read is durable before a slot is written: the owner
 *       of the store flushes it after bsst_journal_co_open(), with the new
 *       generation in the superblock.
 *
 * Who waits for whom: a commit that does not fit into the journal takes
 * checkpoint_lock and commits by a checkpoint of its own.  Nobody who holds
 * append_lock waits for a checkpoint.
 *
 * Deliberately absent: transactions across blocks of the journal.  Each record
 * is right by itself, and the flush has not returned.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "block/aio.h"
#include "block/aio-wait.h"
#include "bsst-journal-int.h"
#include "qemu/main-loop.h"
#include "trace.h"

/* Records that are fetched in one go under an image's lock */
#define COLLECT_RECORDS     512u

/* State of the journal */

static int journal_error(BsstJournal *j, int ret)
{
    if (ret < 0) {
        stat64_add(&j->errors, 1);
    }
    return ret;
}

/* Under append_lock. */
static uint64_t journal_free_blocks(BsstJournal *j)
{
    return j->journal_blocks -
           (j->tail.sequence - j->checkpoint.journal_sequence);
}

void bsst_journal_publish_used(BsstJournal *j)
{
    qatomic_set(&j->used_blocks, j->journal_blocks - journal_free_blocks(j));
}

/* Flush of the store */

static void coroutine_fn store_flush_lead(BsstJournal *j)
{
    QSIMPLEQ_HEAD(, BsstFlushWaiter) served = QSIMPLEQ_HEAD_INITIALIZER(served);
    BsstFlushWaiter *w, *next;
    int ret = -EIO;

    WITH_QEMU_LOCK_GUARD(&j->lock) {
        QSIMPLEQ_CONCAT(&served, &j->flush_waiters);
    }
    if (!qatomic_read(&j->failed)) {
        ret = j->io->co_flush(j->opaque);
        stat64_add(&j->flushes, 1);
        if (ret < 0 && j->io->flush_errors_are_final) {
            qatomic_set(&j->failed, true);
        }
    }
    QSIMPLEQ_FOREACH_SAFE(w, &served, next, next) {
        w->ret = ret;
        w->done = true;
    }
}

/* A flush that begins after the call; it may serve others, too. */
static int coroutine_fn store_co_flush(BsstJournal *j)
{
    BsstFlushWaiter self = { .done = false };

    WITH_QEMU_LOCK_GUARD(&j->lock) {
        QSIMPLEQ_INSERT_TAIL(&j->flush_waiters, &self, next);
    }
    QEMU_LOCK_GUARD(&j->flush_lock);
    if (!self.done) {
        store_flush_lead(j);
    }
    return self.ret;
}

/* Commit: the snapshot */

static int compare_blocks(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

    return (x > y) - (x < y);
}

static void sort_blocks(GArray *blocks)
{
    uint32_t *v = (uint32_t *)blocks->data;
    unsigned i, n = 0;

    g_array_sort(blocks, compare_blocks);
    for (i = 0; i < blocks->len; i++) {
        if (!n || v[n - 1] != v[i]) {
            v[n++] = v[i];
        }
    }
    g_array_set_size(blocks, n);
}

static void commit_add(BsstCommit *c, const BsstRecord *r)
{
    BsstJournal *j = c->image->journal;
    uint32_t block, last, limit;

    if (c->records->len < j->journal_blocks * BSST_JOURNAL_RECORDS) {
        g_array_append_val(c->records, *r);
    } else {
        c->oversize = true;
    }
    stat64_add(&j->records, 1);
    stat64_add(&j->recorded_blocks, r->n);
    if (r->slot == BSST_SLOT_NONE) {
        return;
    }

    last = (r->slot + (r->n - 1)) / BSST_CHECKSUMS_PER_BLOCK;
    for (block = r->slot / BSST_CHECKSUMS_PER_BLOCK; block <= last; block++) {
        g_array_append_val(c->checksums, block);
    }
    limit = 2 * DIV_ROUND_UP(j->sb.nslots, BSST_CHECKSUMS_PER_BLOCK) + 1024;
    if (c->checksums->len > limit) {
        sort_blocks(c->checksums);
    }
}

static bool coroutine_fn commit_collect_some(BsstCommit *c, uint64_t *block)
{
    BsstRecord r;
    unsigned i;

    QEMU_LOCK_GUARD(&c->image->lock);
    for (i = 0; i < COLLECT_RECORDS; i++) {
        if (!durable_map_next_prepared(c->image->map, *block, &r)) {
            return false;
        }
        commit_add(c, &r);
        *block = r.block + r.n;
    }
    return true;
}

/* The map does not change what it has prepared while this runs (J2). */
static void coroutine_fn commit_begin(BsstCommit *c, BsstImage *image)
{
    uint64_t block = 0;

    *c = (BsstCommit) {
        .image = image,
        .records = g_array_new(false, false, sizeof(BsstRecord)),
        .checksums = g_array_new(false, false, sizeof(uint32_t)),
    };
    while (commit_collect_some(c, &block)) {
        /* a pause for those who wait for the map */
    }
    sort_blocks(c->checksums);
}

static void commit_end(BsstCommit *c)
{
    g_array_unref(c->records);
    g_array_unref(c->checksums);
}

/* J3: it is durable. */
static void coroutine_fn commit_succeeded(BsstCommit *c)
{
    BsstImage *image = c->image;
    BsstJournal *j = image->journal;
    GArray *dropped;
    uint64_t weight;

    WITH_QEMU_LOCK_GUARD(&image->lock) {
        weight = durable_map_weight(image->map);
        dropped = durable_map_commit(image->map);
        bsst_journal_add_weight(j, weight, durable_map_weight(image->map));
        image->failed = false;
    }
    j->slots->unref(j->opaque, (BsstSlot *)dropped->data, dropped->len);
    g_array_unref(dropped);
    stat64_add(&j->commits, 1);
}

static void coroutine_fn commit_failed(BsstCommit *c)
{
    BsstImage *image = c->image;
    uint64_t weight;

    QEMU_LOCK_GUARD(&image->lock);
    weight = durable_map_weight(image->map);
    durable_map_abort(image->map);
    bsst_journal_add_weight(image->journal, weight,
                            durable_map_weight(image->map));
    image->failed = true;
}

/* Commit: what its records rely on (J1) */

typedef struct DataFlush {
    BsstDataFlush *fn;
    void *opaque;
    Coroutine *waiter;
    bool done;
    int ret;
} DataFlush;

static void coroutine_fn data_flush_entry(void *opaque)
{
    DataFlush *f = opaque;

    f->ret = f->fn(f->opaque);
    f->done = true;
    if (f->waiter) {
        aio_co_wake(f->waiter);
    }
}

static int coroutine_fn data_flush_join(DataFlush *f)
{
    if (!f->done) {
        f->waiter = qemu_coroutine_self();
        qemu_coroutine_yield();
        assert(f->done);
    }
    return f->ret;
}

/* Make content and checksums of the slots durable that are named. */
static int coroutine_fn commit_co_sync_slots(BsstCommit *c)
{
    BsstJournal *j = c->image->journal;
    int ret;

    ret = bsst_journal_co_write_checksums(j, (uint32_t *)c->checksums->data,
                                          c->checksums->len);
    return ret < 0 ? ret : store_co_flush(j);
}

/* In parallel: the two are different devices, more often than not. */
static int coroutine_fn commit_co_sync(BsstCommit *c, BsstDataFlush *flush,
                                       void *opaque)
{
    DataFlush data = { .fn = flush, .opaque = opaque };
    int slots_ret, data_ret;

    if (!c->checksums->len) {
        return flush(opaque);
    }
    qemu_coroutine_enter(qemu_coroutine_create(data_flush_entry, &data));
    slots_ret = journal_error(c->image->journal, commit_co_sync_slots(c));
    data_ret = data_flush_join(&data);
    return data_ret < 0 ? data_ret : slots_ret;
}

/* Commit: append to the journal */

/* J6.  Under append_lock. */
static int coroutine_fn journal_co_scrub(BsstJournal *j)
{
    uint64_t n = MIN(j->scrub, journal_free_blocks(j));
    int ret;

    if (n) {
        ret = bsst_journal_co_write_scrub(j, &j->tail, n);
        if (ret == 0) {
            ret = store_co_flush(j);
        }
        if (ret < 0) {
            return ret;
        }
    }
    j->scrub = 0;
    return 0;
}

static int coroutine_fn append_co_commit(BsstBlockWriter *w, BsstCommit *c)
{
    const BsstRecord *records = (BsstRecord *)c->records->data;
    unsigned i, n;
    int ret = 0;

    for (i = 0; i < c->records->len && ret == 0; i += n) {
        n = MIN(c->records->len - i, BSST_JOURNAL_RECORDS);
        ret = bsst_block_writer_co_add(w, c->image->index, records + i, n);
    }
    return ret;
}

typedef QSIMPLEQ_HEAD(, BsstCommit) CommitQueue;

/* Write @queue, of @nblocks blocks, behind the tail.  Under append_lock. */
static int coroutine_fn append_co_write(BsstJournal *j, CommitQueue *queue,
                                        uint64_t nblocks)
{
    BsstBlockWriter w;
    BsstCommit *c;
    int ret;

    ret = journal_co_scrub(j);
    if (ret < 0) {
        return ret;
    }
    ret = bsst_block_writer_init(&w, j, BSST_BLOCK_JOURNAL,
                                 j->sb.journal_offset, j->journal_blocks,
                                 &j->tail, nblocks);
    if (ret == 0) {
        QSIMPLEQ_FOREACH(c, queue, next) {
            ret = append_co_commit(&w, c);
            if (ret < 0) {
                break;
            }
        }
    }
    ret = bsst_block_writer_co_end(&w, ret);
    if (ret == 0) {
        ret = store_co_flush(j);
    }
    if (ret < 0) {
        j->scrub = nblocks;
        return ret;
    }
    assert(w.pos.sequence == j->tail.sequence + nblocks); /* J5 */
    j->tail = w.pos;
    bsst_journal_publish_used(j);
    stat64_add(&j->journal_bytes, nblocks * BSST_JOURNAL_BLOCK_BYTES);
    return 0;
}

/* Take those that fit.  @self is told if it does not. */
static uint64_t append_take(BsstJournal *j, BsstCommit *self,
                            CommitQueue *queue)
{
    uint64_t room = journal_free_blocks(j), nblocks = 0;
    BsstCommit *c, *next;

    QSIMPLEQ_INIT(queue);
    QEMU_LOCK_GUARD(&j->lock);
    QSIMPLEQ_FOREACH_SAFE(c, &j->appends, next, next) {
        uint64_t n = bsst_blocks_for(c->records->len);
        bool fits = n <= room - nblocks;

        if (!fits && c != self) {
            continue;           /* its own turn will come */
        }
        QSIMPLEQ_REMOVE(&j->appends, c, BsstCommit, next);
        if (fits) {
            QSIMPLEQ_INSERT_TAIL(queue, c, next);
            nblocks += n;
        } else {
            c->no_room = true;
        }
    }
    return nblocks;
}

/* Append for all who wait.  Under append_lock. */
static void coroutine_fn append_lead(BsstJournal *j, BsstCommit *self)
{
    BsstCommit *c, *next;
    CommitQueue queue;
    uint64_t nblocks;
    int ret = -EIO;

    nblocks = append_take(j, self, &queue);
    if (nblocks && !bsst_journal_is_dead(j)) {
        ret = journal_error(j, append_co_write(j, &queue, nblocks));
        trace_bsst_journal_append(j, j->tail.sequence, nblocks, ret);
    }
    QSIMPLEQ_FOREACH_SAFE(c, &queue, next, next) {
        c->ret = ret;
        c->done = true;
        if (ret == 0) {
            commit_succeeded(c); /* J5: before anybody notes the new tail */
        }
    }
}

/* Sets @c->no_room, or returns 0 or -errno. */
static int coroutine_fn commit_co_append(BsstCommit *c)
{
    BsstJournal *j = c->image->journal;

    c->done = false;
    c->no_room = c->oversize;
    if (c->no_room) {
        return 0;
    }
    WITH_QEMU_LOCK_GUARD(&j->lock) {
        QSIMPLEQ_INSERT_TAIL(&j->appends, c, next);
    }
    QEMU_LOCK_GUARD(&j->append_lock);
    if (!c->done) {
        append_lead(j, c);
    }
    return c->ret;
}

/* Checkpoint */

/* J8.  Under append_lock. */
static int coroutine_fn checkpoint_co_note_tail(BsstJournal *j,
                                                BsstCheckpoint *cp)
{
    int ret = journal_co_scrub(j);

    cp->journal_block = j->tail.block;
    cp->journal_sequence = j->tail.sequence;
    cp->journal_chain = j->tail.chain;
    cp->journal_generation = j->tail.generation;
    return ret;
}

/* The same with a body.  Commits go on, unless they have grown too many. */
static int coroutine_fn checkpoint_co_body(BsstJournal *j, BsstImage *prepared,
                                           BsstCheckpoint *cp)
{
    unsigned area = 1 - j->checkpoint_area;
    bool overflow;
    int ret;

    WITH_QEMU_LOCK_GUARD(&j->append_lock) {
        ret = checkpoint_co_note_tail(j, cp);
    }
    if (ret < 0) {
        return ret;
    }
    ret = bsst_checkpoint_co_write_body(j, area, prepared, cp, &overflow);
    if (!overflow) {
        return ret;
    }
    /* At one moment there are not more than fit: weight. */
    QEMU_LOCK_GUARD(&j->append_lock);
    ret = checkpoint_co_note_tail(j, cp);
    return ret < 0 ? ret : bsst_checkpoint_co_write_body(j, area, prepared, cp,
                                                         &overflow);
}

/* J7: the header @cp of @area, or a blank one if NULL, durably */
static int coroutine_fn checkpoint_co_header(BsstJournal *j, unsigned area,
                                             const BsstCheckpoint *cp)
{
    int ret;

    j->header_uncertain = true;
    ret = bsst_checkpoint_co_write_header(j, area, cp);
    if (ret == 0) {
        ret = store_co_flush(j);
    }
    j->header_uncertain = ret < 0;
    return ret;
}

static int coroutine_fn checkpoint_co_write(BsstJournal *j,
                                            BsstImage *prepared,
                                            BsstCheckpoint *cp)
{
    unsigned area = 1 - j->checkpoint_area;
    int ret = 0;

    if (j->header_uncertain) {
        ret = checkpoint_co_header(j, area, NULL);
    }
    if (ret == 0) {
        ret = checkpoint_co_body(j, prepared, cp);
    }
    if (ret == 0) {
        ret = store_co_flush(j);
    }
    return ret < 0 ? ret : checkpoint_co_header(j, area, cp);
}

/* J8, J10: the header is durable, what was before it is not needed. */
static void coroutine_fn checkpoint_succeeded(BsstJournal *j,
                                              const BsstCheckpoint *cp)
{
    j->checkpoint_area = 1 - j->checkpoint_area;
    WITH_QEMU_LOCK_GUARD(&j->append_lock) {
        j->checkpoint = *cp;
        bsst_journal_publish_used(j);
    }
    WITH_QEMU_LOCK_GUARD(&j->table_lock) {
        memset(j->retired, 0, j->sb.nimages * sizeof(j->retired[0]));
    }
    stat64_add(&j->checkpoints, 1);
    stat64_add(&j->checkpoint_bytes,
               (cp->nblocks + 1) * BSST_JOURNAL_BLOCK_BYTES);
}

/* With @c, commit it, too.  Under checkpoint_lock. */
static int coroutine_fn checkpoint_co_locked(BsstJournal *j, BsstCommit *c)
{
    BsstCheckpoint cp = {
        .number = j->checkpoint.number + 1,
        .generation = j->sb.generation,
    };
    int ret = -EIO;

    if (!bsst_journal_is_dead(j)) {
        ret = checkpoint_co_write(j, c ? c->image : NULL, &cp);
    }
    trace_bsst_journal_checkpoint(j, cp.number, cp.nblocks, cp.nindirections,
                                  ret);
    if (journal_error(j, ret) < 0) {
        return ret;
    }
    checkpoint_succeeded(j, &cp);
    if (c) {
        commit_succeeded(c);
    }
    return 0;
}

int coroutine_fn bsst_journal_co_checkpoint(BsstJournal *j)
{
    if (j->read_only) {
        return -EROFS;
    }
    QEMU_LOCK_GUARD(&j->checkpoint_lock);
    return checkpoint_co_locked(j, NULL);
}

static bool checkpoint_is_due(BsstJournal *j)
{
    return qatomic_read(&j->used_blocks) > j->journal_blocks / 2;
}

static void coroutine_fn checkpoint_entry(void *opaque)
{
    BsstJournal *j = opaque;

    WITH_QEMU_LOCK_GUARD(&j->checkpoint_lock) {
        if (checkpoint_is_due(j)) {
            checkpoint_co_locked(j, NULL);
        }
    }
    qatomic_set(&j->background, false);
    aio_wait_kick();
}

/* In the main thread: IOThreads may go away. */
static void checkpoint_schedule(BsstJournal *j)
{
    if (checkpoint_is_due(j) && !bsst_journal_is_dead(j) &&
        !qatomic_xchg(&j->background, true)) {
        aio_co_schedule(qemu_get_aio_context(),
                        qemu_coroutine_create(checkpoint_entry, j));
    }
}

/* Image table */

int coroutine_fn bsst_table_co_write(BsstImage *image, const BsstImageEntry *e)
{
    BsstJournal *j = image->journal;
    int ret;

    ret = bsst_journal_co_write_entry(j, image->index, e);
    if (ret == 0) {
        ret = store_co_flush(j);
    }
    if (ret == 0) {
        image->entry = *e;
        image->entry_in_doubt = false;
    }
    trace_bsst_table_write(image, image->index, e->in_use, e->generation,
                           e->announced, ret);
    return journal_error(j, ret);
}

/* J10: a removal that has failed may have reached the disk. */
static int coroutine_fn table_co_restore(BsstCommit *c)
{
    BsstImage *image = c->image;
    BsstImageEntry e;

    QEMU_LOCK_GUARD(&image->journal->table_lock);
    assert(!c->records->len || image->entry.in_use);
    if (!image->entry_in_doubt) {
        return 0;
    }
    e = image->entry;
    return bsst_table_co_write(image, &e);
}

/* Flush of an image */

/* Journal full: by a checkpoint, if another one has not made room meanwhile. */
static int coroutine_fn commit_co_checkpoint(BsstCommit *c)
{
    BsstJournal *j = c->image->journal;
    int ret;

    QEMU_LOCK_GUARD(&j->checkpoint_lock);
    ret = commit_co_append(c);
    return c->no_room ? checkpoint_co_locked(j, c) : ret;
}

static int coroutine_fn commit_co_write(BsstCommit *c)
{
    int ret;

    if (!c->records->len) {
        commit_succeeded(c);    /* what has changed has changed back */
        return 0;
    }
    ret = commit_co_append(c);
    if (c->no_room) {
        ret = commit_co_checkpoint(c);
    }
    checkpoint_schedule(c->image->journal);
    return ret;
}

static bool coroutine_fn image_prepare(BsstImage *image)
{
    QEMU_LOCK_GUARD(&image->lock);
    if (!image->failed && !durable_map_changed(image->map)) {
        return false;
    }
    durable_map_prepare(image->map);
    return true;
}

/* Under round_lock (J4). */
static int coroutine_fn image_co_round(BsstImage *image, BsstDataFlush *flush,
                                       void *opaque)
{
    BsstCommit c;
    int ret;

    if (!image_prepare(image)) {
        return flush(opaque);
    }
    commit_begin(&c, image);
    ret = table_co_restore(&c);
    if (ret == 0) {
        ret = commit_co_sync(&c, flush, opaque);
    }
    if (ret == 0) {
        ret = commit_co_write(&c);
    }
    if (ret < 0) {
        commit_failed(&c);
    }
    trace_bsst_journal_commit(image, c.records->len, ret);
    commit_end(&c);
    return ret;
}

bool coroutine_fn bsst_image_is_quiet(BsstImage *image)
{
    QEMU_LOCK_GUARD(&image->lock);
    return !image->failed && !durable_map_changed(image->map) &&
           !durable_map_preparing(image->map);
}

int coroutine_fn bsst_image_co_flush(BsstImage *image, BsstDataFlush *flush,
                                     void *opaque)
{
    uint64_t begun;

    if (bsst_image_is_quiet(image)) {
        return flush(opaque);
    }

    /* A round that begins from now on covers what we are asked for. */
    begun = qatomic_read(&image->rounds_begun);
    QEMU_LOCK_GUARD(&image->round_lock);
    if (image->round_done > begun) {
        return 0;
    }
    if (image->rounds_begun > begun) {
        return image->round_ret;
    }
    qatomic_set(&image->rounds_begun, begun + 1);
    image->round_ret = image_co_round(image, flush, opaque);
    if (image->round_ret == 0) {
        image->round_done = begun + 1;
    }
    return image->round_ret;
}

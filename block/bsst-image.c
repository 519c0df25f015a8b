/*
 * The images of a block-swap store
 *
 * Which images there are, their places in the image table, how many entries
 * their maps may have in all; and the life of the journal itself.  What is
 * durable before what is the business of bsst-journal.c.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "block/aio-wait.h"
#include "bsst-journal-int.h"
#include "qemu/cutils.h"
#include "qemu/main-loop.h"

/* Image table */

/* The place of an image that is not in the table yet.  Under table_lock. */
static bool table_find_place(BsstJournal *j, BsstImage *image)
{
    uint32_t i;

    if (j->table[image->index] == image) {
        return true;            /* an attempt to write it has failed */
    }
    for (i = 0; i < j->sb.nimages; i++) {
        if (!j->table[i] && !j->retired[i]) { /* J10 */
            image->index = i;
            j->table[i] = image;
            return true;
        }
    }
    return false;
}

/* Returns -ENOSPC if there is no place. */
static int coroutine_fn table_co_announce(BsstImage *image)
{
    BsstJournal *j = image->journal;
    BsstImageEntry e;
    uint64_t sequence;

    WITH_QEMU_LOCK_GUARD(&j->append_lock) {
        sequence = j->tail.sequence;
    }
    QEMU_LOCK_GUARD(&j->table_lock);
    e = image->entry;
    if (!e.in_use) {
        if (!table_find_place(j, image)) {
            return -ENOSPC;
        }
        e.in_use = true;
        e.first_sequence = sequence;
    }
    e.announced = e.generation + 1;
    return bsst_table_co_write(image, &e);
}

/* Are there places that wait for a checkpoint? */
static bool coroutine_fn table_has_retired(BsstJournal *j)
{
    uint32_t i;

    QEMU_LOCK_GUARD(&j->table_lock);
    for (i = 0; i < j->sb.nimages; i++) {
        if (j->retired[i]) {
            return true;
        }
    }
    return false;
}

int coroutine_fn bsst_journal_co_announce(BsstImage *image)
{
    BsstJournal *j = image->journal;
    int ret;

    if (bsst_journal_is_dead(j)) {
        return j->read_only ? -EROFS : -EIO;
    }
    ret = table_co_announce(image);
    if (ret == -ENOSPC && table_has_retired(j)) {
        ret = bsst_journal_co_checkpoint(j);
        if (ret == 0) {
            ret = table_co_announce(image);
        }
    }
    return ret;
}

int coroutine_fn bsst_journal_co_attached(BsstImage *image)
{
    BsstJournal *j = image->journal;
    BsstImageEntry e;

    if (bsst_journal_is_dead(j)) {
        return j->read_only ? -EROFS : -EIO;
    }
    QEMU_LOCK_GUARD(&j->table_lock);
    assert(image->entry.in_use);
    e = image->entry;
    e.generation = e.announced;
    return bsst_table_co_write(image, &e);
}

/* Make the entry of @image unused, durably. */
static int coroutine_fn table_co_remove(BsstImage *image)
{
    BsstJournal *j = image->journal;
    BsstImageEntry unused = { .in_use = false };
    int ret;

    QEMU_LOCK_GUARD(&j->table_lock);
    if (j->table[image->index] != image) {
        return 0;
    }
    ret = bsst_table_co_write(image, &unused);
    if (ret == 0) {
        j->table[image->index] = NULL;
        j->retired[image->index] = true;
        return 0;
    }
    image->entry_in_doubt = true;
    QEMU_LOCK_GUARD(&image->lock);
    image->failed = true;
    return ret;
}

/* Drop all references of the map, which nothing on disk counts any more. */
static void coroutine_fn image_drop_all(BsstImage *image)
{
    BsstJournal *j = image->journal;
    const BsstSlot none = BSST_SLOT_NONE;
    BsstSlot old, drop;
    uint64_t block, weight;
    GArray *dropped;

    QEMU_LOCK_GUARD(&image->lock);
    weight = durable_map_weight(image->map);
    while (indirect_map_next(durable_map_current(image->map), 0, &block,
                             NULL)) {
        durable_map_set(image->map, block, &none, 1, &old, &drop);
        if (drop != BSST_SLOT_NONE) {
            j->slots->unref(j->opaque, &drop, 1);
        }
    }
    durable_map_prepare(image->map);
    dropped = durable_map_commit(image->map);
    j->slots->unref(j->opaque, (BsstSlot *)dropped->data, dropped->len);
    g_array_unref(dropped);
    bsst_journal_add_weight(j, weight, 0);
}

static void image_free(BsstImage *image)
{
    durable_map_free(image->map);
    g_free(image);
}

static bool coroutine_fn image_is_empty(BsstImage *image)
{
    if (!bsst_image_is_quiet(image)) {
        return false;
    }
    QEMU_LOCK_GUARD(&image->lock);
    return !indirect_map_count(durable_map_current(image->map));
}

int coroutine_fn bsst_journal_co_remove_image(BsstImage *image, bool discard)
{
    BsstJournal *j = image->journal;
    int ret = 0;

    if (!discard && !image_is_empty(image)) {
        return -EBUSY;
    }
    if (bsst_journal_is_dead(j) && image->entry.in_use) {
        return j->read_only ? -EROFS : -EIO;
    }
    /* No checkpoint has the image half, and J10: the next one has it not. */
    WITH_QEMU_LOCK_GUARD(&j->checkpoint_lock) {
        ret = table_co_remove(image);
        if (ret == 0) {
            QEMU_LOCK_GUARD(&j->lock);
            QLIST_REMOVE(image, next);
        }
    }
    if (ret == 0) {
        image_drop_all(image);
        image_free(image);
    }
    return ret;
}

BsstImage *bsst_image_new(BsstJournal *j, const BsstImageEntry *e)
{
    BsstImage *image = g_new0(BsstImage, 1);

    image->journal = j;
    image->entry = *e;
    image->map = durable_map_new();
    qemu_co_mutex_init(&image->lock);
    qemu_co_mutex_init(&image->round_lock);
    WITH_QEMU_LOCK_GUARD(&j->lock) {
        QLIST_INSERT_HEAD(&j->images, image, next);
    }
    return image;
}

BsstImage *bsst_journal_add_image(BsstJournal *j, const uint8_t uuid[16],
                                  bool raw, const char *name, uint64_t bytes)
{
    BsstImageEntry e = { .raw = raw, .bytes = bytes };

    memcpy(e.uuid, uuid, sizeof(e.uuid));
    pstrcpy(e.name, sizeof(e.name), name);
    return bsst_image_new(j, &e);
}

BsstImage *bsst_journal_next_image(BsstJournal *j, BsstImage *image)
{
    return image ? QLIST_NEXT(image, next) : QLIST_FIRST(&j->images);
}

BsstImage *bsst_journal_find_image(BsstJournal *j, const uint8_t uuid[16])
{
    BsstImage *image = NULL;

    while ((image = bsst_journal_next_image(j, image))) {
        if (!memcmp(image->entry.uuid, uuid, sizeof(image->entry.uuid))) {
            break;
        }
    }
    return image;
}

/* Room */

unsigned bsst_image_set_locked(BsstImage *image, uint64_t block,
                               const BsstSlot *slot, unsigned n, BsstSlot *old,
                               BsstSlot *drop)
{
    uint64_t weight = durable_map_weight(image->map);
    unsigned had = durable_map_set(image->map, block, slot, n, old, drop);

    bsst_journal_add_weight(image->journal, weight,
                            durable_map_weight(image->map));
    return had;
}

bool bsst_journal_reserve(BsstJournal *j, unsigned n)
{
    QEMU_LOCK_GUARD(&j->lock);
    if (bsst_journal_is_dead(j) || j->weight + j->promised + n > j->sb.nslots) {
        return false;
    }
    j->promised += n;
    return true;
}

void bsst_journal_unreserve(BsstJournal *j, unsigned n)
{
    QEMU_LOCK_GUARD(&j->lock);
    assert(j->promised >= n);
    j->promised -= n;
}

/* Life */

BsstJournal *bsst_journal_new(const BsstSuperblock *sb,
                              const BsstJournalIO *io,
                              const BsstJournalSlots *slots, void *opaque,
                              bool read_only)
{
    BsstJournal *j = g_new0(BsstJournal, 1);

    j->sb = *sb;
    j->io = io;
    j->slots = slots;
    j->opaque = opaque;
    j->read_only = read_only;
    j->journal_blocks = sb->journal_bytes / BSST_JOURNAL_BLOCK_BYTES;
    j->checkpoint_blocks = sb->checkpoint_bytes / BSST_JOURNAL_BLOCK_BYTES - 1;
    j->table = g_new0(BsstImage *, sb->nimages);
    j->retired = g_new0(bool, sb->nimages);
    qemu_co_mutex_init(&j->checkpoint_lock);
    qemu_co_mutex_init(&j->append_lock);
    qemu_co_mutex_init(&j->table_lock);
    qemu_co_mutex_init(&j->checksum_lock);
    qemu_co_mutex_init(&j->flush_lock);
    qemu_mutex_init(&j->lock);
    QLIST_INIT(&j->images);
    QSIMPLEQ_INIT(&j->appends);
    QSIMPLEQ_INIT(&j->flush_waiters);
    return j;
}

void bsst_journal_recovered(BsstJournal *j, const BsstCheckpoint *c,
                            unsigned area, const BsstJournalPosition *tail)
{
    BsstImage *image;

    j->checkpoint = *c;
    j->checkpoint_area = area;
    j->tail = *tail;
    /* J6: a block that was torn, or one of an older life */
    j->scrub = 1;
    j->header_uncertain = false;
    bsst_journal_publish_used(j);
    QLIST_FOREACH(image, &j->images, next) {
        j->weight += durable_map_weight(image->map);
    }
    j->recovered_indirections = j->weight;
}

const BsstCheckpoint *bsst_journal_checkpoint(BsstJournal *j, unsigned *area)
{
    *area = j->checkpoint_area;
    return j->checkpoint.number ? &j->checkpoint : NULL;
}

void bsst_journal_free(BsstJournal *j)
{
    BsstImage *image, *next;

    if (!j) {
        return;
    }
    AIO_WAIT_WHILE_UNLOCKED(NULL, qatomic_read(&j->background));
    assert(QSIMPLEQ_EMPTY(&j->appends) && QSIMPLEQ_EMPTY(&j->flush_waiters));
    QLIST_FOREACH_SAFE(image, &j->images, next, next) {
        image_free(image);
    }
    qemu_mutex_destroy(&j->lock);
    g_free(j->table);
    g_free(j->retired);
    g_free(j);
}

void bsst_journal_get_stats(BsstJournal *j, BsstJournalStats *stats)
{
    *stats = (BsstJournalStats) {
        .recovered_indirections = j->recovered_indirections,
        .recovered_images = j->recovered_images,
        .replayed_blocks = j->replayed_blocks,
        .commits = stat64_get(&j->commits),
        .records = stat64_get(&j->records),
        .recorded_blocks = stat64_get(&j->recorded_blocks),
        .journal_bytes = stat64_get(&j->journal_bytes),
        .checksum_bytes = stat64_get(&j->checksum_bytes),
        .checkpoints = stat64_get(&j->checkpoints),
        .checkpoint_bytes = stat64_get(&j->checkpoint_bytes),
        .flushes = stat64_get(&j->flushes),
        .errors = stat64_get(&j->errors),
        .used_bytes = qatomic_read(&j->used_blocks) * BSST_JOURNAL_BLOCK_BYTES,
    };
}

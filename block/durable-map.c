/*
 * Durable map: an indirection map that knows what of it is on disk
 *
 * Four indirection maps by block number:
 *
 *     current    the slot that holds the block now;
 *     changed    for blocks that were set since the last prepare: the slot
 *                that held them at that prepare;
 *     prepared   for blocks that the commit in progress writes: the slot that
 *                the last successful commit left them in;
 *     doubt      for blocks that a failed commit may have written: see below.
 *
 * In the last three, WAS_ABSENT stands for a block that had no slot.  So
 *
 *     state       value of a block: the first of these that has it
 *     current                           current
 *     at prepare            changed,    current
 *     committed   prepared, changed,    current
 *
 *                 durable_map_set                 durable_map_prepare
 *     (clean) --------------------> changed ----------------------> prepared
 *        ^                            ^                                 |
 *        |                            '---------------------------------|
 *        |                                    durable_map_abort         |
 *        '--------------------------------------------------------------'
 *                                 durable_map_commit
 *
 * One reference of a slot belongs to each entry of @current, to each slot in
 * @changed and @prepared, and to each slot in limbo:
 *
 *   D1  A slot that a crash may bring back is referenced: the committed one of
 *       each block, the one that the commit in progress writes, and each that
 *       a commit wrote which failed after the last successful one.
 *   D2  A slot that no commit has written is given back when it is replaced.
 *
 * After a failed commit the block's record may be on disk or not.  Such a block
 * is *in doubt*: the next commit writes it whatever its value is, even that of
 * the last successful commit.  Its value in @doubt is the slot which the failed
 * commit wrote, as long as that is the block's current one.  When it is
 * replaced, it goes into *limbo*: nothing names it but, maybe, the disk.  The
 * next commit that succeeds ends all doubt, as it writes all these blocks.
 *
 * Cost: a block that is set takes a few visits of nodes in two maps, runs of
 * new blocks less; prepare takes O(1), commit and abort O(prepared).
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "bsst/durable-map.h"

/* The block had no slot.  No store has as many slots as that. */
#define WAS_ABSENT      (BSST_SLOT_NONE - 1)

/* Blocks that indirect_map_word() tells of */
#define WORD_BITS       64u

/* Blocks that are noted in one go; a matter of stack space */
#define PIECE           64u

struct DurableMap {
    IndirectMap *current;
    IndirectMap *changed;
    IndirectMap *prepared;  /* empty unless @preparing */
    IndirectMap *doubt;     /* empty while @preparing; its blocks are changed */
    GArray *limbo;          /* of BsstSlot; does not grow while @preparing */
    uint64_t nheld;         /* entries of changed and prepared with a slot */
    bool preparing;
};

DurableMap *durable_map_new(void)
{
    DurableMap *m = g_new0(DurableMap, 1);

    m->current = indirect_map_new();
    m->changed = indirect_map_new();
    m->prepared = indirect_map_new();
    m->doubt = indirect_map_new();
    m->limbo = g_array_new(false, false, sizeof(BsstSlot));
    return m;
}

void durable_map_free(DurableMap *m)
{
    if (m) {
        indirect_map_free(m->current);
        indirect_map_free(m->changed);
        indirect_map_free(m->prepared);
        indirect_map_free(m->doubt);
        g_array_unref(m->limbo);
        g_free(m);
    }
}

const IndirectMap *durable_map_current(const DurableMap *m)
{
    return m->current;
}

/* Set the current state only.  Returns how many blocks had a slot. */
static unsigned set_current(DurableMap *m, uint64_t block, const BsstSlot *slot,
                            unsigned n, BsstSlot *old)
{
    unsigned i, k, had = 0;

    for (i = 0; i < n; i += k) {
        for (k = 0; i + k < n && slot[i + k] < WAS_ABSENT; k++) {
            ;
        }
        if (k) {
            had += indirect_map_insert_run(m->current, block + i, slot + i, k,
                                           old + i);
            continue;
        }
        for (; i + k < n && slot[i + k] == BSST_SLOT_NONE; k++) {
            ;
        }
        assert(k);
        had += indirect_map_remove_run(m->current, block + i, k, old + i);
    }
    return had;
}

/*
 * Note @n blocks, none of them in @changed, that went from @old[] to @slot[].
 * Nothing is to be dropped.
 */
static void note_first_change(DurableMap *m, uint64_t block,
                              const BsstSlot *slot, unsigned n,
                              const BsstSlot *old, BsstSlot *drop)
{
    BsstSlot was[PIECE], none[PIECE];
    unsigned i, k;

    for (i = 0; i < n; i += k) {
        for (k = 0; i + k < n && k < PIECE; k++) {
            if (old[i + k] != BSST_SLOT_NONE) {
                was[k] = old[i + k];
                m->nheld++;
            } else if (slot[i + k] != BSST_SLOT_NONE) {
                was[k] = WAS_ABSENT;
            } else {
                break;
            }
            drop[i + k] = BSST_SLOT_NONE;
        }
        if (k) {
            indirect_map_insert_run(m->changed, block + i, was, k, none);
        } else {
            drop[i] = BSST_SLOT_NONE;
            k = 1;
        }
    }
}

/* The same where none of them had a slot. */
static void note_first_slots(DurableMap *m, uint64_t block,
                             const BsstSlot *slot, unsigned n, BsstSlot *drop)
{
    unsigned i, k;

    for (i = 0; i < n; i += k) {
        for (k = 0; i + k < n && slot[i + k] != BSST_SLOT_NONE; k++) {
            ;
        }
        if (k) {
            indirect_map_fill(m->changed, block + i, k, WAS_ABSENT);
        }
        k += !k;
    }
    memset(drop, 0xff, n * sizeof(*drop));      /* BSST_SLOT_NONE */
}

static void put_in_limbo(DurableMap *m, BsstSlot slot)
{
    assert(!m->preparing);
    g_array_append_val(m->limbo, slot);
}

/*
 * Note that @block, which is in @changed, went from @old to @slot.  Returns the
 * slot to be dropped.
 */
static BsstSlot note_next_change(DurableMap *m, uint64_t block, BsstSlot slot,
                                 BsstSlot old)
{
    BsstSlot doubt = indirect_map_lookup(m->doubt, block);

    if (doubt == BSST_SLOT_NONE) {
        if (slot == BSST_SLOT_NONE &&
            indirect_map_lookup(m->changed, block) == WAS_ABSENT) {
            indirect_map_remove(m->changed, block);
        }
        return old;                                     /* D2 */
    }
    if (old == doubt) {
        put_in_limbo(m, old);                           /* D1 */
        indirect_map_insert(m->doubt, block, WAS_ABSENT);
        return BSST_SLOT_NONE;
    }
    return old;
}

/*
 * If all of the @n blocks were absent, are again, and not in doubt, then there
 * is nothing to note of them.  They are in @changed.
 */
static bool forget_changes(DurableMap *m, uint64_t block, const BsstSlot *slot,
                           unsigned n)
{
    BsstSlot was[WORD_BITS];
    unsigned i, part = block % WORD_BITS;
    uint64_t parts = (~0ULL >> (WORD_BITS - n)) << part;

    if (indirect_map_count(m->doubt) ||
        (indirect_map_word(m->changed, block, WAS_ABSENT) & parts)) {
        return false;
    }
    for (i = 0; i < n; i++) {
        if (slot[i] != BSST_SLOT_NONE) {
            return false;
        }
    }
    indirect_map_remove_run(m->changed, block, n, was);
    return true;
}

/* Note changes of @n blocks that are all in @changed. */
static void note_next_changes(DurableMap *m, uint64_t block,
                              const BsstSlot *slot, unsigned n,
                              const BsstSlot *old, BsstSlot *drop)
{
    unsigned i, k, piece;

    for (i = 0; i < n; i += piece) {
        piece = MIN(n - i, WORD_BITS - (block + i) % WORD_BITS);
        if (forget_changes(m, block + i, slot + i, piece)) {
            memmove(drop + i, old + i, piece * sizeof(*drop));  /* D2 */
            continue;
        }
        for (k = i; k < i + piece; k++) {
            drop[k] = note_next_change(m, block + k, slot[k], old[k]);
        }
    }
}

unsigned durable_map_set(DurableMap *m, uint64_t block, const BsstSlot *slot,
                         unsigned n, BsstSlot *old, BsstSlot *drop)
{
    unsigned i, run, had;
    bool again;

    assert(block <= BSST_MAX_BLOCK && n <= BSST_MAX_BLOCK - block);
    had = set_current(m, block, slot, n, old);
    for (i = 0; i < n; i += run) {
        run = indirect_map_extent(m->changed, block + i, n - i, &again);
        if (again) {
            note_next_changes(m, block + i, slot + i, run, old + i, drop + i);
        } else if (!had) {
            note_first_slots(m, block + i, slot + i, run, drop + i);
        } else {
            note_first_change(m, block + i, slot + i, run, old + i, drop + i);
        }
    }
    return had;
}

bool durable_map_changed(const DurableMap *m)
{
    return indirect_map_count(m->changed) > 0;
}

uint64_t durable_map_weight(const DurableMap *m)
{
    return indirect_map_count(m->current) + m->nheld + m->limbo->len;
}

void durable_map_prepare(DurableMap *m)
{
    IndirectMap *empty = m->prepared;

    assert(!m->preparing);
    assert(indirect_map_count(empty) == 0);
    m->prepared = m->changed;
    m->changed = empty;
    /* All of it is in the commit now; what was written before is in limbo */
    indirect_map_free(m->doubt);
    m->doubt = indirect_map_new();
    m->preparing = true;
}

bool durable_map_preparing(const DurableMap *m)
{
    return m->preparing;
}

/* What @block was at the last prepare; BSST_SLOT_NONE if absent */
static BsstSlot value_at_prepare(const DurableMap *m, uint64_t block)
{
    BsstSlot slot = indirect_map_lookup(m->changed, block);

    if (slot == BSST_SLOT_NONE) {
        return indirect_map_lookup(m->current, block);
    }
    return slot == WAS_ABSENT ? BSST_SLOT_NONE : slot;
}

/* Is @slot what the block behind @r has to be in, to become part of it? */
static bool record_goes_on(const BsstRecord *r, BsstSlot slot)
{
    return r->n < BSST_RECORD_MAX_BLOCKS &&
           slot == (r->slot == BSST_SLOT_NONE ? r->slot : r->slot + r->n);
}

/*
 * A block that is in its old slot again has a record nevertheless: it may be in
 * doubt.
 */
bool durable_map_next_prepared(const DurableMap *m, uint64_t block,
                               BsstRecord *record)
{
    assert(m->preparing);
    if (!indirect_map_next(m->prepared, block, &block, NULL)) {
        return false;
    }
    *record = (BsstRecord) {
        .block = block,
        .slot = value_at_prepare(m, block),
        .n = 1,
    };
    for (block++; indirect_map_lookup(m->prepared, block) != BSST_SLOT_NONE &&
                  record_goes_on(record, value_at_prepare(m, block)); block++) {
        record->n++;
    }
    return true;
}

GArray *durable_map_commit(DurableMap *m)
{
    GArray *drop = m->limbo;
    uint64_t block = 0;
    BsstSlot slot;

    assert(m->preparing);
    m->limbo = g_array_new(false, false, sizeof(BsstSlot));
    for (; indirect_map_next(m->prepared, block, &block, &slot); block++) {
        if (slot != WAS_ABSENT) {
            g_array_append_val(drop, slot);
            m->nheld--;
        }
    }
    indirect_map_free(m->prepared);
    m->prepared = indirect_map_new();
    m->preparing = false;
    return drop;
}

/* The record for @block of a failed commit may be on disk; before, @was. */
static void abort_one(DurableMap *m, uint64_t block, BsstSlot was)
{
    BsstSlot written = indirect_map_insert(m->changed, block, was);

    if (written == BSST_SLOT_NONE) {
        /* Not set since: the current one was written */
        written = indirect_map_lookup(m->current, block);
        if (written == BSST_SLOT_NONE) {
            written = WAS_ABSENT;
        }
    } else if (written != WAS_ABSENT) {
        put_in_limbo(m, written);
        m->nheld--;
        written = WAS_ABSENT;
    }
    indirect_map_insert(m->doubt, block, written);
}

void durable_map_abort(DurableMap *m)
{
    uint64_t block = 0;
    BsstSlot was;

    assert(m->preparing);
    m->preparing = false;
    for (; indirect_map_next(m->prepared, block, &block, &was); block++) {
        abort_one(m, block, was);
    }
    indirect_map_free(m->prepared);
    m->prepared = indirect_map_new();
}

/* What @block is in the state that is committed, or with @prepared will be */
static BsstSlot value_committed(const DurableMap *m, bool prepared,
                                uint64_t block)
{
    BsstSlot slot = BSST_SLOT_NONE;

    if (!prepared) {
        slot = indirect_map_lookup(m->prepared, block);
    }
    if (slot == BSST_SLOT_NONE) {
        return value_at_prepare(m, block);
    }
    return slot == WAS_ABSENT ? BSST_SLOT_NONE : slot;
}

/* The first block at or after @block that is in any map, or UINT64_MAX */
static uint64_t next_in_any(const DurableMap *m, uint64_t block)
{
    const IndirectMap *map[] = { m->current, m->changed, m->prepared };
    uint64_t found, first = UINT64_MAX;
    unsigned i;

    for (i = 0; i < ARRAY_SIZE(map); i++) {
        if (indirect_map_next(map[i], block, &found, NULL)) {
            first = MIN(first, found);
        }
    }
    return first;
}

/* The blocks around @block that have a slot in that state, as a bitmap */
static uint64_t word_committed(const DurableMap *m, bool prepared,
                               uint64_t block)
{
    uint64_t known = indirect_map_word(m->changed, block, BSST_SLOT_NONE);
    uint64_t bits = indirect_map_word(m->current, block, BSST_SLOT_NONE);

    bits = (bits & ~known) | indirect_map_word(m->changed, block, WAS_ABSENT);
    if (!prepared) {
        known = indirect_map_word(m->prepared, block, BSST_SLOT_NONE);
        bits = (bits & ~known) |
               indirect_map_word(m->prepared, block, WAS_ABSENT);
    }
    return bits;
}

bool durable_map_next_committed(const DurableMap *m, bool prepared,
                                uint64_t block, BsstRecord *record)
{
    uint64_t bits;

    for (;;) {
        block = next_in_any(m, block);
        if (block == UINT64_MAX) {
            return false;
        }
        bits = word_committed(m, prepared, block) >> block % WORD_BITS;
        if (bits) {
            break;
        }
        block = ROUND_DOWN(block, WORD_BITS) + WORD_BITS;
    }
    block += __builtin_ctzll(bits);
    *record = (BsstRecord) {
        .block = block,
        .slot = value_committed(m, prepared, block),
        .n = 1,
    };
    for (block++; record_goes_on(record, value_committed(m, prepared, block));
         block++) {
        record->n++;
    }
    return true;
}

void durable_map_restore(DurableMap *m, const BsstRecordWord *word)
{
    uint64_t rest;

    assert(!m->preparing && !durable_map_changed(m));
    for (rest = word->mask; rest; rest &= rest - 1) {
        assert(word->slot[__builtin_ctzll(rest)] != WAS_ABSENT);
    }
    indirect_map_set_word(m->current, word->block, word->mask, word->slot);
}

size_t durable_map_bytes(const DurableMap *m)
{
    return sizeof(*m) + m->limbo->len * sizeof(BsstSlot) +
           indirect_map_bytes(m->current) + indirect_map_bytes(m->changed) +
           indirect_map_bytes(m->prepared) + indirect_map_bytes(m->doubt);
}

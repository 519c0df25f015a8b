/*
 * Slot table: which slots of the store are in use, by how many, and the
 * checksum of each
 *
 * An array of reference counts, one of checksums, and two bitmaps.  A slot is
 *
 *     free       taken bit clear;
 *     in use     taken bit set, references > 0;
 *     punching   taken bit set, no reference.
 *
 *              slot_table_alloc                slot_table_punch_begin
 *     in use <------------------- free -------------------------> punching
 *        |                       ^    ^                              |
 *        '-----------------------'    '------------------------------'
 *          slot_table_unref, last              slot_table_punch_end
 *
 * To find a run of free slots without a search through the table, a binary
 * tree lies above the words of the taken bitmap: each node knows the longest
 * run of free slots in its range, and those at the range's two ends, which
 * may go on in its neighbours.  So allocation costs O(log slots), however full
 * or fragmented the table is, and the longest run of all is known at once.
 *
 * Memory: 4 (references) + 8 (checksum) + 2/8 (bitmaps) + 3/16 to 3/8 (tree),
 * less than 13 bytes a slot.  The big arrays are zero at first, so that the
 * host need not provide memory for slots which were never used.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "bsst/slot-table.h"

#define WORD_BITS  64

/* Lengths of free runs in a range of slots */
typedef struct FreeRuns {
    uint32_t head;      /* from the range's first slot on */
    uint32_t best;      /* anywhere in the range */
    uint32_t tail;      /* up to the range's last slot */
} FreeRuns;

struct SlotTable {
    /* Set once */
    uint32_t nslots;
    uint32_t nwords;    /* words of a bitmap */
    unsigned height;    /* levels of the tree: 2^height is at least nwords */

    /* One for each slot; the bits behind the last slot are taken */
    uint32_t *refs;
    uint64_t *checksum;
    uint64_t *taken;
    uint64_t *backed;

    /*
     * Node i of level l, at index (2^height >> l) + i, covers the words
     * [i << l, (i + 1) << l).  Level 0 is the words and not stored.
     */
    FreeRuns *tree;

    uint32_t cursor;    /* where the last allocation ended */
    uint32_t nfree;
    uint32_t nbacked;
};

/* The bits of word @w that stand for slots in [@first, @first + @n) */
static uint64_t word_mask(uint64_t w, uint64_t first, uint64_t n)
{
    uint64_t base = w * WORD_BITS;
    uint64_t mask = ~0ULL;

    if (first > base) {
        mask &= ~0ULL << (first - base);
    }
    if (first + n < base + WORD_BITS) {
        mask &= ~0ULL >> (base + WORD_BITS - first - n);
    }
    return mask;
}

/* Index of the first of @len consecutive ones in @bits, or WORD_BITS. */
static unsigned word_find_run(uint64_t bits, unsigned len)
{
    unsigned have = 1, step;

    /* A bit that stays set begins a run of at least @have */
    while (bits && have < len) {
        step = MIN(have, len - have);
        bits &= bits >> step;
        have += step;
    }
    return bits ? __builtin_ctzll(bits) : WORD_BITS;
}

static FreeRuns word_runs(uint64_t taken)
{
    FreeRuns runs = { WORD_BITS, WORD_BITS, WORD_BITS };
    uint64_t bits = ~taken;

    if (taken) {
        runs.head = __builtin_ctzll(taken);
        runs.tail = __builtin_clzll(taken);
        for (runs.best = 0; bits; runs.best++) {
            bits &= bits >> 1;
        }
    }
    return runs;
}

static uint64_t node_slots(unsigned level)
{
    return (uint64_t)WORD_BITS << level;
}

static FreeRuns node_runs(const SlotTable *t, unsigned level, uint32_t i)
{
    if (level > 0) {
        return t->tree[(1u << (t->height - level)) + i];
    }
    return word_runs(i < t->nwords ? t->taken[i] : ~0ULL);
}

static void node_update(SlotTable *t, unsigned level, uint32_t i)
{
    FreeRuns a = node_runs(t, level - 1, 2 * i);
    FreeRuns b = node_runs(t, level - 1, 2 * i + 1);
    uint64_t half = node_slots(level - 1);

    t->tree[(1u << (t->height - level)) + i] = (FreeRuns) {
        .head = a.head == half ? half + b.head : a.head,
        .best = MAX(MAX(a.best, b.best), a.tail + b.head),
        .tail = b.tail == half ? half + a.tail : b.tail,
    };
}

/* The taken bits of words @first to @last have changed: bring the tree up. */
static void tree_update(SlotTable *t, uint32_t first, uint32_t last)
{
    unsigned level;
    uint32_t i;

    for (level = 1; level <= t->height; level++) {
        first /= 2;
        last /= 2;
        for (i = first; i <= last; i++) {
            node_update(t, level, i);
        }
    }
}

SlotTable *slot_table_new(uint32_t nslots)
{
    SlotTable *t = g_new0(SlotTable, 1);
    uint32_t last;

    assert(nslots >= 1);
    t->nslots = nslots;
    t->nfree = nslots;
    t->nwords = (nslots - 1) / WORD_BITS + 1;
    while (1u << t->height < t->nwords) {
        t->height++;
    }
    t->refs = g_new0(uint32_t, nslots);
    t->checksum = g_new0(uint64_t, nslots);
    t->taken = g_new0(uint64_t, t->nwords);
    t->backed = g_new0(uint64_t, t->nwords);
    t->tree = g_new(FreeRuns, 1u << t->height);

    last = t->nwords - 1;
    t->taken[last] = ~word_mask(last, 0, nslots);
    tree_update(t, 0, (1u << t->height) - 1);
    return t;
}

void slot_table_free(SlotTable *t)
{
    if (t) {
        g_free(t->refs);
        g_free(t->checksum);
        g_free(t->taken);
        g_free(t->backed);
        g_free(t->tree);
        g_free(t);
    }
}

/* Take @n free slots, or set @n taken slots free. */
static void slots_set_taken(SlotTable *t, BsstSlot first, uint32_t n,
                            bool taken)
{
    uint32_t w, last = (first + n - 1) / WORD_BITS;
    uint64_t mask;

    for (w = first / WORD_BITS; w <= last; w++) {
        mask = word_mask(w, first, n);
        assert((t->taken[w] & mask) == (taken ? 0 : mask));
        t->taken[w] ^= mask;
    }
    tree_update(t, first / WORD_BITS, last);
    if (taken) {
        t->nfree -= n;
    } else {
        t->nfree += n;
    }
}

static void slots_set_backed(SlotTable *t, BsstSlot first, uint32_t n,
                             bool backed)
{
    uint32_t w, last = (first + n - 1) / WORD_BITS;
    uint64_t change;

    for (w = first / WORD_BITS; w <= last; w++) {
        change = word_mask(w, first, n) & (backed ? ~t->backed[w]
                                                  : t->backed[w]);
        t->backed[w] ^= change;
        if (backed) {
            t->nbacked += __builtin_popcountll(change);
        } else {
            t->nbacked -= __builtin_popcountll(change);
        }
    }
}

/* A search from left to right for @want free slots at or after @from */
typedef struct RunSearch {
    uint32_t from;
    uint32_t want;
    uint64_t tail;      /* length of the free run that ends where we are */
} RunSearch;

/*
 * Look into word @w, in which @s->from lies or a long enough run.
 *
 * Returns the first slot of the run, or BSST_SLOT_NONE: go on behind the word.
 */
static BsstSlot search_word(const SlotTable *t, RunSearch *s, uint32_t w)
{
    uint64_t base = (uint64_t)w * WORD_BITS;
    uint64_t bits = ~t->taken[w];
    unsigned i = WORD_BITS;

    if (s->from > base) {
        bits &= ~0ULL << (s->from - base);
    }
    if (s->want <= WORD_BITS) {
        i = word_find_run(bits, s->want);
    }
    if (i < WORD_BITS) {
        return base + i;
    }
    s->tail = __builtin_clzll(~bits);
    return BSST_SLOT_NONE;
}

/* The same for node @i of @level.  Goes down two paths at most. */
static BsstSlot search_node(const SlotTable *t, RunSearch *s, unsigned level,
                            uint32_t i)
{
    uint64_t size = node_slots(level);
    uint64_t base = i * size;
    BsstSlot found;
    FreeRuns runs;

    if (base + size <= s->from) {
        return BSST_SLOT_NONE;
    }
    if (base >= s->from) {
        runs = node_runs(t, level, i);
        if (s->tail + runs.head >= s->want) {
            return base - s->tail;
        }
        if (runs.best < s->want) {
            s->tail = runs.tail == size ? s->tail + size : runs.tail;
            return BSST_SLOT_NONE;
        }
    }
    if (level == 0) {
        return search_word(t, s, i);
    }
    found = search_node(t, s, level - 1, 2 * i);
    if (found == BSST_SLOT_NONE) {
        found = search_node(t, s, level - 1, 2 * i + 1);
    }
    return found;
}

/* Take @n free slots from @first on, with one reference each. */
static void slots_take(SlotTable *t, BsstSlot first, uint32_t n)
{
    uint32_t i;

    slots_set_taken(t, first, n, true);
    slots_set_backed(t, first, n, true);
    for (i = first; i < first + n; i++) {
        assert(t->refs[i] == 0);
        t->refs[i] = 1;
    }
}

uint32_t slot_table_alloc(SlotTable *t, uint32_t want, BsstSlot *first)
{
    uint32_t n = MIN(want, node_runs(t, t->height, 0).best);
    RunSearch ahead = { .from = t->cursor, .want = n };
    RunSearch all = { .from = 0, .want = n };
    BsstSlot start;

    assert(want >= 1);
    if (!n) {
        return 0;
    }
    start = search_node(t, &ahead, t->height, 0);
    if (start == BSST_SLOT_NONE) {
        start = search_node(t, &all, t->height, 0);
    }
    assert(start < t->nslots && n <= t->nslots - start);

    slots_take(t, start, n);
    t->cursor = start + n;
    *first = start;
    return n;
}

/* The lowest run of @n free slots that ends by @limit, or BSST_SLOT_NONE */
static BsstSlot find_low(const SlotTable *t, uint32_t n, BsstSlot limit)
{
    RunSearch all = { .from = 0, .want = n };
    BsstSlot start = search_node(t, &all, t->height, 0);

    return start != BSST_SLOT_NONE && start < limit && n <= limit - start
           ? start : BSST_SLOT_NONE;
}

uint32_t slot_table_alloc_low(SlotTable *t, uint32_t want, uint32_t min,
                              BsstSlot limit, BsstSlot *first)
{
    uint32_t n = want;
    BsstSlot start;

    assert(min >= 1 && min <= want);
    limit = MIN(limit, t->nslots);
    start = find_low(t, want, limit);
    if (start == BSST_SLOT_NONE) {
        start = find_low(t, min, limit);
        if (start == BSST_SLOT_NONE) {
            return 0;
        }
        for (n = min; n < want && start + n < limit &&
                      !(t->taken[(start + n) / WORD_BITS] >>
                        (start + n) % WORD_BITS & 1); n++) {
            /* the run goes on */
        }
    }
    slots_take(t, start, n);
    *first = start;
    return n;
}

void slot_table_ref(SlotTable *t, BsstSlot slot)
{
    slot_table_ref_list(t, &slot, 1);
}

void slot_table_ref_list(SlotTable *t, const BsstSlot *slot, uint32_t n)
{
    uint32_t i, k, run;

    for (i = 0; i < n; i += run) {
        uint32_t *refs;

        for (run = 1; i + run < n && slot[i + run] == slot[i] + run; run++) {
            ;
        }
        assert(slot[i] < t->nslots && run <= t->nslots - slot[i]);
        refs = &t->refs[slot[i]];
        for (k = 0; k < run; k++) {
            assert(refs[k] - 1 < UINT32_MAX - 1);   /* neither 0 nor the last */
            refs[k]++;
        }
    }
}

bool slot_table_unref(SlotTable *t, BsstSlot slot)
{
    assert(slot < t->nslots);
    assert(t->refs[slot] > 0);
    if (--t->refs[slot] > 0) {
        return false;
    }
    slots_set_taken(t, slot, 1, false);
    return true;
}

void slot_table_restore_refs(SlotTable *t, const BsstSlot *slot, uint32_t n)
{
    uint32_t i;

    for (i = 0; i < n; i++) {
        assert(slot[i] < t->nslots);
        assert(t->refs[slot[i]] < UINT32_MAX);
        t->refs[slot[i]]++;
    }
}

/* The slots of word @w that have references */
static uint64_t word_in_use(const SlotTable *t, uint32_t w)
{
    uint32_t base = w * WORD_BITS;
    uint32_t i, n = MIN(WORD_BITS, t->nslots - base);
    uint64_t bits = 0;

    for (i = 0; i < n; i++) {
        bits |= (uint64_t)(t->refs[base + i] > 0) << i;
    }
    return bits;
}

void slot_table_restore_done(SlotTable *t, bool backed)
{
    uint32_t w;
    uint64_t bits;

    assert(t->nfree == t->nslots && t->nbacked == 0);
    for (w = 0; w < t->nwords; w++) {
        bits = word_in_use(t, w);
        t->taken[w] |= bits;
        t->nfree -= __builtin_popcountll(bits);
        t->backed[w] = backed ? word_mask(w, 0, t->nslots) : bits;
        t->nbacked += __builtin_popcountll(t->backed[w]);
    }
    tree_update(t, 0, (1u << t->height) - 1);
}

void slot_table_restore_checksums(SlotTable *t, BsstSlot first, uint32_t n,
                                  const uint64_t *checksum)
{
    uint32_t i;

    assert(first < t->nslots && n <= t->nslots - first);
    for (i = 0; i < n; i++) {
        if (t->refs[first + i]) {
            t->checksum[first + i] = checksum[i];
        }
    }
}

uint32_t slot_table_refs(const SlotTable *t, BsstSlot slot)
{
    assert(slot < t->nslots);
    return t->refs[slot];
}

void slot_table_set_checksum(SlotTable *t, BsstSlot slot, uint64_t checksum)
{
    assert(slot < t->nslots && t->refs[slot] > 0);
    t->checksum[slot] = checksum;
}

uint64_t slot_table_checksum(const SlotTable *t, BsstSlot slot)
{
    assert(slot < t->nslots && t->refs[slot] > 0);
    return t->checksum[slot];
}

/* Bit i of word @w: that slot is free and backed. */
static uint64_t punchable_bits(const SlotTable *t, uint32_t w)
{
    return ~t->taken[w] & t->backed[w];
}

/* The first slot at or after @pos that is free and backed, or the end. */
static uint32_t next_punchable(const SlotTable *t, uint32_t pos)
{
    uint32_t w = pos / WORD_BITS;
    uint64_t bits;

    if (pos >= t->nslots) {
        return t->nslots;
    }
    bits = punchable_bits(t, w) & (~0ULL << (pos % WORD_BITS));
    while (!bits && ++w < t->nwords) {
        bits = punchable_bits(t, w);
    }
    return bits ? w * WORD_BITS + __builtin_ctzll(bits) : t->nslots;
}

/*
 * The run of free slots from @first on, which is free and backed, up to the
 * last one of at most @max that is backed: its end.
 */
static uint32_t punchable_run_end(const SlotTable *t, uint32_t first,
                                  uint32_t max)
{
    uint32_t limit = first + MIN(max, t->nslots - first);
    uint32_t w = first / WORD_BITS, end = first;
    uint64_t taken, bits;

    for (; (uint64_t)w * WORD_BITS < limit; w++) {
        bits = word_mask(w, first, limit - first);
        taken = t->taken[w] & bits;
        if (taken) {
            bits &= (taken & -taken) - 1;       /* below the first taken one */
        }
        bits &= t->backed[w];
        if (bits) {
            end = (w + 1) * WORD_BITS - __builtin_clzll(bits);
        }
        if (taken) {
            break;
        }
    }
    return end;
}

uint32_t slot_table_punch_begin(SlotTable *t, BsstSlot *pos, uint32_t min,
                                uint32_t max, BsstSlot *first)
{
    uint32_t start, end = MIN(*pos, t->nslots);

    assert(min >= 1 && max >= min);
    do {
        start = next_punchable(t, end);
        end = start < t->nslots ? punchable_run_end(t, start, max) : start;
    } while (start < t->nslots && end - start < min);

    *pos = end;
    if (start < end) {
        slots_set_taken(t, start, end - start, true);
        *first = start;
    }
    return end - start;
}

void slot_table_punch_end(SlotTable *t, BsstSlot first, uint32_t n,
                          bool punched)
{
    uint32_t i;

    assert(n >= 1 && first < t->nslots && n <= t->nslots - first);
    for (i = 0; i < n; i++) {
        assert(t->refs[first + i] == 0);
    }
    slots_set_taken(t, first, n, false);
    if (punched) {
        slots_set_backed(t, first, n, false);
    }
}

uint32_t slot_table_size(const SlotTable *t)
{
    return t->nslots;
}

uint32_t slot_table_nfree(const SlotTable *t)
{
    return t->nfree;
}

uint32_t slot_table_nbacked(const SlotTable *t)
{
    return t->nbacked;
}

size_t slot_table_bytes(const SlotTable *t)
{
    size_t slot_bytes = sizeof(*t->refs) + sizeof(*t->checksum);
    size_t word_bytes = sizeof(*t->taken) + sizeof(*t->backed);

    return sizeof(*t) + t->nslots * slot_bytes + t->nwords * word_bytes +
           (sizeof(*t->tree) << t->height);
}

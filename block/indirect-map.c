/*
 * Indirection map: which blocks of one guest disk live in the store
 *
 * A radix tree of fanout 64, compressed by bitmaps.  A node covers an aligned
 * range of 64^(level + 1) blocks and is one allocation:
 *
 *     bitmap (64 bits)   which of its 64 parts have an element
 *     element[]          the elements that exist, in order, without gaps:
 *                        pointers to nodes in inner nodes (level > 0),
 *                        slots (4 bytes) in leaves (level 0)
 *
 * The element of part i is at the index popcount(bitmap below bit i).  The
 * array's capacity is the number of elements rounded up, to 16 bytes in leaves
 * and to a power of two in inner nodes, which are few; it follows from the
 * bitmap, so that nothing else need be stored.  A node without elements does
 * not exist.
 *
 * The tree is as high as its largest block has demanded so far (9 levels for
 * 2^51 blocks, 4 for a disk of 64 GiB); it forgets its height when it becomes
 * empty.
 *
 * Cost: a lookup visits one node a level.  Inserting and removing move at most
 * 64 elements of one node, and make or free at most one node a level.  A full
 * leaf takes 4.3 bytes an entry, the nodes above it 0.1; a lone entry takes a
 * leaf of 32 bytes with the allocator's header, and its share of the nodes
 * above.
 *
 * Deliberately absent: ranges.  Slots of neighbouring blocks are neighbours
 * often, but not for long, and 4 bytes a block are cheap beside the 4096 that
 * they stand for.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "bsst/indirect-map.h"

#define FANOUT_BITS  6
#define FANOUT       (1u << FANOUT_BITS)
QEMU_BUILD_BUG_ON(FANOUT != BSST_WORD_BLOCKS);

/* Guest disks have less than 2^63 bytes */
#define MAX_BLOCKS   (1ULL << (63 - BSST_PAGE_BITS))

/* Arrays grow in steps of this; with the bitmap, malloc wastes nothing then */
#define STEP_BYTES   16

typedef struct Node {
    uint64_t bitmap;
    /* The elements follow */
} Node;

struct IndirectMap {
    Node *root;         /* NULL if the map is empty */
    unsigned height;    /* levels of the tree, 0 if it is empty */
    uint64_t count;
    size_t heap_bytes;  /* of all nodes */
};

/*
 * The compiler's own popcount is a function with a table where the target need
 * not have the instruction.  This touches no memory.
 */
static inline unsigned count_ones(uint64_t bits)
{
    const uint64_t pairs = 0x3333333333333333ULL;

    bits -= (bits >> 1) & 0x5555555555555555ULL;
    bits = (bits & pairs) + ((bits >> 2) & pairs);
    bits = (bits + (bits >> 4)) & 0x0f0f0f0f0f0f0f0fULL;
    return (bits * 0x0101010101010101ULL) >> 56;
}

static inline unsigned part_of(uint64_t block, unsigned level)
{
    return (block >> (level * FANOUT_BITS)) % FANOUT;
}

static inline bool node_has(const Node *node, unsigned part)
{
    return (node->bitmap >> part) & 1;
}

/* Number of elements before that of @part */
static inline unsigned node_rank(const Node *node, unsigned part)
{
    return count_ones(node->bitmap & ((1ULL << part) - 1));
}

static inline Node **node_child(const Node *node, unsigned part)
{
    return (Node **)(node + 1) + node_rank(node, part);
}

static inline BsstSlot *node_slot(const Node *node, unsigned part)
{
    return (BsstSlot *)(node + 1) + node_rank(node, part);
}

static size_t node_bytes(unsigned n, size_t elem_size)
{
    size_t bytes = n * elem_size, room = STEP_BYTES;

    if (!n) {
        return 0;
    }
    if (elem_size == sizeof(BsstSlot)) {
        room = (bytes + STEP_BYTES - 1) & ~(STEP_BYTES - 1ul);
    }
    while (room < bytes) {
        room *= 2;
    }
    return sizeof(Node) + room;
}

/*
 * Make room in the node at *@link for @to elements of @elem_size, where it had
 * room for @from.  Zero elements are no node at all, NULL.
 */
static void node_resize(IndirectMap *map, Node **link, unsigned from,
                        unsigned to, size_t elem_size)
{
    size_t old_bytes = node_bytes(from, elem_size);
    size_t new_bytes = node_bytes(to, elem_size);

    if (old_bytes == new_bytes) {
        return;
    }
    *link = g_realloc(*link, new_bytes);
    if (!from) {
        (*link)->bitmap = 0;
    }
    /* malloc puts a header before each allocation */
    map->heap_bytes -= old_bytes + (from ? sizeof(size_t) : 0);
    map->heap_bytes += new_bytes + (to ? sizeof(size_t) : 0);
}

/*
 * Add an element for @part, which has none, to the node at *@link.
 *
 * Returns it, filled with zeroes.
 */
static void *node_add(IndirectMap *map, Node **link, unsigned part,
                      size_t elem_size)
{
    unsigned n = *link ? count_ones((*link)->bitmap) : 0;
    unsigned rank;
    char *elem;

    node_resize(map, link, n, n + 1, elem_size);
    rank = node_rank(*link, part);
    elem = (char *)(*link + 1) + rank * elem_size;
    memmove(elem + elem_size, elem, (n - rank) * elem_size);
    memset(elem, 0, elem_size);
    (*link)->bitmap |= 1ULL << part;
    return elem;
}

/*
 * Take the elements of @parts, which lie side by side, out of the node at
 * *@link, NULL if they were the last.
 */
static void node_del(IndirectMap *map, Node **link, uint64_t parts,
                     size_t elem_size)
{
    unsigned n = count_ones((*link)->bitmap);
    unsigned k = count_ones((*link)->bitmap & parts);
    unsigned rank = node_rank(*link, __builtin_ctzll(parts));
    char *elem = (char *)(*link + 1) + rank * elem_size;

    memmove(elem, elem + k * elem_size, (n - rank - k) * elem_size);
    (*link)->bitmap &= ~parts;
    node_resize(map, link, n, n - k, elem_size);
}

static void node_free(Node *node, unsigned level)
{
    unsigned i, n = count_ones(node->bitmap);

    if (level > 0) {
        for (i = 0; i < n; i++) {
            node_free(((Node **)(node + 1))[i], level - 1);
        }
    }
    g_free(node);
}

IndirectMap *indirect_map_new(void)
{
    return g_new0(IndirectMap, 1);
}

void indirect_map_free(IndirectMap *map)
{
    if (map && map->root) {
        node_free(map->root, map->height - 1);
    }
    g_free(map);
}

/* Is @block in the range of the tree, which is not empty? */
static inline bool map_covers(const IndirectMap *map, uint64_t block)
{
    return map->root && !(block >> (map->height * FANOUT_BITS));
}

/* Return the leaf for @block, or NULL. */
static const Node *map_leaf(const IndirectMap *map, uint64_t block)
{
    const Node *node = map->root;
    unsigned level, part;

    if (!map_covers(map, block)) {
        return NULL;
    }
    for (level = map->height - 1; level > 0; level--) {
        part = part_of(block, level);
        if (!node_has(node, part)) {
            return NULL;
        }
        node = *node_child(node, part);
    }
    return node;
}

/* Let the tree be high enough for @block. */
static void map_grow(IndirectMap *map, uint64_t block)
{
    Node *root;

    while (!map->height || block >> (map->height * FANOUT_BITS)) {
        if (map->root) {
            root = NULL;
            *(Node **)node_add(map, &root, 0, sizeof(Node *)) = map->root;
            map->root = root;
        }
        map->height++;
    }
}

BsstSlot indirect_map_lookup(const IndirectMap *map, uint64_t block)
{
    const Node *leaf = map_leaf(map, block);
    unsigned part = part_of(block, 0);

    return leaf && node_has(leaf, part) ? *node_slot(leaf, part)
                                        : BSST_SLOT_NONE;
}

/* Return where the leaf for @block hangs; NULL is there if it has none. */
static Node **map_make_link(IndirectMap *map, uint64_t block)
{
    Node **link = &map->root;
    unsigned level;

    map_grow(map, block);
    for (level = map->height - 1; level > 0; level--) {
        unsigned part = part_of(block, level);

        link = *link && node_has(*link, part)
               ? node_child(*link, part)
               : node_add(map, link, part, sizeof(Node *));
    }
    return link;
}

BsstSlot indirect_map_insert(IndirectMap *map, uint64_t block, BsstSlot slot)
{
    BsstSlot *elem, old = BSST_SLOT_NONE;
    unsigned part = part_of(block, 0);
    Node **link;

    assert(block < MAX_BLOCKS && slot != BSST_SLOT_NONE);
    link = map_make_link(map, block);
    if (*link && node_has(*link, part)) {
        elem = node_slot(*link, part);
        old = *elem;
    } else {
        elem = node_add(map, link, part, sizeof(BsstSlot));
        map->count++;
    }
    *elem = slot;
    return old;
}

/* The elements of the parts in @mask, as far as there are any. */
static void leaf_old_slots(uint64_t bitmap, uint64_t mask, const BsstSlot *elem,
                           BsstSlot *old)
{
    for (; mask; mask &= mask - 1) {
        bool has = bitmap & mask & -mask;

        *old++ = has ? *elem++ : BSST_SLOT_NONE;
    }
}

/*
 * Make room for @n blocks of one leaf.  Their elements stand side by side then,
 * and those that some of them had before are in @old (NULL: none had).  Returns
 * the first, and the number of those that had one.
 */
static BsstSlot *leaf_open_run(IndirectMap *map, uint64_t block, unsigned n,
                               BsstSlot *old, unsigned *replaced)
{
    Node **link = map_make_link(map, block);
    unsigned part = part_of(block, 0);
    uint64_t mask = (n < FANOUT ? (1ULL << n) - 1 : ~0ULL) << part;
    uint64_t bitmap = *link ? (*link)->bitmap : 0;
    unsigned have = count_ones(bitmap);
    unsigned rank;
    BsstSlot *elem;

    *replaced = count_ones(bitmap & mask);
    /* The array never shrinks here: first all that is new gets its room. */
    node_resize(map, link, have, have + n - *replaced, sizeof(BsstSlot));
    rank = node_rank(*link, part);
    elem = (BsstSlot *)(*link + 1) + rank;
    if (*replaced) {
        leaf_old_slots(bitmap, mask, elem, old);
    } else if (old) {
        memset(old, 0xff, n * sizeof(BsstSlot));        /* BSST_SLOT_NONE */
    }
    memmove(elem + n, elem + *replaced,
            (have - rank - *replaced) * sizeof(BsstSlot));
    (*link)->bitmap = bitmap | mask;
    map->count += n - *replaced;
    return elem;
}

unsigned indirect_map_insert_run(IndirectMap *map, uint64_t block,
                                 const BsstSlot *slot, unsigned n,
                                 BsstSlot *old)
{
    unsigned i, piece, again, replaced = 0;

    assert(block <= MAX_BLOCKS - n);
    for (i = 0; i < n; i++) {
        assert(slot[i] != BSST_SLOT_NONE);
    }
    for (i = 0; i < n; i += piece) {
        piece = MIN(n - i, FANOUT - part_of(block + i, 0));
        memcpy(leaf_open_run(map, block + i, piece, old + i, &again), slot + i,
               piece * sizeof(*slot));
        replaced += again;
    }
    return replaced;
}

void indirect_map_fill(IndirectMap *map, uint64_t block, unsigned n,
                       BsstSlot slot)
{
    unsigned i, k, piece, again;
    BsstSlot *elem;

    assert(block <= MAX_BLOCKS - n && slot != BSST_SLOT_NONE);
    for (i = 0; i < n; i += piece) {
        piece = MIN(n - i, FANOUT - part_of(block + i, 0));
        elem = leaf_open_run(map, block + i, piece, NULL, &again);
        assert(!again);
        for (k = 0; k < piece; k++) {
            elem[k] = slot;
        }
    }
}

/* Take @parts, which it has, out of the leaf for @block. */
static void leaf_remove(IndirectMap *map, uint64_t block, uint64_t parts)
{
    /* The pointer to the node of each level on the way; 2^51 needs 9 */
    Node **link[64 / FANOUT_BITS];
    unsigned level;

    link[map->height - 1] = &map->root;
    for (level = map->height - 1; level > 0; level--) {
        link[level - 1] = node_child(*link[level], part_of(block, level));
    }
    node_del(map, link[0], parts, sizeof(BsstSlot));
    while (++level < map->height && !*link[level - 1]) {
        node_del(map, link[level], 1ULL << part_of(block, level),
                 sizeof(Node *));
    }
    if (!map->root) {
        map->height = 0;
    }
    map->count -= count_ones(parts);
}

BsstSlot indirect_map_remove(IndirectMap *map, uint64_t block)
{
    BsstSlot old = indirect_map_lookup(map, block);

    if (old != BSST_SLOT_NONE) {
        leaf_remove(map, block, 1ULL << part_of(block, 0));
    }
    return old;
}

/* @n blocks of one leaf.  Returns how many of them it had. */
static unsigned leaf_remove_run(IndirectMap *map, uint64_t block, unsigned n,
                                BsstSlot *old)
{
    const Node *leaf = map_leaf(map, block);
    unsigned i, part = part_of(block, 0);
    uint64_t parts = 0;

    for (i = 0; i < n; i++) {
        old[i] = BSST_SLOT_NONE;
        if (leaf && node_has(leaf, part + i)) {
            old[i] = *node_slot(leaf, part + i);
            parts |= 1ULL << (part + i);
        }
    }
    if (parts) {
        leaf_remove(map, block, parts);
    }
    return count_ones(parts);
}

unsigned indirect_map_remove_run(IndirectMap *map, uint64_t block, unsigned n,
                                 BsstSlot *old)
{
    unsigned i, piece, removed = 0;

    for (i = 0; i < n; i += piece) {
        piece = MIN(n - i, FANOUT - part_of(block + i, 0));
        removed += leaf_remove_run(map, block + i, piece, old + i);
    }
    return removed;
}

/* The blocks in @mask that have a slot in @slot[] */
static uint64_t slots_mask(uint64_t mask, const BsstSlot *slot)
{
    uint64_t set = 0;

    for (; mask; mask &= mask - 1) {
        if (slot[__builtin_ctzll(mask)] != BSST_SLOT_NONE) {
            set |= mask & -mask;
        }
    }
    return set;
}

/*
 * The elements of a leaf with the parts @all, where those in @set are from
 * @slot[], and the others from @leaf.  Returns their number.
 */
static unsigned leaf_merge(const Node *leaf, uint64_t all, uint64_t set,
                           const BsstSlot *slot, BsstSlot *elem)
{
    uint64_t old = leaf ? leaf->bitmap : 0, rest;
    const BsstSlot *old_elem = (const BsstSlot *)(leaf + 1);
    BsstSlot *next = elem;

    for (rest = all | old; rest; rest &= rest - 1) {
        uint64_t bit = rest & -rest;

        if (all & bit) {
            *next++ = set & bit ? slot[__builtin_ctzll(rest)] : *old_elem;
        }
        old_elem += (old & bit) != 0;
    }
    return next - elem;
}

void indirect_map_set_word(IndirectMap *map, uint64_t block, uint64_t mask,
                           const BsstSlot *slot)
{
    const Node *leaf = map_leaf(map, block);
    uint64_t old = leaf ? leaf->bitmap : 0;
    uint64_t set = slots_mask(mask, slot);
    uint64_t all = (old & ~mask) | set;
    BsstSlot elem[FANOUT];
    unsigned n, have;
    Node **link;

    assert(block % FANOUT == 0 && block < MAX_BLOCKS);
    if (!all) {
        if (old) {
            leaf_remove(map, block, old);
        }
        return;
    }
    n = leaf_merge(leaf, all, set, slot, elem);
    have = count_ones(old);
    link = map_make_link(map, block);
    node_resize(map, link, have, n, sizeof(BsstSlot));
    memcpy(*link + 1, elem, n * sizeof(BsstSlot));
    (*link)->bitmap = all;
    map->count += (uint64_t)n - have;
}

/*
 * Move *@block forward to the first entry at or after it.
 *
 * Returns its leaf, or NULL if there is none.
 */
static const Node *map_seek(const IndirectMap *map, uint64_t *block)
{
    const Node *node;
    unsigned level, shift;
    uint64_t rest;

    /* Each round goes down until a node has nothing left, then steps over it */
    while (map_covers(map, *block)) {
        node = map->root;
        for (level = map->height - 1; ; level--) {
            shift = level * FANOUT_BITS;
            rest = node->bitmap >> part_of(*block, level);
            if (!rest) {
                shift += FANOUT_BITS;
                *block = ((*block >> shift) + 1) << shift;
                break;
            }
            if (!(rest & 1)) {
                *block = ((*block >> shift) + __builtin_ctzll(rest)) << shift;
            }
            if (level == 0) {
                return node;
            }
            node = *node_child(node, part_of(*block, level));
        }
    }
    return NULL;
}

bool indirect_map_next(const IndirectMap *map, uint64_t block,
                       uint64_t *found, BsstSlot *slot)
{
    const Node *leaf = map_seek(map, &block);

    if (!leaf) {
        return false;
    }
    if (found) {
        *found = block;
    }
    if (slot) {
        *slot = *node_slot(leaf, part_of(block, 0));
    }
    return true;
}

unsigned indirect_map_next_slots(const IndirectMap *map, uint64_t *block,
                                 const BsstSlot **slot)
{
    const Node *leaf = map_seek(map, block);
    unsigned part = part_of(*block, 0);

    if (!leaf) {
        return 0;
    }
    *slot = node_slot(leaf, part);
    *block += FANOUT - part;
    return count_ones(leaf->bitmap >> part);
}

/* Return how many blocks from @block on, at most @max, are in the map. */
static uint64_t map_run(const IndirectMap *map, uint64_t block, uint64_t max)
{
    uint64_t run = 0, gaps;
    const Node *leaf;
    unsigned part;

    while (run < max) {
        leaf = map_leaf(map, block + run);
        part = part_of(block + run, 0);
        gaps = ~(leaf ? leaf->bitmap : 0) >> part;
        if (gaps) {
            return MIN(max, run + __builtin_ctzll(gaps));
        }
        run += FANOUT - part;
    }
    return max;
}

uint64_t indirect_map_extent(const IndirectMap *map, uint64_t block,
                             uint64_t max, bool *mapped)
{
    uint64_t next, run;

    assert(max >= 1);
    run = map_run(map, block, max);
    *mapped = run > 0;
    if (run) {
        return run;
    }
    return indirect_map_next(map, block, &next, NULL) ? MIN(max, next - block)
                                                      : max;
}

uint64_t indirect_map_word(const IndirectMap *map, uint64_t block,
                           BsstSlot except)
{
    const Node *leaf = map_leaf(map, block);
    uint64_t bits = 0, rest;
    const BsstSlot *elem;

    if (!leaf || except == BSST_SLOT_NONE) {
        return leaf ? leaf->bitmap : 0;
    }
    elem = (const BsstSlot *)(leaf + 1);
    for (rest = leaf->bitmap; rest; rest &= rest - 1) {
        if (*elem++ != except) {
            bits |= rest & -rest;
        }
    }
    return bits;
}

uint64_t indirect_map_count(const IndirectMap *map)
{
    return map->count;
}

size_t indirect_map_bytes(const IndirectMap *map)
{
    return sizeof(*map) + map->heap_bytes;
}

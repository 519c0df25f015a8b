/*
 * Indirection map: which blocks of one guest disk live in the store
 *
 * A radix tree of fanout 64, compressed by bitmaps.  An inner node covers an
 * aligned range of 64^(level + 1) blocks and is one allocation:
 *
 *     bitmap (64 bits)   which of its 64 parts have a child
 *     child[]            the children that exist, in order, without gaps: nodes,
 *                        or leaves (indirect-leaf.h) in nodes of level 1
 *
 * The child of part i is at the index popcount(bitmap below bit i).  The
 * array's capacity is the number of children rounded up to a power of two; it
 * follows from the bitmap, so that nothing else need be stored.  A node without
 * children does not exist.
 *
 * The tree is as high as its largest block has demanded so far (9 levels for
 * 2^51 blocks, 4 for a disk of 64 GiB); it forgets its height when it becomes
 * empty.
 *
 * Cost: a lookup visits one node a level.  Inserting and removing make or free
 * at most one node a level.  Blocks in a row with slots in a row take 0.6 bytes
 * an entry, others 4.6 if they are dense; a lone entry takes 32, and its share
 * of the nodes above.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "bsst/indirect-map.h"
#include "indirect-leaf.h"

#define FANOUT_BITS  6
#define FANOUT       (1u << FANOUT_BITS)
QEMU_BUILD_BUG_ON(FANOUT != BSST_WORD_BLOCKS);

/* Guest disks have less than 2^63 bytes */
#define MAX_BLOCKS   (1ULL << (63 - BSST_PAGE_BITS))

typedef struct Node {
    uint64_t bitmap;
    void *child[];      /* Node, or Leaf below level 1 */
} Node;

struct IndirectMap {
    void *root;         /* NULL if the map is empty */
    unsigned height;    /* levels of the tree, 0 if it is empty; 1: a leaf */
    uint64_t count;
    size_t heap_bytes;  /* of all nodes and leaves */
};

static inline unsigned part_of(uint64_t block, unsigned level)
{
    return (block >> (level * FANOUT_BITS)) % FANOUT;
}

static inline bool node_has(const Node *node, unsigned part)
{
    return (node->bitmap >> part) & 1;
}

/* Where the child of @part is, or is to be */
static inline void **node_child(Node *node, unsigned part)
{
    return node->child + count_ones(node->bitmap & ((1ULL << part) - 1));
}

static size_t node_bytes(unsigned n)
{
    unsigned room = 2;

    if (!n) {
        return 0;
    }
    while (room < n) {
        room *= 2;
    }
    return sizeof(Node) + room * sizeof(void *);
}

/*
 * Make room in the node at *@link for @to children, where it had room for
 * @from.  Zero children are no node at all, NULL.
 */
static void node_resize(IndirectMap *map, Node **link, unsigned from,
                        unsigned to)
{
    size_t old_bytes = node_bytes(from);
    size_t new_bytes = node_bytes(to);

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

/* Add a child for @part, NULL, to the node at *@link, which has none for it. */
static void **node_add(IndirectMap *map, Node **link, unsigned part)
{
    unsigned n = *link ? count_ones((*link)->bitmap) : 0;
    void **child;

    node_resize(map, link, n, n + 1);
    child = node_child(*link, part);
    memmove(child + 1, child, (char *)((*link)->child + n) - (char *)child);
    *child = NULL;
    (*link)->bitmap |= 1ULL << part;
    return child;
}

/* Take the child of @part out of the node at *@link, NULL if it was the last. */
static void node_del(IndirectMap *map, Node **link, unsigned part)
{
    unsigned n = count_ones((*link)->bitmap);
    void **child = node_child(*link, part);

    memmove(child, child + 1,
            (char *)((*link)->child + n) - (char *)(child + 1));
    (*link)->bitmap &= ~(1ULL << part);
    node_resize(map, link, n, n - 1);
}

/* @level is that of the node; a leaf has 0. */
static void node_free(void *node, unsigned level)
{
    if (level > 0) {
        Node *inner = node;
        unsigned i, n = count_ones(inner->bitmap);

        for (i = 0; i < n; i++) {
            node_free(inner->child[i], level - 1);
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
static const Leaf *map_leaf(const IndirectMap *map, uint64_t block)
{
    void *node = map->root;
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
    while (!map->height || block >> (map->height * FANOUT_BITS)) {
        if (map->root) {
            Node *root = NULL;

            *node_add(map, &root, 0) = map->root;
            map->root = root;
        }
        map->height++;
    }
}

BsstSlot indirect_map_lookup(const IndirectMap *map, uint64_t block)
{
    return leaf_get(map_leaf(map, block), part_of(block, 0));
}

/* Return where the leaf for @block hangs; NULL is there if it has none. */
static Leaf **map_make_link(IndirectMap *map, uint64_t block)
{
    void **link = &map->root;
    unsigned level;

    map_grow(map, block);
    for (level = map->height - 1; level > 0; level--) {
        unsigned part = part_of(block, level);
        Node **node = (Node **)link;

        link = *node && node_has(*node, part) ? node_child(*node, part)
                                              : node_add(map, node, part);
    }
    return (Leaf **)link;
}

/*
 * Let the parts in @mask of the word of @block be held by @slot[], from part
 * @first on.  Returns how many had a slot.
 */
static unsigned map_put(IndirectMap *map, uint64_t block, uint64_t mask,
                        const BsstSlot *slot, unsigned first)
{
    Leaf **link = map_make_link(map, block);
    unsigned again = *link ? count_ones((*link)->bitmap & mask) : 0;

    leaf_put(link, &map->heap_bytes, mask, slot, first);
    map->count += count_ones(mask) - again;
    return again;
}

/* Take parts in @mask, one of which it has, out of the leaf for @block. */
static void map_drop(IndirectMap *map, uint64_t block, uint64_t mask)
{
    /* The pointer to the node of each level on the way; 2^51 needs 9 */
    void **link[64 / FANOUT_BITS];
    Leaf **leaf;
    unsigned level;

    link[map->height - 1] = &map->root;
    for (level = map->height - 1; level > 0; level--) {
        link[level - 1] = node_child(*link[level], part_of(block, level));
    }
    leaf = (Leaf **)link[0];
    map->count -= count_ones((*leaf)->bitmap & mask);
    leaf_drop(leaf, &map->heap_bytes, mask);
    while (++level < map->height && !*link[level - 1]) {
        node_del(map, (Node **)link[level], part_of(block, level));
    }
    if (!map->root) {
        map->height = 0;
    }
}

/* @n parts from @part on */
static uint64_t run_mask(unsigned part, unsigned n)
{
    return ~0ULL >> (FANOUT - n) << part;
}

BsstSlot indirect_map_insert(IndirectMap *map, uint64_t block, BsstSlot slot)
{
    BsstSlot old;

    indirect_map_insert_run(map, block, &slot, 1, &old);
    return old;
}

unsigned indirect_map_insert_run(IndirectMap *map, uint64_t block,
                                 const BsstSlot *slot, unsigned n,
                                 BsstSlot *old)
{
    unsigned i, piece, replaced = 0;

    assert(block <= MAX_BLOCKS - n);
    for (i = 0; i < n; i++) {
        assert(slot[i] != BSST_SLOT_NONE);
    }
    for (i = 0; i < n; i += piece) {
        const Leaf *leaf = map_leaf(map, block + i);
        unsigned k, part = part_of(block + i, 0);

        piece = MIN(n - i, FANOUT - part);
        for (k = 0; k < piece; k++) {
            old[i + k] = leaf_get(leaf, part + k);
        }
        replaced += map_put(map, block + i, run_mask(part, piece), slot + i,
                            part);
    }
    return replaced;
}

void indirect_map_fill(IndirectMap *map, uint64_t block, unsigned n,
                       BsstSlot slot)
{
    BsstSlot same[FANOUT];
    unsigned i, piece;

    assert(block <= MAX_BLOCKS - n && slot != BSST_SLOT_NONE);
    for (i = 0; i < MIN(n, FANOUT); i++) {
        same[i] = slot;
    }
    for (i = 0; i < n; i += piece) {
        unsigned again, part = part_of(block + i, 0);

        piece = MIN(n - i, FANOUT - part);
        again = map_put(map, block + i, run_mask(part, piece), same, part);
        assert(!again);
    }
}

BsstSlot indirect_map_remove(IndirectMap *map, uint64_t block)
{
    BsstSlot old;

    indirect_map_remove_run(map, block, 1, &old);
    return old;
}

unsigned indirect_map_remove_run(IndirectMap *map, uint64_t block, unsigned n,
                                 BsstSlot *old)
{
    unsigned i, k, piece, removed = 0;

    for (i = 0; i < n; i += piece) {
        const Leaf *leaf = map_leaf(map, block + i);
        unsigned part = part_of(block + i, 0);
        uint64_t had;

        piece = MIN(n - i, FANOUT - part);
        for (k = 0; k < piece; k++) {
            old[i + k] = leaf_get(leaf, part + k);
        }
        had = leaf ? leaf->bitmap & run_mask(part, piece) : 0;
        if (had) {
            map_drop(map, block + i, had);
        }
        removed += count_ones(had);
    }
    return removed;
}

void indirect_map_set_word(IndirectMap *map, uint64_t block, uint64_t mask,
                           const BsstSlot *slot)
{
    const Leaf *leaf = map_leaf(map, block);
    uint64_t set = 0, rest;

    assert(block % FANOUT == 0 && block < MAX_BLOCKS);
    for (rest = mask; rest; rest &= rest - 1) {
        if (slot[__builtin_ctzll(rest)] != BSST_SLOT_NONE) {
            set |= rest & -rest;
        }
    }
    if (leaf && (leaf->bitmap & mask & ~set)) {
        map_drop(map, block, mask & ~set);
    }
    if (set) {
        map_put(map, block, set, slot, 0);
    }
}

/*
 * Move *@block forward to the first entry at or after it.
 *
 * Returns its leaf, or NULL if there is none.
 */
static const Leaf *map_seek(const IndirectMap *map, uint64_t *block)
{
    unsigned level, shift;
    uint64_t rest;
    void *node;

    /* Each round goes down until a node has nothing left, then steps over it */
    while (map_covers(map, *block)) {
        node = map->root;
        for (level = map->height - 1; ; level--) {
            shift = level * FANOUT_BITS;
            /* A leaf's bitmap is at its beginning, as a node's is */
            rest = *(uint64_t *)node >> part_of(*block, level);
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
    const Leaf *leaf = map_seek(map, &block);

    if (!leaf) {
        return false;
    }
    if (found) {
        *found = block;
    }
    if (slot) {
        *slot = leaf_get(leaf, part_of(block, 0));
    }
    return true;
}

unsigned indirect_map_next_slots(const IndirectMap *map, uint64_t *block,
                                 BsstSlot *slot)
{
    const Leaf *leaf = map_seek(map, block);
    unsigned part = part_of(*block, 0);

    *block += FANOUT - part;
    return leaf ? leaf_list(leaf, part, slot) : 0;
}

/* Return how many blocks from @block on, at most @max, are in the map. */
static uint64_t map_run(const IndirectMap *map, uint64_t block, uint64_t max)
{
    uint64_t run = 0, gaps;
    const Leaf *leaf;
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
    return leaf_except(map_leaf(map, block), except);
}

uint64_t indirect_map_count(const IndirectMap *map)
{
    return map->count;
}

size_t indirect_map_bytes(const IndirectMap *map)
{
    return sizeof(*map) + map->heap_bytes;
}

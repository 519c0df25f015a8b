/*
 * Indirection map: the leaves of its tree
 *
 * Pages leave in runs and are written in runs, so most leaves are *regular*:
 * the slots of their blocks follow each other as the blocks do, or all are the
 * same (as in maps that only note something about blocks).  Such a leaf has two
 * numbers instead of a list.  When that does not do any more it becomes a list,
 * and it stays one until all of it is replaced.
 *
 * Cost: 32 bytes a regular leaf, malloc's header included, for up to 64
 * entries; up to 288 bytes a list, 4.5 an entry if it is full.  A change of a
 * regular leaf takes O(blocks that change), one of a list touches it all.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "indirect-leaf.h"

/* malloc gives a regular leaf room for so many, too. */
#define MIN_ROOM    2u

/* Room for at least @n in steps of 16 bytes, so that malloc wastes nothing */
static unsigned room_for(unsigned n)
{
    return ((n + 1) & ~3u) + MIN_ROOM;
}

static unsigned leaf_room(const Leaf *leaf)
{
    if (!leaf) {
        return 0;
    }
    return leaf->kind == LEAF_LIST ? room_for(count_ones(leaf->bitmap))
                                   : MIN_ROOM;
}

static size_t leaf_bytes(unsigned room)
{
    return sizeof(Leaf) + room * sizeof(BsstSlot);
}

/* To @room slots, or none: no leaf.  Kind and bitmap are to be set then. */
static void leaf_resize(Leaf **link, size_t *heap, unsigned room)
{
    unsigned had = leaf_room(*link);

    if (had == room) {
        return;
    }
    /* malloc puts a header before each allocation */
    *heap -= had ? leaf_bytes(had) + sizeof(size_t) : 0;
    *heap += room ? leaf_bytes(room) + sizeof(size_t) : 0;
    if (room) {
        *link = g_realloc(*link, leaf_bytes(room));
    } else {
        g_free(*link);
        *link = NULL;
    }
}

unsigned leaf_list(const Leaf *leaf, unsigned part, BsstSlot *slot)
{
    uint64_t rest = leaf->bitmap >> part << part;
    unsigned n = count_ones(rest);

    if (leaf->kind == LEAF_LIST) {
        memcpy(slot, leaf->slot + count_ones(leaf->bitmap) - n,
               n * sizeof(*slot));
        return n;
    }
    for (; rest; rest &= rest - 1) {
        *slot++ = leaf_get(leaf, __builtin_ctzll(rest));
    }
    return n;
}

uint64_t leaf_except(const Leaf *leaf, BsstSlot except)
{
    uint64_t bits = 0, rest;

    if (!leaf || except == BSST_SLOT_NONE) {
        return leaf ? leaf->bitmap : 0;
    }
    if (leaf->kind == LEAF_SAME) {
        return leaf->base == except ? 0 : leaf->bitmap;
    }
    for (rest = leaf->bitmap; rest; rest &= rest - 1) {
        if (leaf_get(leaf, __builtin_ctzll(rest)) != except) {
            bits |= rest & -rest;
        }
    }
    return bits;
}

/* What a leaf is to be that has the parts in @mask, and their @base */
static LeafKind kind_of(uint64_t mask, const BsstSlot *slot, unsigned first,
                        BsstSlot *base)
{
    unsigned part = __builtin_ctzll(mask);
    const BsstSlot start = slot[part - first];
    bool consecutive = true, same = true;

    *base = start - part;
    while ((mask &= mask - 1) && (consecutive || same)) {
        unsigned next = __builtin_ctzll(mask);

        consecutive &= slot[next - first] == *base + next;
        same &= slot[next - first] == start;
    }
    if (consecutive) {
        return LEAF_CONSECUTIVE;
    }
    *base = start;
    return same ? LEAF_SAME : LEAF_LIST;
}

/* Do the parts in @mask follow the rule of @leaf? */
static bool leaf_fits(const Leaf *leaf, uint64_t mask, const BsstSlot *slot,
                      unsigned first)
{
    if (leaf->kind == LEAF_LIST) {
        return false;
    }
    for (; mask; mask &= mask - 1) {
        unsigned part = __builtin_ctzll(mask);
        BsstSlot want = leaf->base + (leaf->kind == LEAF_SAME ? 0 : part);

        if (slot[part - first] != want) {
            return false;
        }
    }
    return true;
}

/* All that @leaf will have, of which the parts in @mask are new: by part. */
static void leaf_spread(const Leaf *leaf, uint64_t mask, const BsstSlot *slot,
                        unsigned first, BsstSlot *all)
{
    uint64_t rest = leaf ? leaf->bitmap & ~mask : 0;

    for (; rest; rest &= rest - 1) {
        unsigned part = __builtin_ctzll(rest);

        all[part] = leaf_get(leaf, part);
    }
    for (; mask; mask &= mask - 1) {
        unsigned part = __builtin_ctzll(mask);

        all[part] = slot[part - first];
    }
}

/* Replace all of the leaf by the parts in @mask of @all[]. */
static void leaf_make(Leaf **link, size_t *heap, uint64_t mask,
                      const BsstSlot *all, unsigned first)
{
    BsstSlot base;
    LeafKind kind = kind_of(mask, all, first, &base);
    unsigned n = 0;

    leaf_resize(link, heap, kind == LEAF_LIST ? room_for(count_ones(mask))
                                              : MIN_ROOM);
    (*link)->bitmap = mask;
    (*link)->kind = kind;
    (*link)->base = base;
    for (; kind == LEAF_LIST && mask; mask &= mask - 1) {
        (*link)->slot[n++] = all[__builtin_ctzll(mask) - first];
    }
}

void leaf_put(Leaf **link, size_t *heap, uint64_t mask, const BsstSlot *slot,
              unsigned first)
{
    uint64_t keep = *link ? (*link)->bitmap & ~mask : 0;
    BsstSlot all[BSST_WORD_BLOCKS];

    if (!keep) {
        leaf_make(link, heap, mask, slot, first);
    } else if (leaf_fits(*link, mask, slot, first)) {
        (*link)->bitmap |= mask;
    } else {
        leaf_spread(*link, mask, slot, first, all);
        leaf_make(link, heap, keep | mask, all, 0);
    }
}

void leaf_drop(Leaf **link, size_t *heap, uint64_t mask)
{
    uint64_t rest = (*link)->bitmap, keep = rest & ~mask;
    unsigned from = 0, to = 0;

    if (!keep) {
        leaf_resize(link, heap, 0);
        return;
    }
    if ((*link)->kind == LEAF_LIST) {
        for (; rest; rest &= rest - 1, from++) {
            if (keep & rest & -rest) {
                (*link)->slot[to++] = (*link)->slot[from];
            }
        }
        leaf_resize(link, heap, room_for(to));
    }
    (*link)->bitmap = keep;
}

/*
 * Record batch: records that wait to be applied, sorted by where they apply
 *
 * Records are cut into *pieces*, each within one word of 64 blocks.  What one
 * word has become does not depend on others, so all that matters is the order
 * of the pieces of each word: the batch is sorted by map and word, stably.
 *
 * Sorting is by digits (radix sort), the lowest first; digits that are the same
 * in all pieces are passed over, and so is all of it if the pieces came in
 * order, as those of a checkpoint do.
 *
 * Cost: 16 bytes a piece, and as many again while there is something to sort;
 * time linear in the pieces.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "bsst/record-batch.h"

#define WORDS_BITS  42          /* words of a guest disk, and more */
#define DIGIT_BITS  11
#define DIGITS      (1u << DIGIT_BITS)

typedef struct Piece {
    uint64_t place;             /* map << WORDS_BITS | word */
    BsstSlot slot;              /* of its first block, or BSST_SLOT_NONE */
    uint8_t part, n;            /* blocks of the word */
} Piece;

QEMU_BUILD_BUG_ON(sizeof(Piece) != 16);
QEMU_BUILD_BUG_ON(BSST_MAX_BLOCK / BSST_WORD_BLOCKS > 1ULL << WORDS_BITS);
QEMU_BUILD_BUG_ON(BSST_RECORD_BATCH_MAPS - 1 > UINT64_MAX >> WORDS_BITS);

struct RecordBatch {
    GArray *pieces;             /* of Piece */
    uint64_t differ;            /* bits in which places differ */
    bool in_order;              /* the pieces are */
    bool taking;                /* sorted; those before @next are gone */
    unsigned next;
};

RecordBatch *record_batch_new(void)
{
    RecordBatch *b = g_new0(RecordBatch, 1);

    b->pieces = g_array_new(false, false, sizeof(Piece));
    b->in_order = true;
    return b;
}

void record_batch_free(RecordBatch *b)
{
    if (b) {
        g_array_unref(b->pieces);
        g_free(b);
    }
}

static const Piece *piece_at(const RecordBatch *b, unsigned i)
{
    return &g_array_index(b->pieces, Piece, i);
}

static void add_piece(RecordBatch *b, const Piece *piece)
{
    if (b->pieces->len) {
        uint64_t last = piece_at(b, b->pieces->len - 1)->place;

        b->differ |= piece->place ^ last;
        b->in_order &= piece->place >= last;
    }
    g_array_append_vals(b->pieces, piece, 1);
}

void record_batch_add(RecordBatch *b, uint32_t map, const BsstRecord *record)
{
    uint32_t i, n;

    assert(!b->taking && map < BSST_RECORD_BATCH_MAPS);
    assert(record->block <= BSST_MAX_BLOCK - record->n);
    for (i = 0; i < record->n; i += n) {
        uint64_t block = record->block + i;
        unsigned part = block % BSST_WORD_BLOCKS;
        Piece piece = {
            .place = (uint64_t)map << WORDS_BITS | block / BSST_WORD_BLOCKS,
            .slot = record->slot == BSST_SLOT_NONE ? BSST_SLOT_NONE
                                                   : record->slot + i,
            .part = part,
        };

        n = MIN(record->n - i, BSST_WORD_BLOCKS - part);
        piece.n = n;
        add_piece(b, &piece);
    }
}

size_t record_batch_bytes(const RecordBatch *b)
{
    return b->pieces->len * sizeof(Piece);
}

static unsigned digit_of(const Piece *piece, unsigned shift)
{
    return (piece->place >> shift) % DIGITS;
}

/* Sort @from[] by the digit at @shift, into @to[], stably. */
static void sort_by_digit(const Piece *from, Piece *to, unsigned n,
                          unsigned shift)
{
    unsigned start[DIGITS] = { 0 }, i, sum = 0;

    for (i = 0; i < n; i++) {
        start[digit_of(&from[i], shift)]++;
    }
    for (i = 0; i < DIGITS; i++) {
        unsigned count = start[i];

        start[i] = sum;
        sum += count;
    }
    for (i = 0; i < n; i++) {
        to[start[digit_of(&from[i], shift)]++] = from[i];
    }
}

static void sort_pieces(RecordBatch *b)
{
    GArray *from = b->pieces, *to, *swap;
    unsigned shift;

    to = g_array_sized_new(false, false, sizeof(Piece), from->len);
    g_array_set_size(to, from->len);
    for (shift = 0; shift < 64; shift += DIGIT_BITS) {
        if ((b->differ >> shift) % DIGITS) {
            sort_by_digit((Piece *)from->data, (Piece *)to->data, from->len,
                          shift);
            swap = from;
            from = to;
            to = swap;
        }
    }
    g_array_unref(to);
    b->pieces = from;
}

static void apply_piece(BsstRecordWord *word, const Piece *piece)
{
    unsigned i;

    word->mask |= ~0ULL >> (BSST_WORD_BLOCKS - piece->n) << piece->part;
    for (i = 0; i < piece->n; i++) {
        word->slot[piece->part + i] = piece->slot == BSST_SLOT_NONE
                                      ? BSST_SLOT_NONE : piece->slot + i;
    }
}

bool record_batch_next(RecordBatch *b, BsstRecordWord *word)
{
    const Piece *piece;
    uint64_t place;

    if (!b->taking && !b->in_order) {
        sort_pieces(b);
    }
    b->taking = true;
    if (b->next == b->pieces->len) {
        g_array_set_size(b->pieces, 0);
        b->differ = b->next = 0;
        b->in_order = true;
        b->taking = false;
        return false;
    }
    place = piece_at(b, b->next)->place;
    word->map = place >> WORDS_BITS;
    word->block = place % (1ULL << WORDS_BITS) * BSST_WORD_BLOCKS;
    word->mask = 0;
    while (b->next < b->pieces->len &&
           (piece = piece_at(b, b->next))->place == place) {
        apply_piece(word, piece);
        b->next++;
    }
    return true;
}

/*
 * Journal and checkpoints on disk: round trips, damage, bounds
 *
 * BSST_TEST_SEED=N repeats a run.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "bsst/bsst-format.h"
#include "bsst/journal-format.h"
#include "bsst-seed.h"

#define BLOCK_BYTES     BSST_JOURNAL_BLOCK_BYTES
#define MAX_GENERATION  9u
#define NSLOTS          100000u
#define NIMAGES         4u

static uint32_t seed;

static const BsstBlockHeader header = {
    .kind = BSST_BLOCK_JOURNAL,
    .image = 3,
    .sequence = 0x123456789abcdef0,
    .generation = 7,
    .chain = 0xfedcba9876543210,
};

/* What decode gave */
typedef struct Decoded {
    BsstBlockHeader h;
    BsstRecord records[BSST_JOURNAL_RECORDS];
    unsigned n;
    uint64_t checksum;
} Decoded;

static BsstBlockState decode(const uint8_t *buf,
                             const BsstBlockHeader *expected, Decoded *d)
{
    return bsst_block_decode(buf, expected, MAX_GENERATION, NSLOTS, NIMAGES,
                             &d->h, d->records, &d->n, &d->checksum);
}

static BsstRecord random_record(GRand *rand, BsstBlockKind kind)
{
    BsstRecord r = {
        .n = 1 + (g_rand_boolean(rand) ? 0 : g_rand_int(rand) %
                                             BSST_RECORD_MAX_BLOCKS),
    };

    r.block = (((uint64_t)g_rand_int(rand) << 32) + g_rand_int(rand)) %
              (BSST_MAX_BLOCK - r.n + 1);
    r.slot = kind == BSST_BLOCK_JOURNAL && g_rand_boolean(rand)
             ? BSST_SLOT_NONE : g_rand_int(rand) % (NSLOTS - r.n + 1);
    return r;
}

static void test_round_trip(void)
{
    GRand *rand = g_rand_new_with_seed(seed);
    BsstRecord records[BSST_JOURNAL_RECORDS];
    uint8_t buf[BLOCK_BYTES];
    uint64_t checksum;
    Decoded d;
    unsigned n, i;

    for (n = 1; n <= BSST_JOURNAL_RECORDS; n++) {
        BsstBlockHeader h = header;

        h.kind = n % 2 ? BSST_BLOCK_JOURNAL : BSST_BLOCK_CHECKPOINT;
        for (i = 0; i < n; i++) {
            records[i] = random_record(rand, h.kind);
        }
        memset(buf, 0xee, sizeof(buf));
        checksum = bsst_block_encode(&h, records, n, buf);
        g_assert_true(bsst_block_peek(buf, h.kind, &d.h));
        g_assert_cmpmem(&d.h, sizeof(h), &h, sizeof(h));
        g_assert_false(bsst_block_peek(buf, h.kind == BSST_BLOCK_JOURNAL
                                            ? BSST_BLOCK_CHECKPOINT
                                            : BSST_BLOCK_JOURNAL, &d.h));
        g_assert_cmpint(decode(buf, &h, &d), ==, BSST_BLOCK_VALID);
        g_assert_cmpint(d.h.kind, ==, h.kind);
        g_assert_cmpuint(d.h.image, ==, h.image);
        g_assert_cmpuint(d.h.sequence, ==, h.sequence);
        g_assert_cmpuint(d.h.generation, ==, h.generation);
        g_assert_cmpuint(d.h.chain, ==, h.chain);
        g_assert_cmpuint(d.checksum, ==, checksum);
        g_assert_cmpuint(d.n, ==, n);
        for (i = 0; i < n; i++) {
            g_assert_cmpuint(d.records[i].block, ==, records[i].block);
            g_assert_cmpuint(d.records[i].n, ==, records[i].n);
            g_assert_cmpuint(d.records[i].slot, ==, records[i].slot);
        }
    }
    g_rand_free(rand);
}

/* The bytes are those of docs/interop/bsst.rst, on every host. */
static void test_layout(void)
{
    const BsstRecord r = { 0xa1a2a3a4a5a6, 0xb1b2, 0xc1c2c3c4 };
    const uint8_t expected[76] = {
        'B', 'S', 'S', 'T', 'J', 'R', 'N', 'L', 1, 0, 0, 0, 3, 0, 0, 0,
        0xf0, 0xde, 0xbc, 0x9a, 0x78, 0x56, 0x34, 0x12, 7, 0, 0, 0, 0, 0, 0, 0,
        0x10, 0x32, 0x54, 0x76, 0x98, 0xba, 0xdc, 0xfe,
        [64] = 0xa6, 0xa5, 0xa4, 0xa3, 0xa2, 0xa1, 0xb2, 0xb1,
        0xc4, 0xc3, 0xc2, 0xc1,
    };
    uint8_t buf[BLOCK_BYTES];
    uint64_t checksum = bsst_block_encode(&header, &r, 1, buf);

    g_assert_cmpmem(buf, 76, expected, 76);
    g_assert_cmpuint(checksum, ==, bsst_checksum(buf, BLOCK_BYTES - 8));
    checksum = GUINT64_TO_LE(checksum);
    g_assert_cmpmem(buf + BLOCK_BYTES - 8, 8, &checksum, 8);
}

static void test_bit_flips(void)
{
    const BsstRecord records[] = { { 5, 6, 7 }, { 8, 1, BSST_SLOT_NONE } };
    const BsstCheckpoint c = {
        .number = 1, .generation = 2, .journal_sequence = 3,
    };
    uint8_t buf[BLOCK_BYTES], checkpoint[BLOCK_BYTES];
    BsstCheckpoint got;
    Decoded d;

    bsst_block_encode(&header, records, 2, buf);
    bsst_checkpoint_encode(&c, checkpoint);
    for (unsigned bit = 0; bit < BLOCK_BYTES * 8; bit++) {
        buf[bit / 8] ^= 1 << bit % 8;
        g_assert_cmpint(decode(buf, &header, &d), ==, BSST_BLOCK_END);
        g_assert_false(bsst_block_peek(buf, header.kind, &d.h));
        buf[bit / 8] ^= 1 << bit % 8;

        checkpoint[bit / 8] ^= 1 << bit % 8;
        g_assert_false(bsst_checkpoint_decode(&got, checkpoint, 2, 1, 1));
        checkpoint[bit / 8] ^= 1 << bit % 8;
    }
    g_assert_cmpint(decode(buf, &header, &d), ==, BSST_BLOCK_VALID);
    g_assert_true(bsst_checkpoint_decode(&got, checkpoint, 2, 1, 1));
}

/* A sector of an older block among new ones */
static void test_torn(void)
{
    BsstRecord records[BSST_JOURNAL_RECORDS];
    uint8_t old[BLOCK_BYTES], new[BLOCK_BYTES], torn[BLOCK_BYTES];
    BsstBlockHeader h = header;
    unsigned i, sectors;
    Decoded d;

    for (i = 0; i < BSST_JOURNAL_RECORDS; i++) {
        records[i] = (BsstRecord) { .block = i, .n = 1, .slot = 1000 + i };
    }
    bsst_block_encode(&h, records, BSST_JOURNAL_RECORDS, old);
    for (i = 0; i < BSST_JOURNAL_RECORDS; i++) {
        records[i].slot += 2000;
    }
    bsst_block_encode(&h, records, BSST_JOURNAL_RECORDS, new);
    for (sectors = 1; sectors < 255; sectors++) {
        for (i = 0; i < 8; i++) {
            memcpy(torn + i * 512, (sectors >> i & 1 ? new : old) + i * 512,
                   512);
        }
        g_assert_cmpint(decode(torn, &header, &d), ==, BSST_BLOCK_END);
    }
}

/* Valid in itself, but not the block that follows */
static void test_not_next(void)
{
    const BsstRecord r = { 5, 6, 7 };
    BsstBlockHeader expected;
    uint8_t buf[BLOCK_BYTES];
    Decoded d;

    bsst_block_encode(&header, &r, 1, buf);
    expected = header;
    expected.kind = BSST_BLOCK_CHECKPOINT;
    g_assert_cmpint(decode(buf, &expected, &d), ==, BSST_BLOCK_END);
    expected = header;
    expected.sequence++;
    g_assert_cmpint(decode(buf, &expected, &d), ==, BSST_BLOCK_END);
    expected = header;
    expected.chain++;
    g_assert_cmpint(decode(buf, &expected, &d), ==, BSST_BLOCK_END);
    memset(buf, 0, sizeof(buf));
    g_assert_cmpint(decode(buf, &header, &d), ==, BSST_BLOCK_END);

    /* @expected->image says nothing */
    bsst_block_encode(&header, &r, 1, buf);
    expected = header;
    expected.image = 77;
    g_assert_cmpint(decode(buf, &expected, &d), ==, BSST_BLOCK_VALID);
}

static void write_checksum(uint8_t *buf)
{
    uint64_t checksum = bsst_checksum(buf, BLOCK_BYTES - 8);

    checksum = GUINT64_TO_LE(checksum);
    memcpy(buf + BLOCK_BYTES - 8, &checksum, 8);
}

static BsstBlockState decode_record(BsstBlockKind kind, uint64_t block,
                                    uint32_t n, BsstSlot slot)
{
    const BsstRecord one = { 1, 1, 1 };
    uint64_t block_count = GUINT64_TO_LE(block | (uint64_t)n << 48);
    BsstBlockHeader h = header;
    uint8_t buf[BLOCK_BYTES];
    Decoded d;

    h.kind = kind;
    bsst_block_encode(&h, &one, 1, buf);
    memcpy(buf + 64, &block_count, 8);
    slot = GUINT32_TO_LE(slot);
    memcpy(buf + 72, &slot, 4);
    write_checksum(buf);
    return decode(buf, &h, &d);
}

/* The next block, but what it says cannot be */
static void test_damaged(void)
{
    const uint64_t last = BSST_MAX_BLOCK - 1;
    const BsstBlockKind journal = BSST_BLOCK_JOURNAL;
    const BsstBlockKind body = BSST_BLOCK_CHECKPOINT;
    const struct {
        BsstBlockState state;
        BsstBlockKind kind;
        uint64_t block;
        uint32_t n;
        BsstSlot slot;
    } cases[] = {
        { BSST_BLOCK_DAMAGED, journal, 1, 0, 1 },
        { BSST_BLOCK_DAMAGED, journal, 1, 0, BSST_SLOT_NONE },
        { BSST_BLOCK_VALID, journal, 0, 1, 0 },
        { BSST_BLOCK_VALID, journal, last, 1, NSLOTS - 1 },
        { BSST_BLOCK_DAMAGED, journal, last, 2, 0 },
        { BSST_BLOCK_VALID, journal, last - 65534, 65535, BSST_SLOT_NONE },
        { BSST_BLOCK_DAMAGED, journal, last - 65533, 65535, BSST_SLOT_NONE },
        { BSST_BLOCK_VALID, journal, 1, 2, NSLOTS - 2 },
        { BSST_BLOCK_DAMAGED, journal, 1, 2, NSLOTS - 1 },
        { BSST_BLOCK_DAMAGED, journal, 1, 1, NSLOTS },
        { BSST_BLOCK_DAMAGED, journal, 1, 1, BSST_SLOT_NONE - 1 },
        { BSST_BLOCK_DAMAGED, journal, 1, 2, BSST_SLOT_NONE - 1 },
        { BSST_BLOCK_VALID, body, 1, 65535, NSLOTS - 65535 },
        { BSST_BLOCK_DAMAGED, body, 1, 1, BSST_SLOT_NONE },
    };
    const uint32_t numbers[] = { 0, BSST_JOURNAL_RECORDS + 1, UINT32_MAX };
    const BsstRecord one = { 1, 1, 1 };
    BsstBlockHeader h;
    uint8_t buf[BLOCK_BYTES];
    unsigned i;
    Decoded d;

    for (i = 0; i < ARRAY_SIZE(cases); i++) {
        g_assert_cmpint(decode_record(cases[i].kind, cases[i].block,
                                      cases[i].n, cases[i].slot),
                        ==, cases[i].state);
    }
    for (i = 0; i < ARRAY_SIZE(numbers); i++) {
        uint32_t n = GUINT32_TO_LE(numbers[i]);

        bsst_block_encode(&header, &one, 1, buf);
        memcpy(buf + 8, &n, 4);
        write_checksum(buf);
        g_assert_cmpint(decode(buf, &header, &d), ==, BSST_BLOCK_DAMAGED);
    }
    h = header;
    h.image = NIMAGES;
    bsst_block_encode(&h, &one, 1, buf);
    g_assert_cmpint(decode(buf, &header, &d), ==, BSST_BLOCK_DAMAGED);
    for (i = header.generation - 1; i <= MAX_GENERATION + 1; i++) {
        h = header;
        h.generation = i;
        bsst_block_encode(&h, &one, 1, buf);
        g_assert_cmpint(decode(buf, &header, &d), ==,
                        i >= header.generation && i <= MAX_GENERATION
                        ? BSST_BLOCK_VALID : BSST_BLOCK_DAMAGED);
    }
}

/* Whatever follows the checksum's rule is decoded within bounds. */
static void test_garbage(void)
{
    GRand *rand = g_rand_new_with_seed(seed);
    unsigned i, round, valid = 0;
    uint8_t buf[BLOCK_BYTES];
    BsstCheckpoint c;
    Decoded d;

    for (round = 0; round < 3000; round++) {
        BsstBlockHeader h = header;
        BsstRecord r = random_record(rand, h.kind);

        bsst_block_encode(&h, &r, 1, buf);
        for (i = 0; i < round % 3; i++) {
            unsigned at = g_rand_int(rand) % 100;

            buf[at < 16 ? at : at + 24] = g_rand_int(rand);
        }
        write_checksum(buf);
        valid += decode(buf, &h, &d) == BSST_BLOCK_VALID;

        for (i = 0; i < BLOCK_BYTES; i++) {
            buf[i] = g_rand_int(rand);
        }
        memcpy(buf, "BSSTCKPT", 8);
        write_checksum(buf);
        bsst_checkpoint_decode(&c, buf, g_rand_int(rand), g_rand_int(rand),
                               g_rand_int(rand));
        g_assert_cmpint(decode(buf, &header, &d), ==, BSST_BLOCK_END);
    }
    g_assert_cmpuint(valid, >=, 1000);
    g_rand_free(rand);
}

static bool checkpoint_ok(BsstCheckpoint c)
{
    uint8_t buf[BLOCK_BYTES];
    BsstCheckpoint got;

    memset(buf, 0xee, sizeof(buf));
    bsst_checkpoint_encode(&c, buf);
    if (!bsst_checkpoint_decode(&got, buf, MAX_GENERATION, 50, 8)) {
        return false;
    }
    g_assert_cmpuint(got.number, ==, c.number);
    g_assert_cmpuint(got.generation, ==, c.generation);
    g_assert_cmpuint(got.nblocks, ==, c.nblocks);
    g_assert_cmpuint(got.chain, ==, c.chain);
    g_assert_cmpuint(got.nindirections, ==, c.nindirections);
    g_assert_cmpuint(got.journal_block, ==, c.journal_block);
    g_assert_cmpuint(got.journal_sequence, ==, c.journal_sequence);
    g_assert_cmpuint(got.journal_chain, ==, c.journal_chain);
    g_assert_cmpuint(got.journal_generation, ==, c.journal_generation);
    return true;
}

/* @right with one field changed */
#define WITH(field, value) \
    ({ BsstCheckpoint c_ = right; c_.field = (value); c_; })

static void test_checkpoint(void)
{
    const BsstCheckpoint empty = { .number = 1, .journal_sequence = 1 };
    const BsstCheckpoint right = {
        .number = 1ULL << 40,
        .generation = MAX_GENERATION,
        .nblocks = 50,
        .chain = 0x1122334455667788,
        .nindirections = 1000,
        .journal_block = 7,
        .journal_sequence = 1ULL << 50,
        .journal_chain = UINT64_MAX,
        .journal_generation = MAX_GENERATION,
    };

    g_assert_true(checkpoint_ok(empty));
    g_assert_true(checkpoint_ok(right));
    g_assert_false(checkpoint_ok(WITH(number, 0)));
    g_assert_false(checkpoint_ok(WITH(generation, MAX_GENERATION + 1)));
    g_assert_false(checkpoint_ok(WITH(generation, MAX_GENERATION - 1)));
    g_assert_false(checkpoint_ok(WITH(nblocks, 51)));
    g_assert_false(checkpoint_ok(WITH(nblocks, 0)));
    g_assert_false(checkpoint_ok(WITH(nindirections, 0)));
    g_assert_false(checkpoint_ok(WITH(nindirections, 49)));
    g_assert_true(checkpoint_ok(WITH(nindirections, 50)));
    g_assert_false(checkpoint_ok(WITH(nindirections, UINT64_MAX)));
    g_assert_false(checkpoint_ok(WITH(journal_block, 8)));
    g_assert_false(checkpoint_ok(WITH(journal_block, UINT64_MAX)));
    g_assert_false(checkpoint_ok(WITH(journal_sequence, 0)));
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    seed = bsst_test_seed();

    g_test_add_func("/journal-format/round-trip", test_round_trip);
    g_test_add_func("/journal-format/layout", test_layout);
    g_test_add_func("/journal-format/bit-flips", test_bit_flips);
    g_test_add_func("/journal-format/torn", test_torn);
    g_test_add_func("/journal-format/not-next", test_not_next);
    g_test_add_func("/journal-format/damaged", test_damaged);
    g_test_add_func("/journal-format/garbage", test_garbage);
    g_test_add_func("/journal-format/checkpoint", test_checkpoint);
    return g_test_run();
}

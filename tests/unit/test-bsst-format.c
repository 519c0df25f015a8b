/*
 * Superblock and image table on disk: layout of new stores, round trips, damage
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "bsst/bsst-format.h"
#include "bsst/journal-format.h"

#define KIB     1024ull
#define MIB     (1024ull * KIB)
#define GIB     (1024ull * MIB)
#define TIB     (1024ull * GIB)

#define SB_BYTES    BSST_SUPERBLOCK_BYTES
#define SECTOR      512
#define ENTRY_BYTES BSST_IMAGE_ENTRY_BYTES

/* Set a field of @n bytes at @offset, and the checksum in @bytes' last 8. */
static void poke(uint8_t *buf, size_t bytes, size_t offset, size_t n,
                 uint64_t value)
{
    uint64_t sum;

    value = GUINT64_TO_LE(value);
    memcpy(buf + offset, &value, n);
    sum = GUINT64_TO_LE(bsst_checksum(buf, bytes - 8));
    memcpy(buf + bytes - 8, &sum, 8);
}

/* What lies before the slots, which all of the image's rest is for */
static uint64_t check_init(uint64_t image_bytes)
{
    uint8_t buf[SB_BYTES];
    BsstSuperblock sb, got;

    g_assert_cmpstr(bsst_superblock_init(&sb, image_bytes), ==, NULL);
    g_assert_cmpuint(sb.nslots, >=, BSST_MIN_SLOTS);
    g_assert_cmpuint(bsst_image_bytes_for(sb.nslots), <=, image_bytes);
    if (sb.nslots < BSST_SLOT_NONE - 1) {
        g_assert_cmpuint(bsst_image_bytes_for(sb.nslots + 1), >, image_bytes);
    }
    g_assert_cmpuint(sb.checkpoint_bytes, ==,
                     bsst_checkpoint_bytes_for(sb.nslots, sb.nimages));
    g_assert_cmpuint(sb.journal_bytes, <=, 64 * MIB);

    bsst_superblock_encode(&sb, buf);
    g_assert_cmpstr(bsst_superblock_decode(&got, buf, image_bytes), ==, NULL);
    g_assert_cmpuint(got.nslots, ==, sb.nslots);
    g_assert_cmpuint(got.slots_offset, ==, sb.slots_offset);
    return sb.slots_offset;
}

static void test_init(void)
{
    const uint64_t least = bsst_image_bytes_for(BSST_MIN_SLOTS);
    BsstSuperblock sb;
    uint64_t bytes;

    g_assert_cmpstr(bsst_superblock_init(&sb, 0), ==, "it is too small");
    g_assert_cmpstr(bsst_superblock_init(&sb, least - 1), ==,
                    "it is too small");
    g_assert_cmpuint(check_init(least), <, 256 * KIB);
    for (bytes = least; bytes < 3 * MIB; bytes += 1000) {
        g_assert_cmpuint(check_init(bytes), <, bytes / 4);
    }
    for (; bytes < 32 * TIB; bytes += bytes / 7) {
        g_assert_cmpuint(check_init(bytes), <, bytes / 8);
    }
    check_init(UINT64_MAX);

    bsst_superblock_init(&sb, bsst_image_bytes_for(GIB / BSST_PAGE_SIZE));
    g_assert_cmpuint(sb.nslots, ==, GIB / BSST_PAGE_SIZE);
    g_assert_cmpuint(sb.nimages, ==, BSST_NIMAGES);
    g_assert_cmpuint(sb.journal_bytes, ==, MIB);
    bsst_superblock_init(&sb, 8 * GIB);
    g_assert_cmpuint(sb.journal_bytes, >, 7 * MIB);
    bsst_superblock_init(&sb, UINT64_MAX);
    g_assert_cmpuint(sb.nslots, ==, BSST_SLOT_NONE - 1);
    g_assert_cmpuint(sb.journal_bytes, ==, 64 * MIB);
}

/* A checkpoint can hold as many indirections as it says, however they lie. */
static void test_checkpoint_bytes(void)
{
    uint32_t n, nimages;

    for (n = 0; n < 3 * BSST_JOURNAL_RECORDS; n++) {
        for (nimages = 1; nimages < 5; nimages++) {
            uint64_t blocks = bsst_checkpoint_bytes_for(n, nimages) /
                              BSST_JOURNAL_BLOCK_BYTES;
            /* The worst case: all images but one have a single one */
            uint32_t others = MIN(n, nimages - 1);

            g_assert_cmpuint(1 + others +
                             DIV_ROUND_UP(n - others, BSST_JOURNAL_RECORDS),
                             <=, blocks);
        }
    }
}

static BsstSuperblock example(void)
{
    BsstSuperblock sb;

    bsst_superblock_init(&sb, 64 * MIB);
    sb.generation = 0x1122334455667788;
    sb.clean = true;
    sb.compatible = 1ULL << 63;
    memcpy(sb.uuid, "0123456789abcdef", 16);
    return sb;
}

static void test_superblock(void)
{
    BsstSuperblock sb = example(), got;
    uint8_t buf[SB_BYTES];

    memset(buf, 0xee, sizeof(buf));
    bsst_superblock_encode(&sb, buf);
    g_assert_cmpstr(bsst_superblock_decode(&got, buf, 64 * MIB), ==, NULL);
    g_assert_cmpmem(got.uuid, 16, sb.uuid, 16);
    g_assert_cmpuint(got.generation, ==, sb.generation);
    g_assert_cmpuint(got.compatible, ==, sb.compatible);
    g_assert_true(got.clean);
    g_assert_cmpuint(got.images_offset, ==, sb.images_offset);
    g_assert_cmpuint(got.nimages, ==, sb.nimages);
    g_assert_cmpuint(got.checksums_offset, ==, sb.checksums_offset);
    g_assert_cmpuint(got.checkpoint_offset[0], ==, sb.checkpoint_offset[0]);
    g_assert_cmpuint(got.checkpoint_offset[1], ==, sb.checkpoint_offset[1]);
    g_assert_cmpuint(got.checkpoint_bytes, ==, sb.checkpoint_bytes);
    g_assert_cmpuint(got.journal_offset, ==, sb.journal_offset);
    g_assert_cmpuint(got.journal_bytes, ==, sb.journal_bytes);
    g_assert_cmpuint(got.slots_offset, ==, sb.slots_offset);
    g_assert_cmpuint(got.nslots, ==, sb.nslots);

    sb.clean = false;
    bsst_superblock_encode(&sb, buf);
    bsst_superblock_decode(&got, buf, 64 * MIB);
    g_assert_false(got.clean || got.unfinished);

    sb.unfinished = true;
    bsst_superblock_encode(&sb, buf);
    g_assert_null(bsst_superblock_decode(&got, buf, 64 * MIB));
    g_assert_true(got.unfinished && !got.clean);
}

static void test_superblock_bit_flips(void)
{
    BsstSuperblock sb = example(), got;
    uint8_t buf[SB_BYTES];

    bsst_superblock_encode(&sb, buf);
    for (unsigned bit = 0; bit < SB_BYTES * 8; bit++) {
        buf[bit / 8] ^= 1 << bit % 8;
        g_assert_nonnull(bsst_superblock_decode(&got, buf, 64 * MIB));
        buf[bit / 8] ^= 1 << bit % 8;
    }
    g_assert_null(bsst_superblock_decode(&got, buf, 64 * MIB));
}

/* A crash while the superblock is written leaves the old one or the new one. */
static void test_superblock_torn(void)
{
    BsstSuperblock sb = example(), got;
    uint8_t old[SB_BYTES], new[SB_BYTES], torn[SB_BYTES];
    uint64_t generation = sb.generation;

    bsst_superblock_encode(&sb, old);
    sb.generation++;
    sb.clean = false;
    bsst_superblock_encode(&sb, new);
    for (unsigned sectors = 0; sectors < 256; sectors++) {
        for (unsigned i = 0; i < 8; i++) {
            memcpy(torn + i * SECTOR,
                   (sectors >> i & 1 ? new : old) + i * SECTOR, SECTOR);
        }
        g_assert_null(bsst_superblock_decode(&got, torn, 64 * MIB));
        g_assert_cmpuint(got.generation, ==, generation + (sectors & 1));
    }
}

/* The right checksum does not make nonsense right. */
static void test_superblock_fields(void)
{
    const char *senseless = "its superblock makes no sense";
    const char *misfit = "its superblock does not fit the image's size";
    const BsstSuperblock sb = example();
    const struct {
        const char *reason;     /* NULL: valid */
        unsigned offset;
        unsigned n;
        uint64_t value;
    } cases[] = {
        { "it was made by a pre-release", 8, 4, 1 },
        { "it was made by a newer version", 8, 4, 3 },
        { "its slot size is not supported", 12, 4, 8192 },
        { "it was made by a newer version", 16, 8, 1ULL << 63 },
        { NULL, 24, 8, UINT64_MAX },
        { NULL, 32, 8, UINT64_MAX },
        { NULL, 56, 8, INT64_MAX },
        { senseless, 56, 8, UINT64_MAX },
        { senseless, 64, 4, 3 },
        { senseless, 68, 4, 0 },
        { senseless, 68, 4, BSST_MAX_IMAGES + 8 },
        { misfit, 68, 4, sb.nimages - 1 },          /* half a page */
        { NULL, 68, 4, sb.nimages - 8 },
        { misfit, 68, 4, sb.nimages + 8 },          /* overlaps checksums */
        { misfit, 72, 8, 0 },                       /* ... the superblock */
        { misfit, 72, 8, sb.images_offset + 512 },
        { misfit, 72, 8, sb.journal_offset },
        { misfit, 72, 8, 64 * MIB },
        { misfit, 72, 8, UINT64_MAX - 4095 },
        { misfit, 80, 8, sb.checksums_offset + 4096 },
        { misfit, 88, 8, sb.checkpoint_offset[1] },
        { misfit, 96, 8, sb.checkpoint_offset[1] + 4096 },
        { senseless, 104, 8, sb.checkpoint_bytes - 4096 },
        { misfit, 104, 8, sb.checkpoint_bytes - 1 },
        { misfit, 104, 8, sb.checkpoint_bytes + 4096 },
        { misfit, 104, 8, UINT64_MAX - 4095 },
        { misfit, 112, 8, sb.slots_offset - 4096 },
        { senseless, 120, 8, 7 * 4096 },
        { NULL, 120, 8, 8 * 4096 },
        { senseless, 120, 8, 0 },
        { misfit, 120, 8, sb.journal_bytes + 1 },
        { misfit, 128, 8, sb.slots_offset - 4096 },
        { misfit, 128, 8, sb.slots_offset + 4096 * 200 },
        { misfit, 128, 8, UINT64_MAX - 4095 },
        { senseless, 136, 8, BSST_MIN_SLOTS - 1 },
        { NULL, 136, 8, BSST_MIN_SLOTS },
        { misfit, 136, 8, sb.nslots + 200 },
        { misfit, 136, 8, BSST_SLOT_NONE - 1 },
        { senseless, 136, 8, BSST_SLOT_NONE },
        { senseless, 136, 8, 1ULL << 32 | sb.nslots },
        { NULL, 144, 8, UINT64_MAX },               /* reserved */
    };
    uint8_t buf[SB_BYTES];
    BsstSuperblock got;

    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        bsst_superblock_encode(&sb, buf);
        poke(buf, SECTOR, cases[i].offset, cases[i].n, cases[i].value);
        g_assert_cmpstr(bsst_superblock_decode(&got, buf, 64 * MIB), ==,
                        cases[i].reason);
    }
    bsst_superblock_encode(&sb, buf);
    g_assert_cmpstr(bsst_superblock_decode(&got, buf, 63 * MIB), ==, misfit);
    g_assert_cmpstr(bsst_superblock_decode(&got, buf, 0), ==, misfit);
    memset(buf, 0, sizeof(buf));
    g_assert_cmpstr(bsst_superblock_decode(&got, buf, 64 * MIB), ==,
                    "it is not a block-swap store");
}

static const BsstImageEntry entry = {
    .in_use = true,
    .raw = true,
    .uuid = "0123456789abcde",
    .generation = 7,
    .announced = 8,
    .first_sequence = 1ULL << 40,
    .bytes = TIB,
    .name = "disk.qcow2",
};

static void test_image_entry(void)
{
    const BsstImageEntry unused = { .bytes = 5 };
    uint8_t buf[ENTRY_BYTES];
    BsstImageEntry got, e = entry;

    memset(buf, 0xee, sizeof(buf));
    bsst_image_entry_encode(&entry, buf);
    g_assert_cmpstr(bsst_image_entry_decode(&got, buf), ==, NULL);
    g_assert_true(got.in_use && got.raw);
    g_assert_cmpmem(got.uuid, 16, entry.uuid, 16);
    g_assert_cmpuint(got.generation, ==, 7);
    g_assert_cmpuint(got.announced, ==, 8);
    g_assert_cmpuint(got.first_sequence, ==, 1ULL << 40);
    g_assert_cmpuint(got.bytes, ==, TIB);
    g_assert_cmpstr(got.name, ==, "disk.qcow2");

    memset(e.name, 'x', sizeof(e.name) - 1);
    e.raw = false;
    bsst_image_entry_encode(&e, buf);
    g_assert_cmpstr(bsst_image_entry_decode(&got, buf), ==, NULL);
    g_assert_cmpstr(got.name, ==, e.name);
    g_assert_false(got.raw);

    bsst_image_entry_encode(&unused, buf);
    for (unsigned i = 0; i < sizeof(buf); i++) {
        g_assert_cmpuint(buf[i], ==, 0);
    }
    g_assert_cmpstr(bsst_image_entry_decode(&got, buf), ==, NULL);
    g_assert_false(got.in_use);
}

static void test_image_entry_damage(void)
{
    const char *senseless = "an entry of its image table makes no sense";
    const struct {
        unsigned offset;
        unsigned n;
        uint64_t value;
    } cases[] = {
        { 8, 4, 0 }, { 8, 4, 2 },                   /* state */
        { 12, 4, 2 },                               /* flags */
        { 32, 8, 6 }, { 32, 8, 9 },                 /* generation */
        { 40, 8, 6 }, { 40, 8, 9 },                 /* announced */
        { 503, 1, 'x' },                            /* end of name */
    };
    uint8_t buf[ENTRY_BYTES];
    BsstImageEntry got, e = entry;
    unsigned i;

    bsst_image_entry_encode(&entry, buf);
    for (i = 0; i < ENTRY_BYTES * 8; i++) {
        buf[i / 8] ^= 1 << i % 8;
        g_assert_cmpstr(bsst_image_entry_decode(&got, buf), ==,
                        "an entry of its image table is damaged");
        buf[i / 8] ^= 1 << i % 8;
    }
    for (i = 0; i < ARRAY_SIZE(cases); i++) {
        bsst_image_entry_encode(&entry, buf);
        poke(buf, ENTRY_BYTES, cases[i].offset, cases[i].n, cases[i].value);
        g_assert_cmpstr(bsst_image_entry_decode(&got, buf), ==, senseless);
    }
    memset(e.uuid, 0, sizeof(e.uuid));
    bsst_image_entry_encode(&e, buf);
    g_assert_cmpstr(bsst_image_entry_decode(&got, buf), ==, senseless);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

    g_test_add_func("/bsst-format/init", test_init);
    g_test_add_func("/bsst-format/checkpoint-bytes", test_checkpoint_bytes);
    g_test_add_func("/bsst-format/superblock", test_superblock);
    g_test_add_func("/bsst-format/superblock/bit-flips",
                    test_superblock_bit_flips);
    g_test_add_func("/bsst-format/superblock/torn", test_superblock_torn);
    g_test_add_func("/bsst-format/superblock/fields", test_superblock_fields);
    g_test_add_func("/bsst-format/image-entry", test_image_entry);
    g_test_add_func("/bsst-format/image-entry/damage",
                    test_image_entry_damage);
    return g_test_run();
}

/*
 * make-store: a block-swap store with as many indirections as one likes
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * For measuring recovery.  It writes the virtual disk of a store, as QEMU would
 * have left it when it was killed, into a sparse file: superblock, an image
 * table with one image, checksums, a checkpoint, a journal.  All slots hold
 * zeroes, so their content takes no space.
 *
 * Usage: make-store FILE SLOTS CHECKPOINT JOURNAL RUN
 *
 * CHECKPOINT blocks of the guest's disk are indirected in the checkpoint,
 * JOURNAL more in the journal since, in pieces of RUN blocks.  The pieces lie
 * at every other place of a disk, in random slots; those of the journal come
 * in random order, those of the checkpoint in the order of the disk, as QEMU
 * writes them.
 */
#include "qemu/osdep.h"
#include <fcntl.h>
#include "bsst/bsst-format.h"
#include "bsst/journal-format.h"

#define BUFFER_BLOCKS 256

typedef struct Maker {
    int fd;
    BsstSuperblock sb;
    uint32_t nruns, run;        /* pieces in all, and blocks of one */
    uint32_t checkpoint_runs;
    uint32_t *slot_of;          /* piece of slots of each piece of the disk */
    uint32_t *order;            /* of the pieces: checkpoint, then journal */
} Maker;

/* Blocks that are written one after the other */
typedef struct Writer {
    Maker *m;
    BsstBlockHeader h;
    uint64_t offset;
    BsstRecord records[BSST_JOURNAL_RECORDS];
    unsigned nrecords, nblocks;
    uint64_t ntotal;
    uint8_t *buf;
} Writer;

static G_NORETURN void die(const char *what)
{
    fprintf(stderr, "make-store: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void write_at(Maker *m, uint64_t offset, const void *buf, size_t bytes)
{
    if (pwrite(m->fd, buf, bytes, offset) != (ssize_t)bytes) {
        die("write");
    }
}

static void writer_flush(Writer *w)
{
    write_at(w->m, w->offset, w->buf, w->nblocks * BSST_JOURNAL_BLOCK_BYTES);
    w->offset += w->nblocks * BSST_JOURNAL_BLOCK_BYTES;
    w->nblocks = 0;
}

static void writer_end_block(Writer *w)
{
    if (!w->nrecords) {
        return;
    }
    w->h.chain = bsst_block_encode(&w->h, w->records, w->nrecords,
                                   w->buf +
                                   w->nblocks * BSST_JOURNAL_BLOCK_BYTES);
    w->h.sequence++;
    w->nrecords = 0;
    w->ntotal++;
    if (++w->nblocks == BUFFER_BLOCKS) {
        writer_flush(w);
    }
}

static void writer_add(Writer *w, uint32_t piece)
{
    Maker *m = w->m;

    w->records[w->nrecords++] = (BsstRecord) {
        .block = (uint64_t)piece * 2 * m->run,
        .n = m->run,
        .slot = m->slot_of[piece] * m->run,
    };
    if (w->nrecords == BSST_JOURNAL_RECORDS) {
        writer_end_block(w);
    }
}

/* Write @n pieces, from the @first of the order on. */
static void write_pieces(Writer *w, uint32_t first, uint32_t n)
{
    w->buf = g_malloc(BUFFER_BLOCKS * BSST_JOURNAL_BLOCK_BYTES);
    for (uint32_t i = 0; i < n; i++) {
        writer_add(w, w->m->order[first + i]);
    }
    writer_end_block(w);
    writer_flush(w);
    g_free(w->buf);
}

static void write_journal(Maker *m)
{
    uint64_t chain = bsst_checksum(m->sb.uuid, sizeof(m->sb.uuid));
    uint8_t header[BSST_JOURNAL_BLOCK_BYTES];
    Writer body = {
        .m = m,
        .h = { BSST_BLOCK_CHECKPOINT, .sequence = 1, .generation = 1 },
        .offset = m->sb.checkpoint_offset[0] + BSST_JOURNAL_BLOCK_BYTES,
    };
    Writer journal = {
        .m = m,
        .h = { BSST_BLOCK_JOURNAL, .sequence = 1, .generation = 1,
               .chain = chain },
        .offset = m->sb.journal_offset,
    };
    BsstCheckpoint c = {
        .number = 1, .generation = 1, .journal_sequence = 1,
        .journal_chain = chain, .journal_generation = 1,
    };

    write_pieces(&body, 0, m->checkpoint_runs);
    c.nblocks = body.ntotal;
    c.chain = body.h.chain;
    c.nindirections = (uint64_t)m->checkpoint_runs * m->run;
    bsst_checkpoint_encode(&c, header);
    write_at(m, m->sb.checkpoint_offset[0], header, sizeof(header));

    write_pieces(&journal, m->checkpoint_runs, m->nruns - m->checkpoint_runs);
    if (journal.ntotal * BSST_JOURNAL_BLOCK_BYTES > m->sb.journal_bytes) {
        fprintf(stderr, "make-store: the journal has %" PRIu64 " blocks only\n",
                m->sb.journal_bytes / BSST_JOURNAL_BLOCK_BYTES);
        exit(1);
    }
    printf("checkpoint_bytes=%" PRIu64 " journal_bytes=%" PRIu64 "\n",
           body.ntotal * BSST_JOURNAL_BLOCK_BYTES,
           journal.ntotal * BSST_JOURNAL_BLOCK_BYTES);
}

/* The slots in use are the first ones: the pieces fill them. */
static void write_checksums(Maker *m)
{
    static const uint8_t zeroes[BSST_PAGE_SIZE];
    uint64_t n = (uint64_t)m->nruns * m->run;
    uint64_t *sum = g_new(uint64_t, n);
    uint64_t one = GUINT64_TO_LE(bsst_checksum(zeroes, sizeof(zeroes)));

    for (uint64_t i = 0; i < n; i++) {
        sum[i] = one;
    }
    write_at(m, m->sb.checksums_offset, sum, n * sizeof(sum[0]));
    g_free(sum);
}

static void write_image_table(Maker *m)
{
    uint8_t buf[BSST_IMAGE_ENTRY_BYTES];
    BsstImageEntry e = {
        .in_use = true, .uuid = "make-store imag", .generation = 1,
        .announced = 1, .first_sequence = 1, .name = "not-there.qcow2",
        .bytes = (uint64_t)m->nruns * m->run * 2 * BSST_PAGE_SIZE,
    };

    bsst_image_entry_encode(&e, buf);
    write_at(m, m->sb.images_offset, buf, sizeof(buf));
}

static void write_superblock(Maker *m)
{
    uint8_t buf[BSST_SUPERBLOCK_BYTES];

    bsst_superblock_encode(&m->sb, buf);
    write_at(m, 0, buf, sizeof(buf));
}

static void shuffle(uint32_t *a, uint32_t n)
{
    for (uint32_t i = n; i > 1; i--) {
        uint32_t k = g_random_int() % i, t = a[k];

        a[k] = a[i - 1];
        a[i - 1] = t;
    }
}

static int compare_pieces(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

    return (x > y) - (x < y);
}

static void choose_pieces(Maker *m)
{
    m->slot_of = g_new(uint32_t, m->nruns);
    m->order = g_new(uint32_t, m->nruns);
    for (uint32_t i = 0; i < m->nruns; i++) {
        m->slot_of[i] = m->order[i] = i;
    }
    g_random_set_seed(1);
    shuffle(m->slot_of, m->nruns);
    shuffle(m->order, m->nruns);
    qsort(m->order, m->checkpoint_runs, sizeof(m->order[0]), compare_pieces);
}

static void make_store(Maker *m, const char *path, uint32_t nslots)
{
    uint64_t bytes = bsst_image_bytes_for(nslots);
    const char *reason = bsst_superblock_init(&m->sb, bytes);

    if (reason) {
        fprintf(stderr, "make-store: %s\n", reason);
        exit(1);
    }
    m->sb.generation = 1;
    memcpy(m->sb.uuid, "make-store stor", sizeof(m->sb.uuid));
    m->fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    if (m->fd < 0 || ftruncate(m->fd, bytes)) {
        die(path);
    }
    choose_pieces(m);
    write_image_table(m);
    write_checksums(m);
    write_journal(m);
    write_superblock(m);
    if (fsync(m->fd) || close(m->fd)) {
        die(path);
    }
}

int main(int argc, char **argv)
{
    Maker m = { 0 };
    uint64_t nslots, checkpoint, journal;

    if (argc != 6) {
        fprintf(stderr, "usage: make-store FILE SLOTS CHECKPOINT JOURNAL "
                "RUN\n");
        return 1;
    }
    nslots = g_ascii_strtoull(argv[2], NULL, 10);
    checkpoint = g_ascii_strtoull(argv[3], NULL, 10);
    journal = g_ascii_strtoull(argv[4], NULL, 10);
    m.run = g_ascii_strtoull(argv[5], NULL, 10);
    if (!m.run || m.run > BSST_RECORD_MAX_BLOCKS || !nslots ||
        nslots >= BSST_SLOT_NONE || checkpoint + journal > nslots) {
        fprintf(stderr, "make-store: these numbers make no sense\n");
        return 1;
    }
    m.checkpoint_runs = checkpoint / m.run;
    m.nruns = m.checkpoint_runs + journal / m.run;
    make_store(&m, argv[1], nslots);
    return 0;
}

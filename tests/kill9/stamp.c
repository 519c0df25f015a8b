/*
 * stamp: stamped writes before a crash, and what they may have left after it
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * "stamp run" works on a block device in a guest that is going to be killed.
 * Each thread owns a range of blocks of 4 KiB and does operations number 1, 2,
 * 3, ... in it: writes, direct or through the page cache, write zeroes and
 * discards, of one block or of several.  What operation n of a thread is
 * follows from seed, round, thread and n alone.  A write puts a stamp on each
 * sector of 512 bytes: which block and sector it is, and the version, which is
 * the round and n.  The pages to be written are stamped long before, in locked
 * memory, so that the host has time to swap them out.
 *
 * After some operations a thread calls fsync, and tells of it in a line to the
 * debug port of the machine (isa-debugcon, 0xe9), which QEMU has handed to the
 * host when the instruction is done:
 *
 *     S <thread> <n that the last fsync covers> <n that is not exceeded yet>
 *
 * "stamp check" runs on the host with a copy of the disk and these lines.  Of
 * each sector it knows what it may hold: what the last covered operation left
 * there, or what one of those after it left that may have begun.  Anything else
 * is a violation: older, newer, torn, or of another sector.  It keeps what it
 * found in a state file, from which the next round starts.
 *
 * "stamp sum" prints a hash of a disk, so that the guest can tell whether it
 * sees what the host has checked.
 *
 * Exit status: 0; 1 with violations; 2 when it cannot run.
 */
#define _GNU_SOURCE             /* O_DIRECT, sync_file_range */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/io.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>
#include <linux/fs.h>

#define SECTOR_BYTES 512
#define SECTOR_WORDS (SECTOR_BYTES / sizeof(uint64_t))
#define BLOCK_BYTES 4096
#define BLOCK_SECTORS (BLOCK_BYTES / SECTOR_BYTES)
#define MAX_RUN 32              /* blocks of one operation */
#define MAX_THREADS 16
#define MAX_SHOWN 20            /* violations in full */
#define CHUNK_BYTES (1 << 20)
#define MAGIC 0x7374616d70656421ull
#define DEBUG_PORT 0xe9

typedef struct Settings {
    char path[256];             /* disk, or its copy */
    char state[256];
    char report[256];
    uint64_t seed, round, threads, blocks;
    uint64_t pool_blocks;       /* memory that is stamped in advance */
    uint64_t sync_max;          /* operations between two fsyncs, at most */
} Settings;

typedef enum OpKind { OP_DIRECT, OP_BUFFERED, OP_ZERO, OP_DISCARD } OpKind;

typedef struct Op {
    OpKind kind;
    uint64_t block;
    unsigned nr_blocks;
} Op;

static void die(const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    fputs("stamp: ", stderr);
    vfprintf(stderr, fmt, ap);
    fputc('\n', stderr);
    va_end(ap);
    exit(2);
}

static void *map_memory(size_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (p == MAP_FAILED) {
        die("no %zu bytes: %s", bytes, strerror(errno));
    }
    return p;
}

static uint64_t mix64(uint64_t x)
{
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

/* What both sides know */

static uint64_t draw(const Settings *s, unsigned thread, uint64_t n,
                     unsigned which)
{
    uint64_t x = mix64(s->seed * 0x9e3779b97f4a7c15ull + s->round);

    x = mix64(x + ((uint64_t)thread << 56) + n);
    return mix64(x + which);
}

static void range_of(const Settings *s, unsigned thread, uint64_t *first,
                     uint64_t *end)
{
    *first = s->blocks * thread / s->threads;
    *end = s->blocks * (thread + 1) / s->threads;
}

static Op op_of(const Settings *s, unsigned thread, uint64_t n)
{
    uint64_t dice = draw(s, thread, n, 0), first, end;
    Op op = { .nr_blocks = 1 };

    switch (dice & 63) {
    case 0:
        op.kind = OP_ZERO;
        break;
    case 1:
        op.kind = OP_DISCARD;
        break;
    default:
        op.kind = dice & 64 ? OP_DIRECT : OP_BUFFERED;
    }
    if (!(dice >> 8 & 7)) {
        op.nr_blocks = 1 + (dice >> 16) % MAX_RUN;
    }
    range_of(s, thread, &first, &end);
    op.block = first + draw(s, thread, n, 1) % (end - first - op.nr_blocks + 1);
    return op;
}

static uint64_t version_of(const Settings *s, uint64_t n)
{
    return s->round << 32 | n;
}

/*
 * A sector: magic, block and number of the sector in it, version, a word that
 * binds these to the seed, then words that follow from that.
 */
static void stamp_sector(const Settings *s, uint64_t *words, uint64_t block,
                         unsigned sector, uint64_t version)
{
    uint64_t word, step;

    words[0] = MAGIC;
    words[1] = block * BLOCK_SECTORS + sector;
    words[2] = version;
    word = mix64(s->seed + mix64(words[1] + mix64(version)));
    step = word | 1;
    for (unsigned i = 3; i < SECTOR_WORDS; i++, word += step) {
        words[i] = word;
    }
}

static void stamp_blocks(const Settings *s, void *data, const Op *op,
                         uint64_t n)
{
    uint64_t *words = data;

    for (unsigned i = 0; i < op->nr_blocks * BLOCK_SECTORS; i++) {
        stamp_sector(s, words, op->block + i / BLOCK_SECTORS,
                     i % BLOCK_SECTORS, version_of(s, n));
        words += SECTOR_WORDS;
    }
}

/* stamp run */

typedef struct Worker {
    const Settings *s;
    unsigned thread;
    pthread_t id;
    int direct_fd, buffered_fd;
    char *pool;                 /* a ring of blocks, stamped in advance */
    uint64_t pool_blocks;
    uint64_t head, tail;        /* blocks stamped and used since the start */
    uint64_t next_stamped;      /* first operation that is not stamped yet */
} Worker;

static pthread_mutex_t port_lock = PTHREAD_MUTEX_INITIALIZER;

static void tell(unsigned thread, uint64_t synced, uint64_t bound)
{
    char line[80];
    int length = snprintf(line, sizeof(line), "S %u %" PRIu64 " %" PRIu64 "\n",
                          thread, synced, bound);

    pthread_mutex_lock(&port_lock);
    for (int i = 0; i < length; i++) {
        outb(line[i], DEBUG_PORT);
    }
    pthread_mutex_unlock(&port_lock);
}

static bool op_has_data(const Op *op)
{
    return op->kind == OP_DIRECT || op->kind == OP_BUFFERED;
}

/* Where a run of blocks that begins at @position or later fits into the ring */
static uint64_t place(const Worker *w, uint64_t position, unsigned nr_blocks)
{
    uint64_t offset = position % w->pool_blocks;

    return offset + nr_blocks <= w->pool_blocks
           ? position : position + w->pool_blocks - offset;
}

static void stamp_ahead(Worker *w)
{
    for (;; w->next_stamped++) {
        Op op = op_of(w->s, w->thread, w->next_stamped);
        uint64_t begin;

        if (!op_has_data(&op)) {
            continue;
        }
        begin = place(w, w->head, op.nr_blocks);
        if (begin + op.nr_blocks > w->tail + w->pool_blocks) {
            return;
        }
        stamp_blocks(w->s, w->pool + begin % w->pool_blocks * BLOCK_BYTES, &op,
                     w->next_stamped);
        w->head = begin + op.nr_blocks;
    }
}

static void write_fully(int fd, const char *data, size_t bytes, off_t offset)
{
    while (bytes) {
        ssize_t done = pwrite(fd, data, bytes, offset);

        if (done <= 0) {
            die("pwrite at %jd: %s", (intmax_t)offset, strerror(errno));
        }
        data += done;
        offset += done;
        bytes -= done;
    }
}

static void do_op(Worker *w, uint64_t n)
{
    Op op = op_of(w->s, w->thread, n);
    uint64_t range[2] = { op.block * BLOCK_BYTES, op.nr_blocks * BLOCK_BYTES };
    uint64_t begin;

    switch (op.kind) {
    case OP_ZERO:
        if (ioctl(w->buffered_fd, BLKZEROOUT, range)) {
            die("BLKZEROOUT: %s", strerror(errno));
        }
        break;
    case OP_DISCARD:
        /*
         * The kernel drops dirty pages of its cache, and the device may ignore
         * the rest: then something older than the last write would be there.
         */
        if (sync_file_range(w->buffered_fd, range[0], range[1],
                            SYNC_FILE_RANGE_WAIT_BEFORE |
                            SYNC_FILE_RANGE_WRITE |
                            SYNC_FILE_RANGE_WAIT_AFTER)) {
            die("sync_file_range: %s", strerror(errno));
        }
        if (ioctl(w->buffered_fd, BLKDISCARD, range)) {
            die("BLKDISCARD: %s", strerror(errno));
        }
        break;
    default:
        begin = place(w, w->tail, op.nr_blocks);
        write_fully(op.kind == OP_DIRECT ? w->direct_fd : w->buffered_fd,
                    w->pool + begin % w->pool_blocks * BLOCK_BYTES, range[1],
                    range[0]);
        w->tail = begin + op.nr_blocks;
    }
}

/* How many operations until the next fsync: few and many are equally likely */
static uint64_t batch_of(const Worker *w, uint64_t n)
{
    uint64_t dice = draw(w->s, w->thread, n, 2);
    uint64_t max = w->s->sync_max;

    max >>= dice % (64 - __builtin_clzll(max));
    return 1 + (dice >> 8) % max;
}

static void *worker_run(void *opaque)
{
    Worker *w = opaque;
    uint64_t n = 1, bound;

    for (uint64_t synced = 0;; synced = bound) {
        bound = synced + batch_of(w, n);
        tell(w->thread, synced, bound);
        for (; n <= bound; n++) {
            do_op(w, n);
            stamp_ahead(w);
        }
        if (fsync(w->buffered_fd)) {
            die("fsync: %s", strerror(errno));
        }
    }
    return NULL;
}

static int open_disk(const char *path, int flags)
{
    int fd = open(path, flags);

    if (fd < 0) {
        die("%s: %s", path, strerror(errno));
    }
    return fd;
}

static int cmd_run(const Settings *s)
{
    static Worker workers[MAX_THREADS];

    if (ioperm(DEBUG_PORT, 1, 1)) {
        die("ioperm: %s", strerror(errno));
    }
    for (unsigned i = 0; i < s->threads; i++) {
        Worker *w = &workers[i];
        size_t pool_bytes;

        w->s = s;
        w->thread = i;
        w->direct_fd = open_disk(s->path, O_RDWR | O_DIRECT);
        w->buffered_fd = open_disk(s->path, O_RDWR);
        w->pool_blocks = s->pool_blocks / s->threads;
        pool_bytes = w->pool_blocks * BLOCK_BYTES;
        w->pool = map_memory(pool_bytes);
        if (mlock(w->pool, pool_bytes)) {
            die("mlock: %s", strerror(errno));
        }
        w->next_stamped = 1;
        stamp_ahead(w);
    }
    puts("STAMP runs");
    fflush(stdout);
    for (unsigned i = 0; i < s->threads; i++) {
        if (pthread_create(&workers[i].id, NULL, worker_run, &workers[i])) {
            die("no thread");
        }
    }
    for (unsigned i = 0; i < s->threads; i++) {
        pthread_join(workers[i].id, NULL);
    }
    return 0;
}

/* stamp sum */

static int cmd_sum(const Settings *s)
{
    int fd = open(s->path, O_RDONLY | O_DIRECT);
    uint64_t *words = map_memory(CHUNK_BYTES);
    uint64_t sum = 0, bytes = 0;
    ssize_t got;

    if (fd < 0) {
        fd = open_disk(s->path, O_RDONLY);
    }
    while ((got = read(fd, words, CHUNK_BYTES)) > 0) {
        for (size_t i = 0; i < got / sizeof(words[0]); i++) {
            sum = (sum ^ words[i]) * 0x9e3779b97f4a7c15ull;
            sum ^= sum >> 29;
        }
        bytes += got;
    }
    if (got < 0) {
        die("read %s: %s", s->path, strerror(errno));
    }
    printf("STAMP sum=%016" PRIx64 " bytes=%" PRIu64 "\n", sum, bytes);
    return 0;
}

/* stamp check */

typedef struct Bound {
    uint64_t synced, issued;
    uint64_t fsyncs;
} Bound;

/* What the sectors of a block may hold */
typedef struct Allowed {
    bool before;                /* what they held when the round began */
    bool zero;
    unsigned nr_versions, max_versions;
    uint64_t *versions;
} Allowed;

typedef struct Check {
    const Settings *s;
    Bound bounds[MAX_THREADS];
    Allowed *allowed;           /* of each block */
    uint64_t *found;            /* of each sector: version, 0 for zeroes */
    uint64_t violations, changed, uncovered;
} Check;

/* A last line that QEMU did not finish does not count */
static void read_report(Check *c)
{
    FILE *f = fopen(c->s->report, "r");
    char line[128];

    if (!f) {
        die("%s: %s", c->s->report, strerror(errno));
    }
    while (fgets(line, sizeof(line), f) && strchr(line, '\n')) {
        uint64_t synced, issued;
        unsigned thread;
        Bound *b;

        if (sscanf(line, "S %u %" SCNu64 " %" SCNu64, &thread, &synced,
                   &issued) != 3 || thread >= c->s->threads) {
            die("strange line in %s: %s", c->s->report, line);
        }
        b = &c->bounds[thread];
        b->fsyncs += synced > b->synced;
        b->synced = synced;
        b->issued = issued;
    }
    fclose(f);
}

static void allow(Allowed *a, const Op *op, uint64_t version, bool covered)
{
    if (covered && op->kind != OP_DISCARD) {
        a->before = a->zero = false;
        a->nr_versions = 0;
    }
    if (!op_has_data(op)) {
        a->zero = true;
        return;
    }
    if (a->nr_versions == a->max_versions) {
        a->max_versions = 2 * a->max_versions + 2;
        a->versions = realloc(a->versions,
                              a->max_versions * sizeof(a->versions[0]));
        if (!a->versions) {
            die("out of memory");
        }
    }
    a->versions[a->nr_versions++] = version;
}

static void replay(Check *c)
{
    const Settings *s = c->s;

    for (uint64_t i = 0; i < s->blocks; i++) {
        c->allowed[i].before = true;
    }
    for (unsigned t = 0; t < s->threads; t++) {
        for (uint64_t n = 1; n <= c->bounds[t].issued; n++) {
            Op op = op_of(s, t, n);

            for (unsigned i = 0; i < op.nr_blocks; i++) {
                allow(&c->allowed[op.block + i], &op, version_of(s, n),
                      n <= c->bounds[t].synced);
            }
        }
    }
}

static bool is_allowed(const Allowed *a, uint64_t before, uint64_t found)
{
    if ((a->before && found == before) || (a->zero && !found)) {
        return true;
    }
    for (unsigned i = 0; i < a->nr_versions; i++) {
        if (a->versions[i] == found) {
            return true;
        }
    }
    return false;
}

static void print_version(const char *what, uint64_t version)
{
    if (version) {
        printf(" %s=%" PRIu64 ".%" PRIu64, what, version >> 32,
               version & 0xffffffff);
    } else {
        printf(" %s=zeroes", what);
    }
}

static void show_violation(Check *c, uint64_t sector, const uint64_t *words,
                           const char *why)
{
    const Allowed *a = &c->allowed[sector / BLOCK_SECTORS];

    if (++c->violations > MAX_SHOWN) {
        return;
    }
    printf("STAMP violation block=%" PRIu64 " sector=%" PRIu64 ": %s;",
           sector / BLOCK_SECTORS, sector % BLOCK_SECTORS, why);
    if (words[0] == MAGIC) {
        printf(" stamp of block=%" PRIu64 " sector=%" PRIu64,
               words[1] / BLOCK_SECTORS, words[1] % BLOCK_SECTORS);
        print_version("version", words[2]);
    } else {
        printf(" begins with %016" PRIx64, words[0]);
    }
    fputs("; allowed:", stdout);
    if (a->before) {
        print_version("before", c->found[sector]);
    }
    if (a->zero) {
        fputs(" zeroes", stdout);
    }
    for (unsigned i = 0; i < a->nr_versions; i++) {
        print_version("version", a->versions[i]);
    }
    putchar('\n');
}

static bool all_zero(const uint64_t *words)
{
    for (unsigned i = 0; i < SECTOR_WORDS; i++) {
        if (words[i]) {
            return false;
        }
    }
    return true;
}

static void check_sector(Check *c, uint64_t sector, const uint64_t *words)
{
    const Allowed *a = &c->allowed[sector / BLOCK_SECTORS];
    uint64_t want[SECTOR_WORDS], found = 0;

    if (!all_zero(words)) {
        found = words[2];
        stamp_sector(c->s, want, sector / BLOCK_SECTORS,
                     sector % BLOCK_SECTORS, found);
        if (memcmp(words, want, SECTOR_BYTES)) {
            show_violation(c, sector, words,
                           words[0] == MAGIC && words[1] != want[1]
                           ? "another sector's content" : "torn or foreign");
            return;
        }
    }
    if (!is_allowed(a, c->found[sector], found)) {
        show_violation(c, sector, words,
                       found ? "a version that cannot be here" : "zeroes");
    }
    c->changed += found != c->found[sector];
    c->uncovered += a->before + a->zero + a->nr_versions > 1;
    c->found[sector] = found;
}

static void check_disk(Check *c)
{
    int fd = open_disk(c->s->path, O_RDONLY);
    uint64_t words[BLOCK_BYTES / sizeof(uint64_t)];

    for (uint64_t block = 0; block < c->s->blocks; block++) {
        if (pread(fd, words, BLOCK_BYTES, block * BLOCK_BYTES) != BLOCK_BYTES) {
            die("%s is too short", c->s->path);
        }
        for (unsigned i = 0; i < BLOCK_SECTORS; i++) {
            check_sector(c, block * BLOCK_SECTORS + i,
                         words + i * SECTOR_WORDS);
        }
    }
    close(fd);
}

/* No state file: the disk was new, that is, all zeroes */
static void load_state(Check *c, size_t bytes)
{
    FILE *f = fopen(c->s->state, "r");

    if (f) {
        if (fread(c->found, 1, bytes, f) != bytes) {
            die("%s is too short", c->s->state);
        }
        fclose(f);
    } else if (errno != ENOENT) {
        die("%s: %s", c->s->state, strerror(errno));
    }
}

static void save_state(Check *c, size_t bytes)
{
    FILE *f = fopen(c->s->state, "w");

    if (!f || fwrite(c->found, 1, bytes, f) != bytes || fclose(f)) {
        die("%s: %s", c->s->state, strerror(errno));
    }
}

static int cmd_check(const Settings *s)
{
    static Check check;
    Check *c = &check;
    uint64_t sectors = s->blocks * BLOCK_SECTORS, fsyncs = 0, covered = 0;
    uint64_t issued = 0;
    size_t state_bytes = sectors * sizeof(c->found[0]);

    c->s = s;
    c->allowed = map_memory(s->blocks * sizeof(c->allowed[0]));
    c->found = map_memory(state_bytes);
    load_state(c, state_bytes);
    read_report(c);
    replay(c);
    check_disk(c);
    save_state(c, state_bytes);
    for (unsigned t = 0; t < s->threads; t++) {
        fsyncs += c->bounds[t].fsyncs;
        covered += c->bounds[t].synced;
        issued += c->bounds[t].issued;
    }
    printf("STAMP check sectors=%" PRIu64 " fsyncs=%" PRIu64 " covered=%" PRIu64
           " issued=%" PRIu64 " changed=%" PRIu64 " uncertain=%" PRIu64
           " violations=%" PRIu64 "\n", sectors, fsyncs, covered, issued,
           c->changed, c->uncovered, c->violations);
    return c->violations ? 1 : 0;
}

/* The command line: COMMAND KEY=VALUE... */

static void parse_word(Settings *s, const char *word)
{
    static const char *const strings[] = { "path", "state", "report" };
    static const char *const numbers[] = {
        "seed", "round", "threads", "blocks", "pool", "sync",
    };
    char *texts[] = { s->path, s->state, s->report };
    uint64_t *values[] = {
        &s->seed, &s->round, &s->threads, &s->blocks, &s->pool_blocks,
        &s->sync_max,
    };
    const char *value = strchr(word, '=');
    size_t length = value ? (size_t)(value++ - word) : 0;
    char *end;

    for (unsigned i = 0; value && i < 3; i++) {
        if (strlen(strings[i]) == length && !strncmp(word, strings[i], length)
            && strlen(value) < sizeof(s->path)) {
            strcpy(texts[i], value);
            return;
        }
    }
    for (unsigned i = 0; value && i < 6; i++) {
        if (strlen(numbers[i]) == length &&
            !strncmp(word, numbers[i], length)) {
            *values[i] = strtoull(value, &end, 0);
            if (*value && !*end) {
                return;
            }
        }
    }
    die("what is '%s'?", word);
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        int (*run)(const Settings *s);
    } commands[] = {
        { "run", cmd_run }, { "sum", cmd_sum }, { "check", cmd_check },
    };
    static Settings s = {
        .threads = 2, .blocks = 8192, .pool_blocks = 8192, .sync_max = 256,
    };

    for (int i = 2; i < argc; i++) {
        parse_word(&s, argv[i]);
    }
    if (!s.threads || s.threads > MAX_THREADS || !s.sync_max ||
        s.blocks < 2 * MAX_RUN * s.threads ||
        s.pool_blocks < 2 * MAX_RUN * s.threads) {
        die("these numbers make no sense");
    }
    for (unsigned i = 0; argc > 1 && i < 3; i++) {
        if (!strcmp(argv[1], commands[i].name)) {
            return commands[i].run(&s);
        }
    }
    die("usage: stamp run|sum|check KEY=VALUE...");
}

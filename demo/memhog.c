/*
 * memhog: the guest program of the demo
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * It makes a guest that is short of memory page on both levels, checks that no
 * byte is lost on the way, and reports how fast it got on.  The shape is that
 * of the Tesseract paper's memhog (VEE 2014): inflate pinned, so that only the
 * host has to swap; then inflate unpinned, so that the guest pages as well.
 *
 *   phase "pinned"    P MiB are allocated, locked with mlock and filled; W MiB
 *                     more are filled and worked on for one pass.  P + W fit
 *                     into the guest but not into what the host allows.  Then
 *                     the locked memory is checked and given back.
 *   phase "unpinned"  the work area grows to T MiB, more than the guest has,
 *                     and is worked on for N passes; of each, percent=N are
 *                     done, from its begin.
 *   phase "check"     with check=1 every page is read once more and compared.
 *
 * A pass over n pages is n touches.  Three touches of four follow the order of
 * addresses, one goes to a random page.  A touch reads and checks the whole
 * page; every second one then rewrites it with a new version.  What a page
 * holds follows from its number, its version and the seed, so a lost write, a
 * stale page and a page from somewhere else all count as data errors.  The
 * sequence of touches depends on the seed alone.  Fills are touches, too.
 *
 * Usage: memhog [pinned=MiB,work=MiB,total=MiB,passes=N,percent=N,seed=N,
 *                check=0|1]
 *
 * Lines that start with "MEMHOG " are for programs: a kind, then key=value.
 * Exit status: 0, 1 with data errors, 2 when it cannot run.
 */
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "load.h"

#define PAGE_BYTES 4096
#define PAGE_WORDS (PAGE_BYTES / sizeof(uint64_t))
#define MIB_PAGES (1024 * 1024 / PAGE_BYTES)

typedef struct Area {
    uint64_t *words;
    uint16_t *version;      /* of each page; 0: not filled yet */
    uint64_t first_page;    /* numbers pages apart from those of other areas */
    uint64_t nr_pages;      /* filled so far */
} Area;

typedef struct Hog {
    /* set once */
    uint64_t pinned_mib, work_mib, total_mib, passes, percent;
    uint64_t seed, check;

    /* running */
    uint64_t rng;
    const char *phase;
    uint64_t start_ns;
    uint64_t data_errors;
    Latencies phase_stats, total_stats;

    /* the second that is being counted */
    uint64_t second;
    uint64_t second_touches;
    uint64_t second_max_ns;
} Hog;

/* Statistics */

static void stats_print(const Latencies *l, const char *phase,
                        uint64_t wall_ns)
{
    printf("MEMHOG phase name=%s wall_ns=%" PRIu64 " touches=%" PRIu64 " ",
           phase, wall_ns, l->count);
    latencies_print(l);
}

/* One score line for each second; a second without a touch scores 0 */
static void score_until(Hog *h, uint64_t second)
{
    while (h->second < second) {
        printf("MEMHOG score second=%" PRIu64 " phase=%s touches=%" PRIu64
               " max_ns=%" PRIu64 "\n", h->second, h->phase,
               h->second_touches, h->second_max_ns);
        h->second++;
        h->second_touches = 0;
        h->second_max_ns = 0;
    }
}

/*
 * Account one touch from @begin_ns to now and return now, the begin of the
 * next touch.  What printing the scores takes is nobody's touch.
 */
static uint64_t touch_done(Hog *h, uint64_t begin_ns)
{
    uint64_t end_ns = now_ns();
    uint64_t ns = end_ns - begin_ns;
    uint64_t second = (end_ns - h->start_ns) / NS_PER_SEC;

    latencies_add(&h->phase_stats, ns);
    h->second_touches++;
    if (ns > h->second_max_ns) {
        h->second_max_ns = ns;
    }
    if (second != h->second) {
        score_until(h, second);
        end_ns = now_ns();
    }
    return end_ns;
}

/* Pages */

static uint64_t first_word(const Hog *h, const Area *a, uint64_t page)
{
    return mix64(h->seed * 0x9e3779b97f4a7c15ull +
                 ((a->first_page + page) << 16) + a->version[page]);
}

static void page_write(const Hog *h, Area *a, uint64_t page)
{
    volatile uint64_t *p = a->words + page * PAGE_WORDS;
    uint64_t w, step;

    a->version[page]++;
    w = first_word(h, a, page);
    step = w | 1;
    for (unsigned i = 0; i < PAGE_WORDS; i++, w += step) {
        p[i] = w;
    }
}

static void page_check(Hog *h, const Area *a, uint64_t page)
{
    const volatile uint64_t *p = a->words + page * PAGE_WORDS;
    uint64_t w = first_word(h, a, page), step = w | 1, wrong = 0;

    for (unsigned i = 0; i < PAGE_WORDS; i++, w += step) {
        wrong |= p[i] ^ w;
    }
    if (wrong) {
        h->data_errors++;
        if (h->data_errors <= 20) {
            printf("MEMHOG error page=%" PRIu64 " version=%u want=%016" PRIx64
                   " found=%016" PRIx64 "\n", a->first_page + page,
                   a->version[page], first_word(h, a, page), p[0]);
        }
    }
}

/* Areas */

/* Version numbers are locked, lest the program's own faults blur the picture */
static void area_open(Area *a, uint64_t first_page, uint64_t max_pages)
{
    a->words = map_or_die(max_pages * PAGE_BYTES);
    a->version = map_locked_or_die(max_pages * sizeof(a->version[0]));
    a->first_page = first_page;
    a->nr_pages = 0;
}

static void area_fill(Hog *h, Area *a, uint64_t nr_pages)
{
    uint64_t t = now_ns();

    for (; a->nr_pages < nr_pages; a->nr_pages++) {
        page_write(h, a, a->nr_pages);
        t = touch_done(h, t);
    }
}

static void area_check(Hog *h, Area *a)
{
    uint64_t t = now_ns();

    for (uint64_t page = 0; page < a->nr_pages; page++) {
        page_check(h, a, page);
        t = touch_done(h, t);
    }
}

static void area_pass(Hog *h, Area *a)
{
    uint64_t t = now_ns(), next = 0, page, dice;

    for (uint64_t i = 0; i < a->nr_pages * h->percent / 100; i++) {
        dice = random_below(&h->rng, 8);
        page = dice & 3 ? next++ : random_below(&h->rng, a->nr_pages);
        page_check(h, a, page);
        if (dice & 4) {
            page_write(h, a, page);
        }
        t = touch_done(h, t);
    }
}

/* Phases */

static uint64_t phase_begin(Hog *h, const char *name)
{
    h->phase = name;
    memset(&h->phase_stats, 0, sizeof(h->phase_stats));
    return now_ns();
}

static void phase_end(Hog *h, uint64_t begin_ns)
{
    stats_print(&h->phase_stats, h->phase, now_ns() - begin_ns);
    latencies_merge(&h->total_stats, &h->phase_stats);
}

static void run_pinned(Hog *h, Area *area)
{
    Area pinned;
    uint64_t t;

    t = phase_begin(h, "pinned-fill");
    area_open(&pinned, 1ull << 32, h->pinned_mib * MIB_PAGES);
    lock_or_die(pinned.words, h->pinned_mib * MIB_PAGES * PAGE_BYTES);
    area_fill(h, &pinned, h->pinned_mib * MIB_PAGES);
    area_fill(h, area, h->work_mib * MIB_PAGES);
    phase_end(h, t);

    t = phase_begin(h, "pinned-pass");
    area_pass(h, area);
    area_check(h, &pinned);
    phase_end(h, t);

    munmap(pinned.words, h->pinned_mib * MIB_PAGES * PAGE_BYTES);
}

static void run_unpinned(Hog *h, Area *area)
{
    char name[32];
    uint64_t t;

    t = phase_begin(h, "unpinned-fill");
    area_fill(h, area, h->total_mib * MIB_PAGES);
    phase_end(h, t);

    for (uint64_t i = 1; i <= h->passes; i++) {
        snprintf(name, sizeof(name), "unpinned-pass%" PRIu64, i);
        t = phase_begin(h, name);
        area_pass(h, area);
        phase_end(h, t);
    }

    if (h->check) {
        t = phase_begin(h, "check");
        area_check(h, area);
        phase_end(h, t);
    }
}

int main(int argc, char **argv)
{
    static Hog hog = {
        .pinned_mib = 96, .work_mib = 256, .total_mib = 576,
        .passes = 2, .percent = 100, .seed = 1,
    };
    Hog *h = &hog;
    const LoadOption options[] = {
        { "pinned", &h->pinned_mib },
        { "work", &h->work_mib },
        { "total", &h->total_mib },
        { "passes", &h->passes },
        { "percent", &h->percent },
        { "seed", &h->seed },
        { "check", &h->check },
        { NULL }
    };
    Area area;

    if (argc > 1) {
        parse_options(options, argv[1]);
    }
    if (!h->work_mib || h->total_mib < h->work_mib || h->percent > 100) {
        fprintf(stderr, "memhog: want 0 < work <= total, percent <= 100\n");
        return 2;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    printf("memhog: %" PRIu64 " MiB pinned + %" PRIu64 " MiB, then %" PRIu64
           " MiB unpinned, %" PRIu64 " passes, seed %" PRIu64 "\n",
           h->pinned_mib, h->work_mib, h->total_mib, h->passes, h->seed);

    h->rng = h->seed;
    area_open(&area, 0, h->total_mib * MIB_PAGES);
    h->start_ns = now_ns();
    run_pinned(h, &area);
    run_unpinned(h, &area);
    score_until(h, h->second + 1);

    stats_print(&h->total_stats, "total", now_ns() - h->start_ns);
    printf("MEMHOG result data_errors=%" PRIu64 " max_ns=%" PRIu64
           " pause_ns=%" PRIu64 "\n", h->data_errors, h->total_stats.max_ns,
           h->total_stats.pause_ns);
    printf("memhog: %" PRIu64 " touches, longest pause %.1f ms, %" PRIu64
           " data errors\n", h->total_stats.count,
           h->total_stats.max_ns / 1e6, h->data_errors);
    return h->data_errors ? 1 : 0;
}

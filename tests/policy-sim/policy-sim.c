/*
 * Policy simulator: replay what a guest did to its pages
 *
 * Replays a trace (format: include/bsst/record-format.h) against a model of
 * the pager: a limit, a victim cache, writes in batches into contiguous slots,
 * loads of neighbours in contiguous slots, interception with restores.  The
 * policy of the swapper, policy.c, is compared with others:
 *
 *   default   policy.c
 *   random    groups at random, credit for what was waited for and for disks
 *   fifo      groups in the order in which they came
 *   clock     the same, but a group stays once if it has credit
 *   2q        FIFO of a quarter; who returns soon after leaving it goes to a
 *             clock
 *   s3fifo    FIFO of a tenth; who was used there, or returns soon, goes to a
 *             clock
 *   lru       groups by their last use.  Sees all touches, as no swapper can
 *   belady    the group whose next touch is farthest.  Sees the future
 *
 * There is no time but that of the trace: what is started is done at once,
 * except that a page that the guest wrote to disk comes back after DELAY_US.
 *
 * Usage: policy-sim TRACE [limit=PAGES] [victims=PAGES] [cluster=N]
 *                         [policy=NAME]
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "bsst/policy.h"
#include "bsst/record-format.h"
#include "qemu/bswap.h"

#define GROUP           POLICY_GROUP
#define WINDOW          32
#define BATCH           256
#define DELAY_US        1000
#define NEVER           UINT32_MAX

typedef struct Sim Sim;

typedef enum SimEvent {
    /* A page comes back: */
    SIM_FAULT,          /* from the store; somebody waited for it */
    SIM_HIT,            /* from the victim cache; somebody waited for it */
    SIM_NEIGHBOUR,      /* from the store, along with another */
    SIM_RESTORE,        /* from the store, as the guest wrote it to disk */
    SIM_INSTALL,        /* with new content, from a disk */
    SIM_ZERO,           /* empty */
    /* It is resident: */
    SIM_DISK,           /* and the memory of a disk request */
    SIM_LEAVE,          /* and about to leave */
} SimEvent;

typedef struct SimPolicy {
    const char *name;
    void (*start)(Sim *s);
    void (*event)(Sim *s, uint64_t page, SimEvent event);
    void (*touch)(Sim *s, uint64_t page);   /* seen by no real swapper */
    uint64_t (*next)(Sim *s);
    bool (*may_leave)(Sim *s, uint64_t page);
} SimPolicy;

typedef struct Queue {                      /* of groups, doubly linked */
    uint32_t head, tail, len;
} Queue;

typedef struct GroupInfo {
    uint32_t prev, next;
    uint8_t queue;                          /* 0: none, else 1 + index */
    uint8_t used;
    uint32_t left_at;                       /* number of the eviction */
    uint32_t last_use;
} GroupInfo;

struct Sim {
    /* Set once */
    const SimPolicy *policy;
    uint64_t *event;
    size_t nevents;
    uint32_t *next_touch;                   /* of event i: index, or NEVER */
    uint64_t npages, ngroups, limit, victims;
    unsigned cluster;

    /* The model */
    PageTable t;
    uint64_t nvictims;
    uint32_t *fifo;                         /* victims, a ring */
    uint64_t fifo_head, fifo_len;
    uint32_t next_slot;
    GArray *restore;                        /* of Restore */
    size_t now;                             /* event */

    /* The policies */
    Policy core;
    uint32_t rng;
    uint8_t *credit;
    GroupInfo *group;
    Queue queue[2];
    uint32_t *page_next;                    /* next touch of each page */
    uint32_t evictions;

    /* The figures */
    uint64_t faults, hits, ins, outs, loads, restored, restores, installed,
             intercepted, evicted, useless, rewritten;
    uint8_t *unused;                        /* came along, not touched yet */
};

typedef struct Restore {
    uint32_t page, due_us;
} Restore;

static uint32_t next_random(Sim *s)
{
    s->rng ^= s->rng << 13;
    s->rng ^= s->rng >> 17;
    s->rng ^= s->rng << 5;
    return s->rng;
}

static unsigned resident(Sim *s, uint64_t group)
{
    unsigned n = 0;

    for (unsigned i = 0; i < GROUP; i++) {
        n += page_state(&s->t, group * GROUP + i) == PAGE_RESIDENT;
    }
    return n;
}

/* default */

static void core_start(Sim *s)
{
    policy_init(&s->core);
}

static void core_event(Sim *s, uint64_t page, SimEvent event)
{
    if (event < SIM_DISK) {
        policy_event(&s->core, &s->t, page,
                     event == SIM_FAULT ? POLICY_FAULT :
                     event == SIM_HIT ? POLICY_HIT : POLICY_COME);
    }
}

static uint64_t core_next(Sim *s)
{
    return policy_next_group(&s->core, &s->t);
}

static bool core_may_leave(Sim *s, uint64_t page)
{
    return policy_may_leave(&s->core, &s->t, page);
}

/* random */

static void credit_event(Sim *s, uint64_t page, SimEvent event)
{
    unsigned credit = event == SIM_FAULT || event == SIM_HIT ? 2 :
                      event == SIM_DISK || event == SIM_INSTALL;

    s->credit[page] = MAX(s->credit[page], credit);
}

static uint64_t random_next(Sim *s)
{
    return ((uint64_t)next_random(s) * s->ngroups >> 32) * GROUP;
}

static bool credit_may_leave(Sim *s, uint64_t page)
{
    if (s->credit[page]) {
        s->credit[page]--;
        return false;
    }
    return true;
}

/* Queues */

static void queue_start(Sim *s)
{
    for (unsigned q = 0; q < 2; q++) {
        s->queue[q] = (Queue) { NEVER, NEVER, 0 };
    }
}

static void queue_remove(Sim *s, uint32_t g)
{
    GroupInfo *i = &s->group[g];
    Queue *q;

    if (!i->queue) {
        return;
    }
    q = &s->queue[i->queue - 1];
    *(i->prev == NEVER ? &q->head : &s->group[i->prev].next) = i->next;
    *(i->next == NEVER ? &q->tail : &s->group[i->next].prev) = i->prev;
    q->len--;
    i->queue = 0;
}

static void queue_add(Sim *s, unsigned n, uint32_t g)
{
    Queue *q = &s->queue[n];

    queue_remove(s, g);
    s->group[g].prev = q->tail;
    s->group[g].next = NEVER;
    s->group[g].queue = n + 1;
    *(q->tail == NEVER ? &q->head : &s->group[q->tail].next) = g;
    q->tail = g;
    q->len++;
}

static bool always(Sim *s, uint64_t page)
{
    return true;
}

static bool used_by(SimEvent event)
{
    return event != SIM_NEIGHBOUR && event != SIM_LEAVE;
}

/* fifo, clock: queue 0 */

static void fifo_event(Sim *s, uint64_t page, SimEvent event)
{
    uint32_t g = page / GROUP;

    if (event != SIM_DISK && event != SIM_LEAVE &&
        !s->group[g].queue) {
        queue_add(s, 0, g);
    }
}

static void clock_event(Sim *s, uint64_t page, SimEvent event)
{
    fifo_event(s, page, event);
    if (used_by(event)) {
        s->group[page / GROUP].used = 1;
    }
}

static uint64_t fifo_next(Sim *s)
{
    uint32_t g = s->queue[0].head;

    queue_remove(s, g);
    return (uint64_t)g * GROUP;
}

/* The first of queue @n that was not used since it was there last. */
static uint64_t clock_take(Sim *s, unsigned n)
{
    for (;;) {
        uint32_t g = s->queue[n].head;

        if (!s->group[g].used || !resident(s, g)) {
            queue_remove(s, g);
            return (uint64_t)g * GROUP;
        }
        s->group[g].used--;
        queue_add(s, n, g);
    }
}

static uint64_t clock_next(Sim *s)
{
    return clock_take(s, 0);
}

/* 2q, s3fifo: queue 0 is the short one, queue 1 the clock */

static void ghost_event(Sim *s, uint64_t page, SimEvent event,
                        uint32_t ghosts)
{
    uint32_t g = page / GROUP;
    GroupInfo *i = &s->group[g];

    if (event == SIM_LEAVE || event == SIM_DISK) {
        return;
    }
    if (!i->queue) {
        bool soon = i->left_at && s->evictions - i->left_at < ghosts;

        queue_add(s, soon && used_by(event), g);
        i->used = 0;
    } else if (event == SIM_HIT) {
        queue_add(s, 1, g);
    }
}

static void q2_event(Sim *s, uint64_t page, SimEvent event)
{
    ghost_event(s, page, event, s->limit / GROUP / 2);
    if (s->group[page / GROUP].queue == 2 && used_by(event)) {
        s->group[page / GROUP].used = 1;
    }
}

static uint64_t short_next(Sim *s, unsigned part, bool promote)
{
    for (;;) {
        uint32_t g = s->queue[0].head;

        if (g == NEVER || s->queue[0].len < s->limit / GROUP / part) {
            if (s->queue[1].head != NEVER) {
                return clock_take(s, 1);
            }
        }
        if (promote && s->group[g].used > 1) {
            s->group[g].used = 0;
            queue_add(s, 1, g);
            continue;
        }
        queue_remove(s, g);
        s->group[g].left_at = ++s->evictions;
        return (uint64_t)g * GROUP;
    }
}

static uint64_t q2_next(Sim *s)
{
    return short_next(s, 4, false);
}

static void s3_event(Sim *s, uint64_t page, SimEvent event)
{
    GroupInfo *i = &s->group[page / GROUP];

    ghost_event(s, page, event, s->limit / GROUP);
    if (used_by(event)) {
        i->used = MIN(i->used + 1, 3);
    }
}

static uint64_t s3_next(Sim *s)
{
    return short_next(s, 10, true);
}

/* lru: queue 0 in the order of use */

static void lru_touch(Sim *s, uint64_t page)
{
    if (page_state(&s->t, page) == PAGE_RESIDENT) {
        queue_add(s, 0, page / GROUP);
    }
}

static void lru_event(Sim *s, uint64_t page, SimEvent event)
{
    if (event != SIM_LEAVE) {
        queue_add(s, 0, page / GROUP);
    }
}

/* belady: of 64 groups at random the one that is touched last */

static uint64_t belady_next(Sim *s)
{
    uint64_t best = 0;
    uint32_t best_at = 0;

    for (unsigned k = 0; k < 64; k++) {
        uint64_t first = random_next(s);
        uint32_t at = NEVER;

        for (unsigned i = 0; i < GROUP; i++) {
            if (page_state(&s->t, first + i) == PAGE_RESIDENT) {
                at = MIN(at, s->page_next[first + i]);
            }
        }
        if (resident(s, first / GROUP) && at >= best_at) {
            best = first;
            best_at = at;
        }
    }
    return best;
}

static void no_start(Sim *s)
{
}

static void no_event(Sim *s, uint64_t page, SimEvent event)
{
}

static const SimPolicy policies[] = {
    { "default", core_start, core_event, NULL, core_next, core_may_leave },
    { "random", no_start, credit_event, NULL, random_next, credit_may_leave },
    { "fifo", queue_start, fifo_event, NULL, fifo_next, always },
    { "clock", queue_start, clock_event, NULL, clock_next, always },
    { "2q", queue_start, q2_event, NULL, q2_next, always },
    { "s3fifo", queue_start, s3_event, NULL, s3_next, always },
    { "lru", queue_start, lru_event, lru_touch, fifo_next, always },
    { "belady", no_start, no_event, NULL, belady_next, always },
};

/* The model */

static void tell(Sim *s, uint64_t page, SimEvent event)
{
    s->policy->event(s, page, event);
}

static void leave(Sim *s, uint64_t page)
{
    tell(s, page, SIM_LEAVE);
    page_evict_begin(&s->t, page, 0);
    page_evict_done(&s->t, page);
    s->fifo[(s->fifo_head + s->fifo_len++) % s->npages] = page;
    s->evicted++;
    s->useless += s->unused[page];
    s->unused[page] = 0;
}

static void come(Sim *s, uint64_t page, SimEvent event)
{
    tell(s, page, event);
    page_install_begin(&s->t, page);
    page_install_done(&s->t, page);
    s->unused[page] = event == SIM_NEIGHBOUR || event == SIM_RESTORE;
}

static int compare_pages(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

    return x < y ? -1 : x > y;
}

/* Write the oldest victims. */
static void write_batch(Sim *s)
{
    uint32_t list[BATCH];
    unsigned n = 0;

    while (n < BATCH && s->fifo_len) {
        uint32_t page = s->fifo[s->fifo_head];

        s->fifo_head = (s->fifo_head + 1) % s->npages;
        s->fifo_len--;
        if (page_state(&s->t, page) == PAGE_VICTIM) {
            page_write_begin(&s->t, page);
            list[n++] = page;
        }
    }
    qsort(list, n, sizeof(list[0]), compare_pages);
    for (unsigned i = 0; i < n; i++) {
        page_write_done(&s->t, list[i], s->next_slot++);
    }
    s->outs += n;
}

static uint64_t charged(const Sim *s)
{
    return s->t.count[PAGE_RESIDENT] + s->t.count[PAGE_VICTIM];
}

static void reclaim(Sim *s)
{
    uint64_t high = s->limit - s->limit / 64, low = high - s->limit / 64;

    if (charged(s) <= high) {
        return;
    }
    while (charged(s) > low) {
        uint64_t first;

        if (s->t.count[PAGE_VICTIM] > s->victims + 64 ||
            !s->t.count[PAGE_RESIDENT]) {
            write_batch(s);
            continue;
        }
        first = s->policy->next(s);
        for (uint64_t i = first; i < first + GROUP; i++) {
            if (page_state(&s->t, i) == PAGE_RESIDENT &&
                s->policy->may_leave(s, i)) {
                leave(s, i);
            }
        }
    }
}

/* Load @page and its neighbours in one request. */
static void load(Sim *s, uint64_t page, unsigned max, SimEvent event)
{
    uint32_t slot = page_ref(&s->t, page);
    uint64_t start = page - page % max, end = start + max, a = page, b = page;

    while (a > start && page_state(&s->t, a - 1) == PAGE_SWAPPED &&
           page_ref(&s->t, a - 1) == slot - (page - a + 1)) {
        a--;
    }
    while (b + 1 < end && page_state(&s->t, b + 1) == PAGE_SWAPPED &&
           page_ref(&s->t, b + 1) == slot + (b + 1 - page)) {
        b++;
    }
    come(s, page, event);
    for (uint64_t i = a; i <= b; i++) {
        if (i != page) {
            bool written = page_flag(&s->t, i, PAGE_FLAG_INTERCEPTED);

            come(s, i, written ? SIM_RESTORE : SIM_NEIGHBOUR);
        }
    }
    s->loads++;
    s->ins += b - a + 1;
}

/* The touch is the zeroing of a page that a disk read then goes to. */
static bool is_rewritten(const Sim *s)
{
    uint64_t page = record_page(s->event[s->now]);

    if (record_kind(s->event[s->now]) != RECORD_TOUCH_WRITE) {
        return false;
    }
    for (size_t i = s->now + 1; i < s->nevents && i < s->now + 10000; i++) {
        if (record_page(s->event[i]) == page) {
            return record_kind(s->event[i]) == RECORD_DISK_READ;
        }
    }
    return false;
}

static void touch(Sim *s, uint64_t page, bool is_write)
{
    switch (page_state(&s->t, page)) {
    case PAGE_VICTIM:
        s->hits++;
        come(s, page, SIM_HIT);
        break;
    case PAGE_SWAPPED:
        s->faults++;
        s->rewritten += is_rewritten(s);
        load(s, page, s->cluster, SIM_FAULT);
        break;
    case PAGE_ZERO:
        for (uint64_t i = page; i == page ||
             (is_write && i % WINDOW && page_state(&s->t, i) == PAGE_ZERO);
             i++) {
            come(s, i, SIM_ZERO);
        }
        break;
    default:
        break;
    }
    s->unused[page] = 0;
    if (s->policy->touch) {
        s->policy->touch(s, page);
    }
}

static void disk_read(Sim *s, uint64_t page)
{
    if (page_state(&s->t, page) == PAGE_RESIDENT) {
        tell(s, page, SIM_DISK);
    } else {
        come(s, page, SIM_INSTALL);
        s->installed++;
    }
    s->unused[page] = 0;
}

static void disk_write(Sim *s, uint64_t page, uint32_t us)
{
    Restore r = { page, us + DELAY_US };

    switch (page_state(&s->t, page)) {
    case PAGE_RESIDENT:
        tell(s, page, SIM_DISK);
        break;
    case PAGE_SWAPPED:
        s->intercepted++;
        page_set_flag(&s->t, page, PAGE_FLAG_INTERCEPTED);
        g_array_append_val(s->restore, r);
        break;
    default:
        break;
    }
}

static void restore_due(Sim *s, uint32_t us)
{
    unsigned i = 0;

    for (; i < s->restore->len; i++) {
        Restore *r = &g_array_index(s->restore, Restore, i);

        if ((int32_t)(us - r->due_us) < 0) {
            break;
        }
        if (page_state(&s->t, r->page) == PAGE_SWAPPED &&
            page_flag(&s->t, r->page, PAGE_FLAG_INTERCEPTED)) {
            uint64_t before = s->ins;

            load(s, r->page, WINDOW, SIM_RESTORE);
            s->restores++;
            s->restored += s->ins - before;
        }
    }
    if (i) {
        g_array_remove_range(s->restore, 0, i);
    }
}

static void replay_one(Sim *s, size_t i)
{
    uint64_t e = s->event[i], page = record_page(e);

    s->now = i;
    if (s->restore->len) {
        restore_due(s, record_time_us(e));
    }
    if (page >= s->npages) {
        return;
    }
    switch (record_kind(e)) {
    case RECORD_TOUCH_READ:
    case RECORD_TOUCH_WRITE:
        s->page_next[page] = s->next_touch[i];
        touch(s, page, record_kind(e) == RECORD_TOUCH_WRITE);
        break;
    case RECORD_DISK_READ:
        disk_read(s, page);
        break;
    case RECORD_DISK_WRITE:
        disk_write(s, page, record_time_us(e));
        break;
    default:
        break;
    }
    reclaim(s);
}

/* For each event the index of the next touch of its page. */
static void find_next_touches(Sim *s)
{
    memset(s->page_next, 0xff, s->npages * sizeof(*s->page_next));
    for (size_t i = s->nevents; i-- > 0; ) {
        uint64_t page = record_page(s->event[i]);

        if (page < s->npages) {
            s->next_touch[i] = s->page_next[page];
            if (record_kind(s->event[i]) <= RECORD_TOUCH_WRITE) {
                s->page_next[page] = i;
            }
        }
    }
}

static void print_figures(const Sim *s)
{
    const uint64_t figure[] = {
        s->faults, s->rewritten, s->hits, s->ins, s->loads, s->outs,
        s->intercepted, s->restored, s->installed, s->useless,
    };

    printf("%-8s", s->policy->name);
    for (unsigned i = 0; i < ARRAY_SIZE(figure); i++) {
        printf(" %9" PRIu64, figure[i]);
    }
    printf("\n");
}

/*
 * faults: touches that waited for the store; rewritten: those of them that
 * began to overwrite what they waited for; hits: touches of victims; ins, outs:
 * pages read from and written to the store; loads: requests that read;
 * written: disk writes of pages in the store; restored: pages read after these;
 * installed: pages out that a disk read filled; useless: pages that came along
 * with others and left without a touch
 */
static void print_head(void)
{
    printf("%-8s %9s %9s %9s %9s %9s %9s %9s %9s %9s %9s\n", "policy",
           "faults", "rewritten", "hits", "ins", "loads", "outs", "written",
           "restored", "installed", "useless");
}

static void replay(Sim *s, const SimPolicy *policy)
{
    s->policy = policy;
    s->rng = 1;
    page_table_init(&s->t, s->npages);
    for (uint64_t i = 0; i < s->npages; i++) {
        page_control(&s->t, i, false);
    }
    s->fifo = g_new(uint32_t, s->npages);
    s->fifo_head = s->fifo_len = s->next_slot = s->evictions = 0;
    s->restore = g_array_new(false, false, sizeof(Restore));
    s->credit = g_new0(uint8_t, s->npages);
    s->unused = g_new0(uint8_t, s->npages);
    s->group = g_new0(GroupInfo, s->ngroups);
    s->faults = s->hits = s->ins = s->outs = s->loads = s->restored = 0;
    s->restores = s->installed = s->intercepted = s->evicted = 0;
    s->useless = s->rewritten = 0;
    find_next_touches(s);
    policy->start(s);
    for (size_t i = 0; i < s->nevents; i++) {
        replay_one(s, i);
    }
    print_figures(s);
    page_table_destroy(&s->t);
    g_free(s->fifo);
    g_array_unref(s->restore);
    g_free(s->credit);
    g_free(s->unused);
    g_free(s->group);
}

static bool read_trace(Sim *s, const char *path)
{
    g_autoptr(GError) err = NULL;
    gchar *data;
    gsize len;

    if (!g_file_get_contents(path, &data, &len, &err)) {
        fprintf(stderr, "policy-sim: %s\n", err->message);
        return false;
    }
    if (len < RECORD_MAGIC_BYTES ||
        memcmp(data, RECORD_MAGIC, RECORD_MAGIC_BYTES)) {
        fprintf(stderr, "policy-sim: %s is not a record\n", path);
        return false;
    }
    s->event = (uint64_t *)data + 1;
    s->nevents = len / 8 - 1;
    for (size_t i = 0; i < s->nevents; i++) {
        uint64_t page = record_page(s->event[i] = le64_to_cpu(s->event[i]));

        s->npages = MAX(s->npages, page + 1);
    }
    s->npages = ROUND_UP(s->npages, WINDOW);
    s->ngroups = s->npages / GROUP;
    s->next_touch = g_new(uint32_t, s->nevents);
    s->page_next = g_new(uint32_t, s->npages);
    return true;
}

int main(int argc, char **argv)
{
    Sim s = { .victims = 2048, .cluster = 8, .limit = 76800 };
    const char *only = NULL;

    if (argc < 2 || !read_trace(&s, argv[1])) {
        return 2;
    }
    for (int i = 2; i < argc; i++) {
        unsigned long long n;

        if (sscanf(argv[i], "limit=%llu", &n) == 1) {
            s.limit = n;
        } else if (sscanf(argv[i], "victims=%llu", &n) == 1) {
            s.victims = n;
        } else if (sscanf(argv[i], "cluster=%llu", &n) == 1) {
            s.cluster = n;
        } else if (!strncmp(argv[i], "policy=", 7)) {
            only = argv[i] + 7;
        } else {
            fprintf(stderr, "policy-sim: what is %s?\n", argv[i]);
            return 2;
        }
    }
    print_head();
    for (unsigned i = 0; i < ARRAY_SIZE(policies); i++) {
        if (!only || !strcmp(only, policies[i].name)) {
            replay(&s, &policies[i]);
        }
    }
    return 0;
}

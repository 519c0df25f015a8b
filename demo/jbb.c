/*
 * jbb: warehouses after SPECjbb2005, as a guest program that loses no byte
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Each warehouse has a thread, its own tables and its own heap.  The thread
 * draws transactions from a deck of the mix that SPECjbb2005 documents: 10 new
 * orders, 10 payments, 10 customer reports, and one order status, delivery and
 * stock level each.  Items and customers are chosen by the NURand function of
 * TPC-C (clause 2.1.6), so some are much more wanted than others.
 *
 * The heap is that of a simple virtual machine.  Objects are allocated one
 * after the other in a nursery, most of them garbage as soon as the transaction
 * has ended.  A full nursery is emptied by copying what lives into one half of
 * the old space; when that is full, what lives is copied into the other half.
 * So the memory that was freed is dirty and useless, and is used again much
 * later, which is what makes such heaps hard to page.
 *
 * Every object carries its number, how often it was replaced and updated, a sum
 * over its fields, and a text that follows from these.  A table that is locked
 * in memory tells what each object has to be.  So a lost write, a stale page
 * and a page from somewhere else all count as data errors, when a transaction
 * or the last check uses the object.
 *
 * A transaction's latency includes collections that happen in it.  "stall" is
 * the time from one completed transaction to the next, of any warehouse.
 *
 * Usage: jbb [warehouses=N,items=N,customers=N,old=MiB,nursery=MiB,
 *             transactions=N,seconds=N,seed=N,check=0|1]
 *
 *   items, customers   of each warehouse
 *   old                one half of the old space of each warehouse
 *   transactions       of each warehouse; 0: as many as "seconds" allow
 *
 * Lines that start with "JBB " are for programs: a kind, then key=value.  One
 * score line a second has the transactions of each 100 ms.
 * Exit status: 0, 1 with data errors, 2 when it cannot run.
 */
#include <inttypes.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "load.h"

#define MIB (1024 * 1024ull)

#define DISTRICTS 10
#define DISTRICT_ORDERS 300         /* kept of each district */
#define DISTRICT_HISTORIES 300
#define MAX_LINES 15

#define DISTRICT_BYTES 128
#define STOCK_BYTES 384
#define CUSTOMER_BYTES 640
#define HISTORY_BYTES 128
#define ORDER_BYTES(lines) (192 + 96 * (lines))
#define MAX_OBJECT_BYTES ORDER_BYTES(MAX_LINES)

/* Scores */
#define BIN_NS (100 * NS_PER_MS)
#define SECOND_BINS (NS_PER_SEC / BIN_NS)
#define MAX_SECONDS 7200

/* What stands in the heap; the length is a multiple of 8 */
typedef struct Object {
    uint32_t handle;
    uint32_t bytes;
    uint32_t version;               /* times it was replaced */
    uint32_t updates;               /* of the fields, of this version */
    uint64_t field[4];
    uint64_t sum;
    uint64_t text[];
} Object;

/* What must stand in the heap; locked in memory */
typedef struct Handle {
    Object *object;                 /* NULL: none */
    uint32_t version, updates;
} Handle;

typedef struct Space {
    uint8_t *begin, *top, *end;
} Space;

typedef enum Kind {
    NEW_ORDER, PAYMENT, CUSTOMER_REPORT, ORDER_STATUS, DELIVERY, STOCK_LEVEL,
    NR_KINDS
} Kind;

static const struct {
    const char *name;
    unsigned cards;                 /* in the deck */
    unsigned garbage_bytes;         /* what the transaction leaves behind */
} kinds[NR_KINDS] = {
    [NEW_ORDER]       = { "new-order", 10, 8192 },
    [PAYMENT]         = { "payment", 10, 4096 },
    [CUSTOMER_REPORT] = { "customer-report", 10, 8192 },
    [ORDER_STATUS]    = { "order-status", 1, 2048 },
    [DELIVERY]        = { "delivery", 1, 6144 },
    [STOCK_LEVEL]     = { "stock-level", 1, 2048 },
};

#define DECK_CARDS 33

typedef struct District {
    uint32_t orders;                /* ever made; a ring of the last ones */
    uint32_t delivered;
    uint32_t histories;
} District;

typedef struct Warehouse {
    pthread_t thread;
    unsigned number;
    uint64_t rng;

    /* Numbers of objects: first of each table */
    uint32_t customers, histories, orders, nr_handles;
    Handle *handle;
    District district[DISTRICTS];

    Space nursery, old[2];
    unsigned half;                  /* of the old space, in use */
    uint32_t *young;                /* handles of objects in the nursery */
    uint32_t nr_young;

    uint8_t deck[DECK_CARDS];
    unsigned card;

    uint64_t data_errors, minor_gcs, full_gcs, gc_ns, gc_max_ns;
    Latencies latencies[NR_KINDS];
} Warehouse;

/* Set once */
static uint64_t nr_warehouses = 7, nr_items = 20000, nr_customers = 15000;
static uint64_t old_mib = 36, nursery_mib = 4;
static uint64_t transactions = 50000, seconds, seed = 1, check = 1;
static uint64_t start_ns;

/* Shared, atomic */
static uint32_t *bins;              /* transactions of each BIN_NS */
static uint64_t last_done_ns, stall_ns, stall_max_ns;
static unsigned running;

/* Objects */

static uint64_t first_word(const Warehouse *w, const Object *o)
{
    return mix64(seed * 0x9e3779b97f4a7c15ull + ((uint64_t)w->number << 52) +
                 ((uint64_t)o->handle << 26) + o->version);
}

static uint64_t sum_of(const Object *o)
{
    uint64_t sum = ((uint64_t)o->handle << 32 | o->updates) ^ o->bytes;

    for (unsigned i = 0; i < 4; i++) {
        sum = mix64(sum + o->field[i]);
    }
    return sum;
}

static unsigned text_words(const Object *o)
{
    return (o->bytes - sizeof(*o)) / sizeof(uint64_t);
}

static void write_text(const Warehouse *w, Object *o)
{
    uint64_t word = first_word(w, o), step = word | 1;

    for (unsigned i = 0; i < text_words(o); i++, word += step) {
        o->text[i] = word;
    }
}

static bool object_is_right(const Warehouse *w, uint32_t handle)
{
    const Handle *h = &w->handle[handle];
    const Object *o = h->object;
    uint64_t word, step, wrong = 0;

    if (o->handle != handle || o->version != h->version ||
        o->updates != h->updates || o->bytes < sizeof(*o) ||
        o->bytes > MAX_OBJECT_BYTES || o->sum != sum_of(o)) {
        return false;
    }
    word = first_word(w, o);
    step = word | 1;
    for (unsigned i = 0; i < text_words(o); i++, word += step) {
        wrong |= o->text[i] ^ word;
    }
    return !wrong;
}

/* The object of @handle, checked; NULL if there is none or it is damaged. */
static Object *get(Warehouse *w, uint32_t handle)
{
    Handle *h = &w->handle[handle];

    if (!h->object) {
        return NULL;
    }
    if (!object_is_right(w, handle)) {
        if (++w->data_errors <= 5) {
            printf("JBB error warehouse=%u object=%" PRIu32 " address=%p "
                   "version=%" PRIu32 "/%" PRIu32 " updates=%" PRIu32 "/%"
                   PRIu32 "\n", w->number, handle, (void *)h->object,
                   h->object->version, h->version, h->object->updates,
                   h->updates);
        }
        h->object = NULL;           /* told once */
    }
    return h->object;
}

static void add_to_field(Warehouse *w, uint32_t handle, unsigned i,
                         uint64_t value)
{
    Object *o = get(w, handle);

    if (o) {
        o->field[i] += value;
        o->updates = ++w->handle[handle].updates;
        o->sum = sum_of(o);
    }
}

/* The heap */

static void space_open(Space *s, uint64_t bytes)
{
    s->begin = s->top = map_or_die(bytes);
    s->end = s->begin + bytes;
}

static uint64_t space_left(const Space *s)
{
    return s->end - s->top;
}

static bool is_in(const Space *s, const Object *o)
{
    return (uint8_t *)o >= s->begin && (uint8_t *)o < s->end;
}

/*
 * Copy the object of @handle to the end of @to.  Nothing is checked here: a
 * collector trusts the heap, but for what would make it write elsewhere.
 */
static void evacuate(Warehouse *w, uint32_t handle, Space *to)
{
    Handle *h = &w->handle[handle];
    uint32_t bytes = h->object->bytes;

    if (bytes < sizeof(Object) || bytes > MAX_OBJECT_BYTES || bytes % 8) {
        get(w, handle);             /* reports it */
        h->object = NULL;
        return;
    }
    if (bytes > space_left(to)) {
        fprintf(stderr, "jbb: more lives than old=%" PRIu64 " MiB hold\n",
                old_mib);
        exit(2);
    }
    memcpy(to->top, h->object, bytes);
    h->object = (Object *)to->top;
    to->top += bytes;
}

static void full_gc(Warehouse *w)
{
    Space *from = &w->old[w->half], *to = &w->old[1 - w->half];

    for (uint32_t i = 0; i < w->nr_handles; i++) {
        if (w->handle[i].object && is_in(from, w->handle[i].object)) {
            evacuate(w, i, to);
        }
    }
    from->top = from->begin;
    w->half = 1 - w->half;
    w->full_gcs++;
}

static void collect(Warehouse *w)
{
    uint64_t t = now_ns();

    if (space_left(&w->old[w->half]) <
        (uint64_t)(w->nursery.top - w->nursery.begin)) {
        full_gc(w);
    }
    for (uint32_t i = 0; i < w->nr_young; i++) {
        Object *o = w->handle[w->young[i]].object;

        if (o && is_in(&w->nursery, o)) {
            evacuate(w, w->young[i], &w->old[w->half]);
        }
    }
    w->nr_young = 0;
    w->nursery.top = w->nursery.begin;
    w->minor_gcs++;

    t = now_ns() - t;
    w->gc_ns += t;
    if (t > w->gc_max_ns) {
        w->gc_max_ns = t;
    }
}

static void *allocate(Warehouse *w, uint32_t bytes)
{
    void *p;

    if (bytes > space_left(&w->nursery)) {
        collect(w);
    }
    p = w->nursery.top;
    w->nursery.top += bytes;
    return p;
}

/* A new version of the object of @handle, of @bytes, with the old fields */
static void put(Warehouse *w, uint32_t handle, uint32_t bytes)
{
    Object *o = allocate(w, bytes);     /* moves the others */
    Object *old = get(w, handle);

    memset(o->field, 0, sizeof(o->field));
    if (old) {
        memcpy(o->field, old->field, sizeof(o->field));
    }
    o->handle = handle;
    o->bytes = bytes;
    o->version = ++w->handle[handle].version;
    o->updates = w->handle[handle].updates = 0;
    o->sum = sum_of(o);
    write_text(w, o);
    w->handle[handle].object = o;
    w->young[w->nr_young++] = handle;
}

static void drop(Warehouse *w, uint32_t handle)
{
    w->handle[handle].object = NULL;
}

/* Strings that a transaction makes and forgets */
static void make_garbage(Warehouse *w, uint32_t bytes)
{
    while (bytes) {
        uint64_t *p = allocate(w, 512);

        for (unsigned i = 0; i < 512 / sizeof(*p); i++) {
            p[i] = w->rng + i;
        }
        bytes -= 512;
    }
}

/* Tables: districts, stock, customers, histories, orders, in this order */

static uint32_t below(Warehouse *w, uint32_t n)
{
    return random_below(&w->rng, n);
}

/* TPC-C 2.1.6; its constants for customers and items */
static uint32_t nurand(Warehouse *w, uint32_t a, uint32_t n)
{
    return ((below(w, a + 1) | below(w, n)) + 123) % n;
}

static uint32_t pick_customer(Warehouse *w)
{
    return w->customers + nurand(w, 1023, nr_customers);
}

static uint32_t stock_handle(uint32_t item)
{
    return DISTRICTS + item;
}

static uint32_t order_handle(const Warehouse *w, unsigned d, uint32_t number)
{
    return w->orders + d * DISTRICT_ORDERS + number % DISTRICT_ORDERS;
}

static uint32_t history_handle(const Warehouse *w, unsigned d, uint32_t number)
{
    return w->histories + d * DISTRICT_HISTORIES + number % DISTRICT_HISTORIES;
}

/* What an order names follows from its first text word */
static uint32_t order_lines(const Object *o)
{
    return 5 + o->text[0] % (MAX_LINES - 5 + 1);
}

static uint32_t order_item(const Object *o, unsigned line)
{
    return o->text[line] % nr_items;
}

/* Transactions */

static void new_order(Warehouse *w)
{
    unsigned d = below(w, DISTRICTS);
    unsigned lines = 5 + below(w, MAX_LINES - 5 + 1);
    uint32_t order = order_handle(w, d, w->district[d].orders);

    get(w, pick_customer(w));
    for (unsigned i = 0; i < lines; i++) {
        uint32_t stock = stock_handle(nurand(w, 8191, nr_items));

        if (below(w, 20) == 0) {
            put(w, stock, STOCK_BYTES);
        }
        add_to_field(w, stock, 0, 1 + below(w, 10));
    }
    drop(w, order);
    put(w, order, ORDER_BYTES(lines));
    w->district[d].orders++;
    add_to_field(w, d, 0, 1);
}

static void payment(Warehouse *w)
{
    unsigned d = below(w, DISTRICTS);
    uint32_t customer = pick_customer(w);
    uint32_t history = history_handle(w, d, w->district[d].histories++);

    add_to_field(w, d, 1, below(w, 5000));
    if (below(w, 10) == 0) {
        put(w, customer, CUSTOMER_BYTES);
    }
    add_to_field(w, customer, 0, below(w, 5000));
    drop(w, history);
    put(w, history, HISTORY_BYTES);
}

static void customer_report(Warehouse *w)
{
    unsigned d = below(w, DISTRICTS);

    get(w, pick_customer(w));
    for (unsigned i = 0; i < 10; i++) {
        get(w, history_handle(w, d, below(w, DISTRICT_HISTORIES)));
    }
    get(w, order_handle(w, d, below(w, DISTRICT_ORDERS)));
}

static void order_status(Warehouse *w)
{
    unsigned d = below(w, DISTRICTS);

    get(w, pick_customer(w));
    get(w, order_handle(w, d, w->district[d].orders - 1));
}

static void delivery(Warehouse *w)
{
    for (unsigned i = 0; i < DISTRICTS; i++) {
        District *d = &w->district[i];

        if (d->delivered + DISTRICT_ORDERS < d->orders) {
            d->delivered = d->orders - DISTRICT_ORDERS;
        }
        if (d->delivered < d->orders) {
            add_to_field(w, order_handle(w, i, d->delivered++), 0, 1);
            add_to_field(w, pick_customer(w), 1, 1);
        }
    }
}

static void stock_level(Warehouse *w)
{
    unsigned d = below(w, DISTRICTS);

    for (unsigned i = 1; i <= 20; i++) {
        Object *o = get(w, order_handle(w, d, w->district[d].orders - i));

        for (unsigned line = 0; o && line < order_lines(o); line++) {
            get(w, stock_handle(order_item(o, line)));
        }
    }
}

static void (*const transact[NR_KINDS])(Warehouse *w) = {
    [NEW_ORDER] = new_order,
    [PAYMENT] = payment,
    [CUSTOMER_REPORT] = customer_report,
    [ORDER_STATUS] = order_status,
    [DELIVERY] = delivery,
    [STOCK_LEVEL] = stock_level,
};

static void shuffle(Warehouse *w)
{
    unsigned n = 0;

    for (unsigned kind = 0; kind < NR_KINDS; kind++) {
        for (unsigned i = 0; i < kinds[kind].cards; i++) {
            w->deck[n++] = kind;
        }
    }
    while (n > 1) {
        unsigned i = below(w, n--);
        uint8_t card = w->deck[i];

        w->deck[i] = w->deck[n];
        w->deck[n] = card;
    }
    w->card = 0;
}

/* A warehouse */

static void open_warehouse(Warehouse *w, unsigned number)
{
    w->number = number;
    w->rng = mix64(seed + number);
    w->customers = DISTRICTS + nr_items;
    w->histories = w->customers + nr_customers;
    w->orders = w->histories + DISTRICTS * DISTRICT_HISTORIES;
    w->nr_handles = w->orders + DISTRICTS * DISTRICT_ORDERS;
    w->handle = map_locked_or_die(w->nr_handles * sizeof(Handle));
    space_open(&w->nursery, nursery_mib * MIB);
    for (unsigned i = 0; i < 2; i++) {
        space_open(&w->old[i], old_mib * MIB);
    }
    w->young = map_locked_or_die(nursery_mib * MIB / HISTORY_BYTES *
                                 sizeof(w->young[0]));
    shuffle(w);
}

static void fill_warehouse(Warehouse *w)
{
    for (unsigned d = 0; d < DISTRICTS; d++) {
        put(w, d, DISTRICT_BYTES);
    }
    for (uint32_t i = 0; i < nr_items; i++) {
        put(w, stock_handle(i), STOCK_BYTES);
    }
    for (uint32_t i = 0; i < nr_customers; i++) {
        put(w, w->customers + i, CUSTOMER_BYTES);
    }
    for (unsigned d = 0; d < DISTRICTS; d++) {
        for (unsigned i = 0; i < DISTRICT_ORDERS; i++) {
            put(w, order_handle(w, d, w->district[d].orders++),
                ORDER_BYTES(10));
            put(w, history_handle(w, d, w->district[d].histories++),
                HISTORY_BYTES);
        }
    }
}

static void check_warehouse(Warehouse *w)
{
    for (uint32_t i = 0; i < w->nr_handles; i++) {
        get(w, i);
    }
}

/* A transaction has ended at @ns; shared by all warehouses. */
static void note_done(uint64_t ns)
{
    uint64_t last = __atomic_exchange_n(&last_done_ns, ns, __ATOMIC_RELAXED);
    uint64_t bin = (ns - start_ns) / BIN_NS, most;

    if (bin < MAX_SECONDS * SECOND_BINS) {
        __atomic_fetch_add(&bins[bin], 1, __ATOMIC_RELAXED);
    }
    if (ns < last || ns - last < PAUSE_NS) {
        return;
    }
    __atomic_fetch_add(&stall_ns, ns - last, __ATOMIC_RELAXED);
    most = __atomic_load_n(&stall_max_ns, __ATOMIC_RELAXED);
    while (ns - last > most &&
           !__atomic_compare_exchange_n(&stall_max_ns, &most, ns - last, false,
                                        __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
        ;
    }
}

static void *run_warehouse(void *opaque)
{
    Warehouse *w = opaque;
    uint64_t t = now_ns();

    for (uint64_t n = 0; transactions ? n < transactions
                                      : t - start_ns < seconds * NS_PER_SEC;
         n++) {
        Kind kind;
        uint64_t begin_ns = t;

        if (w->card == DECK_CARDS) {
            shuffle(w);
        }
        kind = w->deck[w->card++];
        transact[kind](w);
        make_garbage(w, kinds[kind].garbage_bytes);
        t = now_ns();
        latencies_add(&w->latencies[kind], t - begin_ns);
        note_done(t);
    }
    __atomic_fetch_sub(&running, 1, __ATOMIC_RELEASE);
    return NULL;
}

/* The front */

static void *fill_entry(void *opaque)
{
    fill_warehouse(opaque);
    __atomic_fetch_sub(&running, 1, __ATOMIC_RELEASE);
    return NULL;
}

static void print_score(uint64_t second, const char *phase)
{
    uint64_t sum = 0;

    printf("JBB score second=%" PRIu64 " phase=%s tx=", second, phase);
    for (unsigned i = 0; i < SECOND_BINS; i++) {
        uint32_t n = __atomic_load_n(&bins[second * SECOND_BINS + i],
                                     __ATOMIC_RELAXED);

        printf("%s%" PRIu32, i ? "," : "", n);
        sum += n;
    }
    printf(" transactions=%" PRIu64 "\n", sum);
}

/*
 * Let every warehouse do @entry in its thread, and print what they did each
 * second; returns the time that it took in ns.
 */
static uint64_t run_phase(Warehouse *warehouse, const char *name,
                          void *(*entry)(void *))
{
    uint64_t begin_ns = now_ns(), second;
    struct timespec tick = { .tv_nsec = 10 * NS_PER_MS };

    __atomic_store_n(&running, nr_warehouses, __ATOMIC_RELEASE);
    __atomic_store_n(&last_done_ns, begin_ns, __ATOMIC_RELAXED);
    for (unsigned i = 0; i < nr_warehouses; i++) {
        Warehouse *w = &warehouse[i];

        if (pthread_create(&w->thread, NULL, entry, w)) {
            fprintf(stderr, "jbb: cannot create a thread\n");
            exit(2);
        }
    }
    second = (begin_ns - start_ns) / NS_PER_SEC;
    while (__atomic_load_n(&running, __ATOMIC_ACQUIRE)) {
        nanosleep(&tick, NULL);
        while (second < (now_ns() - start_ns) / NS_PER_SEC &&
               second < MAX_SECONDS) {
            print_score(second++, name);
        }
    }
    for (unsigned i = 0; i < nr_warehouses; i++) {
        pthread_join(warehouse[i].thread, NULL);
    }
    return now_ns() - begin_ns;
}

static void print_latencies(Warehouse *warehouse, uint64_t wall_ns)
{
    static Latencies all, one;

    for (unsigned kind = 0; kind < NR_KINDS; kind++) {
        memset(&one, 0, sizeof(one));
        for (unsigned i = 0; i < nr_warehouses; i++) {
            latencies_merge(&one, &warehouse[i].latencies[kind]);
        }
        printf("JBB kind name=%s count=%" PRIu64 " ", kinds[kind].name,
               one.count);
        latencies_print(&one);
        latencies_merge(&all, &one);
    }
    printf("JBB phase name=total wall_ns=%" PRIu64 " transactions=%" PRIu64
           " ", wall_ns, all.count);
    latencies_print(&all);
}

static uint64_t print_result(Warehouse *warehouse)
{
    uint64_t errors = 0, minor = 0, full = 0, gc_ns = 0, gc_max_ns = 0;

    for (unsigned i = 0; i < nr_warehouses; i++) {
        Warehouse *w = &warehouse[i];

        errors += w->data_errors;
        minor += w->minor_gcs;
        full += w->full_gcs;
        gc_ns += w->gc_ns;
        gc_max_ns = w->gc_max_ns > gc_max_ns ? w->gc_max_ns : gc_max_ns;
    }
    printf("JBB result data_errors=%" PRIu64 " stall_ns=%" PRIu64
           " stall_max_ns=%" PRIu64 " minor_gcs=%" PRIu64 " full_gcs=%" PRIu64
           " gc_ns=%" PRIu64 " gc_max_ns=%" PRIu64 "\n", errors, stall_ns,
           stall_max_ns, minor, full, gc_ns, gc_max_ns);
    return errors;
}

int main(int argc, char **argv)
{
    const LoadOption options[] = {
        { "warehouses", &nr_warehouses },
        { "items", &nr_items },
        { "customers", &nr_customers },
        { "old", &old_mib },
        { "nursery", &nursery_mib },
        { "transactions", &transactions },
        { "seconds", &seconds },
        { "seed", &seed },
        { "check", &check },
        { NULL }
    };
    Warehouse *warehouse;
    uint64_t wall_ns, errors;

    if (argc > 1) {
        parse_options(options, argv[1]);
    }
    if (!nr_warehouses || nr_warehouses > 1024 || !nr_items ||
        nr_items > 1 << 24 || !nr_customers || nr_customers > 1 << 24 ||
        !old_mib || !nursery_mib || (!transactions && !seconds) ||
        seconds > MAX_SECONDS) {
        fprintf(stderr, "jbb: an option is out of range\n");
        return 2;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    printf("jbb: %" PRIu64 " warehouses with %" PRIu64 " items and %" PRIu64
           " customers, heaps of %" PRIu64 " + 2 * %" PRIu64
           " MiB, seed %" PRIu64 "\n", nr_warehouses, nr_items, nr_customers,
           nursery_mib, old_mib, seed);

    warehouse = map_locked_or_die(nr_warehouses * sizeof(*warehouse));
    bins = map_locked_or_die(MAX_SECONDS * SECOND_BINS * sizeof(bins[0]));
    for (unsigned i = 0; i < nr_warehouses; i++) {
        open_warehouse(&warehouse[i], i);
    }
    start_ns = now_ns();
    wall_ns = run_phase(warehouse, "fill", fill_entry);
    printf("JBB phase name=fill wall_ns=%" PRIu64 "\n", wall_ns);

    start_ns = now_ns();
    wall_ns = run_phase(warehouse, "run", run_warehouse);
    print_score(wall_ns / NS_PER_SEC, "run");
    print_latencies(warehouse, wall_ns);
    for (unsigned i = 0; check && i < nr_warehouses; i++) {
        check_warehouse(&warehouse[i]);
        printf("JBB score second=%" PRIu64 " phase=check transactions=0\n",
               (uint64_t)((now_ns() - start_ns) / NS_PER_SEC));
    }
    errors = print_result(warehouse);
    printf("jbb: %" PRIu64 " warehouses in %.1f s, longest stall %.1f ms, %"
           PRIu64 " data errors\n", nr_warehouses, wall_ns / 1e9,
           stall_max_ns / 1e6, errors);
    return errors ? 1 : 0;
}

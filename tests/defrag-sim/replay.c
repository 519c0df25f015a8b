/*
 * Replay of a recorded history of indirections against the defragmentation
 * planner
 *
 * The replay keeps its own books of what was moved when and what became of it,
 * one entry a block: they judge the planner, and its statistics.
 *
 * The mover has nothing else to do: it asks for the next run as soon as the
 * last one is done.  The real job rests while the guest keeps the disk busy.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "replay.h"

#define SECOND_NS       1000000000LL
#define RETRY_NS        (SECOND_NS / 10)
#define NEVER           INT64_MIN

/* Parsing */

static bool parse_line(const char *line, HistoryEvent *e, int64_t *now_ns)
{
    uint64_t delay_ms, block, n;
    int end = 0;

    if (sscanf(line, "%" SCNu64 " %c %" SCNu64 " %" SCNu64 "%n", &delay_ms,
               &e->op, &block, &n, &end) != 4 || line[end]) {
        return false;
    }
    if (!strchr("iwdr", e->op) || !n || block >= HISTORY_MAX_BLOCK ||
        n > HISTORY_MAX_BLOCK - block || delay_ms > INT32_MAX) {
        return false;
    }
    *now_ns += delay_ms * 1000000;
    e->time_ns = *now_ns;
    e->block = block;
    e->n = n;
    return true;
}

GArray *history_parse(const char *text, GError **error)
{
    GArray *events = g_array_new(false, false, sizeof(HistoryEvent));
    g_auto(GStrv) lines = g_strsplit(text, "\n", -1);
    int64_t now_ns = 0;

    for (unsigned i = 0; lines[i]; i++) {
        HistoryEvent e;

        if (!*lines[i] || *lines[i] == '#') {
            continue;
        }
        if (!parse_line(lines[i], &e, &now_ns)) {
            g_set_error(error, G_FILE_ERROR, G_FILE_ERROR_INVAL,
                        "line %u is not an event: '%s'", i + 1, lines[i]);
            g_array_unref(events);
            return NULL;
        }
        g_array_append_val(events, e);
    }
    return events;
}

GArray *history_load(const char *path, GError **error)
{
    g_autofree char *text = NULL;

    return g_file_get_contents(path, &text, NULL, error)
           ? history_parse(text, error) : NULL;
}

/* Replay */

typedef struct Block {
    int64_t born_ns;            /* while indirected, or NEVER */
    int64_t moved_ns;           /* last, or NEVER if written since */
} Block;

typedef struct Replay {
    const ReplayOptions *options;
    ReplayResult *res;
    DefragPlan *plan;
    DefragCursor cursor;
    IndirectMap *map;
    BsstSlot next_slot;
    Block *block;               /* as many as the history has */
    int64_t end_ns;             /* of the history */
    int64_t mover_ns;           /* when the mover has time again */
    uint64_t age_cursor;
} Replay;

/* @b gets new content: was it moved in vain? */
static void judge(Replay *r, Block *b, int64_t now_ns)
{
    if (b->moved_ns != NEVER && now_ns - b->moved_ns <= DEFRAG_WATCH_NS) {
        r->res->wasted++;
        if (b->moved_ns + DEFRAG_WATCH_NS <= r->end_ns) {
            r->res->wasted_1s += now_ns - b->moved_ns <= SECOND_NS;
            r->res->wasted_10s++;
        }
    }
    b->moved_ns = NEVER;
}

static void event_indirected(Replay *r, const HistoryEvent *e)
{
    for (uint32_t i = e->block; i < e->block + e->n; i++) {
        Block *b = &r->block[i];

        judge(r, b, e->time_ns);
        r->res->overwritten += b->born_ns != NEVER;
        b->born_ns = e->time_ns;
        indirect_map_insert(r->map, i, r->next_slot++);
    }
    r->res->indirected += e->n;
    r->res->peak = MAX(r->res->peak, indirect_map_count(r->map));
    defrag_plan_indirected(r->plan, e->block, e->n, e->time_ns);
}

static void event_gone(Replay *r, const HistoryEvent *e)
{
    uint64_t *count = e->op == 'd' ? &r->res->discarded : &r->res->overwritten;

    for (uint32_t i = e->block; i < e->block + e->n; i++) {
        Block *b = &r->block[i];

        judge(r, b, e->time_ns);
        if (b->born_ns != NEVER) {
            ++*count;
            b->born_ns = NEVER;
            indirect_map_remove(r->map, i);
        }
    }
    if (e->op == 'd') {
        defrag_plan_discarded(r->plan, e->block, e->n, e->time_ns);
    } else {
        defrag_plan_overwritten(r->plan, e->block, e->n, e->time_ns);
    }
}

static void event_read(Replay *r, const HistoryEvent *e)
{
    BsstSlot want = indirect_map_lookup(r->map, e->block);

    r->res->reads++;
    for (uint32_t i = e->block; i < e->block + e->n; i++) {
        if (indirect_map_lookup(r->map, i) != want) {
            r->res->split_reads++;
            defrag_plan_read_split(r->plan, e->block, e->n, e->time_ns);
            return;
        }
        want += want != BSST_SLOT_NONE;
    }
}

static void replay_event(Replay *r, const HistoryEvent *e)
{
    switch (e->op) {
    case 'i':
        event_indirected(r, e);
        break;
    case 'r':
        event_read(r, e);
        break;
    default:
        event_gone(r, e);
    }
}

/* The rule of REPLAY_AGE: in the order of blocks, from the last one on. */
static DefragVerdict next_by_age(Replay *r, DefragRun *run)
{
    int64_t born_ns = r->mover_ns - r->options->age_ns;
    uint64_t block = r->age_cursor;
    bool wrapped = false;

    *run = (DefragRun) { };
    for (;;) {
        if (!indirect_map_next(r->map, block, &block, NULL)) {
            if (wrapped || run->n) {
                break;
            }
            wrapped = true;
            block = 0;
            continue;
        }
        if (run->n && (block != run->block + run->n ||
                       run->n == DEFRAG_REGION_BLOCKS)) {
            break;
        }
        if (r->block[block].born_ns <= born_ns) {
            run->block = run->n ? run->block : block;
            run->n++;
            run->mapped++;
        } else if (run->n) {
            break;
        }
        block++;
    }
    r->age_cursor = run->block + run->n;
    return run->n ? DEFRAG_RUN : DEFRAG_NONE;
}

static void move_run(Replay *r, const DefragRun *run)
{
    g_assert_cmpuint(run->n, <=, DEFRAG_REGION_BLOCKS);
    for (uint64_t i = run->block; i < run->block + run->n; i++) {
        Block *b = &r->block[i];

        if (indirect_map_remove(r->map, i) == BSST_SLOT_NONE) {
            continue;
        }
        b->born_ns = NEVER;
        b->moved_ns = r->mover_ns;
        defrag_plan_moved(r->plan, i, 1, r->mover_ns);
        r->res->moved++;
        r->res->judged += r->mover_ns + DEFRAG_WATCH_NS <= r->end_ns;
    }
    r->res->runs++;
}

/* Let the mover work until @until_ns. */
static void replay_moves(Replay *r, int64_t until_ns)
{
    const ReplayOptions *o = r->options;

    while (o->rule != REPLAY_NEVER && r->mover_ns < until_ns) {
        int64_t wait_ns = r->mover_ns + RETRY_NS;
        DefragVerdict verdict;
        DefragRun run;

        verdict = o->rule == REPLAY_AGE
                  ? next_by_age(r, &run)
                  : defrag_plan_next_guest(r->plan, r->map, &r->cursor,
                                           o->rule == REPLAY_FORCE, 0,
                                           DEFRAG_REGION_BLOCKS, r->mover_ns,
                                           &run, &wait_ns);
        switch (verdict) {
        case DEFRAG_RUN:
            move_run(r, &run);
            r->mover_ns += MAX(o->run_ns + o->block_ns * run.mapped, 1);
            break;
        case DEFRAG_AGAIN:
            break;
        default:
            r->mover_ns = wait_ns;
        }
    }
}

static uint32_t history_blocks(const GArray *events)
{
    uint32_t end = 0;

    for (unsigned i = 0; i < events->len; i++) {
        const HistoryEvent *e = &g_array_index(events, HistoryEvent, i);

        end = MAX(end, e->block + e->n);
    }
    return end;
}

void replay(const GArray *events, const ReplayOptions *options,
            ReplayResult *result)
{
    Replay r = {
        .options = options,
        .res = result,
        .plan = defrag_plan_new(0),
        .map = indirect_map_new(),
    };
    uint32_t nblocks = history_blocks(events);
    int64_t last_ns = 0;
    double area = 0;

    *result = (ReplayResult) { };
    r.block = g_new(Block, nblocks);
    for (uint32_t i = 0; i < nblocks; i++) {
        r.block[i] = (Block) { NEVER, NEVER };
    }
    if (events->len) {
        r.end_ns = g_array_index(events, HistoryEvent, events->len - 1).time_ns;
    }
    for (unsigned i = 0; i < events->len; i++) {
        const HistoryEvent *e = &g_array_index(events, HistoryEvent, i);

        replay_moves(&r, e->time_ns);
        area += (double)indirect_map_count(r.map) * (e->time_ns - last_ns);
        last_ns = e->time_ns;
        replay_event(&r, e);
    }
    result->seconds = (double)r.end_ns / SECOND_NS;
    result->left = indirect_map_count(r.map);
    result->mean = r.end_ns ? area / r.end_ns : 0;
    while (!defrag_plan_catch_up(r.plan, UINT_MAX)) {
        /* a history longer than that */
    }
    defrag_plan_stats(r.plan, &result->plan);
    defrag_plan_state(r.plan, &result->state);
    defrag_plan_free(r.plan);
    indirect_map_free(r.map);
    g_free(r.block);
}

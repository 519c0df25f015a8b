/*
 * Replay of a recorded history of indirections against the defragmentation
 * planner
 *
 * A history is text: a line for each event,
 *
 *     DELAY OP BLOCK N
 *
 * DELAY is milliseconds since the line before, all numbers are decimal, and OP
 * tells what happened to the N blocks from BLOCK on:
 *
 *     i   they were indirected: the guest wrote them from swapped-out memory
 *     w   they were written into the image
 *     d   they were discarded or zeroed
 *     r   they were read while some of them were indirected
 *
 * Lines that begin with '#' and empty lines are skipped.  tests/defrag-sim/record
 * makes histories from QEMU's trace events.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#ifndef DEFRAG_SIM_REPLAY_H
#define DEFRAG_SIM_REPLAY_H

#include "bsst/defrag-plan.h"

/* Block numbers of a history are below this. */
#define HISTORY_MAX_BLOCK       (1u << 24)

typedef struct HistoryEvent {
    int64_t time_ns;
    char op;
    uint32_t block;
    uint32_t n;
} HistoryEvent;

/*
 * Parse @text.  Returns an array of HistoryEvent, or NULL and an @error that
 * names the line.
 */
GArray *history_parse(const char *text, GError **error);
/* The same for a file. */
GArray *history_load(const char *path, GError **error);

typedef enum ReplayRule {
    REPLAY_PLAN,        /* the planner decides */
    REPLAY_FORCE,       /* the planner, but everything is moved at once */
    REPLAY_AGE,         /* everything is moved when it is .age_ns old */
    REPLAY_NEVER,       /* nothing is moved */
} ReplayRule;

typedef struct ReplayOptions {
    ReplayRule rule;
    int64_t age_ns;
    /* A move takes so long ... */
    int64_t run_ns;             /* for each run */
    int64_t block_ns;           /* and for each of its blocks */
} ReplayOptions;

/* In blocks, counted by the replay itself. */
typedef struct ReplayResult {
    double seconds;             /* the history's length */
    uint64_t indirected;
    uint64_t overwritten;       /* while indirected */
    uint64_t discarded;
    uint64_t moved;
    uint64_t runs;
    uint64_t wasted;            /* overwritten or discarded within 10 s */
    /* Of those moved so early that the history tells of the next 10 s: */
    uint64_t judged;
    uint64_t wasted_1s;         /* in vain within that time */
    uint64_t wasted_10s;
    uint64_t left;              /* indirected at the end */
    uint64_t peak;              /* the most that were indirected at once */
    double mean;                /* in the mean over time */
    uint64_t reads;             /* that met an indirection, or would have */
    uint64_t split_reads;
    DefragStats plan;           /* what the planner says of itself */
    DefragState state;
} ReplayResult;

/* @events is an array of HistoryEvent. */
void replay(const GArray *events, const ReplayOptions *options,
            ReplayResult *result);

#endif /* DEFRAG_SIM_REPLAY_H */

/*
 * Latency histogram: log-linear, lock-free, any thread
 *
 * 16 bins an octave from 64 ns on: a percentile is too high by at most a
 * seventeenth of its value.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#ifndef BSST_LATENCY_H
#define BSST_LATENCY_H

#include "qapi/qapi-types-bsst.h"

#define BSST_LATENCY_BINS 512

typedef struct BsstLatency {
    /* Atomic */
    uint64_t bin[BSST_LATENCY_BINS];
    uint64_t sum_ns;
    uint64_t max_ns;
} BsstLatency;

/* Account one operation that took @ns nanoseconds. */
void bsst_latency_add(BsstLatency *lat, uint64_t ns);

/* A QAPI snapshot: count, average, p50, p99, p99.9, max and non-empty bins. */
BsstLatencyInfo *bsst_latency_info(const BsstLatency *lat);

/* Append @info to @buf as one line for humans, in microseconds. */
void bsst_latency_print(GString *buf, const char *name,
                        const BsstLatencyInfo *info);

#endif /* BSST_LATENCY_H */

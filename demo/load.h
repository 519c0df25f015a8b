/*
 * What the guest programs of the demo and the benches share: a clock, random
 * numbers that depend on the seed alone, latencies, memory that is not paged
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef LOAD_H
#define LOAD_H

#include <stddef.h>
#include <stdint.h>

#define NS_PER_MS 1000000ull
#define NS_PER_SEC 1000000000ull

/* Operations of at least this length are summed up as "pause_ns" */
#define PAUSE_NS (100 * NS_PER_MS)

/*
 * Latencies go into log-linear buckets: 16 for each power of two, so that a
 * percentile is exact to about 6 %.
 */
#define LATENCY_SUB_BITS 4
#define LATENCY_BUCKETS ((64 - LATENCY_SUB_BITS + 1) << LATENCY_SUB_BITS)

typedef struct Latencies {
    uint64_t count;
    uint64_t max_ns;
    uint64_t pause_ns;
    uint32_t bucket[LATENCY_BUCKETS];
} Latencies;

void latencies_add(Latencies *l, uint64_t ns);
void latencies_merge(Latencies *into, const Latencies *l);

/* Prints "p50_ns=... p99_ns=... p999_ns=... max_ns=... pause_ns=...\n". */
void latencies_print(const Latencies *l);

/* CLOCK_MONOTONIC */
uint64_t now_ns(void);

/* A permutation of 64-bit numbers: the finalizer of SplitMix64 */
uint64_t mix64(uint64_t x);

/* The next of the numbers below @n, which is not 0; SplitMix64. */
uint64_t random_below(uint64_t *rng, uint64_t n);

/* Zeroed memory; the program ends with status 2 where there is none. */
void *map_or_die(size_t bytes);

/* The same, locked, lest the program's own faults blur the picture */
void *map_locked_or_die(size_t bytes);
void lock_or_die(const void *p, size_t bytes);

/* A place for the number that the option @key sets */
typedef struct LoadOption {
    const char *key;
    uint64_t *value;
} LoadOption;

/*
 * Parse "KEY=NUMBER,..." into the places in @options, which end with a NULL
 * key.  The program ends with status 2 if it cannot; changes @text.
 */
void parse_options(const LoadOption *options, char *text);

#endif /* LOAD_H */

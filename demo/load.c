/*
 * What the guest programs of the demo and the benches share
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#define _GNU_SOURCE
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "load.h"

uint64_t now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec * NS_PER_SEC + ts.tv_nsec;
}

uint64_t mix64(uint64_t x)
{
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

uint64_t random_below(uint64_t *rng, uint64_t n)
{
    *rng += 0x9e3779b97f4a7c15ull;
    return mix64(*rng) % n;
}

/* Latencies */

static unsigned bucket_of(uint64_t ns)
{
    unsigned exp;

    if (ns < 1u << LATENCY_SUB_BITS) {
        return ns;
    }
    exp = 63 - __builtin_clzll(ns) - LATENCY_SUB_BITS;
    return ((exp + 1) << LATENCY_SUB_BITS) +
           ((ns >> exp) & ((1u << LATENCY_SUB_BITS) - 1));
}

/* The lower end of bucket @b */
static uint64_t bucket_ns(unsigned b)
{
    unsigned row = b >> LATENCY_SUB_BITS;
    uint64_t col = b & ((1u << LATENCY_SUB_BITS) - 1);

    return row ? ((1ull << LATENCY_SUB_BITS) + col) << (row - 1) : col;
}

void latencies_add(Latencies *l, uint64_t ns)
{
    l->count++;
    l->bucket[bucket_of(ns)]++;
    if (ns > l->max_ns) {
        l->max_ns = ns;
    }
    if (ns >= PAUSE_NS) {
        l->pause_ns += ns;
    }
}

void latencies_merge(Latencies *into, const Latencies *l)
{
    into->count += l->count;
    into->pause_ns += l->pause_ns;
    if (l->max_ns > into->max_ns) {
        into->max_ns = l->max_ns;
    }
    for (unsigned b = 0; b < LATENCY_BUCKETS; b++) {
        into->bucket[b] += l->bucket[b];
    }
}

static uint64_t percentile_ns(const Latencies *l, double fraction)
{
    uint64_t want = l->count * fraction, seen = 0;

    for (unsigned b = 0; b < LATENCY_BUCKETS; b++) {
        seen += l->bucket[b];
        if (seen > want) {
            return bucket_ns(b);
        }
    }
    return l->max_ns;
}

void latencies_print(const Latencies *l)
{
    printf("p50_ns=%" PRIu64 " p99_ns=%" PRIu64 " p999_ns=%" PRIu64
           " max_ns=%" PRIu64 " pause_ns=%" PRIu64 "\n",
           percentile_ns(l, 0.5), percentile_ns(l, 0.99),
           percentile_ns(l, 0.999), l->max_ns, l->pause_ns);
}

/* Memory */

static void die(const char *what, size_t bytes)
{
    fprintf(stderr, "%s: %s of %zu bytes: %s\n",
            program_invocation_short_name, what, bytes, strerror(errno));
    exit(2);
}

void *map_or_die(size_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (p == MAP_FAILED) {
        die("mmap", bytes);
    }
    return p;
}

void lock_or_die(const void *p, size_t bytes)
{
    if (bytes && mlock(p, bytes)) {
        die("mlock", bytes);
    }
}

void *map_locked_or_die(size_t bytes)
{
    void *p = map_or_die(bytes);

    lock_or_die(p, bytes);
    return p;
}

/* Options */

static uint64_t *place_of(const LoadOption *options, const char *key)
{
    for (; options->key; options++) {
        if (!strcmp(options->key, key)) {
            return options->value;
        }
    }
    fprintf(stderr, "%s: unknown option '%s'\n",
            program_invocation_short_name, key);
    exit(2);
}

void parse_options(const LoadOption *options, char *text)
{
    char *save = NULL, *value, *end;

    for (char *key = strtok_r(text, ",", &save); key;
         key = strtok_r(NULL, ",", &save)) {
        uint64_t n = 0;

        value = strchr(key, '=');
        if (value) {
            *value++ = '\0';
            n = strtoull(value, &end, 10);
        }
        if (!value || !*value || *end) {
            fprintf(stderr, "%s: want KEY=NUMBER, not '%s'\n",
                    program_invocation_short_name, key);
            exit(2);
        }
        *place_of(options, key) = n;
    }
}

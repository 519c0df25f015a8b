/*
 * Latency histogram: log-linear, lock-free, any thread
 *
 * Bin 0 is for less than 64 ns; then each octave [2^k, 2^(k+1)) has 16 bins of
 * equal width.  The last bin, from about 250 s on, is open above.
 *
 * Readers see each field on its own: a snapshot that is taken while others
 * add may lack a few of their operations in one figure and not in another.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "qemu/atomic.h"
#include "qapi/util.h"
#include "bsst/latency.h"

#define FIRST_OCTAVE  6     /* 64 ns */
#define OCTAVE_BITS   4     /* 16 bins an octave */
#define OCTAVE_BINS   (1 << OCTAVE_BITS)

static unsigned bin_of(uint64_t ns)
{
    unsigned octave, part;

    if (ns < 1ULL << FIRST_OCTAVE) {
        return 0;
    }
    octave = 63 - __builtin_clzll(ns);
    part = (ns >> (octave - OCTAVE_BITS)) % OCTAVE_BINS;
    return MIN(1 + (octave - FIRST_OCTAVE) * OCTAVE_BINS + part,
               BSST_LATENCY_BINS - 1);
}

/* Largest value, in nanoseconds, that belongs to @bin */
static uint64_t bin_upto_ns(unsigned bin)
{
    unsigned octave, part;

    if (bin == 0) {
        return (1ULL << FIRST_OCTAVE) - 1;
    }
    if (bin == BSST_LATENCY_BINS - 1) {
        return UINT64_MAX;
    }
    octave = FIRST_OCTAVE + (bin - 1) / OCTAVE_BINS;
    part = (bin - 1) % OCTAVE_BINS;
    return ((OCTAVE_BINS + part + 1ULL) << (octave - OCTAVE_BITS)) - 1;
}

void bsst_latency_add(BsstLatency *lat, uint64_t ns)
{
    uint64_t seen, max = qatomic_read(&lat->max_ns);

    qatomic_inc(&lat->bin[bin_of(ns)]);
    qatomic_add(&lat->sum_ns, ns);
    while (ns > max) {
        seen = qatomic_cmpxchg(&lat->max_ns, max, ns);
        if (seen == max) {
            break;
        }
        max = seen;
    }
}

/*
 * Return a bound that at least @permille of the operations in @bins did not
 * exceed.
 */
static uint64_t percentile_ns(const BsstLatencyInfo *info, unsigned permille)
{
    uint64_t rank = info->count / 1000 * permille +
                    (info->count % 1000 * permille + 999) / 1000;
    uint64_t seen = 0;
    BsstLatencyBinList *e;

    for (e = info->bins; e; e = e->next) {
        seen += e->value->count;
        if (seen >= rank) {
            return MIN(e->value->upto_ns, info->max_ns);
        }
    }
    return info->max_ns;
}

BsstLatencyInfo *bsst_latency_info(const BsstLatency *lat)
{
    BsstLatencyInfo *info = g_new0(BsstLatencyInfo, 1);
    BsstLatencyBinList **tail = &info->bins;
    BsstLatencyBin *bin;
    uint64_t count;
    unsigned i;

    for (i = 0; i < BSST_LATENCY_BINS; i++) {
        count = qatomic_read(&lat->bin[i]);
        if (count) {
            bin = g_new0(BsstLatencyBin, 1);
            bin->upto_ns = bin_upto_ns(i);
            bin->count = count;
            QAPI_LIST_APPEND(tail, bin);
            info->count += count;
        }
    }
    info->max_ns = qatomic_read(&lat->max_ns);
    if (info->count) {
        info->avg_ns = qatomic_read(&lat->sum_ns) / info->count;
        info->p50_ns = percentile_ns(info, 500);
        info->p99_ns = percentile_ns(info, 990);
        info->p999_ns = percentile_ns(info, 999);
    }
    return info;
}

void bsst_latency_print(GString *buf, const char *name,
                        const BsstLatencyInfo *info)
{
    g_string_append_printf(buf, "    %-20s %10" PRIu64 "  avg %8.1f us  p50 "
                           "%8.1f us  p99 %8.1f us  max %8.1f us\n",
                           name, info->count, info->avg_ns / 1e3,
                           info->p50_ns / 1e3, info->p99_ns / 1e3,
                           info->max_ns / 1e3);
}

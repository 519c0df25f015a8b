/*
 * Life table: how long indirections live before the guest makes them needless
 *
 * The rate of dying in bin j is D[j] / E[j]: deaths by exposure, the estimate
 * for a hazard that is constant within each bin, and the actuaries' form of
 * Kaplan and Meier's (J. Am. Stat. Assoc. 53, 1958).  Entries that are still
 * alive, or that were lost from sight alive, count as well as those that died.
 * An entry of age a outlives the next h ticks with the probability
 * exp(-(H(a + h) - H(a))), H being the integral of the rate.
 *
 * A bin is *known* when ENOUGH entries have passed through it or died in it.
 * Before, its rate is at least what is assumed: that what has lived for some
 * time dies with a chance of about ASSUMED_HAZARD before it is twice as old.
 * So with nothing known a block is ripe after 137 s; and then, when the first
 * entries have proved to live, earlier and earlier.  The assumption counts as
 * much as ASSUMED entries do.
 *
 * A region where less dies than elsewhere has a factor below 1, but only for
 * bins that are known: that nothing has died young says little of ages that
 * nobody has seen.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "bsst/defrag-life.h"

#define BINS            DEFRAG_BINS
#define FIRST_BITS      4               /* of bin 0's width */

/* An entry is ripe if it outlives the horizon with a probability of 0.97. */
#define MAX_HAZARD      0.03

#define ENOUGH          32
#define ASSUMED         4
#define ASSUMED_HAZARD  0.25


unsigned defrag_life_bin(int64_t age)
{
    unsigned bin;

    if (age < 1 << FIRST_BITS) {
        return 0;
    }
    bin = 64 - __builtin_clzll(age) - FIRST_BITS;
    return MIN(bin, BINS - 1);
}

int64_t defrag_life_bin_start(unsigned bin)
{
    return bin ? INT64_C(1) << (bin - 1 + FIRST_BITS) : 0;
}

/* The last bin has no end; it is taken to end at twice its start. */
static int64_t bin_end(unsigned bin)
{
    return INT64_C(1) << (bin + FIRST_BITS);
}

void defrag_life_init(DefragLife *life)
{
    *life = (DefragLife) { .dirty = true };
    defrag_life_update(life);
}

void defrag_life_expose(DefragLife *life, int64_t from, int64_t to, unsigned n)
{
    for (unsigned j = defrag_life_bin(from); from < to; j++) {
        int64_t end = j < BINS - 1 ? MIN(to, bin_end(j)) : to;

        life->exposure[j] += (double)n * (end - from);
        life->passed[j] += j < BINS - 1 && end == bin_end(j) ? n : 0;
        life->dirty = true;
        from = end;
    }
}

void defrag_life_die(DefragLife *life, int64_t age)
{
    life->deaths[defrag_life_bin(age)]++;
    life->dirty = true;
}

void defrag_life_halve(DefragLife *life)
{
    for (unsigned j = 0; j < BINS; j++) {
        life->deaths[j] /= 2;
        life->exposure[j] /= 2;
        life->passed[j] /= 2;
    }
    life->dirty = true;
}

void defrag_life_update(DefragLife *life)
{
    double sum = 0;

    if (!life->dirty) {
        return;
    }
    for (unsigned j = 0; j < BINS; j++) {
        double width = bin_end(j) - defrag_life_bin_start(j);

        life->known[j] = life->passed[j] + life->deaths[j] >= ENOUGH;
        life->rate[j] = (life->deaths[j] + ASSUMED * ASSUMED_HAZARD) /
                        (life->exposure[j] + ASSUMED * width);
        if (!life->known[j]) {
            life->rate[j] = MAX(life->rate[j], ASSUMED_HAZARD / width);
        }
        life->hazard[j] = sum;
        sum += life->rate[j] * width;
    }
    life->dirty = false;
}

double defrag_life_hazard(const DefragLife *life, int64_t age)
{
    unsigned bin = defrag_life_bin(age);

    return life->hazard[bin] +
           life->rate[bin] * (age - defrag_life_bin_start(bin));
}

/* H(@to) - H(@from) with rates that are @factor times the common ones. */
static double hazard_between(const DefragLife *life, double factor,
                             int64_t from, int64_t to)
{
    double sum = 0;

    for (unsigned j = defrag_life_bin(from); from < to; j++) {
        int64_t end = j < BINS - 1 ? MIN(to, bin_end(j)) : to;

        sum += life->rate[j] * (end - from) *
               (life->known[j] ? factor : MAX(factor, 1));
        from = end;
    }
    return sum;
}

unsigned defrag_life_ripe(const DefragLife *life, double factor,
                          int64_t horizon)
{
    unsigned ripe = 1u << (BINS - 1);

    for (unsigned j = 0; j < BINS - 1; j++) {
        int64_t start = defrag_life_bin_start(j);

        if (hazard_between(life, factor, start, start + horizon) <=
            MAX_HAZARD) {
            ripe |= 1u << j;
        }
    }
    return ripe;
}

/*
 * Stand-in for QEMU's qemu/host-utils.h, so that CORE builds without QEMU
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BSST_STANDALONE_HOST_UTILS_H
#define BSST_STANDALONE_HOST_UTILS_H

static inline int clz32(uint32_t val)
{
    return val ? __builtin_clz(val) : 32;
}

static inline int clz64(uint64_t val)
{
    return val ? __builtin_clzll(val) : 64;
}

static inline int ctz32(uint32_t val)
{
    return val ? __builtin_ctz(val) : 32;
}

static inline int ctz64(uint64_t val)
{
    return val ? __builtin_ctzll(val) : 64;
}

static inline int ctpop32(uint32_t val)
{
    return __builtin_popcount(val);
}

static inline int ctpop64(uint64_t val)
{
    return __builtin_popcountll(val);
}

static inline bool is_power_of_2(uint64_t value)
{
    return value && !(value & (value - 1));
}

#endif

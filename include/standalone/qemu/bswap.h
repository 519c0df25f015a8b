/*
 * Stand-in for QEMU's qemu/bswap.h, so that CORE builds without QEMU
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BSST_STANDALONE_BSWAP_H
#define BSST_STANDALONE_BSWAP_H

#define le16_to_cpu(v)  GUINT16_FROM_LE(v)
#define le32_to_cpu(v)  GUINT32_FROM_LE(v)
#define le64_to_cpu(v)  GUINT64_FROM_LE(v)
#define cpu_to_le16(v)  GUINT16_TO_LE(v)
#define cpu_to_le32(v)  GUINT32_TO_LE(v)
#define cpu_to_le64(v)  GUINT64_TO_LE(v)

static inline int lduw_le_p(const void *ptr)
{
    uint16_t val;

    memcpy(&val, ptr, sizeof(val));
    return le16_to_cpu(val);
}

static inline int ldl_le_p(const void *ptr)
{
    uint32_t val;

    memcpy(&val, ptr, sizeof(val));
    return le32_to_cpu(val);
}

static inline uint64_t ldq_le_p(const void *ptr)
{
    uint64_t val;

    memcpy(&val, ptr, sizeof(val));
    return le64_to_cpu(val);
}

static inline void stw_le_p(void *ptr, uint16_t val)
{
    val = cpu_to_le16(val);
    memcpy(ptr, &val, sizeof(val));
}

static inline void stl_le_p(void *ptr, uint32_t val)
{
    val = cpu_to_le32(val);
    memcpy(ptr, &val, sizeof(val));
}

static inline void stq_le_p(void *ptr, uint64_t val)
{
    val = cpu_to_le64(val);
    memcpy(ptr, &val, sizeof(val));
}

#endif

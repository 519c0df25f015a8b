/*
 * Stand-in for QEMU's qemu/osdep.h, so that CORE builds without QEMU
 *
 * Holds only what CORE may use: the C library, glib, and those of QEMU's
 * macros that compute.  Not found by QEMU's own build, which has the original.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BSST_STANDALONE_OSDEP_H
#define BSST_STANDALONE_OSDEP_H

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <glib.h>

#define coroutine_fn
#define QEMU_PACKED             __attribute__((packed))
#define QEMU_ALIGNED(bytes)     __attribute__((aligned(bytes)))
#define QEMU_BUILD_BUG_ON(cond) _Static_assert(!(cond), "must not be: " #cond)
#define QEMU_WARN_UNUSED_RESULT __attribute__((warn_unused_result))

#ifndef ARRAY_SIZE
#define ARRAY_SIZE(x)           (sizeof(x) / sizeof((x)[0]))
#endif
#ifndef DIV_ROUND_UP
#define DIV_ROUND_UP(n, d)      (((n) + (d) - 1) / (d))
#endif
#ifndef ROUND_UP
#define ROUND_UP(n, d)          (((n) + (d) - 1) & -(0 ? (n) : (d)))
#endif
#define ROUND_DOWN(n, d)        ((n) & -(0 ? (n) : (d)))
#define QEMU_ALIGN_DOWN(n, m)   ((n) / (m) * (m))
#define QEMU_ALIGN_UP(n, m)     QEMU_ALIGN_DOWN((n) + (m) - 1, (m))
#define QEMU_IS_ALIGNED(n, m)   (((n) % (m)) == 0)
#define MIN_CONST(a, b)         ((a) < (b) ? (a) : (b))
#define MAX_CONST(a, b)         ((a) > (b) ? (a) : (b))

#define likely(x)               __builtin_expect(!!(x), 1)
#define unlikely(x)             __builtin_expect(!!(x), 0)

#ifndef container_of
#define container_of(ptr, type, member) ({                      \
        const typeof(((type *)0)->member) *mptr_ = (ptr);       \
        (type *)((char *)mptr_ - offsetof(type, member)); })
#endif

#endif

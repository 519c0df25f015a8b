/*
 * Stand-in for QEMU's qemu/units.h, so that CORE builds without QEMU
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef BSST_STANDALONE_UNITS_H
#define BSST_STANDALONE_UNITS_H

#define KiB     (INT64_C(1) << 10)
#define MiB     (INT64_C(1) << 20)
#define GiB     (INT64_C(1) << 30)
#define TiB     (INT64_C(1) << 40)

#endif

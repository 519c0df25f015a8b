/*
 * bsst: units and types that every layer shares
 *
 * A *slot* is a 4 KiB cell of the block-swap store.  A *block* is a 4 KiB
 * cell of a guest disk.  A *page* is a 4 KiB page of guest RAM.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#ifndef BSST_TYPES_H
#define BSST_TYPES_H

#define BSST_PAGE_BITS  12
#define BSST_PAGE_SIZE  (1u << BSST_PAGE_BITS)

/* Index of a slot in the store: 32 bits address 16 TiB. */
typedef uint32_t BsstSlot;

/* No slot.  A store has at most BSST_SLOT_NONE slots. */
#define BSST_SLOT_NONE  UINT32_MAX

/* Blocks whose state fits into one word of bits: from a multiple of it on */
#define BSST_WORD_BLOCKS 64u

/*
 * QEMU lets the compiler zero what is on the stack; not so large scratch arrays
 * of hot paths.  QEMU 10.1 brings the macro itself.
 */
#ifndef QEMU_UNINITIALIZED
#define QEMU_UNINITIALIZED __attribute__((uninitialized))
#endif

#endif /* BSST_TYPES_H */

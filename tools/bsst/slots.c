/*
 * bsst-tool: reading slots, and comparing them with their checksums
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "bsst-tool.h"
#include "qemu/bitmap.h"
#include "qemu/bswap.h"

/* Read the checksums of @n slots from @first on.  Returns 0 or -errno. */
static int read_checksums(ToolStore *s, BsstSlot first, unsigned n,
                          uint64_t *sum)
{
    int ret = blk_pread(s->blk, s->sb.checksums_offset +
                        (uint64_t)first * sizeof(*sum), n * sizeof(*sum), sum,
                        0);

    for (unsigned i = 0; i < n; i++) {
        sum[i] = le64_to_cpu(sum[i]);
    }
    return ret;
}

static int read_content(ToolStore *s, BsstSlot first, unsigned n, void *buf)
{
    return blk_pread(s->blk, s->sb.slots_offset +
                     (uint64_t)first * BSST_PAGE_SIZE,
                     (int64_t)n * BSST_PAGE_SIZE, buf, 0);
}

static ToolSlotState slot_state(const uint8_t *buf, uint64_t sum)
{
    return bsst_checksum(buf, BSST_PAGE_SIZE) == sum ? TOOL_SLOT_GOOD
                                                     : TOOL_SLOT_MISMATCH;
}

/* All in one go, or -errno. */
static int read_all(ToolStore *s, BsstSlot first, unsigned n, uint8_t *buf,
                    ToolSlotState *state)
{
    uint64_t sum[TOOL_SLOTS];
    int ret = read_checksums(s, first, n, sum);

    if (ret >= 0) {
        ret = read_content(s, first, n, buf);
    }
    for (unsigned i = 0; i < n && ret >= 0; i++) {
        state[i] = slot_state(buf + (size_t)i * BSST_PAGE_SIZE, sum[i]);
    }
    return MIN(ret, 0);
}

void tool_read_slots(ToolStore *s, BsstSlot first, unsigned n, uint8_t *buf,
                     ToolSlotState *state)
{
    unsigned i;

    assert(n <= TOOL_SLOTS);
    if (read_all(s, first, n, buf, state) == 0) {
        return;
    }
    for (i = 0; i < n; i++) {
        uint8_t *page = buf + (size_t)i * BSST_PAGE_SIZE;

        if (read_all(s, first + i, 1, page, &state[i]) == 0) {
            continue;
        }
        state[i] = TOOL_SLOT_UNREADABLE;
        if (read_content(s, first + i, 1, page) >= 0) {
            state[i] = TOOL_SLOT_MISMATCH; /* not known to be right */
        }
    }
}

const char *tool_slot_reason(ToolSlotState state)
{
    return state == TOOL_SLOT_MISMATCH ? "does not have its checksum"
                                       : "could not be read";
}

unsigned long *tool_used_slots(ToolStore *s, uint64_t *n)
{
    unsigned long *used = bitmap_new(s->sb.nslots);
    BsstImage *image = NULL;

    while (s->journal &&
           (image = bsst_journal_next_image(s->journal, image))) {
        BsstRecord r = { 0 };

        while (tool_next_run(image, &r)) {
            bitmap_set(used, r.slot, r.n);
        }
    }
    *n = bitmap_count_one(used, s->sb.nslots);
    return used;
}

/*
 * Frames: the private memory that evicted pages move into
 *
 * Life of a frame:
 *   free -> referenced (frames_alloc) -> dropped (last frame_unref) ->
 *   free (frames_take_dropped, frames_give_back, frames_put_clean)
 * Giving memory back is batched, because each madvise() flushes TLBs.
 *
 * The area is registered with a userfaultfd of its own in SIGBUS mode: a bug
 * that touches a frame without content ends in an error, not in a hang.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "frames.h"
#include "qapi/error.h"
#include "qemu/bitmap.h"
#include "qemu/madvise.h"
#include "uffd.h"

bool frames_init(Frames *f, uint32_t n, Error **errp)
{
    size_t bytes = (size_t)n * BSST_PAGE_SIZE;
    int ret;

    *f = (Frames) { .n = n, .nfree = n, .uffd = -1 };
    f->base = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (f->base == MAP_FAILED) {
        f->base = NULL;
        error_setg_errno(errp, errno, "host-swapper could not map its victim "
                         "cache");
        return false;
    }
    qemu_madvise(f->base, bytes, QEMU_MADV_NOHUGEPAGE);
    qemu_madvise(f->base, bytes, QEMU_MADV_DONTFORK);
    f->uffd = uffd_swapper_open(true, errp);
    if (f->uffd < 0) {
        return false;
    }
    ret = uffd_swapper_register(f->uffd, f->base, bytes, false);
    if (ret < 0) {
        error_setg_errno(errp, -ret, "host-swapper could not register its "
                         "victim cache");
        return false;
    }
    f->frame = g_new0(Frame, n);
    f->free_map = bitmap_new(n);
    bitmap_set(f->free_map, 0, n);
    f->dropped = g_new(uint32_t, n);
    f->queue = g_new(uint32_t, n);
    return true;
}

void frames_destroy(Frames *f)
{
    if (f->uffd >= 0) {
        close(f->uffd);
    }
    if (f->base) {
        munmap(f->base, (size_t)f->n * BSST_PAGE_SIZE);
    }
    g_free(f->frame);
    g_free(f->free_map);
    g_free(f->dropped);
    g_free(f->queue);
}

uint32_t frames_alloc(Frames *f, uint32_t want, uint32_t page,
                      uint32_t *first)
{
    uint32_t start, end;

    if (!f->nfree || !want) {
        return 0;
    }
    start = find_next_bit(f->free_map, f->n, f->cursor);
    if (start >= f->n) {
        start = find_first_bit(f->free_map, f->n);
    }
    end = find_next_zero_bit(f->free_map, MIN(f->n, start + want), start);
    bitmap_clear(f->free_map, start, end - start);
    f->nfree -= end - start;
    f->cursor = end;
    for (uint32_t i = start; i < end; i++) {
        f->frame[i].page = page + (i - start);
        f->frame[i].refs = 1;
        f->frame[i].slot = BSST_SLOT_NONE;
    }
    *first = start;
    return end - start;
}

void frame_ref(Frames *f, uint32_t frame)
{
    assert(f->frame[frame].refs);
    f->frame[frame].refs++;
}

void frame_unref(Frames *f, uint32_t frame)
{
    assert(f->frame[frame].refs);
    if (!--f->frame[frame].refs) {
        f->dropped[f->ndropped++] = frame;
    }
}

void frame_cancel(Frames *f, uint32_t frame)
{
    assert(f->frame[frame].refs == 1);
    assert(f->frame[frame].slot == BSST_SLOT_NONE);
    f->frame[frame].refs = 0;
    set_bit(frame, f->free_map);
    f->nfree++;
}

BsstSlot frame_take_slot(Frames *f, uint32_t frame)
{
    BsstSlot slot = f->frame[frame].slot;

    f->frame[frame].slot = BSST_SLOT_NONE;
    return slot;
}

void frames_queue(Frames *f, uint32_t frame)
{
    if (!f->frame[frame].queued) {
        f->frame[frame].queued = true;
        f->queue[(f->queue_head + f->queue_len++) % f->n] = frame;
    }
}

uint32_t frames_dequeue(Frames *f)
{
    uint32_t frame;

    if (!f->queue_len) {
        return FRAME_NONE;
    }
    frame = f->queue[f->queue_head];
    f->queue_head = (f->queue_head + 1) % f->n;
    f->queue_len--;
    f->frame[frame].queued = false;
    return frame;
}

static int compare_frames(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

    return x < y ? -1 : x > y;
}

uint32_t frames_take_dropped(Frames *f, uint32_t *list, uint32_t max)
{
    uint32_t n = MIN(max, f->ndropped);

    f->ndropped -= n;
    memcpy(list, f->dropped + f->ndropped, n * sizeof(*list));
    qsort(list, n, sizeof(*list), compare_frames);
    return n;
}

void frames_give_back(Frames *f, const uint32_t *list, uint32_t n)
{
    uint32_t i, run;
    int ret;

    for (i = 0; i < n; i += run) {
        for (run = 1; i + run < n && list[i + run] == list[i] + run; run++) {
            /* count */
        }
        ret = qemu_madvise(frame_addr(f, list[i]),
                           (size_t)run * BSST_PAGE_SIZE, QEMU_MADV_DONTNEED);
        /* uffd_swapper_move() relies on a free frame being absent. */
        g_assert(ret == 0);
    }
}

void frames_put_clean(Frames *f, const uint32_t *list, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        set_bit(list[i], f->free_map);
    }
    f->nfree += n;
}

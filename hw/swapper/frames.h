/*
 * Frames: the private memory that evicted pages move into
 *
 * The area is the victim cache and the write buffer in one: a page is moved
 * into a frame, waits there, is written to the store from there, and can be
 * copied back from there at any time.  A frame never changes while it is
 * referenced.
 *
 * The caller holds the page lock around every call but those marked.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#ifndef HW_SWAPPER_FRAMES_H
#define HW_SWAPPER_FRAMES_H

#include "bsst/types.h"

#define FRAME_NONE UINT32_MAX

typedef struct Frame {
    uint32_t page;      /* page whose content this is or was */
    BsstSlot slot;      /* has the same content; a reference is ours; or NONE */
    uint32_t refs:31;
    uint32_t queued:1;  /* in the queue of victims */
} Frame;

typedef struct Frames {
    /* Set once */
    uint8_t *base;
    uint32_t n;
    int uffd;           /* the area is registered here, as MOVE demands */

    /* Under the page lock */
    Frame *frame;
    unsigned long *free_map;    /* free: no reference and no memory */
    uint32_t nfree;
    uint32_t cursor;
    uint32_t *dropped;          /* no reference, memory not given back yet */
    uint32_t ndropped;
    uint32_t *queue;            /* victims, oldest first: a ring of @n */
    uint32_t queue_head;
    uint32_t queue_len;
} Frames;

/* Not under the lock.  Returns false and sets @errp on failure. */
bool frames_init(Frames *f, uint32_t n, Error **errp);
void frames_destroy(Frames *f);

/* The memory of @frame.  Any time while it is referenced. */
static inline void *frame_addr(const Frames *f, uint32_t frame)
{
    return f->base + (size_t)frame * BSST_PAGE_SIZE;
}

static inline uint32_t frames_used(const Frames *f)
{
    return f->n - f->nfree;
}

/*
 * Allocate up to @want contiguous frames for the pages from @page on, with
 * one reference each.  Returns the number, at @first; 0 if there is none.
 */
uint32_t frames_alloc(Frames *f, uint32_t want, uint32_t page,
                      uint32_t *first);

void frame_ref(Frames *f, uint32_t frame);
/* Drop a reference; a frame without one is dropped. */
void frame_unref(Frames *f, uint32_t frame);
/* Free a frame that nothing was moved into; its one reference goes too. */
void frame_cancel(Frames *f, uint32_t frame);

/*
 * Take the slot of @frame, and the reference; BSST_SLOT_NONE if it has none.
 * To be asked of each dropped frame.
 */
BsstSlot frame_take_slot(Frames *f, uint32_t frame);

/* Append @frame to the queue of victims if it is not there. */
void frames_queue(Frames *f, uint32_t frame);
/* Take the oldest; FRAME_NONE if there is none.  It may be stale. */
uint32_t frames_dequeue(Frames *f);

/*
 * Take at most @max dropped frames to @list, sorted.  Returns the number.
 * They stay unavailable until frames_put_clean().
 */
uint32_t frames_take_dropped(Frames *f, uint32_t *list, uint32_t max);
/* Give the memory of @n sorted frames back.  Not under the lock. */
void frames_give_back(Frames *f, const uint32_t *list, uint32_t n);
void frames_put_clean(Frames *f, const uint32_t *list, uint32_t n);

#endif /* HW_SWAPPER_FRAMES_H */

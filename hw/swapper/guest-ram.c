/*
 * Which guest RAM the swapper may take under control
 *
 * Only what the kernel can move safely: anonymous private memory of the
 * host's page size that QEMU allocated itself and does not resize.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "exec/memory.h"
#include "exec/ramblock.h"
#include "exec/ramlist.h"
#include "host-swapper.h"
#include "qemu/rcu.h"

static bool ram_block_swappable(const RAMBlock *rb)
{
    return rb->host && rb->fd < 0 && rb->guest_memfd < 0 &&
           rb->page_size == BSST_PAGE_SIZE &&
           !(rb->flags & (RAM_SHARED | RAM_RESIZEABLE | RAM_READONLY |
                          RAM_PREALLOC | RAM_GUEST_MEMFD)) &&
           rb->used_length >= PAGER_WINDOW * BSST_PAGE_SIZE &&
           !memory_region_is_ram_device(rb->mr) &&
           !memory_region_is_rom(rb->mr) &&
           !memory_region_is_romd(rb->mr);
}

void host_swapper_find_guest_ram(Pager *p)
{
    g_autoptr(GArray) list = g_array_new(false, false, sizeof(PagerRegion));
    RAMBlock *rb;

    WITH_RCU_READ_LOCK_GUARD() {
        RAMBLOCK_FOREACH(rb) {
            if (ram_block_swappable(rb)) {
                PagerRegion r = {
                    .host = rb->host,
                    .npages = rb->used_length >> BSST_PAGE_BITS,
                };
                g_array_append_val(list, r);
            }
        }
    }
    pager_set_regions(p, (PagerRegion *)list->data, list->len);
}

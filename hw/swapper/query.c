/*
 * host-swapper: QMP and HMP
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "exec/memory.h"
#include "exec/address-spaces.h"
#include "host-swapper.h"
#include "monitor/hmp.h"
#include "monitor/monitor.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-host-swapper.h"
#include "qapi/type-helpers.h"
#include "qemu/lockable.h"
#include "qemu/units.h"
#include "qom/object_interfaces.h"

static HostSwapperState pager_state_locked(const Pager *p)
{
    if (!qatomic_read(&p->base.armed)) {
        return HOST_SWAPPER_STATE_OFF;
    }
    if (p->releasing) {
        return HOST_SWAPPER_STATE_RESTORING;
    }
    if (p->read_error || p->write_error) {
        return HOST_SWAPPER_STATE_STORE_ERROR;
    }
    return p->store_full ? HOST_SWAPPER_STATE_STORE_FULL
                         : HOST_SWAPPER_STATE_ARMED;
}

static void query_pages_locked(const Pager *p, HostSwapperInfo *info)
{
    const uint64_t *count = p->pages.count;

    info->resident = count[PAGE_RESIDENT];
    info->victim = count[PAGE_VICTIM];
    info->writing = count[PAGE_WRITING];
    info->swapped = count[PAGE_SWAPPED];
    info->zero = count[PAGE_ZERO];
    info->bound = p->pages.nbound;
    info->transit = count[PAGE_EVICTING] + count[PAGE_LOADING] +
                    count[PAGE_INSTALLING];
    info->metadata_bytes = p->pages.npages * sizeof(p->pages.word[0]);
    for (unsigned i = 0; i < p->nregions; i++) {
        info->ram_bytes += p->region[i].npages << BSST_PAGE_BITS;
    }
    if (qatomic_read(&p->base.armed)) {
        info->charged_bytes = pager_charged_locked(p) << BSST_PAGE_BITS;
    }
}

static HostSwapperRestored *restored_info(const uint64_t *n)
{
    HostSwapperRestored *r = g_new(HostSwapperRestored, 1);

    *r = (HostSwapperRestored) {
        .wanted = n[RESTORE_WANTED],
        .written = n[RESTORE_WRITTEN],
        .read_over = n[RESTORE_READ_OVER],
        .discarded = n[RESTORE_DISCARDED],
        .unwritten = n[RESTORE_UNWRITTEN],
    };
    return r;
}

static void query_counters_locked(const Pager *p, HostSwapperInfo *info)
{
    const PagerCounters *n = &p->n;

    info->evicted = n->evicted;
    info->swap_outs = n->swap_outs;
    info->swap_out_bytes = n->swap_outs << BSST_PAGE_BITS;
    info->swap_out_requests = n->swap_out_requests;
    info->zero_outs = n->zero_outs;
    info->swap_ins = n->swap_ins;
    info->swap_in_bytes = n->swap_ins << BSST_PAGE_BITS;
    info->swap_in_requests = n->swap_in_requests;
    info->faults_victim = n->faults_victim;
    info->faults_store = n->faults_store;
    info->faults_zero = n->faults_zero;
    info->faults_raced = n->faults_raced;
    info->intercepted = n->intercepted;
    info->intercepted_restored = n->intercepted_restored;
    info->intercepted_restore_bytes =
        n->intercepted_restore_pages << BSST_PAGE_BITS;
    info->intercepted_faults = n->intercepted_faults;
    info->intercepted_read_faults = n->intercepted_read_faults;
    info->restored_intercepted = restored_info(n->restored[1]);
    info->restored_neighbours = restored_info(n->restored[0]);
    info->installed = n->installed;
    info->discarded = n->discarded;
    info->clean_outs = n->clean_outs;
    info->clean_refuted = n->clean_refuted;
    info->clean_claims = n->clean_claims;
    info->unbound_written = n->unbound_written;
    info->unbound_given_up = n->unbound_given_up;
    info->refused->pinned = n->refused_pinned;
    info->refused->absent = n->refused_absent;
    info->refused->retry = n->refused_retry;
    info->refused->no_frame = n->refused_no_frame;
    info->refused->store_full = n->refused_store_full;
    info->refused->other = n->refused_other;
    info->over_limit_ns = p->over_ns;
    info->over_limit_max_ns = p->over_max_ns;
}

static HostSwapperInfo *query_one(HostSwapper *s)
{
    HostSwapperInfo *info = g_new0(HostSwapperInfo, 1);
    Pager *p = s->pager;

    info->id = g_strdup(object_get_canonical_path_component(OBJECT(s)));
    if (s->store) {
        info->store = g_strdup(bsst_store_node_name(s->store));
    }
    info->memory_limit = s->memory_limit;
    info->tesseract = s->tesseract;
    info->keep_clean = p->keep_clean;
    info->victim_cache_size = s->victim_cache_size;
    info->refused = g_new0(HostSwapperRefusals, 1);
    WITH_QEMU_LOCK_GUARD(&p->lock) {
        info->state = pager_state_locked(p);
        query_pages_locked(p, info);
        query_counters_locked(p, info);
    }
    info->fault_victim = bsst_latency_info(&p->lat_victim);
    info->fault_store = bsst_latency_info(&p->lat_store);
    info->fault_zero = bsst_latency_info(&p->lat_zero);
    info->fault_raced = bsst_latency_info(&p->lat_raced);
    return info;
}

static int query_child(Object *obj, void *opaque)
{
    HostSwapperInfoList **list = opaque;
    HostSwapper *s = (HostSwapper *)object_dynamic_cast(obj,
                                                        TYPE_HOST_SWAPPER);

    if (s && s->pager) {
        QAPI_LIST_PREPEND(*list, query_one(s));
    }
    return 0;
}

HostSwapperInfoList *qmp_query_host_swapper(Error **errp)
{
    HostSwapperInfoList *list = NULL;

    object_child_foreach(object_get_objects_root(), query_child, &list);
    return list;
}

/* Page of the guest physical range.  False if it is not ours in one piece. */
static bool lookup_guest_range(Pager *p, uint64_t addr, uint64_t length,
                               uint64_t *page)
{
    MemoryRegionSection section = memory_region_find(get_system_memory(), addr,
                                                     length);
    bool ok = section.mr && memory_region_is_ram(section.mr) &&
              int128_get64(section.size) == length;

    if (ok) {
        uint8_t *host = memory_region_get_ram_ptr(section.mr);

        ok = pager_lookup(p, host + section.offset_within_region, page);
    }
    memory_region_unref(section.mr);
    return ok;
}

HostSwapperEvicted *qmp_x_host_swapper_evict(const char *id, uint64_t addr,
                                             uint64_t length, bool has_to,
                                             HostSwapperEvictTo to,
                                             Error **errp)
{
    Object *obj = object_resolve_path_component(object_get_objects_root(), id);
    HostSwapper *s = (HostSwapper *)object_dynamic_cast(obj,
                                                        TYPE_HOST_SWAPPER);
    bool to_store = !has_to || to == HOST_SWAPPER_EVICT_TO_STORE;
    HostSwapperEvicted *result;
    uint64_t page;

    if (!s || !s->started) {
        error_setg(errp, "host-swapper '%s' not found", id);
        return NULL;
    }
    if ((addr | length) % BSST_PAGE_SIZE || !length) {
        error_setg(errp, "addr and length must be multiples of 4096");
        return NULL;
    }
    if (!lookup_guest_range(s->pager, addr, length, &page)) {
        error_setg(errp, "The range is not guest RAM that can be swapped");
        return NULL;
    }
    result = g_new0(HostSwapperEvicted, 1);
    result->pages = pager_evict_range(s->pager, page, length / BSST_PAGE_SIZE,
                                      to_store);
    return result;
}

/* HMP */

static void print_restored(GString *buf, const char *what,
                           const HostSwapperRestored *r)
{
    g_string_append_printf(buf, "    %s: %" PRIu64 " waited for, %" PRIu64
                           " written, %" PRIu64 " read over, %" PRIu64
                           " discarded, %" PRIu64 " left unwritten\n", what,
                           r->wanted, r->written, r->read_over, r->discarded,
                           r->unwritten);
}

static void print_one(GString *buf, const HostSwapperInfo *i)
{
    g_string_append_printf(buf, "%s: %s, limit %" PRIu64 " MiB, charged %"
                           PRIu64 " MiB, RAM %" PRIu64 " MiB, tesseract %s\n",
                           i->id, HostSwapperState_str(i->state),
                           i->memory_limit / MiB, i->charged_bytes / MiB,
                           i->ram_bytes / MiB, i->tesseract ? "on" : "off");
    g_string_append_printf(buf, "  pages: resident %" PRIu64 ", victim %"
                           PRIu64 ", writing %" PRIu64 ", swapped %" PRIu64
                           ", zero %" PRIu64 "\n", i->resident, i->victim,
                           i->writing, i->swapped, i->zero);
    g_string_append_printf(buf, "  out: %" PRIu64 " pages evicted, %" PRIu64
                           " written in %" PRIu64 " requests, %" PRIu64
                           " zero\n", i->evicted, i->swap_outs,
                           i->swap_out_requests, i->zero_outs);
    if (i->keep_clean) {
        g_string_append_printf(buf, "  clean: %" PRIu64 " pages keep their "
                               "slot, %" PRIu64 " left again without a write, "
                               "%" PRIu64 " written to disk without one\n",
                               i->bound, i->clean_outs, i->clean_claims);
    } else {
        g_string_append(buf, "  clean: pages do not keep their slots\n");
    }
    g_string_append_printf(buf, "  in: %" PRIu64 " pages in %" PRIu64
                           " requests, %" PRIu64 " installed by disk reads\n",
                           i->swap_ins, i->swap_in_requests, i->installed);
    g_string_append_printf(buf, "  double paging: %" PRIu64 " pages written "
                           "to disk while out, %" PRIu64 " restored before a "
                           "touch, %" PRIu64 " write and %" PRIu64 " read "
                           "faults on them\n", i->intercepted,
                           i->intercepted_restored, i->intercepted_faults,
                           i->intercepted_read_faults);
    g_string_append(buf, "  what became of pages that came back unasked:\n");
    print_restored(buf, "written to disk", i->restored_intercepted);
    print_restored(buf, "their neighbours", i->restored_neighbours);
    g_string_append(buf, "  faults:\n");
    bsst_latency_print(buf, "victim cache", i->fault_victim);
    bsst_latency_print(buf, "store", i->fault_store);
    bsst_latency_print(buf, "zero", i->fault_zero);
    bsst_latency_print(buf, "raced", i->fault_raced);
}

static HumanReadableText *hmp_info_swapper(Error **errp)
{
    g_autoptr(GString) buf = g_string_new("");
    HostSwapperInfoList *list = qmp_query_host_swapper(errp), *l;

    for (l = list; l; l = l->next) {
        print_one(buf, l->value);
    }
    if (!list) {
        g_string_append(buf, "No host-swapper.\n");
    }
    qapi_free_HostSwapperInfoList(list);
    return human_readable_text_from_str(buf);
}

void host_swapper_register_hmp(void)
{
    monitor_register_hmp_info_hrt("swapper", hmp_info_swapper);
}

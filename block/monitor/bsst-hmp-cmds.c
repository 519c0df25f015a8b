/*
 * HMP: info bsst
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "bsst/latency.h"
#include "monitor/monitor.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-bsst.h"
#include "qapi/type-helpers.h"
#include "qemu/module.h"
#include "qemu/units.h"

static void print_image(GString *buf, const BsstImageInfo *i)
{
    g_string_append_printf(buf, "  image %s (%s): %" PRIu64 " indirections, %"
                           PRIu64 " slots kept until the next flush%s%s%s\n",
                           i->uuid, i->filename, i->indirections,
                           i->held_slots, i->pending ? ", changed" : "",
                           i->attached ? "" : ", not attached",
                           i->raw ? ", no guard" : "");
}

static void print_journal(GString *buf, const BsstJournalInfo *j)
{
    g_string_append_printf(buf, "  journal: %" PRIu64 " commits of %" PRIu64
                           " records for %" PRIu64 " blocks, %" PRIu64
                           " checkpoints, %" PRIu64 " flushes, %" PRIu64
                           " errors; %" PRIu64 " KiB long\n", j->commits,
                           j->records, j->recorded_blocks, j->checkpoints,
                           j->flushes, j->errors, j->used_bytes / KiB);
    g_string_append_printf(buf, "  journal written: %" PRIu64 " KiB, "
                           "checksums %" PRIu64 " KiB, checkpoints %" PRIu64
                           " KiB\n", j->journal_bytes / KiB,
                           j->checksum_bytes / KiB, j->checkpoint_bytes / KiB);
    if (j->recovered_indirections) {
        g_string_append_printf(buf, "  found at the start: %" PRIu64
                               " indirections of %" PRIu64 " images, %" PRIu64
                               " journal blocks replayed\n",
                               j->recovered_indirections, j->recovered_images,
                               j->replayed_blocks);
    }
}

static void print_store(GString *buf, const BsstStoreStats *s)
{
    g_string_append_printf(buf, "%s: store %s, aio=%s%s\n", s->node_name,
                           s->uuid, BlockdevAioOptions_str(s->aio),
                           s->full ? ", FULL" : "");
    g_string_append_printf(buf, "  slots: %" PRIu64 " in all, %" PRIu64
                           " free, %" PRIu64 " MiB occupied\n", s->slots,
                           s->slots_free, s->slots_backed * 4 * KiB / MiB);
    g_string_append_printf(buf, "  read %" PRIu64 " MiB in %" PRIu64
                           " requests, written %" PRIu64 " MiB in %" PRIu64
                           ", punched %" PRIu64 " MiB\n",
                           s->read_bytes / MiB, s->reads,
                           s->write_bytes / MiB, s->writes,
                           s->punched_bytes / MiB);
    g_string_append_printf(buf, "  errors: %" PRIu64 " I/O, %" PRIu64
                           " checksum\n", s->io_errors, s->checksum_errors);
    print_journal(buf, s->journal);
    for (BsstImageInfoList *i = s->images; i; i = i->next) {
        print_image(buf, i->value);
    }
}

static void print_defrag(GString *buf, const BsstDefragStats *d)
{
    g_string_append_printf(buf, "  defrag: %s, %" PRIu64 " slices, %" PRIu64
                           " cut, may disturb %" PRIu64 " of 1024 requests\n",
                           BsstDefragState_str(d->state), d->slices, d->cuts,
                           d->share);
    g_string_append_printf(buf, "  moved: %" PRIu64 " blocks, %" PRIu64
                           " within the store, %" PRIu64 " failed; in vain: %"
                           PRIu64 " within 1 s, %" PRIu64 " within 10 s; "
                           "spared %" PRIu64 "\n", d->moved, d->relaid,
                           d->failed, d->wasted_1s, d->wasted_10s, d->spared);
    g_string_append_printf(buf, "  reads split: %" PRIu64 " of 1000 before, %"
                           PRIu64 " now\n", d->split_before, d->split_now);
    bsst_latency_print(buf, "without a slice", d->foreground_without);
    bsst_latency_print(buf, "with a slice", d->foreground_with);
}

static void print_node(GString *buf, const BsstNodeStats *n)
{
    g_string_append_printf(buf, "%s: image %s%s, store %s\n", n->node_name,
                           n->file, n->guarded ? " (guarded)" : "", n->store);
    g_string_append_printf(buf, "  indirections: %" PRIu64 " now, %" PRIu64
                           " made; removed: %" PRIu64 " overwritten, %" PRIu64
                           " discarded, %" PRIu64 " truncated, %" PRIu64
                           " drained\n", n->indirections, n->made,
                           n->removed_overwrite, n->removed_discard,
                           n->removed_truncate, n->removed_drain);
    g_string_append_printf(buf, "  writes: %" PRIu64 " double-paged pages "
                           "avoided (%" PRIu64 " MiB), %" PRIu64
                           " from buffers, %" PRIu64 " zero, %" PRIu64
                           " waited for\n", n->double_paged_pages,
                           n->avoided_bytes / MiB, n->buffered_pages,
                           n->zero_pages, n->loaded_pages);
    g_string_append_printf(buf, "  reads: %" PRIu64 " split, %" PRIu64
                           " from the store alone, %" PRIu64 " pages "
                           "installed without swap-in\n", n->split_reads,
                           n->store_reads, n->installed_pages);
    bsst_latency_print(buf, "write prepare", n->write_prepare);
    bsst_latency_print(buf, "write completion", n->write_completion);
    bsst_latency_print(buf, "read prepare", n->read_prepare);
    bsst_latency_print(buf, "read completion", n->read_completion);
    print_defrag(buf, n->defrag);
}

static HumanReadableText *hmp_info_bsst(Error **errp)
{
    g_autoptr(GString) buf = g_string_new("");
    g_autoptr(BsstInfo) info = qmp_query_bsst(errp);

    if (!info) {
        return NULL;
    }
    for (BsstStoreStatsList *s = info->stores; s; s = s->next) {
        print_store(buf, s->value);
    }
    for (BsstNodeStatsList *n = info->nodes; n; n = n->next) {
        print_node(buf, n->value);
    }
    if (!buf->len) {
        g_string_append(buf, "No block-swap store.\n");
    }
    return human_readable_text_from_str(buf);
}

static void bsst_hmp_register(void)
{
    monitor_register_hmp_info_hrt("bsst", hmp_info_bsst);
}

type_init(bsst_hmp_register);

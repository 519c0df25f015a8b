/*
 * host-swapper: the object that users create
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#ifndef HW_SWAPPER_HOST_SWAPPER_H
#define HW_SWAPPER_HOST_SWAPPER_H

#include "exec/ramlist.h"
#include "pager.h"
#include "qom/object.h"

#define TYPE_HOST_SWAPPER "host-swapper"
OBJECT_DECLARE_SIMPLE_TYPE(HostSwapper, HOST_SWAPPER)

/* All fields under the BQL. */
struct HostSwapper {
    Object parent_obj;

    /* Properties */
    char *path;
    char *store_node;
    uint64_t store_size;
    bool has_aio;
    BlockdevAioOptions aio;
    uint64_t memory_limit;
    uint64_t victim_cache_size;
    bool tesseract;
    bool keep_clean;
    bool claim_clean;
    uint32_t fault_threads;
    uint32_t restore_cluster;
    char *record;

    /* From complete() on */
    Pager *pager;
    BsstStore *store;
    Error *migration_blocker;
    bool discard_required;
    bool default_store;
    bool created;               /* the store at @path is new */

    /* From the machine's creation on */
    Notifier machine_done;
    RAMBlockNotifier ram;
    bool started;
};

/* guest-ram.c: under the BQL; disarmed */
void host_swapper_find_guest_ram(Pager *p);

/* query.c */
void host_swapper_register_hmp(void);

#endif /* HW_SWAPPER_HOST_SWAPPER_H */

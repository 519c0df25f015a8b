/*
 * host-swapper: the object that users create
 *
 * Properties, refusals, start and end.  With path= the store is opened (and
 * created) when the object is, so that -drive bsst=on finds it; with store=
 * when the machine is complete, because -blockdev comes later.  Guest RAM is
 * looked at when the machine is complete.
 *
 * Two ways to end.  object-del brings every page back first and leaves the VM
 * running.  At exit the pages are given up with the process; the fault
 * handlers live until the block layer is closed, whose last requests may
 * still touch guest RAM.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "block/aio-wait.h"
#include "block/block.h"
#include "exec/cpu-common.h"
#include "host-swapper.h"
#include "hw/boards.h"
#include "migration/blocker.h"
#include "qapi/error.h"
#include "qapi/qapi-builtin-visit.h"
#include "qapi/qapi-visit-block-core.h"
#include "qapi/visitor.h"
#include "qemu/error-report.h"
#include "qemu/host-utils.h"
#include "qemu/main-loop.h"
#include "qemu/module.h"
#include "qemu/units.h"
#include "qobject/qdict.h"
#include "qom/object_interfaces.h"
#include "system/hostmem.h"
#include "system/runstate.h"
#include "system/system.h"
#include "trace.h"

#define DEFAULT_STORE_BYTES     (16 * GiB)
#define DEFAULT_VICTIM_BYTES    (8 * MiB)
#define DEFAULT_FAULT_THREADS   2
#define DEFAULT_CLUSTER         8

static BlockdevAioOptions default_aio(void)
{
#ifdef CONFIG_LINUX_IO_URING
    return BLOCKDEV_AIO_OPTIONS_IO_URING;
#else
    return BLOCKDEV_AIO_OPTIONS_THREADS;
#endif
}

static const char *swapper_id(HostSwapper *s)
{
    return object_get_canonical_path_component(OBJECT(s));
}

/* Refusals */

/* @backend serves as guest RAM; can it be swapped? */
static bool check_backend(HostMemoryBackend *backend, Error **errp)
{
    RAMBlock *rb = backend->mr.ram_block;
    g_autofree char *id = host_memory_backend_get_name(backend);
    const char *what = NULL;

    if (!rb) {
        return true;
    }
    if (qemu_ram_pagesize(rb) != qemu_real_host_page_size()) {
        what = "huge pages";
    } else if (qemu_ram_is_shared(rb)) {
        what = "shared memory";
    } else if (qemu_ram_get_fd(rb) >= 0) {
        what = "a file";
    } else if (backend->guest_memfd) {
        what = "guest_memfd";
    }
    if (what) {
        error_setg(errp, "host-swapper cannot swap memory backend '%s': it "
                   "is %s; use memory-backend-ram,share=off for guest RAM",
                   id, what);
        return false;
    }
    return true;
}

static int check_backend_child(Object *obj, void *opaque)
{
    Error **errp = opaque;
    HostMemoryBackend *backend;

    backend = (HostMemoryBackend *)object_dynamic_cast(obj,
                                                       TYPE_MEMORY_BACKEND);
    return backend && host_memory_backend_is_mapped(backend) &&
           !check_backend(backend, errp);
}

/* -m without a backend can still be shared or of huge pages (-mem-path). */
static bool check_machine_ram(Error **errp)
{
    MachineState *ms = MACHINE(qdev_get_machine());
    RAMBlock *rb = ms->ram ? ms->ram->ram_block : NULL;

    if (rb && (qemu_ram_get_fd(rb) >= 0 || qemu_ram_is_shared(rb) ||
               qemu_ram_pagesize(rb) != qemu_real_host_page_size())) {
        error_setg(errp, "host-swapper cannot swap guest RAM '%s': it is "
                   "shared, a file or of huge pages; use anonymous private "
                   "memory (no -mem-path, memory-backend-ram,share=off)",
                   qemu_ram_get_idstr(rb));
        return false;
    }
    return true;
}

static bool check_store_size(HostSwapper *s, Error **errp)
{
    uint64_t ram = 0, store = bsst_store_nslots(s->store);

    for (unsigned i = 0; i < s->pager->nregions; i++) {
        ram += s->pager->region[i].npages;
    }
    ram <<= BSST_PAGE_BITS;
    store <<= BSST_PAGE_BITS;
    if (s->memory_limit && ram > s->memory_limit &&
        store < ram - s->memory_limit) {
        error_setg(errp, "The block-swap store '%s' is too small: %" PRIu64
                   " MiB cannot hold the %" PRIu64 " MiB of guest RAM beyond "
                   "memory-limit; make it larger (store-size=), better twice "
                   "that", bsst_store_node_name(s->store), store / MiB,
                   (ram - s->memory_limit) / MiB);
        return false;
    }
    return true;
}

/* Start */

static bool open_store(HostSwapper *s, const char *node, Error **errp)
{
    s->store = bsst_store_open(node, s->aio, errp);
    if (!s->store) {
        return false;
    }
    return pager_attach_store(s->pager, s->store, errp);
}

/* Open (and create) the store at @path as a node of our own. */
static bool open_store_path(HostSwapper *s, Error **errp)
{
    g_autofree char *node = g_strdup_printf("%s-store", swapper_id(s));
    bool created = access(s->path, F_OK) < 0 && errno == ENOENT;
    QDict *opts;
    BlockDriverState *bs;
    bool ok;

    if (created) {
        if (!bsst_store_create(s->path, s->store_size, errp)) {
            return false;
        }
        s->created = true;
    }
    opts = qdict_new();
    qdict_put_str(opts, "driver", "qcow2");
    qdict_put_str(opts, "node-name", node);
    qdict_put_str(opts, "file.driver", "file");
    qdict_put_str(opts, "file.filename", s->path);
    qdict_put_str(opts, "cache.direct", "on");
    bs = bdrv_open(NULL, NULL, opts, BDRV_O_RDWR, errp);
    if (!bs) {
        error_prepend(errp, "Could not open the block-swap store: ");
        return false;
    }
    ok = open_store(s, node, errp);
    bdrv_unref(bs);
    return ok;
}

/* A start that failed leaves no store behind that was not there before. */
static void remove_created(HostSwapper *s)
{
    if (s->created && !s->started) {
        unlink(s->path);
    }
}

/* The machine is complete: guest RAM and all block nodes exist. */
static bool swapper_start(HostSwapper *s, Error **errp)
{
    ERRP_GUARD();

    if (!check_machine_ram(errp) ||
        object_child_foreach_recursive(object_get_objects_root(),
                                       check_backend_child, errp)) {
        return false;
    }
    if (!s->store && !open_store(s, s->store_node, errp)) {
        return false;
    }
    host_swapper_find_guest_ram(s->pager);
    if (!check_store_size(s, errp)) {
        return false;
    }
    s->started = true;
    qatomic_set(&s->pager->base.tesseract, s->tesseract);
    pager_set_victim_bytes(s->pager, s->victim_cache_size);
    pager_set_limit(s->pager, s->memory_limit);
    return true;
}

static void swapper_machine_done(Notifier *n, void *unused)
{
    HostSwapper *s = container_of(n, HostSwapper, machine_done);
    Error *err = NULL;

    if (!swapper_start(s, &err)) {
        error_report_err(err);
        remove_created(s);
        exit(1);
    }
}

static void swapper_ram_added(RAMBlockNotifier *n, void *host, size_t size,
                              size_t max_size)
{
    HostSwapper *s = container_of(n, HostSwapper, ram);

    if (s->started) {
        host_swapper_find_guest_ram(s->pager);
        if (qatomic_read(&s->pager->base.armed)) {
            warn_report("host-swapper '%s': guest RAM that is added now is "
                        "not swapped until memory-limit is set to 0 and back",
                        swapper_id(s));
        }
    }
}

static void swapper_ram_discarded(RAMBlockNotifier *n, void *host, size_t size)
{
    HostSwapper *s = container_of(n, HostSwapper, ram);

    pager_discard(s->pager, host, size);
}

static void swapper_ram_removed(RAMBlockNotifier *n, void *host, size_t size,
                                size_t max_size)
{
    HostSwapper *s = container_of(n, HostSwapper, ram);

    if (s->started) {
        pager_remove_region(s->pager, host);
    }
}

static int is_other_swapper(Object *obj, void *opaque)
{
    HostSwapper *s = (HostSwapper *)object_dynamic_cast(obj,
                                                        TYPE_HOST_SWAPPER);

    return s && s->pager && s != opaque;
}

static bool check_options(HostSwapper *s, Error **errp)
{
    if (object_child_foreach(object_get_objects_root(), is_other_swapper, s)) {
        error_setg(errp, "There is a host-swapper already; it swaps all of "
                   "the guest's RAM, so give one -object host-swapper only");
        return false;
    }
    if (!s->path == !s->store_node) {
        error_setg(errp, "host-swapper needs exactly one of path= (a file, "
                   "created if absent) and store= (a node of -blockdev)");
        return false;
    }
    if (runstate_check(RUN_STATE_INMIGRATE)) {
        error_setg(errp, "host-swapper does not support incoming migration; "
                   "remove -incoming, or create it with object-add after the "
                   "migration");
        return false;
    }
    if (should_mlock(mlock_state)) {
        error_setg(errp, "host-swapper cannot swap locked memory; remove "
                   "-overcommit mem-lock=on");
        return false;
    }
    if (qemu_real_host_page_size() != BSST_PAGE_SIZE) {
        error_setg(errp, "host-swapper needs a host page size of 4 KiB");
        return false;
    }
    return true;
}

static void swapper_complete(UserCreatable *uc, Error **errp)
{
    HostSwapper *s = HOST_SWAPPER(uc);

    if (!check_options(s, errp)) {
        return;
    }
    if (ram_block_discard_require(true)) {
        error_setg(errp, "host-swapper cannot be used together with devices "
                   "that pin guest RAM, such as VFIO");
        return;
    }
    s->discard_required = true;
    error_setg(&s->migration_blocker, "host-swapper '%s' does not support "
               "migration and snapshots of the VM state; remove it with "
               "object-del first", swapper_id(s));
    if (migrate_add_blocker(&s->migration_blocker, errp) < 0) {
        return;
    }
    s->pager = pager_new(swapper_id(s), s->fault_threads, errp);
    if (!s->pager) {
        return;
    }
    s->pager->cluster = s->restore_cluster;
    s->pager->keep_clean &= s->keep_clean;
    s->pager->claim_clean = s->claim_clean;
    if (s->record) {
        s->pager->record = record_new(s->record, errp);
        if (!s->pager->record) {
            return;
        }
    }
    if (s->path && !open_store_path(s, errp)) {
        return;
    }
    bsst_default_store_add(s->path ? bsst_store_node_name(s->store)
                                   : s->store_node);
    s->default_store = true;

    s->ram.ram_block_added = swapper_ram_added;
    s->ram.ram_block_removed = swapper_ram_removed;
    s->ram.ram_block_discarded = swapper_ram_discarded;
    ram_block_notifier_add(&s->ram);
    if (phase_check(PHASE_MACHINE_READY)) {
        swapper_start(s, errp);
    } else {
        s->machine_done.notify = swapper_machine_done;
        qemu_add_machine_init_done_notifier(&s->machine_done);
    }
}

/* End */

/*
 * object-del: bring every page back first; the VM runs on.  The BQL is held
 * meanwhile, so with much to bring back set memory-limit to 0 beforehand and
 * wait for the state "off".  Refused while the store cannot be read.
 */
static bool swapper_can_be_deleted(UserCreatable *uc)
{
    HostSwapper *s = HOST_SWAPPER(uc);

    if (!s->started) {
        return true;
    }
    pager_set_limit(s->pager, 0);
    AIO_WAIT_WHILE_UNLOCKED(NULL, qatomic_read(&s->pager->base.armed) &&
                                  !qatomic_read(&s->pager->read_error));
    if (qatomic_read(&s->pager->base.armed)) {
        error_report("host-swapper '%s': pages cannot be read back from the "
                     "store", swapper_id(s));
        pager_set_limit(s->pager, s->memory_limit);
        return false;
    }
    return true;
}

static void swapper_finalize(Object *obj)
{
    HostSwapper *s = HOST_SWAPPER(obj);

    if (s->machine_done.notify) {
        qemu_remove_machine_init_done_notifier(&s->machine_done);
    }
    if (s->ram.ram_block_added) {
        ram_block_notifier_remove(&s->ram);
    }
    if (s->default_store) {
        bsst_default_store_del(s->store_node ?:
                               bsst_store_node_name(s->store));
    }
    if (s->pager) {
        pager_stop(s->pager);
        pager_detach_store(s->pager);
        bsst_pager_unref(&s->pager->base);
    }
    bsst_store_unref(s->store);
    remove_created(s);
    migrate_del_blocker(&s->migration_blocker);
    if (s->discard_required) {
        ram_block_discard_require(false);
    }
    g_free(s->path);
    g_free(s->store_node);
    g_free(s->record);
}

/* Properties */

static char *get_path(Object *obj, Error **errp)
{
    return g_strdup(HOST_SWAPPER(obj)->path);
}

static void set_path(Object *obj, const char *value, Error **errp)
{
    HostSwapper *s = HOST_SWAPPER(obj);

    if (s->pager) {
        error_setg(errp, "path cannot be changed");
        return;
    }
    g_free(s->path);
    s->path = g_strdup(value);
}

static char *get_store(Object *obj, Error **errp)
{
    return g_strdup(HOST_SWAPPER(obj)->store_node);
}

static void set_store(Object *obj, const char *value, Error **errp)
{
    HostSwapper *s = HOST_SWAPPER(obj);

    if (s->pager) {
        error_setg(errp, "store cannot be changed");
        return;
    }
    g_free(s->store_node);
    s->store_node = g_strdup(value);
}

static char *get_record(Object *obj, Error **errp)
{
    return g_strdup(HOST_SWAPPER(obj)->record);
}

static void set_record(Object *obj, const char *value, Error **errp)
{
    HostSwapper *s = HOST_SWAPPER(obj);

    if (s->pager) {
        error_setg(errp, "x-record cannot be changed");
        return;
    }
    g_free(s->record);
    s->record = g_strdup(value);
}

static void get_size(Object *obj, Visitor *v, const char *name, void *opaque,
                     Error **errp)
{
    uint64_t value = *(uint64_t *)((uint8_t *)obj + (uintptr_t)opaque);

    visit_type_size(v, name, &value, errp);
}

static void set_store_size(Object *obj, Visitor *v, const char *name,
                           void *opaque, Error **errp)
{
    HostSwapper *s = HOST_SWAPPER(obj);
    uint64_t value;

    if (!visit_type_size(v, name, &value, errp)) {
        return;
    }
    if (s->pager) {
        error_setg(errp, "store-size cannot be changed");
        return;
    }
    s->store_size = value;
}

static void set_memory_limit(Object *obj, Visitor *v, const char *name,
                             void *opaque, Error **errp)
{
    HostSwapper *s = HOST_SWAPPER(obj);
    uint64_t value;

    if (!visit_type_size(v, name, &value, errp)) {
        return;
    }
    if (value && value < 16 * MiB) {
        error_setg(errp, "memory-limit must be 0 (no limit) or at least 16M");
        return;
    }
    s->memory_limit = value;
    if (s->started) {
        host_swapper_find_guest_ram(s->pager);
        pager_set_limit(s->pager, value);
    }
}

static void set_victim_cache_size(Object *obj, Visitor *v, const char *name,
                                  void *opaque, Error **errp)
{
    HostSwapper *s = HOST_SWAPPER(obj);
    uint64_t value;

    if (!visit_type_size(v, name, &value, errp)) {
        return;
    }
    if (value > PAGER_MAX_VICTIM_BYTES) {
        error_setg(errp, "victim-cache-size must be at most %" PRIu64 "M",
                   (uint64_t)(PAGER_MAX_VICTIM_BYTES / MiB));
        return;
    }
    s->victim_cache_size = value;
    if (s->started) {
        pager_set_victim_bytes(s->pager, value);
    }
}

static bool get_tesseract(Object *obj, Error **errp)
{
    return HOST_SWAPPER(obj)->tesseract;
}

static void set_tesseract(Object *obj, bool value, Error **errp)
{
    HostSwapper *s = HOST_SWAPPER(obj);

    s->tesseract = value;
    if (s->pager) {
        qatomic_set(&s->pager->base.tesseract, value);
    }
}

static bool get_keep_clean(Object *obj, Error **errp)
{
    return HOST_SWAPPER(obj)->keep_clean;
}

static void set_keep_clean(Object *obj, bool value, Error **errp)
{
    HostSwapper *s = HOST_SWAPPER(obj);

    if (s->pager) {
        error_setg(errp, "keep-clean cannot be changed");
        return;
    }
    s->keep_clean = value;
}

static bool get_claim_clean(Object *obj, Error **errp)
{
    return HOST_SWAPPER(obj)->claim_clean;
}

static void set_claim_clean(Object *obj, bool value, Error **errp)
{
    HostSwapper *s = HOST_SWAPPER(obj);

    if (s->pager) {
        error_setg(errp, "claim-clean cannot be changed");
        return;
    }
    s->claim_clean = value;
}

static int get_aio(Object *obj, Error **errp)
{
    return HOST_SWAPPER(obj)->aio;
}

static void set_aio(Object *obj, int value, Error **errp)
{
    HostSwapper *s = HOST_SWAPPER(obj);

    if (s->pager) {
        error_setg(errp, "aio cannot be changed");
        return;
    }
    s->aio = value;
}

static void get_uint32(Object *obj, Visitor *v, const char *name, void *opaque,
                       Error **errp)
{
    uint32_t value = *(uint32_t *)((uint8_t *)obj + (uintptr_t)opaque);

    visit_type_uint32(v, name, &value, errp);
}

/* A number of 1 to @max that cannot be changed later. */
static void set_small(HostSwapper *s, Visitor *v, const char *name,
                      uint32_t *field, uint32_t max, Error **errp)
{
    uint32_t value;

    if (!visit_type_uint32(v, name, &value, errp)) {
        return;
    }
    if (s->pager) {
        error_setg(errp, "%s cannot be changed", name);
    } else if (value < 1 || value > max) {
        error_setg(errp, "%s must be from 1 to %" PRIu32, name, max);
    } else {
        *field = value;
    }
}

static void set_fault_threads(Object *obj, Visitor *v, const char *name,
                              void *opaque, Error **errp)
{
    HostSwapper *s = HOST_SWAPPER(obj);

    set_small(s, v, name, &s->fault_threads, 64, errp);
}

static void set_restore_cluster(Object *obj, Visitor *v, const char *name,
                                void *opaque, Error **errp)
{
    HostSwapper *s = HOST_SWAPPER(obj);
    uint32_t value = s->restore_cluster;

    set_small(s, v, name, &value, PAGER_WINDOW, errp);
    if (!is_power_of_2(value)) {
        error_setg(errp, "%s must be a power of two", name);
        return;
    }
    s->restore_cluster = value;
}

static void swapper_init(Object *obj)
{
    HostSwapper *s = HOST_SWAPPER(obj);

    s->aio = default_aio();
    s->store_size = DEFAULT_STORE_BYTES;
    s->victim_cache_size = DEFAULT_VICTIM_BYTES;
    s->fault_threads = DEFAULT_FAULT_THREADS;
    s->restore_cluster = DEFAULT_CLUSTER;
    s->tesseract = true;
    s->keep_clean = true;
}

static void add_size(ObjectClass *oc, const char *name, size_t offset,
                     ObjectPropertyAccessor *set, const char *description)
{
    object_class_property_add(oc, name, "size", get_size, set, NULL,
                              (void *)(uintptr_t)offset);
    object_class_property_set_description(oc, name, description);
}

static void swapper_class_init(ObjectClass *oc, void *data)
{
    UserCreatableClass *ucc = USER_CREATABLE_CLASS(oc);

    ucc->complete = swapper_complete;
    ucc->can_be_deleted = swapper_can_be_deleted;

    object_class_property_add_str(oc, "path", get_path, set_path);
    object_class_property_set_description(oc, "path",
        "File of the block-swap store; created if absent");
    object_class_property_add_str(oc, "store", get_store, set_store);
    object_class_property_set_description(oc, "store",
        "Node name of the block-swap store");
    add_size(oc, "store-size", offsetof(HostSwapper, store_size),
             set_store_size, "Size of a store that is created");
    add_size(oc, "memory-limit", offsetof(HostSwapper, memory_limit),
             set_memory_limit,
             "Guest RAM that may be resident; 0 is no limit");
    add_size(oc, "victim-cache-size", offsetof(HostSwapper, victim_cache_size),
             set_victim_cache_size,
             "Pages that have left the guest and are not written yet");
    object_class_property_add_bool(oc, "tesseract", get_tesseract,
                                   set_tesseract);
    object_class_property_set_description(oc, "tesseract",
        "Disk writes of swapped-out pages become indirections");
    object_class_property_add_bool(oc, "keep-clean", get_keep_clean,
                                   set_keep_clean);
    object_class_property_set_description(oc, "keep-clean",
        "Pages that are read back keep their slot until they are written");
    object_class_property_add_bool(oc, "claim-clean", get_claim_clean,
                                   set_claim_clean);
    object_class_property_set_description(oc, "claim-clean",
        "Disk writes of such pages become indirections, too");
    object_class_property_add_enum(oc, "aio", "BlockdevAioOptions",
                                   &BlockdevAioOptions_lookup, get_aio,
                                   set_aio);
    object_class_property_set_description(oc, "aio",
        "How the store's I/O is done");
    object_class_property_add(oc, "fault-threads", "uint32", get_uint32,
        set_fault_threads, NULL,
        (void *)offsetof(HostSwapper, fault_threads));
    object_class_property_set_description(oc, "fault-threads",
        "Number of fault handlers");
    object_class_property_add(oc, "restore-cluster", "uint32", get_uint32,
        set_restore_cluster, NULL,
        (void *)offsetof(HostSwapper, restore_cluster));
    object_class_property_set_description(oc, "restore-cluster",
        "Pages that one fault brings in at most");
    object_class_property_add_str(oc, "x-record", get_record, set_record);
    object_class_property_set_description(oc, "x-record",
        "File to which what happens to pages is written");
}

static const TypeInfo host_swapper_info = {
    .name = TYPE_HOST_SWAPPER,
    .parent = TYPE_OBJECT,
    .instance_size = sizeof(HostSwapper),
    .instance_init = swapper_init,
    .instance_finalize = swapper_finalize,
    .class_init = swapper_class_init,
    .interfaces = (InterfaceInfo[]) {
        { TYPE_USER_CREATABLE },
        { }
    },
};

static void host_swapper_register_types(void)
{
    type_register_static(&host_swapper_info);
    host_swapper_register_hmp();
}

type_init(host_swapper_register_types);

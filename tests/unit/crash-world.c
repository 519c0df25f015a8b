/*
 * A small world around the journal, for crash enumeration
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "block/aio.h"
#include "crash-world.h"
#include "qapi/error.h"
#include "qemu/bswap.h"
#include "qemu/lockable.h"
#include "qemu/main-loop.h"

#define BLOCK_BYTES BSST_JOURNAL_BLOCK_BYTES

const char *const bug_name[BUG__MAX] = {
    [BUG_NONE] = "none",
    [BUG_RECORD_BEFORE_SLOT] = "record-before-slot",
    [BUG_RECORD_BEFORE_IMAGE] = "record-before-image",
    [BUG_NO_FLUSH_OF_RECORDS] = "no-flush-of-records",
    [BUG_SLOT_REUSED_EARLY] = "slot-reused-early",
    [BUG_HEADER_BEFORE_BODY] = "header-before-body",
    [BUG_JOURNAL_RELEASED_EARLY] = "journal-released-early",
    [BUG_NO_CHAIN_CHECK] = "no-chain-check",
    [BUG_NO_SCRUB] = "no-scrub",
    [BUG_NO_FLUSH_AT_OPEN] = "no-flush-at-open",
    [BUG_FLUSH_JOINS_OLDER] = "flush-joins-older",
    [BUG_ENTRY_REMOVED_EARLY] = "entry-removed-early",
    [BUG_NO_CHECKSUMS] = "no-checksums",
    [BUG_MOVE_REMOVED_EARLY] = "move-removed-early",
    [BUG_RELAY_NAMED_EARLY] = "relay-named-early",
};

const char *const op_name[OP__MAX] = {
    [OP_WRITE] = "write",
    [OP_PARTIAL] = "partial",
    [OP_DISCARD] = "discard",
    [OP_DRAIN] = "drain",
    [OP_MOVE_OUT] = "move-out",
    [OP_RELAY] = "relay",
    [OP_FLUSH] = "flush",
    [OP_EVICT] = "evict",
    [OP_TOUCH] = "touch",
    [OP_SWAP_IN] = "swap-in",
    [OP_CHECKPOINT] = "checkpoint",
    [OP_CHECK] = "check",
    [OP_DETACH] = "detach",
    [OP_FORGET] = "forget",
    [OP_ERROR] = "error",
    [OP_KILL] = "kill",
    [OP_POWER_CUT] = "power-cut",
    [OP_REOPEN] = "reopen",
};

static void G_GNUC_PRINTF(2, 3) violate(World *w, const char *fmt, ...)
{
    va_list ap;

    if (!w->violation) {
        va_start(ap, fmt);
        w->violation = g_strdup_vprintf(fmt, ap);
        va_end(ap);
    }
}

static uint64_t stamp(uint64_t content, unsigned sector)
{
    return content ? content << 3 | sector % BLOCK_SECTORS : 0;
}

static uint64_t stamp_at(const SimDisk *d, uint8_t *buf, unsigned sector)
{
    uint64_t value;

    memcpy(&value, disk_at(d, buf, sector), sizeof(value));
    return value;
}

static unsigned slot_sector(const World *w, BsstSlot slot)
{
    return w->store.nmeta + slot * BLOCK_SECTORS;
}

static uint64_t stamps_checksum(const uint64_t *stamps)
{
    return bsst_checksum(stamps, BLOCK_SECTORS * sizeof(*stamps));
}

/* The store's areas */

typedef enum Area {
    AREA_SUPERBLOCK = 1, AREA_TABLE = 2, AREA_CHECKSUMS = 4, AREA_HEADER = 8,
    AREA_BODY = 16, AREA_JOURNAL = 32, AREA_SCRUB = 64, AREA_SLOTS = 128,
} Area;

static Area area_of(const World *w, unsigned sector, const uint8_t *data)
{
    uint64_t offset = (uint64_t)sector * SECTOR_BYTES;
    const BsstSuperblock *sb = &w->sb;

    if (sector >= w->store.nmeta) {
        return AREA_SLOTS;
    } else if (offset >= sb->journal_offset) {
        return data[0] == 0xff ? AREA_SCRUB : AREA_JOURNAL;
    } else if (offset == sb->checkpoint_offset[0] ||
               offset == sb->checkpoint_offset[1]) {
        return AREA_HEADER;
    } else if (offset > sb->checkpoint_offset[0]) {
        return AREA_BODY;
    } else if (offset >= sb->checksums_offset) {
        return AREA_CHECKSUMS;
    }
    return offset >= sb->images_offset ? AREA_TABLE : AREA_SUPERBLOCK;
}

/* What has been written to and is not durable yet */
static unsigned pending_areas(const World *w)
{
    unsigned i, areas = 0;

    for (i = 0; i < w->store.pending->len; i++) {
        const SimWrite *write = g_ptr_array_index(w->store.pending, i);

        areas |= area_of(w, write->first, write->data);
    }
    return areas;
}

/* I/O */

typedef enum SimIOKind {
    SIM_READ, SIM_WRITE, SIM_FLUSH,
} SimIOKind;

typedef struct SimIO {
    SimIOKind kind;
    Fault fault;                /* what may befall it */
    SimDisk *disk;
    SimWrite *write;
    unsigned first, n;          /* of a read */
    void *buf;
    uint64_t time;              /* when a flush began */
    bool lie;
    bool append;                /* to the journal, or a flush of that */
    Coroutine *co;
    int ret;
} SimIO;

static int coroutine_fn co_io(World *w, SimIO *io)
{
    io->co = qemu_coroutine_self();
    g_ptr_array_add(w->ios, io);
    w->version++;
    qemu_coroutine_yield();
    return io->ret;
}

static int coroutine_fn co_disk_write(World *w, SimDisk *d, unsigned first,
                                      unsigned n, const void *data)
{
    SimIO io = { .kind = SIM_WRITE, .disk = d };

    if (w->dead) {
        return -EIO;
    }
    io.fault = d == &w->store ? FAULT_STORE_WRITE : FAULT_IMAGE_WRITE;
    io.append = d == &w->store && area_of(w, first, data) == AREA_JOURNAL;
    io.write = disk_submit(d, first, n, data);
    return co_io(w, &io);
}

static int coroutine_fn co_disk_read(World *w, SimDisk *d, unsigned first,
                                     unsigned n, void *buf)
{
    SimIO io = {
        .kind = SIM_READ, .disk = d, .first = first, .n = n, .buf = buf,
    };

    return w->dead ? -EIO : co_io(w, &io);
}

static int coroutine_fn co_disk_flush(World *w, SimDisk *d, bool lie)
{
    SimIO io = { .kind = SIM_FLUSH, .disk = d, .lie = lie };

    if (w->dead) {
        return -EIO;
    }
    io.fault = d == &w->store ? FAULT_STORE_FLUSH : FAULT_IMAGE_FLUSH;
    io.append = d == &w->store && pending_areas(w) & AREA_JOURNAL;
    io.time = disk_flush_begin(d);
    return co_io(w, &io);
}

static bool io_fault(World *w, SimIO *io)
{
    Fault fault = io->fault;

    if (io->kind == SIM_READ) {
        return false;
    }
    if (io->append && w->fault[fault + FAULT_APPEND_WRITE]) {
        fault += FAULT_APPEND_WRITE;    /* the same, of the journal */
    }
    if (!w->fault[fault]) {
        return false;
    }
    w->fault[fault]--;
    return true;
}

static void io_end(World *w, SimIO *io)
{
    bool fault;

    if (w->dead) {
        io->ret = -EIO;
        return;
    }
    w->version++;
    fault = io_fault(w, io);
    io->ret = fault ? -EIO : 0;
    switch (io->kind) {
    case SIM_READ:
        memcpy(io->buf, disk_at(io->disk, io->disk->cache, io->first),
               disk_bytes(io->disk, io->first, io->n));
        break;
    case SIM_WRITE:
        if (fault) {
            disk_fail(io->disk, io->write, w->rand);
        } else {
            disk_complete(io->disk, io->write);
        }
        break;
    case SIM_FLUSH:
        if (!fault && !io->lie) {
            disk_flush_end(io->disk, io->time);
        }
        break;
    }
}

static void world_poll(World *w)
{
    if (crash_journal_background(w->journal)) {
        aio_poll(qemu_get_aio_context(), false);
    }
}

bool world_step(World *w)
{
    SimIO *io;

    world_poll(w);
    if (!w->ios->len) {
        return false;
    }
    io = g_ptr_array_remove_index_fast(w->ios, g_rand_int_range(w->rand, 0,
                                                                w->ios->len));
    io_end(w, io);
    qemu_coroutine_enter(io->co);
    world_poll(w);
    return true;
}

bool world_appends(const World *w)
{
    unsigned i;

    for (i = 0; i < w->ios->len; i++) {
        if (((SimIO *)g_ptr_array_index(w->ios, i))->append) {
            return true;
        }
    }
    return false;
}

/* The journal's I/O */

static int coroutine_fn sim_co_read(void *opaque, uint64_t offset, void *buf,
                                    size_t bytes)
{
    World *w = opaque;
    unsigned first = offset / SECTOR_BYTES, n = bytes / SECTOR_BYTES;

    g_assert(first + n <= w->store.nmeta);
    memcpy(buf, disk_at(&w->store, w->store.view, first), n * SECTOR_BYTES);
    return 0;
}

static int coroutine_fn sim_co_write(void *opaque, uint64_t offset,
                                     const void *buf, size_t bytes)
{
    World *w = opaque;
    unsigned first = offset / SECTOR_BYTES, n = bytes / SECTOR_BYTES;
    Area area = area_of(w, first, buf);

    g_assert(QEMU_IS_ALIGNED(offset | bytes | (uintptr_t)buf, BLOCK_BYTES));
    g_assert(bytes && first + n <= w->store.nmeta);
    if ((w->params.bug == BUG_NO_SCRUB && area == AREA_SCRUB) ||
        (w->params.bug == BUG_NO_CHECKSUMS && area == AREA_CHECKSUMS)) {
        return 0;
    }
    return co_disk_write(w, &w->store, first, n, buf);
}

static bool flush_is_lie(const World *w)
{
    unsigned areas = pending_areas(w);

    switch (w->params.bug) {
    case BUG_RECORD_BEFORE_SLOT:
        return areas && !(areas & ~(AREA_SLOTS | AREA_CHECKSUMS));
    case BUG_NO_FLUSH_OF_RECORDS:
        return areas & AREA_JOURNAL;
    case BUG_HEADER_BEFORE_BODY:
        return (areas & AREA_BODY) && !(areas & AREA_HEADER);
    case BUG_JOURNAL_RELEASED_EARLY:
        return areas & AREA_HEADER;
    default:
        return false;
    }
}

static int coroutine_fn sim_co_flush(void *opaque)
{
    World *w = opaque;

    return co_disk_flush(w, &w->store, flush_is_lie(w));
}

/* Slots */

static void drop_slots(World *w, const BsstSlot *slot, unsigned n)
{
    unsigned i;

    for (i = 0; i < n; i++) {
        if (slot[i] != BSST_SLOT_NONE) {
            slot_table_unref(w->slots, slot[i]);
        }
    }
}

static void sim_unref(void *opaque, const BsstSlot *slot, unsigned n)
{
    World *w = opaque;

    if (w->params.bug != BUG_SLOT_REUSED_EARLY) {
        drop_slots(w, slot, n);
    }
}

static void sim_get_checksums(void *opaque, BsstSlot first, unsigned n,
                              uint64_t *sum)
{
    World *w = opaque;
    unsigned i;

    for (i = 0; i < n; i++) {
        sum[i] = slot_table_refs(w->slots, first + i) ?
                 slot_table_checksum(w->slots, first + i) : 0;
    }
}

static const BsstJournalSlots sim_slots = {
    .unref = sim_unref,
    .get_checksums = sim_get_checksums,
};

/* Model */

static Sector *model_sector(GuestDisk *g, unsigned block, unsigned k)
{
    return &g->model[block * BLOCK_SECTORS + k];
}

static bool model_has_room(GuestDisk *g, unsigned block, unsigned n)
{
    unsigned s;

    for (s = block * BLOCK_SECTORS; s < (block + n) * BLOCK_SECTORS; s++) {
        if (g->model[s].n > MAX_CANDIDATES - 8) {
            return false;
        }
    }
    return true;
}

static void model_push(Sector *s, uint64_t value)
{
    g_assert(s->n < MAX_CANDIDATES);
    s->c[s->n++] = (Candidate) { .stamp = value, .done = NOT_DONE };
}

static void model_push_blocks(GuestDisk *g, unsigned block, unsigned n,
                              uint64_t content)
{
    unsigned s;

    for (s = block * BLOCK_SECTORS; s < (block + n) * BLOCK_SECTORS; s++) {
        model_push(&g->model[s], stamp(content, s));
    }
}

/* The last write of these sectors has succeeded. */
static void model_done(World *w, GuestDisk *g, unsigned sector, unsigned n)
{
    if (w->dead) {
        return;
    }
    w->clock++;
    for (; n; n--, sector++) {
        Sector *s = &g->model[sector];

        s->c[s->n - 1].done = w->clock;
    }
}

/* The last write of these sectors has failed, without a trace. */
static void model_undo(World *w, GuestDisk *g, unsigned sector, unsigned n)
{
    for (; n && !w->dead; n--, sector++) {
        g->model[sector].n--;
    }
}

/* The newest that was done by @time; an older flush may find none. */
static unsigned last_done(const Sector *s, uint64_t time)
{
    unsigned i = s->n - 1;

    while (i > 0 && s->c[i].done > time) {
        i--;
    }
    return i;
}

static void sector_trim(Sector *s, unsigned n)
{
    memmove(s->c, s->c + n, (s->n - n) * sizeof(s->c[0]));
    s->n -= n;
}

static void model_flushed(World *w, GuestDisk *g, uint64_t time)
{
    unsigned s;

    for (s = 0; s < w->params.nblocks * BLOCK_SECTORS; s++) {
        sector_trim(&g->model[s], last_done(&g->model[s], time));
    }
    w->version++;
}

/* Index of the last candidate from @from on that is @value, or -1 */
static int sector_find(const Sector *s, unsigned from, uint64_t value)
{
    int i;

    for (i = s->n - 1; i >= (int)from; i--) {
        if (s->c[i].stamp == value) {
            return i;
        }
    }
    return -1;
}

static void violate_sector(World *w, const char *what, unsigned guest,
                           unsigned sector, BsstSlot slot, uint64_t value)
{
    Sector *s = &w->guest[guest].model[sector];
    g_autoptr(GString) text = g_string_new(NULL);
    unsigned i;

    for (i = 0; i < s->n; i++) {
        g_string_append_printf(text, " %" PRIu64 "/%" PRIu64 "%s",
                               s->c[i].stamp >> 3, s->c[i].stamp & 7,
                               s->c[i].done == NOT_DONE ? "?" : "");
    }
    violate(w, "%s: image %u block %u sector %u, %s %d, holds content %" PRIu64
            "/%" PRIu64 ", and may hold%s", what, guest,
            sector / BLOCK_SECTORS, sector % BLOCK_SECTORS,
            slot == BSST_SLOT_NONE ? "in the image" : "in slot", (int)slot,
            value >> 3, value & 7, text->str);
}

/* What the guest sees there, in @store and @image, with @map */
static uint64_t visible(World *w, GuestDisk *g, const IndirectMap *map,
                        uint8_t *store, uint8_t *image, unsigned sector,
                        BsstSlot *slot)
{
    *slot = map ? indirect_map_lookup(map, sector / BLOCK_SECTORS)
                : BSST_SLOT_NONE;
    if (*slot == BSST_SLOT_NONE) {
        return stamp_at(&g->disk, image, sector);
    }
    return stamp_at(&w->store, store, slot_sector(w, *slot) +
                    sector % BLOCK_SECTORS);
}

static const IndirectMap *image_map(const BsstImage *image)
{
    return image ? durable_map_current(image->map) : NULL;
}

/* What the guest sees now is all that it can see from now on. */
static void settle_model(World *w, bool power_cut)
{
    unsigned i, k;

    for (i = 0; i < w->params.nimages; i++) {
        GuestDisk *g = &w->guest[i];

        for (k = 0; k < w->params.nblocks * BLOCK_SECTORS; k++) {
            Sector *s = &g->model[k];
            BsstSlot slot;
            uint64_t value = visible(w, g, image_map(g->image),
                                     w->store.cache, g->disk.cache, k, &slot);
            int last = sector_find(s, 0, value);

            if (w->dead) {
                return;
            }
            if (last < 0) {
                violate_sector(w, "after open", i, k, slot, value);
                return;
            }
            s->n = last + 1;
            s->c[last].done = w->clock;
            if (power_cut) {
                sector_trim(s, last);
            }
        }
    }
}

/* The running system reads what was written last. */
static void check_live(World *w, unsigned guest, unsigned block)
{
    GuestDisk *g = &w->guest[guest];
    unsigned k;

    for (k = block * BLOCK_SECTORS; k < (block + 1) * BLOCK_SECTORS; k++) {
        Sector *s = &g->model[k];
        BsstSlot slot;
        uint64_t value = visible(w, g, image_map(g->image), w->store.cache,
                                 g->disk.cache, k, &slot);

        if (sector_find(s, last_done(s, NOT_DONE - 1), value) < 0) {
            violate_sector(w, "alive", guest, k, slot, value);
        }
    }
}

/* The driver */

static int coroutine_fn co_read_slot(World *w, BsstSlot slot, uint64_t *buf)
{
    int ret = co_disk_read(w, &w->store, slot_sector(w, slot), BLOCK_SECTORS,
                           buf);

    if (ret == 0 && slot_table_checksum(w->slots, slot) !=
                    stamps_checksum(buf)) {
        violate(w, "alive: slot %u does not match its checksum", slot);
    }
    return ret;
}

/* B2, B4 */
static void coroutine_fn co_map_set(World *w, GuestDisk *g, unsigned block,
                                    const BsstSlot *slot, unsigned n)
{
    BsstSlot old[MAX_BLOCKS], drop[MAX_BLOCKS];

    WITH_QEMU_LOCK_GUARD(&g->image->lock) {
        bsst_image_set_locked(g->image, block, slot, n, old, drop);
    }
    drop_slots(w, w->params.bug == BUG_SLOT_REUSED_EARLY ? old : drop, n);
}

static void coroutine_fn co_map_remove(World *w, GuestDisk *g, unsigned block,
                                       unsigned n)
{
    BsstSlot none[MAX_BLOCKS];

    if (g->image && indirect_map_count(image_map(g->image))) {
        memset(none, 0xff, sizeof(none));
        co_map_set(w, g, block, none, n);
    }
}

static int coroutine_fn co_guard_locked(World *w, GuestDisk *g)
{
    unsigned header = w->params.nblocks * BLOCK_SECTORS;
    uint64_t generation;
    int ret;

    ret = bsst_journal_co_announce(g->image);
    if (ret < 0) {
        return ret;
    }
    generation = g->image->entry.announced;
    ret = co_disk_write(w, &g->disk, header, 1, &generation);
    if (ret == 0) {
        ret = co_disk_flush(w, &g->disk, false);
    }
    return ret < 0 ? ret : bsst_journal_co_attached(g->image);
}

/* B6 */
static int coroutine_fn co_guard(World *w, GuestDisk *g)
{
    int ret = 0;

    QEMU_LOCK_GUARD(&g->guard_lock);
    if (!g->guarded) {
        ret = co_guard_locked(w, g);
        g->guarded = ret == 0;
    }
    return ret;
}

static int coroutine_fn co_write_content(World *w, GuestDisk *g,
                                         unsigned block,
                                         const uint64_t *content, unsigned n)
{
    uint64_t data[MAX_BLOCKS * BLOCK_SECTORS];
    unsigned i;

    for (i = 0; i < n * BLOCK_SECTORS; i++) {
        data[i] = stamp(content[i / BLOCK_SECTORS], i);
    }
    return co_disk_write(w, &g->disk, block * BLOCK_SECTORS,
                         n * BLOCK_SECTORS, data);
}

/* A write request of @n pages */
typedef struct Request {
    unsigned block, n;
    unsigned slots;
    BsstSlot slot[MAX_PAGES];   /* what is to be indirected */
    uint64_t content[MAX_PAGES];
} Request;

static void request_drop_slots(World *w, Request *r)
{
    drop_slots(w, r->slot, r->n);
    memset(r->slot, 0xff, sizeof(r->slot));
    r->slots = 0;
}

static void request_claim(World *w, Request *r, unsigned page)
{
    unsigned i;

    memset(r->slot, 0xff, sizeof(r->slot));
    for (i = 0; i < r->n; i++) {
        const Page *p = &w->page[page + i];

        r->content[i] = p->content;
        if (p->out) {
            r->slot[i] = p->slot;
            slot_table_ref(w->slots, p->slot);
            r->slots++;
        }
    }
}

/* Write all that is no slot. */
static int coroutine_fn co_request_image(World *w, GuestDisk *g, Request *r)
{
    unsigned i, end;
    int ret = 0;

    for (i = 0; i < r->n && ret == 0; i = end + 1) {
        for (end = i; end < r->n && r->slot[end] == BSST_SLOT_NONE; end++) {
            /* a run of blocks */
        }
        if (end > i) {
            ret = co_write_content(w, g, r->block + i, r->content + i,
                                   end - i);
        }
    }
    return ret;
}

static void coroutine_fn co_request(World *w, GuestDisk *g, Request *r)
{
    bool reserved = false;
    unsigned i;
    int ret;

    if (r->slots) {
        reserved = bsst_journal_reserve(w->journal, r->n);
        if (!reserved || co_guard(w, g) < 0) {
            request_drop_slots(w, r);
        }
    }
    ret = co_request_image(w, g, r);
    if (ret == 0) {
        if (r->slots) {
            co_map_set(w, g, r->block, r->slot, r->n);
        } else {
            co_map_remove(w, g, r->block, r->n);
        }
        model_done(w, g, r->block * BLOCK_SECTORS, r->n * BLOCK_SECTORS);
    } else {
        for (i = 0; i < r->n; i++) {
            if (r->slot[i] != BSST_SLOT_NONE) {
                model_undo(w, g, (r->block + i) * BLOCK_SECTORS,
                           BLOCK_SECTORS);
            }
        }
        request_drop_slots(w, r);
    }
    if (reserved) {
        bsst_journal_unreserve(w->journal, r->n);
    }
}

/* Copy one indirected block into the image. */
static int coroutine_fn co_copy_out(World *w, GuestDisk *g, unsigned block)
{
    uint64_t buf[BLOCK_SECTORS];
    BsstSlot slot = BSST_SLOT_NONE;
    int ret;

    if (g->image) {
        slot = indirect_map_lookup(image_map(g->image), block);
    }
    if (slot == BSST_SLOT_NONE) {
        return 0;
    }
    ret = co_read_slot(w, slot, buf);
    if (ret == 0 && w->params.bug == BUG_ENTRY_REMOVED_EARLY) {
        co_map_remove(w, g, block, 1);
    }
    if (ret == 0) {
        ret = co_disk_write(w, &g->disk, block * BLOCK_SECTORS, BLOCK_SECTORS,
                            buf);
    }
    if (ret == 0) {
        co_map_remove(w, g, block, 1);
    }
    return ret;
}

/* Moves of several blocks, as in block/bsst-move.c */

typedef struct Move {
    unsigned block, n, mapped;
    BsstSlot slot[MAX_BLOCKS];
    uint64_t data[MAX_BLOCKS][BLOCK_SECTORS];
} Move;

/* Read what is indirected; what cannot be read drops out. */
static void coroutine_fn co_move_read(World *w, GuestDisk *g, Move *m)
{
    unsigned i;

    for (i = 0; i < m->n; i++) {
        m->slot[i] = indirect_map_lookup(image_map(g->image), m->block + i);
        if (m->slot[i] != BSST_SLOT_NONE &&
            co_read_slot(w, m->slot[i], m->data[i]) < 0) {
            m->slot[i] = BSST_SLOT_NONE;
        }
        m->mapped += m->slot[i] != BSST_SLOT_NONE;
    }
}

/* One run into the image, then its entries go (B3). */
static void coroutine_fn co_move_run_out(World *w, GuestDisk *g, Move *m,
                                         unsigned i, unsigned n)
{
    unsigned first = m->block + i, head = 0;
    int ret = 0;

    if (w->params.bug == BUG_MOVE_REMOVED_EARLY && n > 1) {
        head = 1;
        ret = co_disk_write(w, &g->disk, first * BLOCK_SECTORS, BLOCK_SECTORS,
                            m->data[i]);
        if (ret == 0) {
            co_map_remove(w, g, first, n);
        }
    }
    if (ret == 0) {
        ret = co_disk_write(w, &g->disk, (first + head) * BLOCK_SECTORS,
                            (n - head) * BLOCK_SECTORS, m->data[i + head]);
    }
    if (ret == 0) {
        co_map_remove(w, g, first, n);
    }
}

static void coroutine_fn co_move_out(World *w, GuestDisk *g, unsigned block,
                                     unsigned n)
{
    Move m = { .block = block, .n = n };
    unsigned i, end;

    co_move_read(w, g, &m);
    for (i = 0; i < n; i = end + 1) {
        for (end = i; end < n && m.slot[end] != BSST_SLOT_NONE; end++) {
            /* a run */
        }
        if (end > i) {
            co_move_run_out(w, g, &m, i, end - i);
        }
    }
}

/* Let the map name the slots from @first on (B4). */
static void coroutine_fn co_relay_set(World *w, GuestDisk *g, const Move *m,
                                      BsstSlot first)
{
    unsigned i;

    for (i = 0; i < m->n; i++) {
        if (m->slot[i] != BSST_SLOT_NONE) {
            co_map_set(w, g, m->block + i, &first, 1);
            first++;
        }
    }
}

static void coroutine_fn co_relay_to(World *w, GuestDisk *g, const Move *m,
                                     BsstSlot first)
{
    bool early = w->params.bug == BUG_RELAY_NAMED_EARLY;
    uint64_t data[MAX_BLOCKS][BLOCK_SECTORS];
    unsigned i, k = 0;
    int ret;

    for (i = 0; i < m->n; i++) {
        if (m->slot[i] != BSST_SLOT_NONE) {
            slot_table_set_checksum(w->slots, first + k,
                                    stamps_checksum(m->data[i]));
            memcpy(data[k++], m->data[i], sizeof(data[0]));
        }
    }
    if (early) {
        co_relay_set(w, g, m, first);
    }
    ret = co_disk_write(w, &w->store, slot_sector(w, first),
                        m->mapped * BLOCK_SECTORS, data);
    if (ret == 0 && !early) {
        co_relay_set(w, g, m, first);
    }
    for (i = 0; ret < 0 && !early && i < m->mapped; i++) {
        slot_table_unref(w->slots, first + i);
    }
}

static void coroutine_fn co_relay(World *w, GuestDisk *g, unsigned block,
                                  unsigned n)
{
    Move m = { .block = block, .n = n };
    BsstSlot first;

    if (!bsst_journal_reserve(w->journal, n)) {
        return;
    }
    co_move_read(w, g, &m);
    if (m.mapped && slot_table_alloc_low(w->slots, m.mapped, m.mapped,
                                         BSST_SLOT_NONE, &first)) {
        co_relay_to(w, g, &m, first);
    }
    bsst_journal_unreserve(w->journal, n);
}

typedef struct ImageFlush {
    World *w;
    GuestDisk *g;
} ImageFlush;

static int coroutine_fn image_flush(void *opaque)
{
    ImageFlush *f = opaque;
    BsstImage *image = f->g->image;

    return co_disk_flush(f->w, &f->g->disk,
                         f->w->params.bug == BUG_RECORD_BEFORE_IMAGE && image &&
                         durable_map_preparing(image->map));
}

static int coroutine_fn co_flush(World *w, GuestDisk *g)
{
    ImageFlush f = { .w = w, .g = g };
    uint64_t time = w->clock++;
    int ret;

    if (w->params.bug == BUG_FLUSH_JOINS_OLDER && g->flushing) {
        qemu_co_queue_wait(&g->flushed, NULL);
        ret = 0;
    } else {
        g->flushing++;
        ret = g->image ? bsst_image_co_flush(g->image, image_flush, &f)
                       : image_flush(&f);
        g->flushing--;
        if (ret == 0) {
            qemu_co_queue_restart_all(&g->flushed);
        }
    }
    if (ret == 0 && !w->dead) {
        model_flushed(w, g, time);
    }
    return ret;
}

/* Ops */

typedef struct OpRun {
    World *w;
    Op op;
    GuestDisk *g;
    Request request;
} OpRun;

static bool blocks_lock(GuestDisk *g, unsigned block, unsigned n)
{
    unsigned i;

    for (i = 0; i < n; i++) {
        if (g->busy[block + i]) {
            return false;
        }
    }
    memset(g->busy + block, true, n * sizeof(g->busy[0]));
    return true;
}

static void blocks_unlock(GuestDisk *g, unsigned block, unsigned n)
{
    memset(g->busy + block, false, n * sizeof(g->busy[0]));
}

static void op_finished(OpRun *r)
{
    r->g->ops--;
    g_free(r);
}

static void coroutine_fn co_op_write(void *opaque)
{
    OpRun *r = opaque;

    co_request(r->w, r->g, &r->request);
    blocks_unlock(r->g, r->op.at, r->op.n);
    op_finished(r);
}

static void coroutine_fn co_op_partial(void *opaque)
{
    OpRun *r = opaque;
    unsigned block = r->op.at / BLOCK_SECTORS;
    uint64_t data[BLOCK_SECTORS];
    unsigned i;

    for (i = 0; i < r->op.n; i++) {
        data[i] = stamp(r->request.content[0], r->op.at + i);
    }
    if (co_copy_out(r->w, r->g, block) < 0) {
        model_undo(r->w, r->g, r->op.at, r->op.n);
    } else if (co_disk_write(r->w, &r->g->disk, r->op.at, r->op.n, data) == 0) {
        model_done(r->w, r->g, r->op.at, r->op.n);
    }
    blocks_unlock(r->g, block, 1);
    op_finished(r);
}

static void coroutine_fn co_op_discard(void *opaque)
{
    OpRun *r = opaque;
    uint64_t content[MAX_BLOCKS] = { 0 };

    if (co_write_content(r->w, r->g, r->op.at, content, r->op.n) == 0) {
        co_map_remove(r->w, r->g, r->op.at, r->op.n);
        model_done(r->w, r->g, r->op.at * BLOCK_SECTORS,
                   r->op.n * BLOCK_SECTORS);
    }
    blocks_unlock(r->g, r->op.at, r->op.n);
    op_finished(r);
}

static void coroutine_fn co_op_drain(void *opaque)
{
    OpRun *r = opaque;
    unsigned i;

    for (i = 0; i < r->op.n; i++) {
        co_copy_out(r->w, r->g, r->op.at + i);
    }
    blocks_unlock(r->g, r->op.at, r->op.n);
    op_finished(r);
}

static void coroutine_fn co_op_move(void *opaque)
{
    OpRun *r = opaque;

    if (co_guard(r->w, r->g) == 0) {
        if (r->op.kind == OP_RELAY) {
            co_relay(r->w, r->g, r->op.at, r->op.n);
        } else {
            co_move_out(r->w, r->g, r->op.at, r->op.n);
        }
    }
    blocks_unlock(r->g, r->op.at, r->op.n);
    op_finished(r);
}

static void coroutine_fn co_op_flush(void *opaque)
{
    OpRun *r = opaque;

    co_flush(r->w, r->g);
    op_finished(r);
}

static void coroutine_fn co_op_checkpoint(void *opaque)
{
    OpRun *r = opaque;

    bsst_journal_co_checkpoint(r->w->journal);
    op_finished(r);
}

/* The image becomes complete without the store. */
static int coroutine_fn co_detach(World *w, GuestDisk *g)
{
    uint64_t none = 0;
    unsigned i;
    int ret = 0;

    for (i = 0; i < w->params.nblocks && ret == 0; i++) {
        ret = co_copy_out(w, g, i);
    }
    if (ret == 0) {
        ret = co_flush(w, g);
    }
    if (ret == 0) {
        g->guarded = false;
        ret = co_disk_write(w, &g->disk, w->params.nblocks * BLOCK_SECTORS, 1,
                            &none);
    }
    if (ret == 0) {
        ret = co_disk_flush(w, &g->disk, false);
    }
    if (ret == 0 && g->image) {
        ret = bsst_journal_co_remove_image(g->image, false);
        if (ret == 0) {
            g->image = NULL;
        }
    }
    return ret;
}

static void coroutine_fn co_op_detach(void *opaque)
{
    OpRun *r = opaque;

    co_detach(r->w, r->g);
    r->g->exclusive = false;
    op_finished(r);
}

/* The image may show what lies below its indirections: oldest first. */
static void model_uncover(World *w, GuestDisk *g)
{
    unsigned i, k, n;

    for (k = 0; k < w->params.nblocks * BLOCK_SECTORS; k++) {
        Sector *s = &g->model[k];
        Sector new = { .n = 0 };

        model_push(&new, stamp_at(&g->disk, g->disk.base, k));
        for (i = 0; i < g->disk.pending->len; i++) {
            const SimWrite *p = g_ptr_array_index(g->disk.pending, i);

            if (k >= p->first && k < p->first + p->n &&
                new.n < MAX_CANDIDATES) {
                model_push(&new, ((const uint64_t *)p->data)[k - p->first]);
            }
        }
        for (i = 0; i < new.n; i++) {
            new.c[i].done = 0;
        }
        n = MIN(s->n, MAX_CANDIDATES - new.n);
        memcpy(new.c + new.n, s->c + s->n - n, n * sizeof(s->c[0]));
        new.n += n;
        *s = new;
    }
}

/* From now on the image is what it is: @w->clock. */
static void model_uncovered(World *w, GuestDisk *g)
{
    unsigned k;

    w->clock++;
    for (k = 0; k < w->params.nblocks * BLOCK_SECTORS; k++) {
        Sector *s = &g->model[k];
        unsigned i, n = 0;

        for (i = 0; i < s->n; i++) {
            s->c[i].done = 0;
        }
        for (i = 0; i < g->disk.pending->len; i++) {
            const SimWrite *p = g_ptr_array_index(g->disk.pending, i);

            n += k >= p->first && k < p->first + p->n;
        }
        s->n = MIN(s->n, n + 1);
        if (s->n == MAX_CANDIDATES) {
            s->n--;
        }
        model_push(s, stamp_at(&g->disk, g->disk.cache, k));
        s->c[s->n - 1].done = w->clock;
    }
    w->version++;
}

static void coroutine_fn co_op_forget(void *opaque)
{
    OpRun *r = opaque;

    r->g->guarded = false;
    if (bsst_journal_co_remove_image(r->g->image, true) == 0) {
        r->g->image = NULL;
        if (!r->w->dead) {
            model_uncovered(r->w, r->g);
        }
    }
    r->g->exclusive = false;
    op_finished(r);
}

/* The swapper */

static void coroutine_fn co_op_evict(void *opaque)
{
    OpRun *r = opaque;
    World *w = r->w;
    uint64_t data[MAX_PAGES][BLOCK_SECTORS];
    Page *p = &w->page[r->op.page];
    BsstSlot first = r->request.slot[0];
    unsigned i, k;
    int ret;

    for (i = 0; i < r->op.n; i++) {
        for (k = 0; k < BLOCK_SECTORS; k++) {
            data[i][k] = stamp(p[i].content, k);
        }
        slot_table_set_checksum(w->slots, first + i,
                                stamps_checksum(data[i]));
    }
    ret = co_disk_write(w, &w->store, slot_sector(w, first),
                        r->op.n * BLOCK_SECTORS, data);
    for (i = 0; i < r->op.n; i++) {
        p[i].busy = false;
        p[i].out = ret == 0;
        p[i].slot = first + i;
        if (ret < 0) {
            slot_table_unref(w->slots, first + i);
        }
    }
    op_finished(r);
}

static void coroutine_fn co_op_swap_in(void *opaque)
{
    OpRun *r = opaque;
    World *w = r->w;
    Page *p = &w->page[r->op.page];
    uint64_t buf[BLOCK_SECTORS];

    if (co_read_slot(w, p->slot, buf) == 0) {
        if (buf[0] != stamp(p->content, 0)) {
            violate(w, "alive: page %u in slot %u has content %" PRIu64
                    " instead of %" PRIu64, r->op.page, p->slot, buf[0] >> 3,
                    p->content);
        }
        slot_table_unref(w->slots, p->slot);
        p->out = false;
    }
    p->busy = false;
    op_finished(r);
}

/* Start: take what the op needs, or skip it */

static bool begin_blocks(OpRun *r, uint64_t content)
{
    if (!model_has_room(r->g, r->op.at, r->op.n) ||
        !blocks_lock(r->g, r->op.at, r->op.n)) {
        return false;
    }
    model_push_blocks(r->g, r->op.at, r->op.n, content);
    return true;
}

/* Begin with a page that is out, so that there are more indirections. */
static void prefer_page_out(OpRun *r)
{
    World *w = r->w;
    unsigned i;

    for (i = 0; i < w->params.npages; i++) {
        unsigned k = (r->op.page + i) % w->params.npages;

        if (w->page[k].out && !w->page[k].busy) {
            r->op.page = k;
            break;
        }
    }
}

static bool begin_write(OpRun *r)
{
    World *w = r->w;
    unsigned i, k;

    if (r->op.seed & 1) {
        prefer_page_out(r);
    }
    r->op.n = MIN(r->op.n, w->params.npages - r->op.page);
    for (i = 0; i < r->op.n; i++) {
        if (w->page[r->op.page + i].busy) {
            return false;
        }
    }
    if (!begin_blocks(r, 0)) {
        return false;
    }
    if (!r->g->image) {
        uint8_t uuid[16] = { r->g - w->guest + 1 };

        r->g->image = bsst_journal_add_image(w->journal, uuid, false, "guest",
                                             w->params.nblocks * BLOCK_BYTES);
    }
    r->request.block = r->op.at;
    r->request.n = r->op.n;
    request_claim(w, &r->request, r->op.page);
    for (i = 0; i < r->op.n; i++) {
        for (k = 0; k < BLOCK_SECTORS; k++) {
            Sector *s = model_sector(r->g, r->op.at + i, k);

            s->c[s->n - 1].stamp = stamp(r->request.content[i], k);
        }
    }
    return true;
}

static bool begin_partial(OpRun *r)
{
    unsigned i, block;

    r->op.at = r->op.at * BLOCK_SECTORS + r->op.page % BLOCK_SECTORS;
    r->op.n = MIN(r->op.n, BLOCK_SECTORS - r->op.at % BLOCK_SECTORS);
    block = r->op.at / BLOCK_SECTORS;
    if (!model_has_room(r->g, block, 1) || !blocks_lock(r->g, block, 1)) {
        return false;
    }
    r->request.content[0] = ++r->w->next_content;
    for (i = 0; i < r->op.n; i++) {
        model_push(&r->g->model[r->op.at + i],
                   stamp(r->request.content[0], r->op.at + i));
    }
    return true;
}

static bool begin_evict(OpRun *r)
{
    World *w = r->w;
    Page *p = &w->page[r->op.page];
    unsigned n = 0;

    while (n < r->op.n && r->op.page + n < w->params.npages && !p[n].busy &&
           !p[n].out) {
        n++;
    }
    r->op.n = n ? slot_table_alloc(w->slots, n, &r->request.slot[0]) : 0;
    for (n = 0; n < r->op.n; n++) {
        p[n].busy = true;
    }
    return r->op.n;
}

static bool begin_touch(OpRun *r)
{
    Page *p = &r->w->page[r->op.page];

    if (!p->busy && !p->out) {
        p->content = ++r->w->next_content;
    } else if (!p->busy) {
        slot_table_unref(r->w->slots, p->slot);
        p->out = false;
        p->content = ++r->w->next_content;
    }
    return false;
}

static bool begin_swap_in(OpRun *r)
{
    Page *p = &r->w->page[r->op.page];

    if (p->busy || !p->out) {
        return false;
    }
    p->busy = true;
    return true;
}

static bool begin_check(OpRun *r)
{
    unsigned i;

    for (i = 0; i < r->w->params.nblocks; i++) {
        if (!r->g->busy[i]) {
            check_live(r->w, r->op.image, i);
        }
    }
    return false;
}

static bool begin_error(OpRun *r)
{
    r->w->fault[r->op.at % FAULT__MAX] += 1 + r->op.n % 2;
    return false;
}

static bool begin_exclusive(OpRun *r)
{
    if (r->g->ops || !r->g->image) {
        return false;
    }
    r->g->exclusive = true;
    if (r->op.seed % 8 < 2) {
        r->w->fault[r->op.seed % 2 ? FAULT_STORE_WRITE : FAULT_STORE_FLUSH]++;
    }
    if (r->op.kind == OP_FORGET) {
        model_uncover(r->w, r->g);
    }
    return true;
}

static bool begin_drain(OpRun *r)
{
    return r->g->image && blocks_lock(r->g, r->op.at, r->op.n);
}

/* Only where there is something to move */
static bool begin_move(OpRun *r)
{
    uint64_t block;

    return r->g->image &&
           indirect_map_next(image_map(r->g->image), r->op.at, &block, NULL) &&
           block < r->op.at + r->op.n && blocks_lock(r->g, r->op.at, r->op.n);
}

static bool begin_discard(OpRun *r)
{
    return begin_blocks(r, 0);
}

static bool begin_always(OpRun *r)
{
    return true;
}

static const struct {
    bool (*begin)(OpRun *r);
    void coroutine_fn (*co_run)(void *opaque);
} ops[OP__MAX] = {
    [OP_WRITE] = { begin_write, co_op_write },
    [OP_PARTIAL] = { begin_partial, co_op_partial },
    [OP_DISCARD] = { begin_discard, co_op_discard },
    [OP_DRAIN] = { begin_drain, co_op_drain },
    [OP_MOVE_OUT] = { begin_move, co_op_move },
    [OP_RELAY] = { begin_move, co_op_move },
    [OP_FLUSH] = { begin_always, co_op_flush },
    [OP_EVICT] = { begin_evict, co_op_evict },
    [OP_TOUCH] = { begin_touch },
    [OP_SWAP_IN] = { begin_swap_in, co_op_swap_in },
    [OP_CHECKPOINT] = { begin_always, co_op_checkpoint },
    [OP_CHECK] = { begin_check },
    [OP_DETACH] = { begin_exclusive, co_op_detach },
    [OP_FORGET] = { begin_exclusive, co_op_forget },
    [OP_ERROR] = { begin_error },
};

void world_op(World *w, const Op *op)
{
    OpRun *r = g_new0(OpRun, 1);

    r->w = w;
    r->op = *op;
    r->op.image %= w->params.nimages;
    r->op.at %= w->params.nblocks;
    r->op.n = 1 + op->n % MIN(8, w->params.nblocks - r->op.at);
    r->op.page %= w->params.npages;
    r->g = &w->guest[r->op.image];
    if (r->g->exclusive || !ops[op->kind].begin(r)) {
        g_free(r);
        return;
    }
    r->g->ops++;
    qemu_coroutine_enter(qemu_coroutine_create(ops[op->kind].co_run, r));
}

/* Life and death */

static uint64_t store_generation(World *w)
{
    return ldq_le_p(w->store.view);
}

static void coroutine_fn co_restore_slots(World *w)
{
    uint64_t *sum = g_newa(uint64_t, w->params.nslots);
    BsstImage *image = NULL;
    BsstSlot slot;

    w->slots = slot_table_new(w->params.nslots);
    while ((image = bsst_journal_next_image(w->journal, image))) {
        uint64_t block = 0;

        while (indirect_map_next(image_map(image), block, &block, &slot)) {
            slot_table_restore_refs(w->slots, &slot, 1);
            block++;
        }
    }
    slot_table_restore_done(w->slots, true);
    bsst_journal_co_read_checksums(w->journal, 0, w->params.nslots, sum);
    for (slot = 0; slot < w->params.nslots; slot++) {
        if (slot_table_refs(w->slots, slot)) {
            slot_table_set_checksum(w->slots, slot, sum[slot]);
        }
    }
}

/* J11 */
static void coroutine_fn co_new_generation(World *w)
{
    uint8_t buf[SECTOR_BYTES] = { 0 };
    int ret;

    stq_le_p(buf, w->sb.generation);
    do {
        ret = co_disk_write(w, &w->store, 0, 1, buf);
        if (ret == 0 && w->params.bug != BUG_NO_FLUSH_AT_OPEN) {
            ret = co_disk_flush(w, &w->store, false);
        }
    } while (ret < 0 && !w->dead);
}

static void coroutine_fn co_open(World *w)
{
    Error *err = NULL;
    unsigned i;

    memcpy(w->store.view, w->store.cache,
           disk_bytes(&w->store, 0, w->store.nsectors));
    w->sb.generation = store_generation(w) + 1;
    w->journal = bsst_journal_co_open(&w->sb, &w->io, &sim_slots, w, false,
                                      &err);
    if (w->journal) {
        co_restore_slots(w);
    } else {
        violate(w, "open: %s", error_get_pretty(err));
        error_free(err);
    }
    memcpy(w->store.view, w->store.base,
           disk_bytes(&w->store, 0, w->store.nsectors));
    if (!w->journal) {
        return;
    }
    for (i = 0; i < w->params.nimages; i++) {
        uint8_t uuid[16] = { i + 1 };

        w->guest[i].image = bsst_journal_find_image(w->journal, uuid);
        w->guest[i].guarded = false;
    }
    for (i = 0; i < w->params.npages; i++) {
        w->page[i] = (Page) { .content = ++w->next_content };
    }
}

static void coroutine_fn co_format_entry(void *opaque)
{
    World *w = opaque;

    g_assert(bsst_journal_co_format(&w->sb, &w->io, w) == 0);
    co_open(w);
    co_new_generation(w);
}

void world_begin(World *w)
{
    qemu_coroutine_enter(qemu_coroutine_create(co_format_entry, w));
    while (world_step(w)) {
        /* to the end */
    }
    settle_model(w, true);
}

static void close_store(World *w)
{
    BsstJournalStats stats;
    unsigned i;

    for (i = 0; i < w->params.nimages; i++) {
        g_assert(!w->guest[i].ops);
        w->guest[i].image = NULL;
    }
    bsst_journal_get_stats(w->journal, &stats);
    w->total.commits += stats.commits;
    w->total.journal_bytes += stats.journal_bytes;
    w->total.checkpoints += stats.checkpoints;
    w->total.errors += stats.errors;
    w->lives++;
    bsst_journal_free(w->journal);
    slot_table_free(w->slots);
    w->journal = NULL;
    w->slots = NULL;
    memset(w->fault, 0, sizeof(w->fault));
}

void world_die(World *w)
{
    unsigned i;

    w->dead = true;
    while (world_step(w) || crash_journal_background(w->journal)) {
        /* everything fails */
    }
    for (i = 0; i < w->params.nimages; i++) {
        GuestDisk *g = &w->guest[i];

        while (qemu_co_enter_next(&g->flushed, NULL)) {
            /* with BUG_FLUSH_JOINS_OLDER */
        }
        g->image = NULL;
    }
    close_store(w);
    w->dead = false;
}

typedef struct Reopen {
    World *w;
    bool power_cut;
} Reopen;

static void coroutine_fn co_reopen_entry(void *opaque)
{
    Reopen r = *(Reopen *)opaque;

    co_open(r.w);
    if (r.w->journal) {
        /* Only now it is certain that nothing newer is left anywhere. */
        co_new_generation(r.w);
        settle_model(r.w, r.power_cut);
    }
    r.w->opening = false;
}

void world_reopen(World *w, bool power_cut)
{
    Reopen r = { .w = w, .power_cut = power_cut };

    w->opening = true;
    w->version++;
    qemu_coroutine_enter(qemu_coroutine_create(co_reopen_entry, &r));
}

typedef struct CheckReferences {
    World *w;
    bool flushed;
} CheckReferences;

static void coroutine_fn co_flush_all_entry(void *opaque)
{
    CheckReferences *c = opaque;
    unsigned i, attempt;
    int ret;

    c->flushed = true;
    for (i = 0; i < c->w->params.nimages; i++) {
        attempt = 0;
        do {
            ret = co_flush(c->w, &c->w->guest[i]);
        } while (ret < 0 && ++attempt < 3);
        c->flushed = c->flushed && ret == 0;
    }
}

void world_check_references(World *w)
{
    CheckReferences c = { .w = w };
    g_autofree unsigned *refs = g_new0(unsigned, w->params.nslots);
    unsigned i;
    BsstSlot slot;

    memset(w->fault, 0, sizeof(w->fault));
    qemu_coroutine_enter(qemu_coroutine_create(co_flush_all_entry, &c));
    while (world_step(w)) {
        /* to the end */
    }
    if (!c.flushed) {
        if (!w->params.final_flush_errors && !w->params.tight) {
            violate(w, "at the end: flush fails without an I/O error");
        }
        return;
    }
    for (i = 0; i < w->params.npages; i++) {
        if (w->page[i].out) {
            refs[w->page[i].slot]++;
        }
    }
    for (i = 0; i < w->params.nimages; i++) {
        const IndirectMap *map = image_map(w->guest[i].image);
        uint64_t block = 0;

        while (map && indirect_map_next(map, block, &block, &slot)) {
            refs[slot]++;
            block++;
        }
    }
    for (slot = 0; slot < w->params.nslots; slot++) {
        if (slot_table_refs(w->slots, slot) != refs[slot]) {
            violate(w, "at the end: slot %u has %u references instead of %u",
                    slot, slot_table_refs(w->slots, slot), refs[slot]);
        }
    }
}

/* A state after a crash */

static void verify_image(World *w, unsigned guest, const BsstImage *image)
{
    GuestDisk *g = &w->guest[guest];
    const IndirectMap *map = image_map(image);
    uint64_t header = stamp_at(&g->disk, g->disk.view,
                               w->params.nblocks * BLOCK_SECTORS);
    unsigned k;

    for (k = 0; k < w->params.nblocks * BLOCK_SECTORS; k++) {
        BsstSlot slot;
        uint64_t value = visible(w, g, map, w->store.view, g->disk.view, k,
                                 &slot);

        if (sector_find(&g->model[k], 0, value) < 0) {
            violate_sector(w, "after a crash", guest, k, slot, value);
            return;
        }
        if (slot != BSST_SLOT_NONE && k % BLOCK_SECTORS == 0) {
            const uint8_t *sum = w->store.view + w->sb.checksums_offset +
                                 slot * sizeof(uint64_t);
            uint64_t *stamps = (uint64_t *)disk_at(&w->store, w->store.view,
                                                   slot_sector(w, slot));

            if (ldq_le_p(sum) != stamps_checksum(stamps)) {
                violate(w, "after a crash: slot %u of image %u block %u does "
                        "not match its checksum", slot, guest,
                        k / BLOCK_SECTORS);
                return;
            }
        }
    }
    if (map && indirect_map_count(map) && header != image->entry.generation &&
        header != image->entry.announced) {
        violate(w, "after a crash: image %u has generation %" PRIu64
                ", and not %" PRIu64 " or %" PRIu64, guest, header,
                image->entry.generation, image->entry.announced);
    }
}

typedef struct Verify {
    World *w;
    BsstSuperblock sb;
    BsstJournal *journal;
    Error *err;
} Verify;

static void coroutine_fn co_verify_entry(void *opaque)
{
    Verify *v = opaque;

    v->journal = bsst_journal_co_open(&v->sb, &v->w->io, &sim_slots, v->w,
                                      true, &v->err);
}

void world_verify(World *w)
{
    Verify v = { .w = w, .sb = w->sb };
    BsstJournalStats stats;
    unsigned i;

    v.sb.generation = store_generation(w);
    qemu_coroutine_enter(qemu_coroutine_create(co_verify_entry, &v));
    if (!v.journal) {
        violate(w, "after a crash: %s", error_get_pretty(v.err));
        error_free(v.err);
        return;
    }
    for (i = 0; i < w->params.nimages; i++) {
        uint8_t uuid[16] = { i + 1 };

        verify_image(w, i, bsst_journal_find_image(v.journal, uuid));
    }
    bsst_journal_get_stats(v.journal, &stats);
    if (stats.recovered_indirections > w->params.nslots) {
        violate(w, "after a crash: more indirections than a checkpoint holds");
    }
    bsst_journal_free(v.journal);
}

static void layout(World *w)
{
    const Params *p = &w->params;
    uint64_t body = DIV_ROUND_UP(p->nslots, CRASH_RECORDS) + p->nplaces;
    BsstSuperblock *sb = &w->sb;
    uint64_t pos = BLOCK_BYTES;

    if (p->tight) {
        body = 1 + body / 4;
    }
    sb->uuid[0] = 1;
    sb->images_offset = pos;
    sb->nimages = p->nplaces;
    pos += BLOCK_BYTES;
    sb->checksums_offset = pos;
    pos += BLOCK_BYTES;
    sb->checkpoint_bytes = (1 + body) * BLOCK_BYTES;
    sb->checkpoint_offset[0] = pos;
    pos += sb->checkpoint_bytes;
    sb->checkpoint_offset[1] = pos;
    pos += sb->checkpoint_bytes;
    sb->journal_offset = pos;
    sb->journal_bytes = p->journal_blocks * BLOCK_BYTES;
    pos += sb->journal_bytes;
    sb->slots_offset = pos;
    sb->nslots = p->nslots;
}

World *world_new(const Params *params)
{
    World *w = g_new0(World, 1);
    unsigned i, k, nmeta;

    w->params = *params;
    w->io = (BsstJournalIO) {
        .co_read = sim_co_read,
        .co_write = sim_co_write,
        .co_flush = sim_co_flush,
        .flush_errors_are_final = params->final_flush_errors,
    };
    w->ios = g_ptr_array_new();
    w->rand = g_rand_new_with_seed(1);
    layout(w);
    nmeta = w->sb.slots_offset / SECTOR_BYTES;
    disk_init(&w->store, nmeta, nmeta + params->nslots * BLOCK_SECTORS);
    w->disks[0] = &w->store;
    for (i = 0; i < params->nimages; i++) {
        GuestDisk *g = &w->guest[i];

        disk_init(&g->disk, 0, params->nblocks * BLOCK_SECTORS + 1);
        w->disks[i + 1] = &g->disk;
        g->model = g_new0(Sector, params->nblocks * BLOCK_SECTORS);
        for (k = 0; k < params->nblocks * BLOCK_SECTORS; k++) {
            g->model[k].n = 1;
        }
        qemu_co_mutex_init(&g->guard_lock);
        qemu_co_queue_init(&g->flushed);
    }
    crash_skip_chain_check = params->bug == BUG_NO_CHAIN_CHECK;
    return w;
}

void world_free(World *w)
{
    unsigned i;

    for (i = 0; i < w->params.nimages; i++) {
        disk_clear(&w->guest[i].disk);
        g_free(w->guest[i].model);
    }
    disk_clear(&w->store);
    g_assert(!w->ios->len && !w->journal);
    g_ptr_array_unref(w->ios);
    g_rand_free(w->rand);
    g_free(w->violation);
    g_free(w);
}

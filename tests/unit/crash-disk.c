/*
 * A simulated disk with a volatile write cache, for crash enumeration
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "crash-disk.h"

void disk_init(SimDisk *d, unsigned nmeta, unsigned nsectors)
{
    *d = (SimDisk) { .nmeta = nmeta, .nsectors = nsectors };
    d->base = g_malloc0(disk_bytes(d, 0, nsectors));
    d->cache = g_malloc0(disk_bytes(d, 0, nsectors));
    d->view = g_malloc0(disk_bytes(d, 0, nsectors));
    d->pending = g_ptr_array_new_with_free_func(g_free);
    d->inflight = g_ptr_array_new_with_free_func(g_free);
}

void disk_clear(SimDisk *d)
{
    g_free(d->base);
    g_free(d->cache);
    g_free(d->view);
    g_ptr_array_unref(d->pending);
    g_ptr_array_unref(d->inflight);
}

static size_t disk_offset(const SimDisk *d, unsigned s)
{
    if (s < d->nmeta) {
        return s * SECTOR_BYTES;
    }
    return d->nmeta * SECTOR_BYTES + (s - d->nmeta) * STAMP_BYTES;
}

uint8_t *disk_at(const SimDisk *d, uint8_t *buf, unsigned s)
{
    g_assert(s < d->nsectors);
    return buf + disk_offset(d, s);
}

size_t disk_bytes(const SimDisk *d, unsigned first, unsigned n)
{
    g_assert(first + n <= d->nsectors);
    return disk_offset(d, first + n) - disk_offset(d, first);
}

SimWrite *disk_submit(SimDisk *d, unsigned first, unsigned n, const void *data)
{
    size_t bytes = disk_bytes(d, first, n);
    SimWrite *w = g_malloc(sizeof(*w) + bytes);

    w->first = first;
    w->n = n;
    w->completed = 0;
    memcpy(w->data, data, bytes);
    g_ptr_array_add(d->inflight, w);
    return w;
}

static void write_apply(SimDisk *d, const SimWrite *w, uint8_t *buf)
{
    memcpy(disk_at(d, buf, w->first), w->data,
           disk_bytes(d, w->first, w->n));
}

void disk_complete(SimDisk *d, SimWrite *w)
{
    unsigned i;

    g_assert(g_ptr_array_find(d->inflight, w, &i));
    g_ptr_array_steal_index(d->inflight, i);
    w->completed = ++d->clock;
    write_apply(d, w, d->cache);
    g_ptr_array_add(d->pending, w);
}

static void land_some(SimDisk *d, const SimWrite *w, GRand *rand)
{
    int all = g_rand_int_range(rand, 0, 3);
    unsigned s;

    for (s = w->first; s < w->first + w->n; s++) {
        if (all == 1 || (all == 2 && g_rand_boolean(rand))) {
            const uint8_t *data = w->data + disk_bytes(d, w->first,
                                                       s - w->first);

            disk_complete(d, disk_submit(d, s, 1, data));
        }
    }
}

void disk_fail(SimDisk *d, SimWrite *w, GRand *rand)
{
    land_some(d, w, rand);
    g_ptr_array_remove(d->inflight, w);
}

uint64_t disk_flush_begin(SimDisk *d)
{
    return d->clock;
}

void disk_flush_end(SimDisk *d, uint64_t time)
{
    unsigned n;

    for (n = 0; n < d->pending->len; n++) {
        SimWrite *w = g_ptr_array_index(d->pending, n);

        if (w->completed > time) {
            break;
        }
        write_apply(d, w, d->base);
        write_apply(d, w, d->view);
    }
    if (n) {
        g_ptr_array_remove_range(d->pending, 0, n);
    }
}

static Choice *find_choice(Choices *c, SimDisk *d, unsigned s, int *index)
{
    Choice choice = { .disk = d, .sector = s };

    if (index[s] < 0) {
        index[s] = c->choices->len;
        g_array_append_val(c->choices, choice);
    }
    return &g_array_index(c->choices, Choice, index[s]);
}

static void choice_add(Choice *c, const uint8_t *data, unsigned write)
{
    size_t bytes = disk_bytes(c->disk, c->sector, 1);
    unsigned i;

    if (!c->n) {
        c->option = g_new(const uint8_t *, 1);
        c->option[c->n++] = disk_at(c->disk, c->disk->base, c->sector);
    }
    c->data = g_renew(const uint8_t *, c->data, c->nwrites + 1);
    c->write = g_renew(unsigned, c->write, c->nwrites + 1);
    c->data[c->nwrites] = data;
    c->write[c->nwrites++] = write;
    for (i = 0; i < c->n; i++) {
        if (!memcmp(c->option[i], data, bytes)) {
            return;
        }
    }
    c->option = g_renew(const uint8_t *, c->option, c->n + 1);
    c->option[c->n++] = data;
}

static void choices_add_writes(Choices *c, SimDisk *d, GPtrArray *writes,
                               int *index)
{
    unsigned i, k;

    for (i = 0; i < writes->len; i++, c->nwrites++) {
        const SimWrite *w = g_ptr_array_index(writes, i);

        for (k = 0; k < w->n; k++) {
            choice_add(find_choice(c, d, w->first + k, index),
                       w->data + disk_bytes(d, w->first, k), c->nwrites);
        }
    }
}

static void choice_clear(Choice *c)
{
    g_free(c->option);
    g_free(c->data);
    g_free(c->write);
}

/* Sectors that read the same in any case are no choice. */
static void choices_compact(Choices *c)
{
    Choice *v = (Choice *)c->choices->data;
    unsigned i, n = 0;

    for (i = 0; i < c->choices->len; i++) {
        if (v[i].n > 1) {
            v[n++] = v[i];
        } else {
            choice_clear(&v[i]);
        }
    }
    g_array_set_size(c->choices, n);
}

void choices_init(Choices *c, SimDisk **disk, unsigned ndisks)
{
    unsigned i;

    c->choices = g_array_new(false, false, sizeof(Choice));
    c->nwrites = 0;
    for (i = 0; i < ndisks; i++) {
        g_autofree int *index = NULL;

        if (!disk[i]->pending->len && !disk[i]->inflight->len) {
            continue;
        }
        index = g_new(int, disk[i]->nsectors);
        memset(index, -1, disk[i]->nsectors * sizeof(*index));
        choices_add_writes(c, disk[i], disk[i]->pending, index);
        choices_add_writes(c, disk[i], disk[i]->inflight, index);
    }
    choices_compact(c);
    c->landed = g_new(double, c->nwrites + 1);
}

void choices_clear(Choices *c)
{
    unsigned i;

    for (i = 0; i < c->choices->len; i++) {
        choice_clear(&g_array_index(c->choices, Choice, i));
    }
    g_array_unref(c->choices);
    g_free(c->landed);
}

uint64_t choices_count(const Choices *c, uint64_t max)
{
    uint64_t n = 1;
    unsigned i;

    for (i = 0; i < c->choices->len && n < max; i++) {
        n *= g_array_index(c->choices, Choice, i).n;
    }
    return MIN(n, max);
}

uint64_t choices_select(Choices *c, uint64_t i)
{
    unsigned k;

    for (k = 0; k < c->choices->len; k++) {
        Choice *choice = &g_array_index(c->choices, Choice, k);

        choice->chosen = i % choice->n;
        i /= choice->n;
    }
    return i;
}

/* What reached the disk?  Whole writes, or parts; many, few, or the oldest. */
static void choose_writes(Choices *c, GRand *rand)
{
    int mode = g_rand_int_range(rand, 0, 6);
    unsigned i, k = g_rand_int_range(rand, 0, c->nwrites + 1);

    for (i = 0; i < c->nwrites; i++) {
        switch (mode) {
        case 0:                         /* all but one */
            c->landed[i] = i != k;
            break;
        case 1:                         /* one */
            c->landed[i] = i == k;
            break;
        case 2:                         /* in order */
            c->landed[i] = i < k;
            break;
        case 3:                         /* in reverse order */
            c->landed[i] = i >= k;
            break;
        case 4:                         /* any, whole */
            c->landed[i] = g_rand_boolean(rand);
            break;
        default:                        /* any, torn */
            c->landed[i] = g_rand_int_range(rand, 0, 3) * 0.5;
            break;
        }
    }
    if (mode < 4 && k < c->nwrites && g_rand_boolean(rand)) {
        c->landed[k] = 0.5;
    }
}

static unsigned choice_find(const Choice *c, const uint8_t *data)
{
    size_t bytes = disk_bytes(c->disk, c->sector, 1);
    unsigned i = 0;

    while (c->option[i] != data && memcmp(c->option[i], data, bytes)) {
        i++;
    }
    return i;
}

/* Does write @write of sector @s reach the disk? */
static bool write_landed(const Choices *c, unsigned write, unsigned s,
                         uint32_t salt, GRand *rand)
{
    if (salt) {                         /* whole blocks, of any write */
        return ((write * 0x9e3779b1u) ^ ((s / BLOCK_SECTORS) * 0x85ebca6bu) ^
                salt) * 0xc2b2ae35u >> 31;
    }
    return c->landed[write] == 1 ||
           (c->landed[write] > 0 && g_rand_boolean(rand));
}

uint64_t choices_select_random(Choices *c, GRand *rand)
{
    uint32_t salt = g_rand_int_range(rand, 0, 4) ? 0 : g_rand_int(rand);
    uint64_t hash = 0;
    unsigned i, k;

    choose_writes(c, rand);
    for (i = 0; i < c->choices->len; i++) {
        Choice *choice = &g_array_index(c->choices, Choice, i);

        choice->chosen = 0;
        for (k = choice->nwrites; k-- > 0; ) {
            if (write_landed(c, choice->write[k], choice->sector, salt,
                             rand)) {
                choice->chosen = choice_find(choice, choice->data[k]);
                break;
            }
        }
        hash = (hash ^ choice->chosen) * 0x9e3779b97f4a7c15ULL;
        hash ^= hash >> 29;
    }
    return hash;
}

void choices_apply(const Choices *c)
{
    unsigned i;

    for (i = 0; i < c->choices->len; i++) {
        const Choice *choice = &g_array_index(c->choices, Choice, i);
        SimDisk *d = choice->disk;

        memcpy(disk_at(d, d->view, choice->sector),
               choice->option[choice->chosen],
               disk_bytes(d, choice->sector, 1));
    }
}

void choices_undo(const Choices *c)
{
    unsigned i;

    for (i = 0; i < c->choices->len; i++) {
        const Choice *choice = &g_array_index(c->choices, Choice, i);
        SimDisk *d = choice->disk;

        memcpy(disk_at(d, d->view, choice->sector), choice->option[0],
               disk_bytes(d, choice->sector, 1));
    }
}

void disk_power_cut(SimDisk *d)
{
    memcpy(d->base, d->view, disk_bytes(d, 0, d->nsectors));
    memcpy(d->cache, d->view, disk_bytes(d, 0, d->nsectors));
    g_ptr_array_set_size(d->pending, 0);
    g_ptr_array_set_size(d->inflight, 0);
}

void disk_kill(SimDisk *d, GRand *rand)
{
    while (d->inflight->len) {
        SimWrite *w = g_ptr_array_index(d->inflight, 0);

        land_some(d, w, rand);
        g_ptr_array_remove_index(d->inflight, 0);
    }
}

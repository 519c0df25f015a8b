/*
 * bsst-tool: reading a store, damaged or not, and finding an image in it
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "block/aio.h"
#include "block/block_int.h"
#include "bsst-tool.h"
#include "qapi/error.h"
#include "qemu/cutils.h"
#include "qemu/error-report.h"
#include "qemu/option.h"
#include "qobject/qdict.h"

void tool_run(CoroutineEntry *entry, void *opaque, const bool *done)
{
    qemu_coroutine_enter(qemu_coroutine_create(entry, opaque));
    while (!*done) {
        aio_poll(qemu_get_aio_context(), true);
    }
}

/* Problems */

BsstToolProblem *tool_problem_new(unsigned rule, bool leak,
                                  const BsstImage *image, uint64_t start,
                                  uint64_t length, char *message)
{
    BsstToolProblem *p = g_new0(BsstToolProblem, 1);

    p->has_rule = rule;
    p->rule = rule;
    p->leak = leak;
    p->image = image ? tool_image_uuid(image) : NULL;
    p->has_start = length;
    p->start = start;
    p->has_length = length;
    p->length = length;
    p->message = message;
    return p;
}

void tool_report_problems(const BsstToolProblemList *problems)
{
    const BsstToolProblemList *l;

    for (l = problems; l; l = l->next) {
        if (l->value->has_rule) {
            error_printf("rule %" PRIu32 ": %s\n", l->value->rule,
                         l->value->message);
        } else {
            error_printf("%s: %s\n", l->value->leak ? "leak" : "error",
                         l->value->message);
        }
    }
}

static void G_GNUC_PRINTF(3, 4) store_problem(ToolStore *s, unsigned rule,
                                              const char *fmt, ...)
{
    BsstToolProblem *p;
    va_list ap;

    va_start(ap, fmt);
    p = tool_problem_new(rule, false, NULL, 0, 0, g_strdup_vprintf(fmt, ap));
    va_end(ap);
    QAPI_LIST_APPEND(s->problems_tail, p);
    s->nproblems++;
}

const char *tool_store_damage(const ToolStore *s)
{
    return s->problems ? s->problems->value->message : NULL;
}

/* The node */

/* Parse the options after --image-opts. */
static QDict *parse_image_opts(const char *string, Error **errp)
{
    static QemuOptsList list = {
        .name = "store",
        .implied_opt_name = "file",
        .head = QTAILQ_HEAD_INITIALIZER(list.head),
        .desc = { { } },
    };
    QemuOpts *opts = qemu_opts_parse(&list, string, true, errp);
    QDict *options;

    if (!opts) {
        return NULL;
    }
    options = qemu_opts_to_qdict(opts, NULL);
    qemu_opts_del(opts);
    return options;
}

QDict *tool_store_options(const ToolOptions *o, const char *format,
                          Error **errp)
{
    QDict *options;

    if (o->image_opts) {
        return parse_image_opts(o->store, errp);
    }
    options = qdict_new();
    if (format) {
        qdict_put_str(options, "driver", format);
    }
    return options;
}

const char *tool_store_format(const ToolStore *s)
{
    return blk_bs(s->blk)->drv->format_name;
}

static BlockBackend *open_node(const ToolOptions *o, Error **errp)
{
    ERRP_GUARD();
    QDict *options = tool_store_options(o, o->format, errp);
    BlockBackend *blk;

    if (!options) {
        return NULL;
    }
    blk = blk_new_open(o->image_opts ? NULL : o->store, NULL, options,
                       BDRV_O_NO_SHARE, errp);
    if (!blk) {
        error_prepend(errp, "Could not open '%s': ", o->store);
    }
    return blk;
}

/* The journal */

static int coroutine_fn store_co_read(void *opaque, uint64_t offset, void *buf,
                                      size_t bytes)
{
    ToolStore *s = opaque;

    return blk_co_pread(s->blk, offset, bytes, buf, 0);
}

static const BsstJournalIO store_io = {
    .co_read = store_co_read,
};

static void store_damage(void *opaque, unsigned rule, const char *message)
{
    store_problem(opaque, rule, "%s", message);
}

typedef struct Salvage {
    ToolStore *s;
    Error *err;
    bool done;
} Salvage;

static void coroutine_fn store_co_salvage(void *opaque)
{
    Salvage *w = opaque;
    ToolStore *s = w->s;

    s->journal = bsst_journal_co_salvage(&s->sb, &store_io, s, store_damage,
                                         &w->err);
    w->done = true;
}

/* Which rule does a superblock break that cannot be decoded? */
static unsigned superblock_rule(const uint8_t *buf, const char *reason)
{
    if (memcmp(buf, BSST_MAGIC, strlen(BSST_MAGIC))) {
        return 1;
    }
    if (ldl_le_p(buf + 8) != BSST_VERSION) {
        return 2;
    }
    if (strstr(reason, "damaged")) {
        return 3;
    }
    if (strstr(reason, "newer") || strstr(reason, "slot size")) {
        return 4;
    }
    return strstr(reason, "does not fit") ? 6 : 5;
}

/* Returns false if it is no store; with a reason in @errp. */
static bool load_superblock(ToolStore *s, Error **errp)
{
    g_autofree uint8_t *buf = g_malloc0(BSST_SUPERBLOCK_BYTES);
    int64_t bytes = blk_getlength(s->blk);
    const char *reason = "it is not a block-swap store";
    unsigned rule = 1;
    int ret;

    if (bytes >= BSST_SUPERBLOCK_BYTES) {
        ret = blk_pread(s->blk, 0, BSST_SUPERBLOCK_BYTES, buf, 0);
        if (ret < 0) {
            error_setg_errno(errp, -ret, "Could not read the superblock of "
                             "'%s'", s->name);
            return false;
        }
        reason = bsst_superblock_decode(&s->sb, buf, bytes);
        rule = reason ? superblock_rule(buf, reason) : 0;
    }
    if (!reason && s->sb.unfinished) {
        reason = "it is not a block-swap store yet: making it was cut off, and "
                 "goes on when it is opened for writing";
        rule = 1;
    }
    if (rule == 1) {
        error_setg(errp, "'%s' cannot be used: %s", s->name, reason);
        return false;
    }
    s->has_superblock = !reason;
    if (reason) {
        store_problem(s, rule, "%s", reason);
        return true;
    }
    memcpy(s->uuid.data, s->sb.uuid, sizeof(s->uuid.data));
    return true;
}

ToolStore *tool_store_open(const ToolOptions *o, Error **errp)
{
    ToolStore *s = g_new0(ToolStore, 1);
    Salvage w = { .s = s };

    s->name = o->store;
    s->problems_tail = &s->problems;
    s->blk = open_node(o, errp);
    if (!s->blk || !load_superblock(s, errp)) {
        tool_store_close(s);
        return NULL;
    }
    if (s->has_superblock) {
        tool_run(store_co_salvage, &w, &w.done);
    }
    if (w.err) {
        error_propagate(errp, w.err);
        tool_store_close(s);
        return NULL;
    }
    return s;
}

void tool_store_close(ToolStore *s)
{
    if (!s) {
        return;
    }
    bsst_journal_free(s->journal);
    blk_unref(s->blk);
    qapi_free_BsstToolProblemList(s->problems);
    g_free(s);
}

/* Images */

char *tool_image_uuid(const BsstImage *image)
{
    QemuUUID uuid;

    memcpy(uuid.data, image->entry.uuid, sizeof(uuid.data));
    return qemu_uuid_unparse_strdup(&uuid);
}

bool tool_read_guard(const char *name, Qcow2BsstGuard *guard, int64_t *bytes,
                     Error **errp)
{
    const int flags = BDRV_O_NO_IO | BDRV_O_NO_BACKING;
    BlockBackend *blk = blk_new_open(name, NULL, NULL, flags, errp);
    bool ok;

    if (!blk) {
        return false;
    }
    bdrv_graph_rdlock_main_loop();
    ok = qcow2_can_bsst_guard(blk_bs(blk), errp);
    if (ok) {
        qcow2_get_bsst_guard(blk_bs(blk), guard);
        if (bytes) {
            *bytes = bdrv_getlength(blk_bs(blk));
        }
    }
    bdrv_graph_rdunlock_main_loop();
    blk_unref(blk);
    return ok;
}

static BsstImage *find_index(ToolStore *s, const char *number)
{
    BsstImage *image = NULL;
    unsigned index;

    if (qemu_strtoui(number, NULL, 10, &index) < 0) {
        return NULL;
    }
    while ((image = bsst_journal_next_image(s->journal, image))) {
        if (image->index == index) {
            break;
        }
    }
    return image;
}

static BsstImage *find_name(ToolStore *s, const char *name)
{
    g_autofree char *path = realpath(name, NULL);
    BsstImage *image = NULL;

    while ((image = bsst_journal_next_image(s->journal, image))) {
        if (!strcmp(image->entry.name, name) ||
            (path && !strcmp(image->entry.name, path))) {
            break;
        }
    }
    return image;
}

BsstImage *tool_find_image(ToolStore *s, const char *name, Error **errp)
{
    BsstImage *image = NULL;
    Qcow2BsstGuard guard;
    QemuUUID uuid;

    if (!s->journal) {
        error_setg(errp, "'%s': %s", s->name, tool_store_damage(s));
        return NULL;
    }
    if (name[0] == '#') {
        image = find_index(s, name + 1);
    } else if (qemu_uuid_parse(name, &uuid) == 0) {
        image = bsst_journal_find_image(s->journal, uuid.data);
    } else {
        if (tool_read_guard(name, &guard, NULL, NULL) &&
            qemu_uuid_is_equal(&guard.store, &s->uuid)) {
            image = bsst_journal_find_image(s->journal, guard.image.data);
        }
        image = image ?: find_name(s, name);
    }
    if (!image) {
        error_setg(errp, "The block-swap store '%s' does not know an image "
                   "'%s'", s->name, name);
        error_append_hint(errp, "'bsst-tool info' lists the images that it "
                          "knows.\n");
    }
    return image;
}

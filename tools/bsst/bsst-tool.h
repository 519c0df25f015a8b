/*
 * bsst-tool: what its files share
 *
 *   bsst-tool.c   options, help, main program
 *   reader.c      a store that is only read, damaged or not; finding an image
 *   show.c        info, map
 *   slots.c       reading slots, and comparing them with their checksums
 *   check.c       check, and its --repair
 *   drain.c       drain, forget: what needs the driver
 *   export.c      export
 *
 * The commands that read open the store's node read-only and read the metadata
 * with bsst_journal_co_salvage(), which is the code of the driver.  Those that
 * change a store let the driver open it.
 *
 * Everything runs in the main thread; the event loop runs only in functions
 * that say so, or that do I/O.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#ifndef BSST_TOOL_H
#define BSST_TOOL_H

#include "bsst/bsst-journal.h"
#include "bsst/bsst-store.h"
#include "bsst/qcow2-guard.h"
#include "qapi/qapi-types-bsst-tool.h"
#include "qapi/qapi-visit-bsst-tool.h"
#include "qemu/uuid.h"
#include "system/block-backend.h"

/* Exit codes */
enum {
    TOOL_OK = 0,
    TOOL_FAILED = 1,            /* could not do it */
    TOOL_DAMAGED = 2,
    TOOL_LEAKS = 3,
};

typedef enum ToolRepair {
    TOOL_REPAIR_NONE,
    TOOL_REPAIR_LEAKS,
    TOOL_REPAIR_ALL,
} ToolRepair;

typedef struct ToolOptions {
    bool json;
    bool progress;
    bool quiet;
    bool image_opts;            /* store is a specification, not a file name */
    const char *format;         /* of store; NULL: find out */
    const char *image_format;   /* NULL: qcow2, or what the store says */
    const char *output_format;
    const char *base;
    const char *image;
    ToolRepair repair;
    bool all;
    bool lose_data;
    bool no_create;
    bool keep_damaged;

    const char *store;          /* NULL if there is none */
    char **arg;                 /* what comes behind it */
    int nargs;
} ToolOptions;

int tool_info(const ToolOptions *o);
int tool_map(const ToolOptions *o);
int tool_check(const ToolOptions *o);
int tool_drain(const ToolOptions *o);
int tool_forget(const ToolOptions *o);
int tool_export(const ToolOptions *o);

/* Print @what, for people, unless the user wants JSON or quiet. */
void G_GNUC_PRINTF(2, 3) tool_print(const ToolOptions *o, const char *fmt, ...);

/*
 * Print the value *@obj of a QAPI type as JSON: TYPE is for the visitor.  In a
 * macro, for the type.
 */
#define TOOL_PRINT_JSON(TYPE, obj) do {                                 \
        QObject *qobj_;                                                 \
        Visitor *v_ = qobject_output_visitor_new(&qobj_);               \
        visit_type_ ## TYPE(v_, NULL, &(obj), &error_abort);            \
        visit_complete(v_, &qobj_);                                     \
        visit_free(v_);                                                 \
        tool_print_qobject(qobj_);                                      \
    } while (0)

/* Print and free @obj. */
void tool_print_qobject(QObject *obj);

/* reader.c */

typedef struct ToolStore {
    const char *name;
    BlockBackend *blk;          /* read-only */
    bool has_superblock;        /* the rest is valid then */
    BsstSuperblock sb;
    QemuUUID uuid;
    BsstJournal *journal;       /* NULL: nothing could be read */
    BsstToolProblemList *problems; /* of the metadata */
    BsstToolProblemList **problems_tail;
    uint64_t nproblems;
} ToolStore;

/*
 * Open the store of @o to read it.  Whatever is wrong with it ends up in
 * problems; NULL is returned, with @errp set, only if the node could not be
 * opened or read, or is no store at all.
 */
ToolStore *tool_store_open(const ToolOptions *o, Error **errp);
void tool_store_close(ToolStore *s);

/* Format driver of the store's node. */
const char *tool_store_format(const ToolStore *s);

/* A string with the first problem: why the store cannot be used. */
const char *tool_store_damage(const ToolStore *s);

BsstToolProblem *tool_problem_new(unsigned rule, bool leak,
                                  const BsstImage *image, uint64_t start,
                                  uint64_t length, char *message);

/* Complain about everything in @problems on stderr. */
void tool_report_problems(const BsstToolProblemList *problems);

/*
 * Find an image of @s by UUID, by index ("#3"), by what the header of the file
 * @name says, or by its file name.  Returns NULL and sets @errp.
 */
BsstImage *tool_find_image(ToolStore *s, const char *name, Error **errp);

/* The UUID of @image as a string. */
char *tool_image_uuid(const BsstImage *image);

/*
 * Read the header of the image @name, of which nothing else is touched.
 * Returns false and sets @errp if it is no image that can have a guard.
 * *@bytes, if not NULL, is the size of its disk.
 */
bool tool_read_guard(const char *name, Qcow2BsstGuard *guard, int64_t *bytes,
                     Error **errp);

/* The options that open the store of @o for writing, as format @format. */
QDict *tool_store_options(const ToolOptions *o, const char *format,
                          Error **errp);

/* Runs @entry in a coroutine until *@done; runs the event loop. */
void tool_run(CoroutineEntry *entry, void *opaque, const bool *done);

/* Iterate over the runs of an image's blocks in the store: begin with 0. */
static inline bool tool_next_run(const BsstImage *image, BsstRecord *r)
{
    return durable_map_next_committed(image->map, false, r->block + r->n, r);
}

/* slots.c */

/* Slots that are read at once */
#define TOOL_SLOTS      256u

typedef enum ToolSlotState {
    TOOL_SLOT_GOOD,
    TOOL_SLOT_MISMATCH,         /* content and checksum are not one */
    TOOL_SLOT_UNREADABLE,
} ToolSlotState;

/*
 * Read the @n (at most TOOL_SLOTS) slots from @first on into @buf, and see
 * which of them are good.
 */
void tool_read_slots(ToolStore *s, BsstSlot first, unsigned n, uint8_t *buf,
                     ToolSlotState *state);

/* What is wrong with a slot, in words. */
const char *tool_slot_reason(ToolSlotState state);

/* A bitmap of all slots that an image of @s names; their number in *@n. */
unsigned long *tool_used_slots(ToolStore *s, uint64_t *n);

/* drain.c */

/*
 * Let the driver open the store of @o for writing, which recovers it.  Returns
 * NULL and sets @errp and *@ret, the exit code, if that is impossible.
 */
BsstStore *tool_open_driver(const ToolOptions *o, int *ret, Error **errp);
void tool_close_driver(BsstStore *store);

#endif /* BSST_TOOL_H */

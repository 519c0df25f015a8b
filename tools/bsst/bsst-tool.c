/*
 * bsst-tool: look into, check, and empty block-swap stores, without a VM
 *
 * The main program: commands, options, help.  See docs/tools/bsst-tool.rst.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include <getopt.h>

#include "qemu/help-texts.h"
#include "block/block-global-state.h"
#include "bsst-tool.h"
#include "crypto/init.h"
#include "qapi/error.h"
#include "qemu-version.h"
#include "qemu/config-file.h"
#include "qemu/cutils.h"
#include "qemu/error-report.h"
#include "qemu/log.h"
#include "qemu/main-loop.h"
#include "qemu/module.h"
#include "qemu/sockets.h"
#include "qobject/qjson.h"
#include "qobject/qobject.h"
#include "trace/control.h"

#define TOOL_VERSION "bsst-tool version " QEMU_FULL_VERSION \
                     "\n" QEMU_COPYRIGHT "\n"

/* Options without a letter */
enum {
    OPT_OUTPUT = 256,
    OPT_IMAGE_OPTS,
    OPT_IMAGE,
    OPT_LOSE_DATA,
    OPT_KEEP_DAMAGED,
};

typedef struct ToolOption {
    const char *name;
    int id;                     /* a letter if it is one */
    int has_arg;
    const char *arg;
    const char *help;
} ToolOption;

static const ToolOption all_options[] = {
    { "help", 'h', no_argument, NULL, "print this help and exit" },
    { "format", 'f', required_argument, "FMT",
      "format of STORE, qcow2 or raw (default: find out)" },
    { "image-opts", OPT_IMAGE_OPTS, no_argument, NULL,
      "STORE is a complete image specification, not a file name" },
    { "output", OPT_OUTPUT, required_argument, "human|json",
      "output format" },
    { "progress", 'p', no_argument, NULL, "show progress" },
    { "quiet", 'q', no_argument, NULL, "print errors only" },
    { "repair", 'r', optional_argument, "leaks|all",
      "repair what can be repaired without loss of data (default: leaks)" },
    { "all", 'a', no_argument, NULL, "all images that the store knows" },
    { "image-format", 'F', required_argument, "FMT",
      "format of IMAGE (default: qcow2, or raw if the store says so)" },
    { "image", OPT_IMAGE, required_argument, "FILE",
      "take the guard off the image FILE, whose store is lost" },
    { "lose-data", OPT_LOSE_DATA, no_argument, NULL,
      "yes, do it although blocks of the image will be lost" },
    { "base", 'b', required_argument, "IMAGE",
      "take the blocks that are not in the store from this image" },
    { "output-format", 'O', required_argument, "FMT",
      "format of OUTPUT (default: raw)" },
    { "no-create", 'n', no_argument, NULL, "OUTPUT exists, write into it" },
    { "keep-damaged", OPT_KEEP_DAMAGED, no_argument, NULL,
      "use blocks that do not have their checksum, too" },
};

typedef struct ToolCommand {
    const char *name;
    int (*run)(const ToolOptions *o);
    const char *description;
    const char *syntax;         /* of what is no option */
    const char *options;        /* names of those it has, beside the usual */
    int min_args, max_args;
    const char *help;
} ToolCommand;

#define STORE_OPTIONS   "format image-opts output "
#define EXIT_CODES      "Exit status: 0 success; 1 failure; "

static const ToolCommand commands[] = {
    {
        "info", tool_info, "Show what is in a block-swap store",
        "STORE", STORE_OPTIONS, 1, 1,
        EXIT_CODES "2 the store is damaged.\n",
    }, {
        "check", tool_check, "Check a block-swap store, and images of it",
        "STORE [IMAGE]...", STORE_OPTIONS "progress quiet repair", 1, INT_MAX,
        "Reads all metadata, and the content of all slots in use.  For each "
        "IMAGE:\ndo its guard and the store belong together?\n\n"
        "Exit status: 0 no errors; 1 the check could not be done; 2 errors; "
        "3 leaks,\nwhich do no harm, but no errors.\n",
    }, {
        "map", tool_map, "Show which parts of an image are in a store",
        "STORE IMAGE", STORE_OPTIONS, 2, 2,
        "IMAGE is a file name, a UUID, or the index of an entry as in #3.\n\n"
        EXIT_CODES "2 the store is damaged.\n",
    }, {
        "drain", tool_drain,
        "Copy all that is in a store into the images, and remove their guards",
        "STORE IMAGE...", STORE_OPTIONS "progress quiet all image-format",
        1, INT_MAX,
        "Each IMAGE is complete after that, and can be used without the "
        "store.  If it is\ninterrupted, even by SIGKILL, run the same command "
        "again.\n\n"
        EXIT_CODES "2 the store is damaged, or\na part of an image could "
        "not be read.\n",
    }, {
        "forget", tool_forget,
        "Remove an image that is gone from a store; or the guard of an image",
        "STORE IMAGE | --image FILE", STORE_OPTIONS "image lose-data", 0, 2,
        "IMAGE is a file name, a UUID, or the index of an entry as in #3.  "
        "With --image, a\nguard is removed from an image whose store is lost: "
        "its blocks that were in that\nstore have old content then.\n\n"
        EXIT_CODES "2 the store is damaged, or\ndata would be lost, and "
        "--lose-data was not given.\n",
    }, {
        "export", tool_export,
        "Copy what can be read of an image's blocks in a store",
        "STORE IMAGE OUTPUT", STORE_OPTIONS
        "progress quiet base image-format output-format no-create keep-damaged",
        3, 3,
        "Writes to the new image OUTPUT, also from a damaged store.  Without "
        "--base all\nother blocks are zeroes.  What could not be read is "
        "zeroes, and listed.\n\n"
        EXIT_CODES "2 something was lost.\n",
    },
};

static G_NORETURN G_GNUC_PRINTF(2, 3)
void usage_error(const ToolCommand *cmd, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    error_vreport(fmt, ap);
    va_end(ap);
    error_printf("Try 'bsst-tool %s%s--help' for more info\n",
                 cmd ? cmd->name : "", cmd ? " " : "");
    exit(TOOL_FAILED);
}

static bool has_option(const ToolCommand *cmd, const char *name)
{
    g_auto(GStrv) names = g_strsplit(cmd->options, " ", 0);

    return !strcmp(name, "help") ||
           g_strv_contains((const char *const *)names, name);
}

static void print_option(const ToolOption *opt)
{
    bool optional = opt->has_arg == optional_argument;

    printf("  ");
    if (opt->id < 256) {
        printf("-%c, ", opt->id);
    }
    printf("--%s", opt->name);
    if (opt->arg) {
        printf(optional ? "[=%s]" : " %s", opt->arg);
    }
    printf("\n     %s\n", opt->help);
}

static G_NORETURN void command_help(const ToolCommand *cmd)
{
    printf("%s.  Usage:\n\n  bsst-tool %s [OPTION]... %s\n\nArguments:\n",
           cmd->description, cmd->name, cmd->syntax);
    for (unsigned i = 0; i < ARRAY_SIZE(all_options); i++) {
        if (has_option(cmd, all_options[i].name)) {
            print_option(&all_options[i]);
        }
    }
    printf("\n%s\n" QEMU_HELP_BOTTOM "\n", cmd->help);
    exit(TOOL_OK);
}

static G_NORETURN void general_help(void)
{
    printf(TOOL_VERSION
           "Tool for the block-swap stores of QEMU's bsst driver.  Usage:\n\n"
           "  bsst-tool [-h | -V | -T TRACE] COMMAND [--help | command "
           "options]\n\n"
           "Options:\n"
           "  -h, --help\n     print this help and exit\n"
           "  -V, --version\n     print version info and exit\n"
           "  -T, --trace TRACE\n     specify tracing options:\n"
           "        [[enable=]<pattern>][,events=<file>][,file=<file>]\n\n"
           "Commands (run bsst-tool COMMAND --help for more):\n\n");
    for (unsigned i = 0; i < ARRAY_SIZE(commands); i++) {
        printf("  %s - %s\n", commands[i].name, commands[i].description);
    }
    printf("\n" QEMU_HELP_BOTTOM "\n");
    exit(TOOL_OK);
}

static ToolRepair parse_repair(const ToolCommand *cmd, const char *arg)
{
    if (!arg || !strcmp(arg, "leaks")) {
        return TOOL_REPAIR_LEAKS;
    }
    if (strcmp(arg, "all")) {
        usage_error(cmd, "--repair expects 'leaks' or 'all', not '%s'", arg);
    }
    return TOOL_REPAIR_ALL;
}

static void set_option(ToolOptions *o, const ToolCommand *cmd, int id)
{
    switch (id) {
    case 'h':
        command_help(cmd);
    case 'f':
        o->format = optarg;
        break;
    case OPT_IMAGE_OPTS:
        o->image_opts = true;
        break;
    case OPT_OUTPUT:
        o->json = !strcmp(optarg, "json");
        if (!o->json && strcmp(optarg, "human")) {
            usage_error(cmd, "--output expects 'human' or 'json', not '%s'",
                        optarg);
        }
        break;
    case 'p':
        o->progress = true;
        break;
    case 'q':
        o->quiet = true;
        break;
    case 'r':
        o->repair = parse_repair(cmd, optarg);
        break;
    case 'a':
        o->all = true;
        break;
    case 'F':
        o->image_format = optarg;
        break;
    case OPT_IMAGE:
        o->image = optarg;
        break;
    case OPT_LOSE_DATA:
        o->lose_data = true;
        break;
    case 'b':
        o->base = optarg;
        break;
    case 'O':
        o->output_format = optarg;
        break;
    case 'n':
        o->no_create = true;
        break;
    case OPT_KEEP_DAMAGED:
        o->keep_damaged = true;
        break;
    default:
        exit(TOOL_FAILED);
    }
}

/* The options of @cmd, for getopt_long(). */
static struct option *long_options(const ToolCommand *cmd, char **letters)
{
    struct option *opts = g_new0(struct option, ARRAY_SIZE(all_options) + 1);
    GString *s = g_string_new(NULL);
    unsigned n = 0;

    for (unsigned i = 0; i < ARRAY_SIZE(all_options); i++) {
        const ToolOption *opt = &all_options[i];

        if (!has_option(cmd, opt->name)) {
            continue;
        }
        opts[n++] = (struct option) { opt->name, opt->has_arg, NULL, opt->id };
        if (opt->id < 256) {
            g_string_append_printf(s, "%c%.*s", opt->id, opt->has_arg, "::");
        }
    }
    *letters = g_string_free(s, false);
    return opts;
}

static void parse_command(ToolOptions *o, const ToolCommand *cmd, int argc,
                          char **argv)
{
    g_autofree char *letters = NULL;
    g_autofree struct option *opts = long_options(cmd, &letters);
    int c;

    while ((c = getopt_long(argc, argv, letters, opts, NULL)) != -1) {
        if (c == '?') {
            error_printf("Try 'bsst-tool %s --help' for more info\n",
                         cmd->name);
        }
        set_option(o, cmd, c);
    }
    if (argc - optind < cmd->min_args || argc - optind > cmd->max_args) {
        usage_error(cmd, "Expecting %s", cmd->syntax);
    }
    if (o->image_opts && o->format) {
        usage_error(cmd, "--image-opts and --format are mutually exclusive");
    }
    o->progress = o->progress && !o->quiet && !o->json;
    if (optind < argc) {
        o->store = argv[optind];
        o->arg = argv + optind + 1;
        o->nargs = argc - optind - 1;
    }
}

void tool_print(const ToolOptions *o, const char *fmt, ...)
{
    va_list ap;

    if (o->json || o->quiet) {
        return;
    }
    va_start(ap, fmt);
    vprintf(fmt, ap);
    va_end(ap);
}

void tool_print_qobject(QObject *obj)
{
    GString *str = qobject_to_json_pretty(obj, true);

    printf("%s\n", str->str);
    g_string_free(str, true);
    qobject_unref(obj);
}

/* Options before the command. */
static void parse_general(int argc, char **argv)
{
    static const struct option opts[] = {
        { "help", no_argument, NULL, 'h' },
        { "version", no_argument, NULL, 'V' },
        { "trace", required_argument, NULL, 'T' },
        { }
    };
    int c;

    while ((c = getopt_long(argc, argv, "+hVT:", opts, NULL)) != -1) {
        switch (c) {
        case 'h':
            general_help();
        case 'V':
            printf(TOOL_VERSION);
            exit(TOOL_OK);
        case 'T':
            trace_opt_parse(optarg);
            break;
        default:
            error_printf("Try 'bsst-tool --help' for more info\n");
            exit(TOOL_FAILED);
        }
    }
    if (optind >= argc) {
        usage_error(NULL, "Expecting a command");
    }
}

static const ToolCommand *find_command(const char *name)
{
    for (unsigned i = 0; i < ARRAY_SIZE(commands); i++) {
        if (!strcmp(commands[i].name, name)) {
            return &commands[i];
        }
    }
    usage_error(NULL, "Command not found: %s", name);
}

int main(int argc, char **argv)
{
    g_autofree char *argv0 = NULL;
    const ToolCommand *cmd;
    ToolOptions o = { 0 };
    int ret;

    signal(SIGPIPE, SIG_IGN);
    socket_init();
    error_init(argv[0]);
    module_call_init(MODULE_INIT_TRACE);
    qemu_init_exec_dir(argv[0]);
    qemu_init_main_loop(&error_fatal);
    qcrypto_init(&error_fatal);
    module_call_init(MODULE_INIT_QOM);
    bdrv_init();
    qemu_add_opts(&qemu_trace_opts);

    parse_general(argc, argv);
    if (!trace_init_backends()) {
        exit(TOOL_FAILED);
    }
    trace_init_file();
    qemu_set_log(LOG_TRACE, &error_fatal);

    cmd = find_command(argv[optind]);
    argv += optind;
    argc -= optind;
    argv0 = g_strdup_printf("bsst-tool %s", cmd->name);
    argv[0] = argv0;
    qemu_reset_optind();
    parse_command(&o, cmd, argc, argv);
    ret = cmd->run(&o);
    bdrv_close_all();
    return ret;
}

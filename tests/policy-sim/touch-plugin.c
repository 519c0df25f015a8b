/*
 * TCG plugin: which pages of guest RAM the processors touch
 *
 * Writes the events RECORD_TOUCH_READ and RECORD_TOUCH_WRITE of the format in
 * include/bsst/record-format.h: at most one of each kind a page in 10 ms.
 *
 * Usage: -plugin libtouch.so,out=FILE
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include <glib.h>
#include <qemu-plugin.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define PAGE_BITS       12
#define MAX_PAGES       (1u << 18)
#define EPOCH_US        10000
/* Accesses between looks at the clock */
#define CLOCK_EVERY     1024

QEMU_PLUGIN_EXPORT int qemu_plugin_version = QEMU_PLUGIN_VERSION;

static FILE *out;
static GMutex lock;
static uint32_t now_us, accesses;
static uint32_t last[MAX_PAGES][2];     /* time of the last event, or 0 */

static void look_at_clock(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    now_us = (uint64_t)ts.tv_sec * 1000000 + ts.tv_nsec / 1000;
}

static void on_access(unsigned int vcpu, qemu_plugin_meminfo_t info,
                      uint64_t vaddr, void *unused)
{
    struct qemu_plugin_hwaddr *hw = qemu_plugin_get_hwaddr(info, vaddr);
    bool store = qemu_plugin_mem_is_store(info);
    uint64_t page, event;

    if (!hw || qemu_plugin_hwaddr_is_io(hw)) {
        return;
    }
    page = qemu_plugin_hwaddr_phys_addr(hw) >> PAGE_BITS;
    if (page >= MAX_PAGES) {
        return;
    }
    g_mutex_lock(&lock);
    if (accesses++ % CLOCK_EVERY == 0) {
        look_at_clock();
    }
    if (!last[page][store] || now_us - last[page][store] >= EPOCH_US) {
        last[page][store] = now_us ? now_us : 1;
        event = GUINT64_TO_LE((uint64_t)now_us << 32 | page << 4 | store);
        fwrite(&event, sizeof(event), 1, out);
    }
    g_mutex_unlock(&lock);
}

static void on_translation(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
    for (size_t i = 0; i < qemu_plugin_tb_n_insns(tb); i++) {
        qemu_plugin_register_vcpu_mem_cb(qemu_plugin_tb_get_insn(tb, i),
                                         on_access, QEMU_PLUGIN_CB_NO_REGS,
                                         QEMU_PLUGIN_MEM_RW, NULL);
    }
}

static void at_exit(qemu_plugin_id_t id, void *unused)
{
    fclose(out);
}

QEMU_PLUGIN_EXPORT int qemu_plugin_install(qemu_plugin_id_t id,
                                           const qemu_info_t *info, int argc,
                                           char **argv)
{
    if (argc != 1 || strncmp(argv[0], "out=", 4)) {
        fprintf(stderr, "touch-plugin: want out=FILE\n");
        return -1;
    }
    out = fopen(argv[0] + 4, "wb");
    if (!out) {
        perror(argv[0] + 4);
        return -1;
    }
    fwrite("BSSTREC1", 8, 1, out);
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation);
    qemu_plugin_register_atexit_cb(id, at_exit, NULL);
    return 0;
}

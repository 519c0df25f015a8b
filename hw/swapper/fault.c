/*
 * Fault threads: event in, one pager call out
 *
 * One userfaultfd and one IOThread a shard, so that handlers neither wake
 * each other up nor share a queue.  A handler never waits: what needs the
 * store or memory goes on in a coroutine in the same thread.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include "block/aio.h"
#include "pager.h"
#include "qapi/error.h"
#include "qemu/error-report.h"
#include "qemu/lockable.h"
#include "qemu/timer.h"
#include "qemu/userfaultfd.h"
#include "trace.h"
#include "uffd.h"

#define EVENTS_A_READ   16

static void fault_event(PagerShard *sh, const struct uffd_msg *msg,
                        int64_t start_ns)
{
    uintptr_t at = msg->arg.pagefault.address & -(uintptr_t)BSST_PAGE_SIZE;
    bool is_write = msg->arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WRITE;

    if (msg->event == UFFD_EVENT_PAGEFAULT) {
        pager_fault(sh, (void *)at, is_write, start_ns);
    }
}

static void fault_readable(void *opaque)
{
    PagerShard *sh = opaque;
    struct uffd_msg msg[EVENTS_A_READ];
    ssize_t len;

    while ((len = read(sh->uffd, msg, sizeof(msg))) > 0) {
        int64_t start_ns = get_clock();

        for (size_t i = 0; i < len / sizeof(msg[0]); i++) {
            fault_event(sh, &msg[i], start_ns);
        }
        if (len < sizeof(msg)) {
            return;
        }
    }
    if (len < 0 && errno != EAGAIN && errno != EINTR) {
        /* Never a silent hang: without events nobody would be woken. */
        error_report("host-swapper: userfaultfd failed: %s", strerror(errno));
        abort();
    }
}

bool pager_shard_start(PagerShard *sh, Error **errp)
{
    sh->uffd = uffd_swapper_open(false, errp);
    if (sh->uffd < 0) {
        return false;
    }
    sh->restore_bh = aio_bh_new(sh->ctx, pager_restore_bh, sh);
    aio_set_fd_handler(sh->ctx, sh->uffd, fault_readable, NULL, NULL, NULL,
                       sh);
    return true;
}

void pager_shard_quiesce(PagerShard *sh)
{
    Pager *p = sh->p;

    if (sh->uffd >= 0) {
        aio_set_fd_handler(sh->ctx, sh->uffd, NULL, NULL, NULL, NULL, NULL);
    }
    WITH_QEMU_LOCK_GUARD(&p->lock) {
        if (sh->restore_bh) {
            qemu_bh_delete(sh->restore_bh);
            sh->restore_bh = NULL;
        }
    }
}

void pager_shard_stop(PagerShard *sh)
{
    if (sh->iothread) {
        iothread_destroy(sh->iothread);
        sh->iothread = NULL;
        sh->ctx = NULL;
    }
    if (sh->uffd >= 0) {
        close(sh->uffd);
        sh->uffd = -1;
    }
}

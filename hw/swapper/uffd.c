/*
 * userfaultfd operations that the swapper needs
 *
 * The kernel's contract is in Documentation/admin-guide/mm/userfaultfd.rst
 * and ioctl_userfaultfd(2).
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#include "qemu/osdep.h"
#include <sys/ioctl.h>
#include "bsst/types.h"
#include "qapi/error.h"
#include "qemu/error-report.h"
#include "qemu/userfaultfd.h"
#include "uffd.h"

/* A transient EAGAIN is repeated this often before the caller hears of it. */
#define MOVE_RETRIES    4

bool uffd_swapper_tracks_writes(void)
{
    uint64_t features;

    return uffd_query_features(&features) == 0 &&
           (features & UFFD_FEATURE_WP_ASYNC);
}

int uffd_swapper_open(bool sigbus, Error **errp)
{
    struct uffdio_api api = {
        .api = UFFD_API,
        .features = UFFD_FEATURE_MOVE,
    };
    uint64_t features;
    int fd;

    if (sigbus) {
        api.features |= UFFD_FEATURE_SIGBUS;
    } else if (uffd_swapper_tracks_writes()) {
        api.features |= UFFD_FEATURE_WP_ASYNC;
    }
    fd = uffd_open(O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) {
        error_setg_errno(errp, errno, "host-swapper needs userfaultfd");
        error_append_hint(errp, "Give QEMU access to /dev/userfaultfd, or set "
                          "the sysctl vm.unprivileged_userfaultfd to 1.\n");
        return -1;
    }
    if (ioctl(fd, UFFDIO_API, &api) == 0) {
        return fd;
    }
    close(fd);
    if (uffd_query_features(&features) == 0 &&
        !(features & UFFD_FEATURE_MOVE)) {
        error_setg(errp, "host-swapper needs a host kernel with UFFDIO_MOVE "
                   "(Linux 6.8 or newer)");
    } else {
        error_setg(errp, "host-swapper could not set up userfaultfd");
    }
    return -1;
}

int uffd_swapper_register(int fd, void *addr, size_t bytes, bool wp)
{
    struct uffdio_register r = {
        .range = { .start = (uintptr_t)addr, .len = bytes },
        .mode = UFFDIO_REGISTER_MODE_MISSING |
                (wp ? UFFDIO_REGISTER_MODE_WP : 0),
    };

    return ioctl(fd, UFFDIO_REGISTER, &r) < 0 ? -errno : 0;
}

int uffd_swapper_unregister(int fd, void *addr, size_t bytes)
{
    struct uffdio_range r = { .start = (uintptr_t)addr, .len = bytes };

    return ioctl(fd, UFFDIO_UNREGISTER, &r) < 0 ? -errno : 0;
}

void uffd_swapper_wake(int fd, void *addr, size_t bytes)
{
    struct uffdio_range r = { .start = (uintptr_t)addr, .len = bytes };

    ioctl(fd, UFFDIO_WAKE, &r);
}

/*
 * An installing ioctl stopped with @err; @progress is what it says of its own
 * progress from @dst on.  Returns the bytes to go forward, 0 to try again, or
 * -errno.  Counts a page that was there already in @present.
 */
static ssize_t install_stopped(int fd, void *dst, ssize_t progress, int err,
                               int *present)
{
    if (progress > 0) {
        return progress;
    }
    switch (err) {
    case EEXIST:
        /* Does not wake by itself. */
        uffd_swapper_wake(fd, dst, BSST_PAGE_SIZE);
        ++*present;
        return BSST_PAGE_SIZE;
    case EAGAIN:
    case EINTR:
        return 0;
    case ENOMEM:
        /* At the limit of a memory cgroup: somebody must give way first. */
        g_usleep(1000);
        return 0;
    default:
        return -err;
    }
}

int uffd_swapper_copy(int fd, void *dst, const void *src, size_t bytes,
                      bool protect)
{
    size_t done = 0;
    int present = 0;

    while (done < bytes) {
        struct uffdio_copy c = {
            .dst = (uintptr_t)dst + done,
            .src = (uintptr_t)src + done,
            .len = bytes - done,
            .mode = protect ? UFFDIO_COPY_MODE_WP : 0,
        };
        ssize_t step;

        if (ioctl(fd, UFFDIO_COPY, &c) == 0) {
            break;
        }
        step = install_stopped(fd, (uint8_t *)dst + done, c.copy, errno,
                               &present);
        if (step < 0) {
            return step;
        }
        done += step;
    }
    return present;
}

int uffd_swapper_zero(int fd, void *dst, size_t bytes)
{
    size_t done = 0;
    int present = 0;

    while (done < bytes) {
        struct uffdio_zeropage z = {
            .range = { .start = (uintptr_t)dst + done, .len = bytes - done },
        };
        ssize_t step;

        if (ioctl(fd, UFFDIO_ZEROPAGE, &z) == 0) {
            break;
        }
        step = install_stopped(fd, (uint8_t *)dst + done, z.zeropage, errno,
                               &present);
        if (step < 0) {
            return step;
        }
        done += step;
    }
    return present;
}

/* Read the entries of @n pages from @addr on. */
static void read_pagemap(int pagemap_fd, void *addr, uint64_t *entry, size_t n)
{
    off_t at = (uintptr_t)addr / BSST_PAGE_SIZE * sizeof(*entry);
    ssize_t len = RETRY_ON_EINTR(pread(pagemap_fd, entry, n * sizeof(*entry),
                                       at));

    if (len != n * sizeof(*entry)) {
        /* To guess would be silent corruption. */
        error_report("host-swapper: could not read pagemap: %s",
                     len < 0 ? strerror(errno) : "it is too short");
        abort();
    }
}

/*
 * How many of the pages of [addr, addr + bytes) exist, up to the first that
 * does not.
 */
static size_t leading_pages(int pagemap_fd, void *addr, size_t bytes)
{
    size_t n = bytes / BSST_PAGE_SIZE, k;

    for (k = 0; k < n; k++) {
        uint64_t entry;

        read_pagemap(pagemap_fd, (uint8_t *)addr + k * BSST_PAGE_SIZE, &entry,
                     1);
        if (!(entry & PAGEMAP_EXISTS)) {
            break;
        }
    }
    return k;
}

uint64_t uffd_swapper_protected(int pagemap_fd, void *addr, unsigned n)
{
    uint64_t entry[64], map = 0;

    assert(n <= ARRAY_SIZE(entry));
    read_pagemap(pagemap_fd, addr, entry, n);
    for (unsigned i = 0; i < n; i++) {
        bool clean = (entry[i] & PAGEMAP_EXISTS) && (entry[i] & PAGEMAP_UFFD_WP);

        map |= (uint64_t)clean << i;
    }
    return map;
}

/*
 * When the kernel fails it is not to be trusted about what it has moved.  Since
 * Linux 6.18 ("userfaultfd: opportunistic TLB-flush batching for present pages
 * in MOVE") move_pages() repeats a step after an internal EAGAIN, such as a
 * huge page that another thread is splitting, but keeps the EAGAIN when the
 * step then succeeds.  So it repeats the step once more, finds @dst occupied or
 * @src empty, and returns EEXIST or ENOENT, although all of it has moved.
 */
size_t uffd_swapper_move(int fd, int pagemap_fd, void *dst, void *src,
                         size_t bytes, int *err)
{
    size_t done = 0, step;
    int retries = 0;

    *err = 0;
    while (done < bytes) {
        struct uffdio_move m = {
            .dst = (uintptr_t)dst + done,
            .src = (uintptr_t)src + done,
            .len = bytes - done,
            .mode = UFFDIO_MOVE_MODE_DONTWAKE,
        };

        if (ioctl(fd, UFFDIO_MOVE, &m) == 0) {
            *err = 0;
            return bytes;
        }
        *err = errno;
        step = leading_pages(pagemap_fd, (uint8_t *)dst + done, bytes - done)
               << BSST_PAGE_BITS;
        if (step) {
            done += step;
            retries = 0;
            *err = 0;
        } else if (*err != EAGAIN || ++retries > MOVE_RETRIES) {
            break;
        }
    }
    return done;
}

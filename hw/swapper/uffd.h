/*
 * userfaultfd operations that the swapper needs
 *
 * Unlike util/userfaultfd.c these know UFFDIO_MOVE, make progress on ranges,
 * and report nothing: each outcome is an answer for the caller.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#ifndef HW_SWAPPER_UFFD_H
#define HW_SWAPPER_UFFD_H

/*
 * Bits of /proc/self/pagemap: the page is in memory, or in the host's swap or
 * on its way elsewhere.  It is missing if it has none of them.
 */
#define PAGEMAP_EXISTS  (3ull << 62)
/* It is write-protected by userfaultfd. */
#define PAGEMAP_UFFD_WP (1ull << 57)

/*
 * Open a non-blocking userfaultfd which delivers faults of the kernel too and
 * can move pages.  Returns the descriptor; -1 and sets @errp on failure.
 *
 * @sigbus: touches of missing pages raise SIGBUS instead of waiting
 */
int uffd_swapper_open(bool sigbus, Error **errp);

/*
 * Can pages be write-protected in such a way that the kernel takes the
 * protection away itself at the first write, and lets us see that it has?
 */
bool uffd_swapper_tracks_writes(void);

/*
 * Register or unregister [addr, addr + bytes).  @wp: for write protection, too.
 * Returns 0 or -errno.
 */
int uffd_swapper_register(int fd, void *addr, size_t bytes, bool wp);
int uffd_swapper_unregister(int fd, void *addr, size_t bytes);

/*
 * Copy @bytes from @src to the absent pages at @dst and wake who waits there.
 * Pages that are present already stay as they are.  @protect: the pages are
 * write-protected from the start.
 *
 * Returns how many pages were present already, or -errno if the range is not
 * ours any more.  Waits while the kernel has no memory.
 */
int uffd_swapper_copy(int fd, void *dst, const void *src, size_t bytes,
                      bool protect);

/* The same, with zeroes that occupy no memory until they are written. */
int uffd_swapper_zero(int fd, void *dst, size_t bytes);

/* Wake who waits in [addr, addr + bytes). */
void uffd_swapper_wake(int fd, void *addr, size_t bytes);

/*
 * Move the pages at @src to @dst, which is private memory, absent, registered
 * with @fd, and filled by nobody else.  @pagemap_fd is /proc/self/pagemap.
 *
 * A page has moved if and only if it is at @dst now, whatever the kernel says:
 * see uffd.c.
 *
 * Returns the bytes moved from the start on, which may be fewer than @bytes;
 * *@err is then why the next page did not move, else 0.
 */
size_t uffd_swapper_move(int fd, int pagemap_fd, void *dst, void *src,
                         size_t bytes, int *err);

/*
 * Which of the @n pages at @addr, at most 64, exist and have not been written
 * since they were copied with protection?  A bitmap.
 */
uint64_t uffd_swapper_protected(int pagemap_fd, void *addr, unsigned n);

#endif /* HW_SWAPPER_UFFD_H */

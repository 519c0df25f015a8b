/*
 * Record what a program writes to some files, and its flushes, in one order
 *
 * Preloaded (LD_PRELOAD) into qemu-storage-daemon.  POWERCUT_FILES has the
 * paths of the files, separated by colons; POWERCUT_LOG is the log, to which
 * others may append notes of their own.  Each call that changes or flushes a
 * file, through whichever descriptor, makes an entry before it begins, with
 * the data, and one after it has returned.  So what a flush covers ended before
 * it began, in the log as well as in truth.
 *
 * POWERCUT_KILL=N kills the program with SIGKILL where it begins its call number
 * N: the entry is in the log, but nothing is done.  POWERCUT_KILL_START=N does
 * so at the first flush after it has written the start of a file N times.
 *
 * Not seen: io_uring, Linux AIO, mapped files, write().  run-powercut compares
 * the files with the log, so that nothing is missed unnoticed.
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <linux/falloc.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define MAX_FILES 8

enum { WRITE = 1, ZERO, PUNCH, FLUSH, TRUNCATE, END };

typedef struct Entry {
    uint32_t kind;
    uint32_t file;
    uint64_t id;
    uint64_t offset;
    uint64_t bytes;             /* of an END: errno */
} Entry;

static struct {
    dev_t dev;
    ino_t ino;
} files[MAX_FILES];
static unsigned nfiles;
static int log_fd = -1;
static atomic_uint_least64_t last_id;
static uint64_t kill_id;
static atomic_int kill_start;

static void fail(const char *what)
{
    fprintf(stderr, "recorder: %s: %s\n", what, strerror(errno));
    abort();
}

static void __attribute__((constructor)) recorder_init(void)
{
    const char *log = getenv("POWERCUT_LOG"), *list = getenv("POWERCUT_FILES");
    char *paths, *path, *rest;

    if (!log || !list) {
        return;
    }
    paths = strdup(list);
    for (path = strtok_r(paths, ":", &rest); path;
         path = strtok_r(NULL, ":", &rest)) {
        struct stat st;

        if (nfiles == MAX_FILES || stat(path, &st) < 0) {
            fail(path);
        }
        files[nfiles].dev = st.st_dev;
        files[nfiles++].ino = st.st_ino;
    }
    free(paths);
    log_fd = open(log, O_WRONLY | O_APPEND | O_CLOEXEC);
    if (log_fd < 0) {
        fail(log);
    }
    last_id = (uint64_t)getpid() << 32;
    kill_id = last_id + atoi(getenv("POWERCUT_KILL") ?: "0");
    kill_start = atoi(getenv("POWERCUT_KILL_START") ?: "-1");
    unsetenv("LD_PRELOAD");
}

/* The number of the file that @fd is, or -1 */
static int file_of(int fd)
{
    int saved = errno;
    struct stat st;
    unsigned i;

    if (nfiles && fstat(fd, &st) == 0) {
        for (i = 0; i < nfiles; i++) {
            if (files[i].dev == st.st_dev && files[i].ino == st.st_ino) {
                return i;
            }
        }
    }
    errno = saved;
    return -1;
}

/* One write() with O_APPEND: it is whole, and its place is its time. */
static void put(const Entry *e, const struct iovec *iov, int n)
{
    size_t bytes = sizeof(*e), pos = sizeof(*e);
    char *buf;
    int i;

    for (i = 0; i < n; i++) {
        bytes += iov[i].iov_len;
    }
    buf = malloc(bytes);
    if (!buf) {
        fail("no memory");
    }
    memcpy(buf, e, sizeof(*e));
    for (i = 0; i < n; i++) {
        memcpy(buf + pos, iov[i].iov_base, iov[i].iov_len);
        pos += iov[i].iov_len;
    }
    if (write(log_fd, buf, bytes) != bytes) {
        fail("log");
    }
    free(buf);
}

static uint64_t begin(int kind, int file, uint64_t offset, uint64_t bytes,
                      const struct iovec *iov, int n)
{
    Entry e = { kind, file, ++last_id, offset, bytes };

    put(&e, iov, n);
    if (kind == WRITE && !offset && kill_start > 0) {
        kill_start--;
    }
    if (e.id == kill_id || (kind == FLUSH && !kill_start)) {
        kill(getpid(), SIGKILL);
    }
    return e.id;
}

static ssize_t end(uint64_t id, int file, ssize_t ret)
{
    int saved = errno;
    Entry e = { END, file, id, 0, ret < 0 ? errno : 0 };

    put(&e, NULL, 0);
    errno = saved;
    return ret;
}

#define REAL(name) ((typeof(&name))dlsym(RTLD_NEXT, #name))

ssize_t pwritev64(int fd, const struct iovec *iov, int n, off64_t offset)
{
    int file = file_of(fd);
    uint64_t id, bytes = 0;
    ssize_t ret;
    int i;

    if (file < 0) {
        return REAL(pwritev64)(fd, iov, n, offset);
    }
    for (i = 0; i < n; i++) {
        bytes += iov[i].iov_len;
    }
    id = begin(WRITE, file, offset, bytes, iov, n);
    ret = REAL(pwritev64)(fd, iov, n, offset);
    if (ret >= 0 && ret != bytes) {
        fail("a short write");
    }
    return end(id, file, ret);
}

ssize_t pwritev(int fd, const struct iovec *iov, int n, off_t offset)
{
    return pwritev64(fd, iov, n, offset);
}

ssize_t pwrite64(int fd, const void *buf, size_t bytes, off64_t offset)
{
    struct iovec iov = { (void *)buf, bytes };

    if (file_of(fd) < 0) {
        return REAL(pwrite64)(fd, buf, bytes, offset);
    }
    return pwritev64(fd, &iov, 1, offset);
}

ssize_t pwrite(int fd, const void *buf, size_t bytes, off_t offset)
{
    return pwrite64(fd, buf, bytes, offset);
}

int fallocate64(int fd, int mode, off64_t offset, off64_t bytes)
{
    int file = file_of(fd), ret;
    uint64_t id;

    if (file < 0) {
        return REAL(fallocate64)(fd, mode, offset, bytes);
    }
    if (mode & ~(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE |
                 FALLOC_FL_ZERO_RANGE) ||
        !(mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE))) {
        errno = EOPNOTSUPP;     /* there is another way */
        return -1;
    }
    id = begin(mode & FALLOC_FL_KEEP_SIZE ? PUNCH : ZERO, file, offset, bytes,
               NULL, 0);
    ret = REAL(fallocate64)(fd, mode, offset, bytes);
    return end(id, file, ret);
}

int fallocate(int fd, int mode, off_t offset, off_t bytes)
{
    return fallocate64(fd, mode, offset, bytes);
}

ssize_t copy_file_range(int in, off64_t *in_offset, int out,
                        off64_t *out_offset, size_t bytes, unsigned flags)
{
    if (file_of(out) < 0) {
        return REAL(copy_file_range)(in, in_offset, out, out_offset, bytes,
                                     flags);
    }
    errno = ENOSYS;
    return -1;
}

int ftruncate64(int fd, off64_t bytes)
{
    int file = file_of(fd), ret;
    uint64_t id;

    if (file < 0) {
        return REAL(ftruncate64)(fd, bytes);
    }
    id = begin(TRUNCATE, file, 0, bytes, NULL, 0);
    ret = REAL(ftruncate64)(fd, bytes);
    return end(id, file, ret);
}

int ftruncate(int fd, off_t bytes)
{
    return ftruncate64(fd, bytes);
}

int fdatasync(int fd)
{
    int file = file_of(fd), ret;
    uint64_t id;

    if (file < 0) {
        return REAL(fdatasync)(fd);
    }
    id = begin(FLUSH, file, 0, 0, NULL, 0);
    ret = REAL(fdatasync)(fd);
    return end(id, file, ret);
}

int fsync(int fd)
{
    return file_of(fd) < 0 ? REAL(fsync)(fd) : fdatasync(fd);
}

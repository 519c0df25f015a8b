/*
 * nbdkit plugin: files behind the one head of a slow disk
 *
 *     nbdkit -U SOCKET slow-disk.so file=FILE [file=FILE...] [PARAMETER=...]
 *
 * The files lie one behind the other on the disk; the exports "0", "1" ... are
 * one file each, the default export is the first.  Their contents should be in
 * the page cache or on something fast.  One head serves all requests, one after
 * the other; each takes as long as disk-model.h says, and is done not before
 * that time has passed.
 *
 *   queue=elevator     of the requests that wait the next one upwards is served
 *                      first, then from the start again (default)
 *   queue=fifo         they are served as they come
 *   seek-min=US seek-max=US rpm=N rate=BYTES ahead=BYTES
 *                      the model's parameters
 *   rotation=mean      each rotation takes half a turn
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#define NBDKIT_API_VERSION 2
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <nbdkit-plugin.h>
#include "disk-model.h"

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL
#define NS_PER_S     1000000000

typedef struct Request {
    uint64_t offset;
    struct Request *next;       /* that waits, in the order of arrival */
} Request;

#define MAX_FILES    8

/* A part of the disk */
typedef struct File {
    char *name;
    int fd;
    uint64_t begin;
    uint64_t size;
} File;

/* Set once, before the first connection */
static File files[MAX_FILES];
static unsigned nfiles;
static bool elevator = true;

/* Under lock */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t turn = PTHREAD_COND_INITIALIZER;
static DiskModel disk = { .p = DISK_MODEL_DEFAULT };
static Request *waiting;
static bool busy;

static int64_t now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec * (int64_t)NS_PER_S + ts.tv_nsec;
}

static void sleep_until(int64_t ns)
{
    struct timespec ts = { ns / NS_PER_S, ns % NS_PER_S };

    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, NULL) ==
           EINTR) {
        /* again */
    }
}

/* Which request is next?  There is one. */
static Request *next_locked(void)
{
    Request *best = waiting, *r;

    for (r = waiting; r && elevator; r = r->next) {
        /* Unsigned: what is behind the head comes after all the others */
        if (r->offset - disk.head < best->offset - disk.head) {
            best = r;
        }
    }
    return best;
}

/* Wait for the head, then for as long as the request takes. */
static void serve(uint64_t offset, uint64_t bytes, bool is_write)
{
    Request self = { .offset = offset }, **p;
    int64_t done_ns;

    pthread_mutex_lock(&lock);
    for (p = &waiting; *p; p = &(*p)->next) {
        /* to the end */
    }
    *p = &self;
    while (busy || next_locked() != &self) {
        pthread_cond_wait(&turn, &lock);
    }
    for (p = &waiting; *p != &self; p = &(*p)->next) {
        /* to self, which others have come before and after */
    }
    *p = self.next;
    busy = true;
    done_ns = disk_serve(&disk, offset, bytes, is_write, now_ns());
    pthread_mutex_unlock(&lock);

    sleep_until(done_ns);

    pthread_mutex_lock(&lock);
    busy = false;
    pthread_cond_broadcast(&turn);
    pthread_mutex_unlock(&lock);
}

/* nbdkit's callbacks */

static int set_number(const char *key, const char *value, int64_t least,
                      int64_t unit, int64_t *number)
{
    int64_t size = nbdkit_parse_size(value);

    if (size < least || size > INT64_MAX / unit) {
        nbdkit_error("%s is out of range: %s", key, value);
        return -1;
    }
    *number = size * unit;
    return 0;
}

static int set_choice(const char *key, const char *value, const char *yes,
                      const char *no, bool *choice)
{
    *choice = !strcmp(value, yes);
    if (!*choice && strcmp(value, no)) {
        nbdkit_error("%s must be %s or %s", key, yes, no);
        return -1;
    }
    return 0;
}

static int slow_config(const char *key, const char *value)
{
    DiskParams *p = &disk.p;
    int64_t number = 0;
    int ret = 0;

    if (!strcmp(key, "file")) {
        if (nfiles == MAX_FILES) {
            nbdkit_error("too many files");
            return -1;
        }
        files[nfiles].fd = -1;
        files[nfiles].name = nbdkit_absolute_path(value);
        return files[nfiles++].name ? 0 : -1;
    } else if (!strcmp(key, "queue")) {
        return set_choice(key, value, "elevator", "fifo", &elevator);
    } else if (!strcmp(key, "rotation")) {
        return set_choice(key, value, "mean", "angle", &p->mean_rotation);
    } else if (!strcmp(key, "seek-min")) {
        return set_number(key, value, 0, 1000, &p->seek_min_ns);
    } else if (!strcmp(key, "seek-max")) {
        return set_number(key, value, 0, 1000, &p->seek_max_ns);
    } else if (!strcmp(key, "rpm")) {
        ret = set_number(key, value, 1, 1, &number);
        p->rpm = number;
    } else if (!strcmp(key, "rate")) {
        ret = set_number(key, value, 1, 1, &number);
        p->rate = number;
    } else if (!strcmp(key, "ahead")) {
        ret = set_number(key, value, 0, 1, &number);
        p->ahead = number;
    } else {
        nbdkit_error("unknown parameter: %s", key);
        return -1;
    }
    return ret;
}

static int slow_config_complete(void)
{
    if (!nfiles) {
        nbdkit_error("file=FILE is missing");
        return -1;
    }
    return 0;
}

static int slow_get_ready(void)
{
    for (unsigned i = 0; i < nfiles; i++) {
        File *f = &files[i];
        struct stat st;

        f->fd = open(f->name, O_RDWR | O_CLOEXEC);
        if (f->fd < 0 || fstat(f->fd, &st) < 0) {
            nbdkit_error("%s: %m", f->name);
            return -1;
        }
        if (!st.st_size) {
            nbdkit_error("%s is empty", f->name);
            return -1;
        }
        f->begin = disk.p.size;
        f->size = st.st_size;
        disk.p.size += f->size;
    }
    return 0;
}

static void slow_unload(void)
{
    for (unsigned i = 0; i < nfiles; i++) {
        if (files[i].fd >= 0) {
            close(files[i].fd);
        }
        free(files[i].name);
    }
}

static void *slow_open(int readonly)
{
    const char *name = nbdkit_export_name();
    unsigned number = 0;

    if (!name) {
        return NULL;
    }
    if (*name && (nbdkit_parse_unsigned("export", name, &number) < 0 ||
                  number >= nfiles)) {
        nbdkit_error("no export '%s'", name);
        return NULL;
    }
    return &files[number];
}

static void slow_close(void *handle)
{
    /* it is one of files[] */
}

static int64_t slow_get_size(void *handle)
{
    File *f = handle;

    return f->size;
}

static int slow_pread(void *handle, void *buf, uint32_t count,
                      uint64_t offset, uint32_t flags)
{
    File *f = handle;
    char *p = buf;

    serve(f->begin + offset, count, false);
    while (count) {
        ssize_t n = pread(f->fd, p, count, offset);

        if (n <= 0) {
            nbdkit_error("pread: %m");
            return -1;
        }
        p += n;
        offset += n;
        count -= n;
    }
    return 0;
}

static int slow_pwrite(void *handle, const void *buf, uint32_t count,
                       uint64_t offset, uint32_t flags)
{
    File *f = handle;
    const char *p = buf;

    serve(f->begin + offset, count, true);
    while (count) {
        ssize_t n = pwrite(f->fd, p, count, offset);

        if (n < 0) {
            nbdkit_error("pwrite: %m");
            return -1;
        }
        p += n;
        offset += n;
        count -= n;
    }
    return 0;
}

/* What has been written is on the disk that we play. */
static int slow_flush(void *handle, uint32_t flags)
{
    return 0;
}

static int slow_can_fua(void *handle)
{
    return NBDKIT_FUA_NATIVE;
}

static int slow_can_multi_conn(void *handle)
{
    return 1;
}

static struct nbdkit_plugin plugin = {
    .name = "slow-disk",
    .longname = "files behind the head of a slow disk",
    .unload = slow_unload,
    .config = slow_config,
    .config_complete = slow_config_complete,
    .get_ready = slow_get_ready,
    .open = slow_open,
    .close = slow_close,
    .get_size = slow_get_size,
    .can_multi_conn = slow_can_multi_conn,
    .can_fua = slow_can_fua,
    .pread = slow_pread,
    .pwrite = slow_pwrite,
    .flush = slow_flush,
};

NBDKIT_REGISTER_PLUGIN(plugin)

/*
 * A watchdog for tests that may hang: names the test, and ends the program
 *
 * For one source file of a program, after qemu_init_main_loop().
 *
 * This work is licensed under the terms of the GNU GPL, version 2 or later.
 * See the COPYING file in the top-level directory.
 */

#ifndef BSST_WATCHDOG_H
#define BSST_WATCHDOG_H

static const char *watchdog_test;

static void watchdog_bark(int sig)
{
    static const char text[] = "\nwatchdog: hangs: ";

    if (write(STDERR_FILENO, text, sizeof(text) - 1) < 0 ||
        write(STDERR_FILENO, watchdog_test, strlen(watchdog_test)) < 0 ||
        write(STDERR_FILENO, "\n", 1) < 0) {
        /* we tried */
    }
    abort();
}

static void watchdog_init(void)
{
    struct sigaction action = { .sa_handler = watchdog_bark };
    sigset_t alarms;

    sigaction(SIGALRM, &action, NULL);
    /* The main loop has blocked it. */
    sigemptyset(&alarms);
    sigaddset(&alarms, SIGALRM);
    pthread_sigmask(SIG_UNBLOCK, &alarms, NULL);
}

/* The test @name, which stays where it is, is to end within @seconds. */
static void watchdog_begin(const char *name, unsigned seconds)
{
    watchdog_test = name;
    alarm(seconds);
}

static void watchdog_end(void)
{
    alarm(0);
}

#endif /* BSST_WATCHDOG_H */

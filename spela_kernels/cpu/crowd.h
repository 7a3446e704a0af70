/* Whether several threads are of use. While other processes hold the cores they are not: a loop takes as long as the
 * thread that waits longest for a core, and one thread alone is faster. In a forked process they are not there: only
 * the thread that forked is, and OpenMP would wait for the others for ever. What is computed is the same.
 *
 * Linux counts how long a thread was ready and had no core (Documentation/scheduler/sched-stats.rst); where it does
 * not, or elsewhere, nobody seems to be there.
 */
#ifndef SPELA_CROWD_H
#define SPELA_CROWD_H

#include <stdint.h>

#if defined(__linux__)
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#define LOOK 50000000    /* ns from one look to the next, at least */
#define ALONE 1000000000 /* ns on one thread, before several are tried again */
#define MUCH 0.1         /* of the time between two looks */

static int64_t nanoseconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

/* ns that this thread has waited for a core so far */
static int64_t waited(void)
{
    char text[96];
    long long ran, waited;
    int file = open("/proc/thread-self/schedstat", O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return 0;
    ssize_t size = read(file, text, sizeof text - 1);
    close(file);
    text[size > 0 ? size : 0] = 0;
    return sscanf(text, "%lld %lld", &ran, &waited) == 2 ? waited : 0;
}

static int forked;

static void in_child(void) { forked = 1; }

/* Once, before any thread is used. */
static int mind_forks(void) { return pthread_atfork(NULL, NULL, in_child); }

/* How many of the threads to use: all, or one. */
static int worthwhile(int64_t threads)
{
    static _Thread_local int64_t looked, before, until;
    int64_t now;
    if (threads < 2 || forked || (now = nanoseconds()) < until)
        return 1;
    if (now - looked < LOOK)
        return (int)threads;
    int64_t passed = now - looked, so_far = waited(), share = so_far - before;
    looked = now;
    before = so_far;
    if (share < MUCH * passed)
        return (int)threads;
    until = now + ALONE;
    looked = 0; /* the next look begins anew: what it waits alone says nothing of several threads */
    return 1;
}
#else
static int mind_forks(void) { return 0; }
static int worthwhile(int64_t threads) { return (int)threads; }
#endif

#endif

/* A forked process has only the thread that forked: OpenMP would wait there for ever for those it had before. So its
 * loops run on one thread, which computes the same.
 *
 * Source: pthread_atfork(3).
 */
#ifndef SPELA_FORKS_H
#define SPELA_FORKS_H

#include <stdint.h>

#if defined(__linux__)
#include <pthread.h>

static int forked;

static void in_child(void) { forked = 1; }

/* Once, when the module is loaded; 0 where it worked. */
static int mind_forks(void) { return pthread_atfork(NULL, NULL, in_child); }

/* How many of the threads asked for there are. */
static int at_hand(int64_t threads) { return forked ? 1 : (int)threads; }
#else /* built without OpenMP: one thread as it is */
static int mind_forks(void) { return 0; }
static int at_hand(int64_t threads) { return (int)threads; }
#endif

#endif

/*
 * Receiving requests, in the place of libfuse: what can be answered at once is, and the first request that cannot waits
 * here until pyfuse3 receives it. So a busy mount answers request after request without one step of the interpreter.
 *
 * The same while trio sleeps: then this waits for the kernel and for trio's events together.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

enum serve_outcome { SERVE_UNABLE = -1, SERVE_EMPTY = 0, SERVE_WAITING = 1, SERVE_MORE = 2 };

/* The session that talks over ``fd`` sends requests of at most ``size`` bytes. Without memory for one it is unable. */
void serve_begin(int fd, size_t size);
void serve_end(void);

/* Answer what comes, at most ``limit`` requests. WAITING: one is there for serve_receive(). */
enum serve_outcome serve_some(int limit);

/* The request that waits, in ``*memory``, which was allocated with malloc() or is NULL and is exchanged. -EINTR: none. */
ssize_t serve_receive(void **memory);

/* Whether serve_receive() is to be asked, and not libfuse. */
bool serve_is_able(void);

/*
 * Trio would sleep for so long until its ``events`` (its epoll) say something. Sleep in its place, and answer meanwhile.
 * Afterwards trio has something to do: its events, or ``wake``, an eventfd that is written to here and read by
 * serve_some(). Called without the interpreter's lock.
 */
void serve_idle(int events, int wake, double timeout_s);

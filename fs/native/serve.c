#define _GNU_SOURCE
#include "serve.h"

#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "fuse_shim.h"

#define BATCH 64 /* requests after which trio's events are looked at even if more requests wait */

static struct {
    int fd; /* -1: no session */
    void *memory; /* NULL: unable */
    size_t size;
    size_t waiting; /* bytes of the request in memory that waits for pyfuse3; 0: none */
    bool failing;   /* reading fails: libfuse shall see it by itself, and end the session */
    int wake;       /* an eventfd that was written to and not read yet; -1: none */
} serving = {.fd = -1, .wake = -1};

void serve_begin(int fd, size_t size)
{
    serve_end();
    serving.memory = malloc(size);
    serving.size = size;
    serving.fd = fd;
}

void serve_end(void)
{
    free(serving.memory);
    serving.memory = NULL;
    serving.fd = -1;
    serving.waiting = 0;
    serving.failing = false;
}

bool serve_is_able(void)
{
    return serving.memory && !serving.failing;
}

enum serve_outcome serve_some(int limit)
{
    if (!serving.memory)
        return SERVE_UNABLE;
    if (serving.wake >= 0) {
        uint64_t count;
        (void)!read(serving.wake, &count, sizeof count);
        serving.wake = -1;
    }
    for (int done = 0; done < limit; done++) {
        ssize_t count;

        if (serving.waiting || serving.failing)
            return SERVE_WAITING;
        count = read(serving.fd, serving.memory, serving.size);
        if (count > 0) {
            if (!answer_here(serving.memory, (size_t)count))
                serving.waiting = (size_t)count;
        } else if (count < 0 && errno == EAGAIN) {
            return SERVE_EMPTY;
        } else if (count == 0 || (errno != EINTR && errno != ENOENT)) { /* ENOENT: the caller was killed meanwhile */
            serving.failing = true;
        }
    }
    return serving.waiting || serving.failing ? SERVE_WAITING : SERVE_MORE;
}

ssize_t serve_receive(void **memory)
{
    void *other = *memory;
    size_t size = serving.waiting;

    if (!size || (!other && !(other = malloc(serving.size))))
        return -EINTR; /* nothing came; without memory it is tried again */
    *memory = serving.memory;
    serving.memory = other;
    serving.waiting = 0;
    return (ssize_t)size;
}

static double now_s(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static void wake_trio(int wake)
{
    uint64_t one = 1;

    if (serving.wake < 0 && write(wake, &one, sizeof one) == sizeof one)
        serving.wake = wake;
}

enum { FROM_KERNEL, FROM_EVENTS, FROM_CLOCK };

static int sleep_for_both(int events, double left_s)
{
    struct pollfd both[2] = {{.fd = serving.fd, .events = POLLIN}, {.fd = events, .events = POLLIN}};
    struct timespec left = {.tv_sec = (time_t)left_s, .tv_nsec = (long)((left_s - (double)(time_t)left_s) * 1e9)};

    if (ppoll(both, 2, &left, NULL) <= 0)
        return FROM_CLOCK; /* or a signal, which the interpreter wants to see */
    return both[1].revents ? FROM_EVENTS : FROM_KERNEL;
}

void serve_idle(int events, int wake, double timeout_s)
{
    int wake_before = serving.wake;
    double until = timeout_s > 0 ? now_s() + timeout_s : 0;

    if (!serve_is_able() || serving.waiting || wake_before >= 0)
        return; /* somebody was woken already and has not come yet, or all workers are busy */
    for (;;) {
        enum serve_outcome outcome = serve_some(BATCH);
        double left;

        if (outcome == SERVE_WAITING)
            break;
        if (timeout_s <= 0) {
            if (outcome == SERVE_MORE)
                break;
            return;
        }
        left = until - now_s();
        if (left <= 0)
            break;
        if (outcome == SERVE_MORE) {
            struct pollfd one = {.fd = events, .events = POLLIN};
            if (poll(&one, 1, 0))
                return;
        } else {
            int what = sleep_for_both(events, left);
            if (what == FROM_EVENTS)
                return;
            if (what == FROM_CLOCK)
                break;
        }
    }
    wake_trio(wake);
}

/*
 * In front of libfuse: what pyfuse3 has no handlers for, and what it does not show of a request.
 *
 * This extension is loaded with RTLD_GLOBAL before pyfuse3, so pyfuse3's calls of fuse_session_process_buf() come here
 * first. Looking up, opening, reading, flushing and closing a file that Python has offered (names.h, opens.h), making one where
 * Python has granted it (makes.h), and asking for attributes that an inode does not have (bare.h), is answered here. A request
 * whose operation code was asked for (install) goes to a Python function as raw bytes and is answered with reply(); every other
 * goes on to libfuse untouched. The reply to INIT passes by here too, and gets the flags that
 * libfuse 3.14 has no names for; from then on requests are received here (serve.h), not by libfuse.
 *
 * One session per process and one thread that answers it, as pyfuse3 has it; that guards all that is static here and in
 * the parts. Memory: a request lies in a buffer until fuse_session_process_buf() returns, so what is kept of it is
 * copied. No length that the kernel sends is believed without comparing it with the number of bytes that came.
 *
 * Messages: linux/fuse.h. Interposition: dlsym(3), RTLD_NEXT.
 */
#define PY_SSIZE_T_CLEAN
#define _GNU_SOURCE
#include <Python.h>

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#define FUSE_USE_VERSION 314
#include <fuse3/fuse_lowlevel.h>
#include <linux/fuse.h>

#include "askers.h"
#include "bare.h"
#include "entries.h"
#include "fuse_shim.h"
#include "makes.h"
#include "names.h"
#include "opens.h"
#include "serve.h"

#define OPCODES 128
#define BODY_KEPT 64 /* longest fixed part of what is looked at later: fuse_write_in, fuse_lk_in */

#define BEFORE_DATA 4096                /* room for the headers of a WRITE, as libfuse has it */
#define WRITE_MAX_LEAST (128 * 1024)    /* below, some other request could be the longest */

typedef void (*process_function)(struct fuse_session *, const struct fuse_buf *);
typedef int (*receive_function)(struct fuse_session *, struct fuse_buf *);

static struct {
    process_function process; /* libfuse's own */
    receive_function receive;
    PyObject *take;           /* owned; NULL: nothing is taken */
    bool taken[OPCODES];
    int fd; /* the session's descriptor, owned by libfuse; -1 before INIT and after detach() */

    uint64_t init_unique; /* of an INIT that waits for its reply; 0: none (the kernel counts from 2) */
    uint32_t offered;     /* flags that the kernel knows */
    uint32_t wanted;      /* flags to be added to the reply */
    uint32_t granted;     /* those of them that were */
    uint16_t background;  /* max_background of the reply; 0: as it is */

    struct fuse_in_header last; /* the request that was given to libfuse last; len 0: none */
    unsigned char body[BODY_KEPT];
    size_t body_size;
} shim = {.fd = -1};

/* Without this symbol (libfuse before 3.14) requests are taken all the same, only INIT stays as it is. */
extern int fuse_session_custom_io(struct fuse_session *, const struct fuse_custom_io *, int) __attribute__((weak));

/* --- replies ------------------------------------------------------------------------------------------------------ */

int send_reply(uint64_t unique, int error, const void *body, size_t size)
{
    struct fuse_out_header header = {.len = sizeof header + size, .error = -error, .unique = unique};
    struct iovec parts[2] = {{&header, sizeof header}, {(void *)body, size}};

    if (shim.fd < 0)
        return ENOTCONN;
    return writev(shim.fd, parts, size ? 2 : 1) < 0 ? errno : 0;
}

/* Add to libfuse's reply to INIT. Returns false if it is none that can be edited. */
static bool edit_init(const struct iovec *parts, int count, struct fuse_init_out *edited)
{
    struct fuse_out_header header;

    if (count != 2 || parts[0].iov_len != sizeof header || parts[1].iov_len > sizeof *edited ||
        parts[1].iov_len < offsetof(struct fuse_init_out, max_write))
        return false;
    memcpy(&header, parts[0].iov_base, sizeof header);
    if (header.unique != shim.init_unique || header.error)
        return false;
    memcpy(edited, parts[1].iov_base, parts[1].iov_len);
    shim.granted = shim.wanted & shim.offered;
    edited->flags |= shim.granted;
    if (shim.background) {
        edited->max_background = shim.background;
        edited->congestion_threshold = shim.background / 4 * 3;
    }
    if (parts[1].iov_len >= offsetof(struct fuse_init_out, max_write) + sizeof edited->max_write &&
        edited->max_write >= WRITE_MAX_LEAST)
        serve_begin(shim.fd, edited->max_write + BEFORE_DATA);
    return true;
}

static ssize_t io_writev(int fd, struct iovec *parts, int count, void *userdata)
{
    struct fuse_init_out edited;

    (void)userdata;
    if (shim.init_unique && edit_init(parts, count, &edited)) {
        struct iovec changed[2] = {parts[0], {&edited, parts[1].iov_len}};
        shim.init_unique = 0;
        return writev(fd, changed, 2);
    }
    return writev(fd, parts, count);
}

/*
 * What poll(2) saw may be gone when it is read: the program was killed, or its interrupt came too late. The descriptor
 * does not block, or the whole process would stand still until the kernel has something else to say. pyfuse3 takes
 * EINTR, and not EAGAIN, for "nothing came, go on".
 */
static ssize_t nothing_came(ssize_t count)
{
    if (count < 0 && errno == EAGAIN)
        errno = EINTR;
    return count;
}

static ssize_t io_read(int fd, void *buffer, size_t size, void *userdata)
{
    (void)userdata;
    return nothing_came(read(fd, buffer, size));
}

static ssize_t io_receive(int in, off_t *in_offset, int out, off_t *out_offset, size_t size, unsigned int flags,
                          void *userdata)
{
    (void)userdata;
    return nothing_came(splice(in, in_offset, out, out_offset, size, flags));
}

static ssize_t io_splice(int in, off_t *in_offset, int out, off_t *out_offset, size_t size, unsigned int flags,
                         void *userdata)
{
    (void)userdata;
    return splice(in, in_offset, out, out_offset, size, flags);
}

/* --- requests ----------------------------------------------------------------------------------------------------- */

static void begin_session(struct fuse_session *session, const struct fuse_in_header *header, const void *body,
                          size_t size)
{
    static const struct fuse_custom_io io = {
        .writev = io_writev, .read = io_read, .splice_receive = io_receive, .splice_send = io_splice};

    shim.fd = fuse_session_fd(session);
    if (size < offsetof(struct fuse_init_in, flags) + sizeof shim.offered || !fuse_session_custom_io)
        return;
    memcpy(&shim.offered, (const char *)body + offsetof(struct fuse_init_in, flags), sizeof shim.offered);
    if (!fuse_session_custom_io(session, &io, shim.fd)) {
        shim.init_unique = header->unique;
        fcntl(shim.fd, F_SETFL, fcntl(shim.fd, F_GETFL) | O_NONBLOCK);
    }
}

bool answer_here(const void *message, size_t size)
{
    struct fuse_in_header header;
    const char *body = (const char *)message + sizeof header;

    if (size < sizeof header || shim.fd < 0)
        return false;
    memcpy(&header, message, sizeof header);
    size -= sizeof header;
    asker_heard(&header);
    if (refuse_here(&header))
        return true;
    switch (header.opcode) {
    case FUSE_LOOKUP:
        return lookup_here(&header, body, size) || deny_here(&header, body, size);
    case FUSE_CREATE:
        return make_here(&header, body, size);
    case FUSE_OPEN:
        return open_here(&header, body, size);
    case FUSE_FLUSH:
    case FUSE_RELEASE:
        return close_here(&header, body, size) || made_here(&header, body, size);
    case FUSE_WRITE:
    case FUSE_GETATTR:
    case FUSE_SETATTR:
        return made_here(&header, body, size);
    case FUSE_READ:
        return read_here(&header, body, size);
    case FUSE_GETXATTR:
        return made_here(&header, body, size) || attributes_here(&header, body, size);
    case FUSE_LISTXATTR:
        return attributes_here(&header, body, size);
    case FUSE_IOCTL: /* isatty(3) of every open() of Python up to 3.12 */
        send_reply(header.unique, ENOTTY, NULL, 0);
        return true;
    default:
        return false;
    }
}

/* Ask Python. True: it will be answered by reply(), or has been here. The lock is held. */
static bool offer(const struct fuse_in_header *header, const void *body, size_t size)
{
    PyObject *answer = PyObject_CallFunction(shim.take, "IKKIIIy#", (unsigned int)header->opcode,
                                             (unsigned long long)header->unique, (unsigned long long)header->nodeid,
                                             (unsigned int)header->uid, (unsigned int)header->gid,
                                             (unsigned int)header->pid, (const char *)body, (Py_ssize_t)size);
    int taken = answer ? PyObject_IsTrue(answer) : -1;

    Py_XDECREF(answer);
    if (taken >= 0)
        return taken;
    PyErr_WriteUnraisable(shim.take);
    send_reply(header->unique, EIO, NULL, 0);
    return true;
}

/* In front of libfuse's function of this name. */
__attribute__((visibility("default"))) void fuse_session_process_buf(struct fuse_session *session,
                                                                     const struct fuse_buf *buffer)
{
    struct fuse_in_header header;
    PyGILState_STATE lock = PyGILState_Ensure();
    bool done = false;

    shim.last.len = 0;
    /* A request that is still in a pipe is a large write: libfuse's. */
    if (!(buffer->flags & FUSE_BUF_IS_FD) && buffer->size >= sizeof header) {
        const char *body = (const char *)buffer->mem + sizeof header;
        size_t size = buffer->size - sizeof header;

        memcpy(&header, buffer->mem, sizeof header);
        name_by_inode(&header, (char *)buffer->mem + sizeof header, size);
        shim.last = header;
        shim.body_size = size < BODY_KEPT ? size : BODY_KEPT;
        memcpy(shim.body, body, shim.body_size);
        if (header.opcode == FUSE_INIT)
            begin_session(session, &header, body, size);
        else if (answer_here(buffer->mem, buffer->size))
            done = true;
        else {
            makes_give(&header, body, size);
            if (header.opcode < OPCODES && shim.taken[header.opcode] && shim.take && shim.fd >= 0)
                done = offer(&header, body, size);
        }
    }
    PyGILState_Release(lock);
    if (!done)
        shim.process(session, buffer);
}

/* The same for this one. */
__attribute__((visibility("default"))) int fuse_session_receive_buf(struct fuse_session *session,
                                                                    struct fuse_buf *buffer)
{
    ssize_t count;

    if (!serve_is_able() || fuse_session_fd(session) != shim.fd)
        return shim.receive(session, buffer);
    count = serve_receive(&buffer->mem);
    if (count > 0) {
        buffer->size = (size_t)count;
        buffer->flags = 0;
    }
    return (int)count;
}

/* --- what Python sees --------------------------------------------------------------------------------------------- */

PyDoc_STRVAR(install_doc, "install(take, opcodes, flags, max_background)\n\n"
                          "Give requests with these operation codes to take(opcode, unique, nodeid, uid, gid, pid, "
                          "body) -> bool; False passes one on to libfuse. Flags are added to the reply to INIT, as far "
                          "as the kernel knows them.");

static PyObject *install(PyObject *self, PyObject *args)
{
    PyObject *take;
    Py_buffer opcodes;
    unsigned int flags;
    unsigned short background;
    bool taken[OPCODES] = {false};

    (void)self;
    if (!PyArg_ParseTuple(args, "Oy*IH", &take, &opcodes, &flags, &background))
        return NULL;
    for (Py_ssize_t i = 0; i < opcodes.len; i++) {
        unsigned char opcode = ((const unsigned char *)opcodes.buf)[i];
        if (opcode >= OPCODES) {
            PyBuffer_Release(&opcodes);
            return PyErr_Format(PyExc_ValueError, "there is no operation %d", opcode);
        }
        taken[opcode] = true;
    }
    PyBuffer_Release(&opcodes);
    Py_INCREF(take);
    Py_XSETREF(shim.take, take);
    memcpy(shim.taken, taken, sizeof taken);
    shim.wanted = flags;
    shim.background = background;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(detach_doc, "detach()\n\nThe session ends: take nothing any more, and never write to its descriptor.");

static PyObject *detach(PyObject *self, PyObject *args)
{
    (void)self;
    (void)args;
    shim.fd = -1;
    shim.init_unique = 0;
    shim.granted = 0;
    shim.last.len = 0;
    serve_end();
    makes_end();
    opens_end();
    bare_end();
    askers_end();
    Py_CLEAR(shim.take);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(reply_doc, "reply(unique, error, body) -> bool\n\n"
                        "Answer a request that was taken, once. False if the kernel does not wait for it any more. "
                        "Raises OSError.");

static PyObject *reply(PyObject *self, PyObject *args)
{
    unsigned long long unique;
    int error, failure;
    Py_buffer body;

    (void)self;
    if (!PyArg_ParseTuple(args, "Kiy*", &unique, &error, &body))
        return NULL;
    failure = send_reply(unique, error, body.buf, (size_t)body.len);
    PyBuffer_Release(&body);
    if (!failure)
        Py_RETURN_TRUE;
    if (failure == ENOENT)
        Py_RETURN_FALSE;
    errno = failure;
    return PyErr_SetFromErrno(PyExc_OSError);
}

PyDoc_STRVAR(current_doc, "current() -> (opcode, unique, nodeid, body) | None\n\n"
                          "The request that libfuse is carrying out: the one of the handler that has not waited for "
                          "anything yet. At most 64 bytes of its body.");

static PyObject *current(PyObject *self, PyObject *args)
{
    (void)self;
    (void)args;
    if (!shim.last.len)
        Py_RETURN_NONE;
    return Py_BuildValue("IKKy#", (unsigned int)shim.last.opcode, (unsigned long long)shim.last.unique,
                         (unsigned long long)shim.last.nodeid, (const char *)shim.body, (Py_ssize_t)shim.body_size);
}

PyDoc_STRVAR(granted_doc, "granted() -> int | None\n\n"
                          "The flags that were added to the reply to INIT; None if no session has begun here: then "
                          "pyfuse3's calls do not come this way.");

static PyObject *granted(PyObject *self, PyObject *args)
{
    (void)self;
    (void)args;
    if (shim.fd < 0)
        Py_RETURN_NONE;
    return PyLong_FromUnsignedLong(shim.granted);
}

PyDoc_STRVAR(serve_doc, "serve(limit) -> int\n\n"
                        "Answer what comes, at most so many requests. 1: one is there for pyfuse3 to receive; 0: nothing "
                        "is; 2: there may be more; -1: libfuse receives, nothing can be said here.");

static PyObject *serve(PyObject *self, PyObject *args)
{
    int limit;

    (void)self;
    if (!PyArg_ParseTuple(args, "i", &limit))
        return NULL;
    return PyLong_FromLong(serve_some(limit));
}

PyDoc_STRVAR(idle_doc, "idle(events, wake, timeout_s)\n\n"
                       "In the place of an event loop that would sleep so long for its epoll events: answer requests "
                       "until it has something to do. A request that is not answered here makes the eventfd wake "
                       "readable, until serve() is called.");

static PyObject *idle(PyObject *self, PyObject *args)
{
    int events, wake;
    double timeout_s;

    (void)self;
    if (!PyArg_ParseTuple(args, "iid", &events, &wake, &timeout_s))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    serve_idle(events, wake, timeout_s);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"install", install, METH_VARARGS, install_doc},
    {"detach", detach, METH_NOARGS, detach_doc},
    {"reply", reply, METH_VARARGS, reply_doc},
    {"current", current, METH_NOARGS, current_doc},
    {"granted", granted, METH_NOARGS, granted_doc},
    {"serve", serve, METH_VARARGS, serve_doc},
    {"idle", idle, METH_VARARGS, idle_doc},
    MAKES_METHODS,
    OPENS_METHODS,
    NAMES_METHODS,
    BARE_METHODS,
    ENTRIES_METHODS,
    ASKERS_METHODS,
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_fuse_shim", "In front of libfuse.", -1, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__fuse_shim(void)
{
    shim.process = (process_function)dlsym(RTLD_NEXT, "fuse_session_process_buf");
    shim.receive = (receive_function)dlsym(RTLD_NEXT, "fuse_session_receive_buf");
    if (!shim.process || !shim.receive) {
        PyErr_SetString(PyExc_ImportError, "libfuse has no fuse_session_process_buf or fuse_session_receive_buf");
        return NULL;
    }
    return PyModule_Create(&definition);
}

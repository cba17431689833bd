#define _GNU_SOURCE
#include "opens.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#include "fuse_shim.h"
#include "open_table.h"

#define OPENED_HERE ((uint64_t)1 << 63) /* set in the handle of every file that was opened here; fs/handles.py */

static struct {
    double believed_until_s; /* CLOCK_BOOTTIME; afterwards nothing is opened here */
    uint64_t opened;         /* how many were; also what the next handle is made of */
    uint64_t held;           /* Invariant: the sum of the opens in the table */
    bool refused;            /* nothing is opened, by anybody */
} opens;

static bool is_believed(void)
{
    struct timespec now;

    return !clock_gettime(CLOCK_BOOTTIME, &now) &&
           (double)now.tv_sec + (double)now.tv_nsec / 1e9 < opens.believed_until_s;
}

bool open_here(const struct fuse_in_header *header, const void *body, size_t size)
{
    struct open_entry *entry = open_table_find(header->nodeid);
    struct fuse_open_in asked;
    struct fuse_open_out opened = {.fh = OPENED_HERE | (opens.opened + 1)};

    if (!entry || entry->opens == UINT32_MAX || size < sizeof asked || !is_believed())
        return false;
    memcpy(&asked, body, sizeof asked);
    if ((asked.flags & O_ACCMODE) != O_RDONLY || asked.flags & (O_TRUNC | O_APPEND | O_DIRECT | O_SYNC | O_DSYNC))
        return false;
    opened.open_flags = entry->keep ? FOPEN_KEEP_CACHE : 0;
    if (!send_reply(header->unique, 0, &opened, sizeof opened)) { /* else nobody waits for it any more */
        entry->opens++;
        opens.held++;
        entry->keep = true; /* from here on the kernel has pages of these contents only */
        opens.opened++;
    }
    return true;
}

/* FLUSH and RELEASE. Nothing was written or locked through a handle of a file that is still offered. */
bool close_here(const struct fuse_in_header *header, const void *body, size_t size)
{
    struct open_entry *entry = open_table_find(header->nodeid);
    uint64_t handle;

    if (!entry || size < sizeof handle)
        return false;
    memcpy(&handle, body, sizeof handle); /* the first field of both requests */
    if (!(handle & OPENED_HERE) || !entry->opens)
        return false;
    if (header->opcode == FUSE_RELEASE) {
        entry->opens--;
        opens.held--;
    }
    send_reply(header->unique, 0, NULL, 0);
    return true;
}

/* Somebody has mounted again what is only read, to write: remount of mount(8) does not ask us. */
static bool is_change(uint32_t opcode)
{
    switch (opcode) {
    case FUSE_SETATTR:
    case FUSE_SYMLINK:
    case FUSE_MKNOD:
    case FUSE_MKDIR:
    case FUSE_UNLINK:
    case FUSE_RMDIR:
    case FUSE_RENAME:
    case FUSE_RENAME2:
    case FUSE_LINK:
    case FUSE_WRITE:
    case FUSE_SETXATTR:
    case FUSE_REMOVEXATTR:
    case FUSE_CREATE:
    case FUSE_FALLOCATE:
    case FUSE_COPY_FILE_RANGE:
    case 51: /* FUSE_TMPFILE, of headers newer than some */
    case 53: /* FUSE_COPY_FILE_RANGE_64 */
        return true;
    default:
        return false;
    }
}

bool refuse_here(const struct fuse_in_header *header)
{
    if (!opens.refused)
        return false;
    if (header->opcode == FUSE_OPEN || header->opcode == FUSE_FLUSH)
        send_reply(header->unique, ENOSYS, NULL, 0);
    else if (is_change(header->opcode))
        send_reply(header->unique, EROFS, NULL, 0);
    else
        return false;
    return true;
}

void name_by_inode(const struct fuse_in_header *header, void *body, size_t size)
{
    uint64_t handle = OPENED_HERE | header->nodeid;
    bool is_named = header->opcode == FUSE_READ || header->opcode == FUSE_LSEEK || header->opcode == FUSE_FSYNC;

    if (opens.refused && is_named && size >= sizeof handle)
        memcpy(body, &handle, sizeof handle); /* the first field of each of them */
}

void opens_end(void)
{
    opens.refused = false;
    open_table_clear();
    opens.held = 0;
    opens.believed_until_s = 0;
}

/* --- what Python sees --------------------------------------------------------------------------------------------- */

const char offer_doc[] = "offer(node, keep) -> bool\n\n"
                        "From now on the inode is opened for reading, flushed and closed without a word. keep: pages that "
                        "the kernel has of it are its contents. False if there is no room.";

PyObject *offer_open(PyObject *self, PyObject *args)
{
    unsigned long long node;
    int keep;

    (void)self;
    if (!PyArg_ParseTuple(args, "Kp", &node, &keep))
        return NULL;
    return PyBool_FromLong(open_table_offer(node, keep));
}

const char withdraw_doc[] = "withdraw(node) -> int\n\n"
                           "Not any more. Returns how many handles there are that were opened so: from now on they are "
                           "Python's.";

PyObject *withdraw(PyObject *self, PyObject *args)
{
    unsigned long long node;
    uint32_t count;

    (void)self;
    if (!PyArg_ParseTuple(args, "K", &node))
        return NULL;
    count = open_table_withdraw(node);
    opens.held -= count;
    return PyLong_FromUnsignedLong(count);
}

static void append_open(const struct open_entry *entry, void *list)
{
    PyObject *pair;

    if (!entry->opens || PyErr_Occurred())
        return;
    pair = Py_BuildValue("KI", (unsigned long long)entry->node, (unsigned int)entry->opens);
    if (pair)
        PyList_Append(list, pair);
    Py_XDECREF(pair);
}

const char withdraw_all_doc[] = "withdraw_all() -> list[tuple[int, int]]\n\n"
                               "As withdraw() of every inode: those that are open, and how often.";

PyObject *withdraw_all(PyObject *self, PyObject *args)
{
    PyObject *list = PyList_New(0);

    (void)self;
    (void)args;
    if (list)
        open_table_each(append_open, list);
    if (PyErr_Occurred()) {
        Py_XDECREF(list);
        return NULL; /* nothing was withdrawn */
    }
    open_table_clear();
    opens.held = 0;
    return list;
}

const char any_open_doc[] = "any_open() -> bool\n\nWhether anything is open that was opened here.";

PyObject *any_open(PyObject *self, PyObject *args)
{
    (void)self;
    (void)args;
    return PyBool_FromLong(opens.held != 0);
}

const char believe_doc[] = "believe_until(boottime_s)\n\n"
                          "Open nothing here after that time, of CLOCK_BOOTTIME in seconds.";

PyObject *believe_until(PyObject *self, PyObject *args)
{
    (void)self;
    if (!PyArg_ParseTuple(args, "d", &opens.believed_until_s))
        return NULL;
    Py_RETURN_NONE;
}

const char opened_doc[] = "opened() -> int\n\nHow many opens were answered here.";

PyObject *opened(PyObject *self, PyObject *args)
{
    (void)self;
    (void)args;
    return PyLong_FromUnsignedLongLong(opens.opened);
}

const char refuse_doc[] = "refuse_opens()\n\n"
                          "The kernel shall not ask for opens and closes of files at all; whoever would change something "
                          "gets EROFS. A READ, LSEEK or FSYNC then has a handle that is made of the inode's number.";

PyObject *refuse_opens(PyObject *self, PyObject *args)
{
    (void)self;
    (void)args;
    opens.refused = true;
    Py_RETURN_NONE;
}

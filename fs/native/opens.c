#define _GNU_SOURCE
#include "opens.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#include "fuse_shim.h"
#include "names.h"
#include "open_table.h"

#define OPENED_HERE ((uint64_t)1 << 63) /* set in the handle of every file that was opened here; fs/handles.py */

#define READ_MAX 65536 /* files whose reading is noted between two calls of read_through(); others are not noted */

static struct {
    double believed_until_s; /* CLOCK_BOOTTIME; afterwards nothing is opened here */
    uint64_t opened;         /* how many were; also what the next handle is made of */
    uint64_t held;           /* Invariant: the sum of the opens in the table */
    bool refused;            /* nothing is opened, by anybody */
    uint64_t read[READ_MAX]; /* inodes that were read to their end */
    size_t read_count;
} opens;

double opens_left_s(void)
{
    struct timespec now;

    if (clock_gettime(CLOCK_BOOTTIME, &now))
        return 0;
    return opens.believed_until_s - ((double)now.tv_sec + (double)now.tv_nsec / 1e9);
}

static bool is_believed(void)
{
    return opens_left_s() > 0;
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

/* Of a file whose bytes are here. */
bool read_here(const struct fuse_in_header *header, const void *body, size_t size)
{
    struct open_entry *entry = open_table_find(header->nodeid);
    struct fuse_read_in asked;
    size_t start, count;

    if (!entry || !entry->data || !entry->opens || size < sizeof asked || !is_believed())
        return false;
    memcpy(&asked, body, sizeof asked);
    if (!(asked.fh & OPENED_HERE))
        return false;
    start = asked.offset < entry->size ? (size_t)asked.offset : entry->size;
    count = entry->size - start < asked.size ? entry->size - start : asked.size;
    if (!send_reply(header->unique, 0, entry->data + start, count) && start + count == entry->size && !entry->read &&
        opens.read_count < READ_MAX) {
        entry->read = true;
        opens.read[opens.read_count++] = entry->node;
    }
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

/* The lock is held. */
static void let_go(const struct open_entry *entry, void *argument)
{
    (void)argument;
    Py_XDECREF((PyObject *)entry->owner);
}

void opens_end(void)
{
    opens.refused = false;
    names_end();
    open_table_each(let_go, NULL);
    open_table_clear();
    opens.held = 0;
    opens.read_count = 0;
    opens.believed_until_s = 0;
}

/* --- what Python sees --------------------------------------------------------------------------------------------- */

const char offer_doc[] = "offer(node, keep, data=None) -> bool\n\n"
                        "From now on the inode is opened for reading, flushed and closed without a word. keep: pages that "
                        "the kernel has of it are its contents. data: all its bytes, as bytes or as a memoryview, or None "
                        "to let go of those that are here: with them it is read without a word, too. False if there is no "
                        "room.";

/* The object's bytes, which stay where they are and as they are as long as the owner that is returned lives; of a
 * memoryview that is another, since anybody may release the one that was given. */
static PyObject *own(PyObject *data, const char **bytes, size_t *size)
{
    PyObject *view;

    if (PyBytes_Check(data)) {
        *bytes = PyBytes_AS_STRING(data);
        *size = (size_t)PyBytes_GET_SIZE(data);
        return Py_NewRef(data);
    }
    if (!PyMemoryView_Check(data) || !PyMemoryView_GET_BUFFER(data)->readonly ||
        !PyBuffer_IsContiguous(PyMemoryView_GET_BUFFER(data), 'C')) {
        PyErr_SetString(PyExc_TypeError, "data: bytes, a contiguous memoryview that is only read, or None");
        return NULL;
    }
    view = PyMemoryView_FromObject(data);
    if (view) {
        *bytes = PyMemoryView_GET_BUFFER(view)->buf;
        *size = (size_t)PyMemoryView_GET_BUFFER(view)->len;
    }
    return view;
}

PyObject *offer_open(PyObject *self, PyObject *args)
{
    unsigned long long node;
    int keep;
    PyObject *data = Py_None, *owner = NULL;
    const char *bytes = NULL;
    size_t size = 0;
    struct open_entry *entry;

    (void)self;
    if (!PyArg_ParseTuple(args, "Kp|O", &node, &keep, &data))
        return NULL;
    if (data != Py_None && !(owner = own(data, &bytes, &size)))
        return NULL;
    entry = open_table_offer(node, keep);
    if (!entry) {
        Py_XDECREF(owner);
        Py_RETURN_FALSE;
    }
    Py_XDECREF((PyObject *)entry->owner);
    entry->owner = owner;
    entry->data = bytes;
    entry->size = size;
    entry->read = false;
    Py_RETURN_TRUE;
}

const char withdraw_doc[] = "withdraw(node) -> int\n\n"
                           "Not any more. Returns how many handles there are that were opened so: from now on they are "
                           "Python's.";

PyObject *withdraw(PyObject *self, PyObject *args)
{
    unsigned long long node;
    struct open_entry *entry, taken;

    (void)self;
    if (!PyArg_ParseTuple(args, "K", &node))
        return NULL;
    entry = open_table_find(node);
    if (entry)
        names_let_go(entry->name);
    taken = open_table_withdraw(node);
    opens.held -= taken.opens;
    Py_XDECREF((PyObject *)taken.owner);
    return PyLong_FromUnsignedLong(taken.opens);
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
    names_forget_all();
    open_table_each(let_go, NULL);
    open_table_clear();
    opens.held = 0;
    return list;
}

const char read_through_doc[] = "read_through() -> list[int]\n\n"
                               "Inodes of which all bytes were read here since the last call, and that are still offered as "
                               "they were then. Their bytes are let go of: the kernel has them.";

PyObject *read_through(PyObject *self, PyObject *args)
{
    PyObject *list = PyList_New(0);

    (void)self;
    (void)args;
    while (list && opens.read_count) {
        struct open_entry *entry = open_table_find(opens.read[--opens.read_count]);
        PyObject *node;

        if (!entry || !entry->read)
            continue; /* withdrawn since, and perhaps offered again with other bytes */
        entry->read = false;
        entry->data = NULL;
        Py_CLEAR(entry->owner);
        node = PyLong_FromUnsignedLongLong(entry->node);
        if (!node || PyList_Append(list, node))
            Py_CLEAR(list);
        Py_XDECREF(node);
    }
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

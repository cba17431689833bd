#include "entries.h"

#include <stdbool.h>
#include <stddef.h> /* before linux/fuse.h, which uses it */
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>

#include <linux/fuse.h>

#define NAME_BYTES_MAX 255
#define BLOCK_SIZE_BYTES (64 * 1024) /* fs/fuse_wire.py */
#define SECTOR_BYTES 512
#define NS 1000000000LL

/* How long the kernel may keep what is so. */
struct valid {
    uint64_t seconds;
    uint32_t nanoseconds;
};

static struct valid valid_for(double left_s)
{
    struct valid valid = {.seconds = (uint64_t)left_s};

    valid.nanoseconds = (uint32_t)((left_s - (double)valid.seconds) * 1e9);
    return valid;
}

/* The fields of an Inode (mds/messages/records.py) that the kernel is told of. */
enum { INO, SIZE, USED, ATIME, MTIME, CTIME, MODE, NLINK, UID, GID, RDEV, FIELDS };
static const char *const field_names[FIELDS] = {"ino",      "size_bytes", "used_bytes", "atime_ns", "mtime_ns", "ctime_ns",
                                                "mode",     "nlink",      "uid",        "gid",      "rdev"};
static PyObject *fields[FIELDS]; /* interned; kept for ever */

static bool name_fields(void)
{
    for (int i = 0; i < FIELDS; i++)
        if (!fields[i] && !(fields[i] = PyUnicode_InternFromString(field_names[i])))
            return false;
    return true;
}

/* False: an exception is set. */
static bool number_of(PyObject *inode, int field, int64_t *number)
{
    PyObject *value = PyObject_GetAttr(inode, fields[field]);

    if (!value)
        return false;
    *number = PyLong_AsLongLong(value);
    Py_DECREF(value);
    return *number != -1 || !PyErr_Occurred();
}

static void set_time(int64_t time_ns, uint64_t *seconds, uint32_t *nanoseconds)
{
    int64_t rest = time_ns % NS;

    if (rest < 0)
        rest += NS;
    *nanoseconds = (uint32_t)rest;
    *seconds = (uint64_t)((time_ns - rest) / NS);
}

/* struct fuse_attr. False: an exception is set. */
static bool set_attributes(PyObject *inode, struct fuse_attr *attr)
{
    int64_t of[FIELDS];

    for (int i = 0; i < FIELDS; i++)
        if (!number_of(inode, i, &of[i]))
            return false;
    attr->ino = (uint64_t)of[INO];
    attr->size = (uint64_t)of[SIZE];
    attr->blocks = ((uint64_t)of[USED] + SECTOR_BYTES - 1) / SECTOR_BYTES;
    set_time(of[ATIME], &attr->atime, &attr->atimensec);
    set_time(of[MTIME], &attr->mtime, &attr->mtimensec);
    set_time(of[CTIME], &attr->ctime, &attr->ctimensec);
    attr->mode = (uint32_t)of[MODE];
    attr->nlink = (uint32_t)of[NLINK];
    attr->uid = (uint32_t)of[UID];
    attr->gid = (uint32_t)of[GID];
    attr->rdev = (uint32_t)of[RDEV];
    attr->blksize = BLOCK_SIZE_BYTES;
    return true;
}

/* Write one entry behind ``end``. Returns how many bytes it took; 0: an exception is set. */
static size_t pack_entry(PyObject *given, struct valid entry_valid, struct valid attr_valid, char *end)
{
    struct fuse_direntplus entry = {0};
    const char *name;
    PyObject *inode;
    Py_ssize_t length;
    unsigned long long cookie;
    int keeps_name, keeps_attributes;
    size_t size;

    if (!PyTuple_Check(given)) {
        PyErr_SetString(PyExc_TypeError, "an entry is a tuple");
        return 0;
    }
    if (!PyArg_ParseTuple(given, "y#OKpp", &name, &length, &inode, &cookie, &keeps_name, &keeps_attributes))
        return 0;
    if (length > NAME_BYTES_MAX) {
        PyErr_SetString(PyExc_ValueError, "a name of more than 255 bytes");
        return 0;
    }
    if (!set_attributes(inode, &entry.entry_out.attr))
        return 0;
    entry.entry_out.nodeid = entry.entry_out.attr.ino;
    if (keeps_name) {
        entry.entry_out.entry_valid = entry_valid.seconds;
        entry.entry_out.entry_valid_nsec = entry_valid.nanoseconds;
    }
    if (keeps_attributes) {
        entry.entry_out.attr_valid = attr_valid.seconds;
        entry.entry_out.attr_valid_nsec = attr_valid.nanoseconds;
    }
    entry.dirent.ino = entry.entry_out.attr.ino;
    entry.dirent.off = cookie;
    entry.dirent.namelen = (uint32_t)length;
    entry.dirent.type = (entry.entry_out.attr.mode & S_IFMT) >> 12; /* DT_ of readdir(3) */
    size = FUSE_DIRENT_ALIGN(FUSE_NAME_OFFSET_DIRENTPLUS + (size_t)length);
    memcpy(end, &entry, FUSE_NAME_OFFSET_DIRENTPLUS);
    memcpy(end + FUSE_NAME_OFFSET_DIRENTPLUS, name, (size_t)length);
    memset(end + FUSE_NAME_OFFSET_DIRENTPLUS + length, 0, size - FUSE_NAME_OFFSET_DIRENTPLUS - (size_t)length);
    return size;
}

const char pack_entries_doc[] = "pack_entries(entries, entry_s, attr_s) -> bytes\n\n"
                                "The body of the reply to a READDIRPLUS. entries: a list of (name, inode, cookie, "
                                "keeps_name, keeps_attributes); where these are true, the kernel may keep the name and the "
                                "attributes for so long.";

PyObject *pack_entries(PyObject *self, PyObject *args)
{
    PyObject *entries, *reply;
    double entry_s, attr_s;
    size_t size = 0;

    (void)self;
    if (!PyArg_ParseTuple(args, "O!dd", &PyList_Type, &entries, &entry_s, &attr_s) || !name_fields())
        return NULL;
    if (!(entry_s >= 0 && attr_s >= 0 && entry_s < 1e9 && attr_s < 1e9)) {
        PyErr_SetString(PyExc_ValueError, "how long in seconds, from 0 to 1e9");
        return NULL;
    }
    reply = PyBytes_FromStringAndSize(
        NULL, PyList_GET_SIZE(entries) * (Py_ssize_t)FUSE_DIRENT_ALIGN(FUSE_NAME_OFFSET_DIRENTPLUS + NAME_BYTES_MAX));
    /* What an entry's attributes are is asked with Python's means, so the list may change meanwhile. */
    for (Py_ssize_t i = 0, count = PyList_GET_SIZE(entries); reply && i < count && i < PyList_GET_SIZE(entries); i++) {
        PyObject *given = Py_NewRef(PyList_GET_ITEM(entries, i));
        size_t taken = pack_entry(given, valid_for(entry_s), valid_for(attr_s), PyBytes_AS_STRING(reply) + size);

        Py_DECREF(given);
        if (!taken)
            Py_CLEAR(reply);
        size += taken;
    }
    if (reply)
        _PyBytes_Resize(&reply, (Py_ssize_t)size);
    return reply;
}

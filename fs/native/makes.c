#define _GNU_SOURCE
#include "makes.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "concerned.h"
#include "fuse_shim.h"
#include "granted.h"
#include "made_files.h"
#include "names.h"
#include "opens.h"
#include "serve.h"

#define MADE_HERE ((uint64_t)1 << 62) /* set in the handle of every file that was made here */
#define NS 1000000000LL
#define TIME_S_MAX 100000000000LL /* beyond, Python finds the nearest time that can be stored */
#define BLOCK_SIZE 65536 /* st_blksize, as fs/fuse_wire.py has it */

static struct {
    struct made_files files;
    bool begun;
    uint64_t next, end; /* inode numbers to be used */
    uint64_t handles;   /* also how many files were made */
    PyObject *take;     /* owned; NULL: nothing was granted */
} makes;

static int64_t present_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_REALTIME, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* --- names -------------------------------------------------------------------------------------------------------- */

bool deny_here(const struct fuse_in_header *header, const void *body, size_t size)
{
    struct grant *grant = granted_find(header->nodeid);
    struct fuse_entry_out answer = {0};
    double left_s;
    size_t length;

    if (!grant || grant->over || !granted_parse(body, size, &length) || granted_name(grant, body, length))
        return false;
    left_s = opens_left_s();
    if (left_s <= 0)
        return false;
    names_valid_for(&answer, left_s);
    send_reply(header->unique, 0, &answer, sizeof answer);
    return true;
}

/* --- files -------------------------------------------------------------------------------------------------------- */

static void set_time(int64_t time_ns, uint64_t *seconds, uint32_t *nanoseconds)
{
    int64_t rest = (time_ns % NS + NS) % NS;

    *seconds = (uint64_t)((time_ns - rest) / NS);
    *nanoseconds = (uint32_t)rest;
}

static void describe(const struct made_file *file, struct fuse_attr *attr)
{
    int64_t changed_ns = file->written_ns > file->made_ns ? file->written_ns : file->made_ns;

    attr->ino = file->node;
    attr->size = file->size;
    set_time(file->set & FATTR_ATIME ? file->set_atime_ns : file->made_ns, &attr->atime, &attr->atimensec);
    set_time(file->set & FATTR_MTIME ? file->set_mtime_ns : changed_ns, &attr->mtime, &attr->mtimensec);
    set_time(file->changed_ns > changed_ns ? file->changed_ns : changed_ns, &attr->ctime, &attr->ctimensec);
    attr->mode = S_IFREG | (file->set & FATTR_MODE ? file->set_mode : file->mode & ~file->umask);
    attr->nlink = 1;
    attr->uid = file->set & FATTR_UID ? file->set_uid : file->uid;
    attr->gid = file->set & FATTR_GID ? file->set_gid : file->gid;
    attr->blksize = BLOCK_SIZE;
}

/* Of a request that makes a file as Python would, without looking at anything but the directory. */
static bool is_plain(const struct grant *grant, const struct fuse_in_header *header, const struct fuse_create_in *asked)
{
    if (asked->flags & (O_APPEND | O_DIRECT | O_SYNC | O_DSYNC | __O_TMPFILE) || asked->mode & (S_ISUID | S_ISGID))
        return false;
    return (S_ISREG(asked->mode) || !(asked->mode & S_IFMT)) && (!header->uid || header->uid == grant->uid);
}

/* For the kernel each file that is made makes its directory's attributes old, and it wants them to check permissions. */
static bool describe_directory(const struct fuse_in_header *header)
{
    const struct grant *grant = granted_find(header->nodeid);
    struct fuse_attr_out answer = {0};
    double left_s = opens_left_s();

    if (!grant || grant->over || !grant->described || left_s <= 0)
        return false;
    names_attributes_valid_for(&answer, left_s);
    answer.attr = grant->attr;
    send_reply(header->unique, 0, &answer, sizeof answer);
    return true;
}

bool make_here(const struct fuse_in_header *header, const void *body, size_t size)
{
    struct grant *grant = granted_find(header->nodeid);
    struct fuse_create_in asked;
    const char *bytes = (const char *)body + sizeof asked;
    struct {
        struct fuse_entry_out entry;
        struct fuse_open_out open;
    } answer = {0};
    struct made_file *file;
    struct made_name *name;
    double left_s;
    size_t length;

    if (!grant || grant->over || size < sizeof asked || !granted_parse(bytes, size - sizeof asked, &length))
        return false;
    memcpy(&asked, body, sizeof asked);
    left_s = opens_left_s();
    if (!is_plain(grant, header, &asked) || left_s <= 0 || !serve_is_able() || makes.next >= makes.end ||
        !made_files_has_room(&makes.files, makes.next) || granted_name(grant, bytes, length))
        return false;
    name = granted_note(grant, bytes, length);
    file = name ? made_files_add(&makes.files, makes.next, bytes, length) : NULL;
    if (!file)
        return false; /* a name for which there is no file: Python is asked about it */
    name->file = file;
    file->entry = name;
    file->parent = header->nodeid;
    file->handle = MADE_HERE | ++makes.handles;
    file->mode = asked.mode & 07777;
    file->umask = asked.umask;
    file->flags = asked.flags;
    file->uid = header->uid;
    file->gid = header->gid;
    file->made_ns = present_ns();

    answer.entry.nodeid = file->node;
    describe(file, &answer.entry.attr);
    names_valid_for(&answer.entry, left_s);
    answer.open.fh = file->handle;
    if (send_reply(header->unique, 0, &answer, sizeof answer)) { /* nobody waits for it any more */
        made_files_remove(&makes.files, file);
        name->file = NULL;
        granted_forget(grant, name);
        return true;
    }
    makes.next++;
    granted_count_made(grant, file->made_ns);
    return true;
}

/* While it is open: the times of one that is closed are those of its commit. They are asked for after each open with
 * O_TRUNC. */
static bool describe_here(const struct fuse_in_header *header, const struct made_file *file)
{
    struct fuse_attr_out answer = {0};
    double left_s = opens_left_s();

    if (file->closed || left_s <= 0)
        return false;
    if (!file->size) /* else the commit will bring other times */
        names_attributes_valid_for(&answer, left_s);
    describe(file, &answer.attr);
    send_reply(header->unique, 0, &answer, sizeof answer);
    return true;
}

static bool write_here(const struct fuse_in_header *header, struct made_file *file, const void *body, size_t size)
{
    struct fuse_write_in asked;
    struct fuse_write_out done = {0};

    if (size < sizeof asked)
        return false;
    memcpy(&asked, body, sizeof asked);
    if (asked.fh != file->handle || asked.write_flags & FUSE_WRITE_CACHE || asked.offset != file->size ||
        asked.size != size - sizeof asked || (file->flags & O_ACCMODE) == O_RDONLY)
        return false;
    if (!made_files_write(&makes.files, file, (const char *)body + sizeof asked, asked.size))
        return false;
    file->written_ns = present_ns();
    file->set &= ~(uint32_t)FATTR_MTIME;
    done.size = asked.size;
    send_reply(header->unique, 0, &done, sizeof done);
    return true;
}

/* What the leader will let whoever made the file set (mds/ops/create.py), and no time that is the leader's to say. */
static bool may_set(const struct fuse_in_header *header, const struct made_file *file, const struct fuse_setattr_in *asked)
{
    const uint32_t known = FATTR_MODE | FATTR_UID | FATTR_GID | FATTR_ATIME | FATTR_MTIME | FATTR_FH | FATTR_LOCKOWNER;
    int64_t atime_s = (int64_t)asked->atime, mtime_s = (int64_t)asked->mtime;

    if (file->closed || header->uid != file->uid || asked->valid & ~known)
        return false;
    if (!(asked->valid & (FATTR_MODE | FATTR_UID | FATTR_GID | FATTR_ATIME | FATTR_MTIME)))
        return false;
    if (asked->valid & FATTR_MODE && asked->mode & (S_ISUID | S_ISGID))
        return false;
    if (file->uid && ((asked->valid & FATTR_UID && asked->uid != file->uid) ||
                      (asked->valid & FATTR_GID && asked->gid != file->gid)))
        return false;
    return atime_s > -TIME_S_MAX && atime_s < TIME_S_MAX && mtime_s > -TIME_S_MAX && mtime_s < TIME_S_MAX;
}

static bool set_here(const struct fuse_in_header *header, struct made_file *file, const void *body, size_t size)
{
    struct fuse_setattr_in asked;

    if (size < sizeof asked)
        return false;
    memcpy(&asked, body, sizeof asked);
    if (opens_left_s() <= 0 || !may_set(header, file, &asked))
        return false;
    if (asked.valid & FATTR_MODE)
        file->set_mode = asked.mode & 07777;
    if (asked.valid & FATTR_UID)
        file->set_uid = asked.uid;
    if (asked.valid & FATTR_GID)
        file->set_gid = asked.gid;
    if (asked.valid & FATTR_ATIME)
        file->set_atime_ns = (int64_t)asked.atime * NS + asked.atimensec;
    if (asked.valid & FATTR_MTIME)
        file->set_mtime_ns = (int64_t)asked.mtime * NS + asked.mtimensec;
    file->set |= asked.valid & (FATTR_MODE | FATTR_UID | FATTR_GID | FATTR_ATIME | FATTR_MTIME);
    file->changed_ns = present_ns();
    return describe_here(header, file);
}

/* It has no attribute that the kernel could ask for before it writes, or checks permissions. */
static bool deny_attribute(const struct fuse_in_header *header, const void *body, size_t size)
{
    const char *name = (const char *)body + sizeof(struct fuse_getxattr_in);

    if (size < sizeof(struct fuse_getxattr_in) || !memchr(name, 0, size - sizeof(struct fuse_getxattr_in)))
        return false;
    if (strncmp(name, "security.", 9) || !name[9])
        return false;
    send_reply(header->unique, ENODATA, NULL, 0);
    return true;
}

bool made_here(const struct fuse_in_header *header, const void *body, size_t size)
{
    struct made_file *file = made_files_find(&makes.files, header->nodeid);
    uint64_t handle;

    if (header->opcode == FUSE_GETATTR)
        return file ? describe_here(header, file) : describe_directory(header);
    if (!file)
        return false;
    if (header->opcode == FUSE_SETATTR)
        return set_here(header, file, body, size);
    if (header->opcode == FUSE_WRITE)
        return write_here(header, file, body, size);
    if (header->opcode == FUSE_GETXATTR)
        return deny_attribute(header, body, size);
    if (size < sizeof handle)
        return false;
    memcpy(&handle, body, sizeof handle); /* the first field of FLUSH and RELEASE */
    if (handle != file->handle || file->closed)
        return false;
    if (header->opcode == FUSE_RELEASE)
        made_files_close(&makes.files, file);
    send_reply(header->unique, 0, NULL, 0);
    return true;
}

/* --- what is Python's --------------------------------------------------------------------------------------------- */

void makes_give(const struct fuse_in_header *header, const void *body, size_t size)
{
    uint64_t node;
    struct grant *grant;
    PyObject *done;

    if (!granted_count() && !makes.files.count)
        return;
    if (!concerned(&makes.files, header, body, size, &node))
        return;
    grant = granted_find(node);
    done = PyObject_CallFunction(makes.take, "KO", (unsigned long long)node, grant && grant->over ? Py_True : Py_False);
    if (!done) {
        PyErr_Print();
        Py_FatalError("files that were made without Python cannot be taken over");
    }
    Py_DECREF(done);
}

void makes_end(void)
{
    granted_end_all();
    makes.next = makes.end = 0;
    Py_CLEAR(makes.take);
}

/* --- what Python sees --------------------------------------------------------------------------------------------- */

const char on_made_doc[] = "on_made(take)\n\n"
                          "take(node, over) is called before a request goes to Python that concerns something that was made "
                          "here: a file, all files of a directory, or (0) all. It has to call take_made(). over: that is a "
                          "directory in which nothing is made any more, until it is granted again.";

PyObject *on_made(PyObject *self, PyObject *args)
{
    PyObject *take;

    (void)self;
    if (!PyArg_ParseTuple(args, "O", &take))
        return NULL;
    Py_XSETREF(makes.take, Py_NewRef(take));
    if (!makes.begun)
        made_files_begin(&makes.files);
    makes.begun = true;
    Py_RETURN_NONE;
}

static bool note_names(struct grant *grant, PyObject *names)
{
    PyObject *all = PySequence_Fast(names, "names: a sequence of bytes");
    bool done = all != NULL;

    for (Py_ssize_t i = 0; done && i < PySequence_Fast_GET_SIZE(all); i++) {
        char *bytes;
        Py_ssize_t length;

        done = !PyBytes_AsStringAndSize(PySequence_Fast_GET_ITEM(all, i), &bytes, &length) &&
               (granted_name(grant, bytes, (size_t)length) || granted_note(grant, bytes, (size_t)length));
    }
    Py_XDECREF(all);
    return done;
}

const char make_in_doc[] = "make_in(node, names, uid) -> bool\n\n"
                          "From now on files are made here in this directory, by root and by this user, under names that are "
                          "not in the sequence: that has all that are in the directory, or may be. False if there is no "
                          "room, or it is granted already.";

PyObject *make_in(PyObject *self, PyObject *args)
{
    unsigned long long node;
    unsigned int uid;
    PyObject *names;
    struct grant *grant;

    (void)self;
    if (!PyArg_ParseTuple(args, "KOI", &node, &names, &uid))
        return NULL;
    grant = makes.take ? granted_add(node, uid) : NULL;
    if (!grant)
        Py_RETURN_FALSE;
    if (note_names(grant, names))
        Py_RETURN_TRUE;
    granted_end(grant);
    if (PyErr_Occurred())
        return NULL;
    Py_RETURN_FALSE;
}

const char make_no_more_doc[] = "make_no_more(node)\n\nThe end of that. What was made there is to be taken.";

PyObject *make_no_more(PyObject *self, PyObject *args)
{
    unsigned long long node;
    struct grant *grant;

    (void)self;
    if (!PyArg_ParseTuple(args, "K", &node))
        return NULL;
    grant = granted_find(node);
    if (grant)
        granted_end(grant);
    Py_RETURN_NONE;
}

const char describe_doc[] = "describe(node, attributes)\n\n"
                           "The attributes of a granted directory, a struct fuse_attr, with all that Python knows of: what is "
                           "made here comes on top. None: they are not known; Python is asked.";

PyObject *describe_granted(PyObject *self, PyObject *args)
{
    unsigned long long node;
    const char *attributes;
    Py_ssize_t size;
    struct grant *grant;

    (void)self;
    if (!PyArg_ParseTuple(args, "Kz#", &node, &attributes, &size))
        return NULL;
    if (attributes && size != sizeof grant->attr)
        return PyErr_Format(PyExc_ValueError, "attributes: a struct fuse_attr");
    grant = granted_find(node);
    if (grant) {
        grant->described = attributes != NULL;
        if (attributes)
            memcpy(&grant->attr, attributes, sizeof grant->attr);
    }
    Py_RETURN_NONE;
}

const char give_numbers_doc[] = "give_numbers(first, count)\n\n"
                               "Inode numbers for files that are made here, instead of those that are left.";

PyObject *give_numbers(PyObject *self, PyObject *args)
{
    unsigned long long first, count;

    (void)self;
    if (!PyArg_ParseTuple(args, "KK", &first, &count))
        return NULL;
    makes.next = first;
    makes.end = first + count;
    Py_RETURN_NONE;
}

const char numbers_left_doc[] = "numbers_left() -> int\n\nHow many of them were not used yet.";

PyObject *numbers_left(PyObject *self, PyObject *args)
{
    (void)self;
    (void)args;
    return PyLong_FromUnsignedLongLong(makes.end - makes.next);
}

static PyObject *number_or_none(uint32_t is_set, long long number)
{
    return is_set ? PyLong_FromLongLong(number) : Py_NewRef(Py_None);
}

static PyObject *attributes_of(const struct made_file *file)
{
    if (!file->set)
        return Py_NewRef(Py_None);
    return Py_BuildValue("NNNNN", number_or_none(file->set & FATTR_MODE, file->set_mode),
                         number_or_none(file->set & FATTR_UID, file->set_uid),
                         number_or_none(file->set & FATTR_GID, file->set_gid),
                         number_or_none(file->set & FATTR_ATIME, file->set_atime_ns),
                         number_or_none(file->set & FATTR_MTIME, file->set_mtime_ns));
}

/* Puts the file into the list and takes it out here. False: an error is set, and the file stays. */
static bool hand_over(PyObject *list, struct made_file *file)
{
    PyObject *one = Py_BuildValue(
        "Ky#KKIIIIINLLy#N", (unsigned long long)file->parent, file->name, (Py_ssize_t)file->length,
        (unsigned long long)file->node, (unsigned long long)file->handle, (unsigned int)file->mode,
        (unsigned int)file->umask, (unsigned int)file->flags, (unsigned int)file->uid, (unsigned int)file->gid,
        PyBool_FromLong(file->closed), (long long)file->made_ns, (long long)file->written_ns,
        file->data ? file->data : "", (Py_ssize_t)file->size, attributes_of(file));

    if (!one || PyList_Append(list, one)) {
        Py_XDECREF(one);
        return false;
    }
    Py_DECREF(one);
    if (file->entry)
        file->entry->file = NULL; /* the name stays: Python is asked about it */
    made_files_remove(&makes.files, file);
    return true;
}

/* All of a list that are this file, or in this directory, at most so many, and made before. */
static bool hand_over_some(PyObject *list, struct made_list *from, uint64_t node, Py_ssize_t limit, int64_t before_ns)
{
    struct made_file *file = TAILQ_FIRST(from);

    while (file && PyList_GET_SIZE(list) < limit && file->made_ns < before_ns) {
        struct made_file *next = TAILQ_NEXT(file, link);
        bool is_meant = node == ALL_FILES || file->node == node || file->parent == node;

        if (is_meant && !hand_over(list, file))
            return false;
        file = next;
    }
    return true;
}

const char take_made_doc[] = "take_made(node) -> list[tuple]\n\n"
                            "This file, those of this directory, or (0) all are Python's from now on, closed ones first, in "
                            "the order of their closes: (parent, name, node, handle, mode, umask, flags, uid, gid, closed, "
                            "made_ns, written_ns, data, attributes) of each; attributes: None, or what was set of "
                            "(mode, uid, gid, atime_ns, mtime_ns).";

PyObject *take_made(PyObject *self, PyObject *args)
{
    unsigned long long node;
    PyObject *list;

    (void)self;
    if (!PyArg_ParseTuple(args, "K", &node))
        return NULL;
    list = PyList_New(0);
    if (list && makes.files.count &&
        !(hand_over_some(list, &makes.files.closed, node, PY_SSIZE_T_MAX, INT64_MAX) &&
          hand_over_some(list, &makes.files.open, node, PY_SSIZE_T_MAX, INT64_MAX)))
        Py_CLEAR(list);
    return list;
}

const char take_closed_doc[] = "take_closed(limit, before_ns) -> list[tuple]\n\n"
                              "The same of at most so many that are closed, and of those besides that are open and were made "
                              "before that time.";

PyObject *take_closed(PyObject *self, PyObject *args)
{
    Py_ssize_t limit;
    long long before_ns;
    PyObject *list;

    (void)self;
    if (!PyArg_ParseTuple(args, "nL", &limit, &before_ns))
        return NULL;
    list = PyList_New(0);
    if (list && makes.files.count &&
        !(hand_over_some(list, &makes.files.closed, ALL_FILES, limit, INT64_MAX) &&
          hand_over_some(list, &makes.files.open, ALL_FILES, PY_SSIZE_T_MAX, before_ns)))
        Py_CLEAR(list);
    return list;
}

const char made_doc[] = "made() -> int\n\nHow many files were made here.";

PyObject *made(PyObject *self, PyObject *args)
{
    (void)self;
    (void)args;
    return PyLong_FromUnsignedLongLong(makes.handles);
}

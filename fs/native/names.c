#include "names.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "fuse_shim.h"
#include "open_table.h"
#include "opens.h"

#define NAME_BYTES_MAX 255
#define FIRST_SLOTS 1024

struct offered_name {
    uint64_t parent; /* as the kernel calls it */
    struct fuse_attr attr;
    size_t length;
    char bytes[]; /* no NUL behind them */
};

/* A hash table with linear probing, as node_table.c; it is not larger than that one. Invariant: each name here is that of
 * an entry there, and no other entry has it. */
static struct {
    struct offered_name **slots; /* NULL: none yet */
    size_t mask;
    size_t count;
    double entry_s, attr_s; /* how long the kernel may keep an answer; 0: nothing is offered */
    uint64_t answered;
} names;

static size_t slot_of(uint64_t parent, const char *bytes, size_t length)
{
    uint64_t hash = 0xcbf29ce484222325u ^ parent; /* FNV-1a, draft-eastlake-fnv */

    for (size_t i = 0; i < length; i++)
        hash = (hash ^ (unsigned char)bytes[i]) * 0x100000001b3u;
    return (size_t)(hash ^ hash >> 32) & names.mask;
}

static size_t home_of(const struct offered_name *name)
{
    return slot_of(name->parent, name->bytes, name->length);
}

/* The slot of the name, or the free one where it would be. There is always a free one. */
static size_t locate(uint64_t parent, const char *bytes, size_t length)
{
    size_t at = slot_of(parent, bytes, length);

    for (; names.slots[at]; at = (at + 1) & names.mask) {
        const struct offered_name *one = names.slots[at];
        if (one->parent == parent && one->length == length && !memcmp(one->bytes, bytes, length))
            break;
    }
    return at;
}

static bool grow(void)
{
    size_t before = names.slots ? names.mask + 1 : 0;
    size_t after = before ? 2 * before : FIRST_SLOTS;
    struct offered_name **old = names.slots, **slots = calloc(after, sizeof *slots);

    if (!slots)
        return false;
    names.slots = slots;
    names.mask = after - 1;
    for (size_t i = 0; i < before; i++)
        if (old[i])
            slots[locate(old[i]->parent, old[i]->bytes, old[i]->length)] = old[i];
    free(old);
    return true;
}

/* What is in the slot is gone, here and in the entry of its inode. */
static void forget(size_t hole)
{
    struct open_entry *entry = open_table_find(names.slots[hole]->attr.ino);

    if (entry && entry->name == names.slots[hole])
        entry->name = NULL;
    free(names.slots[hole]);
    for (size_t at = (hole + 1) & names.mask; names.slots[at]; at = (at + 1) & names.mask) {
        /* It may move into the hole unless it belongs behind it. */
        if (((at - home_of(names.slots[at])) & names.mask) >= ((at - hole) & names.mask)) {
            names.slots[hole] = names.slots[at];
            hole = at;
        }
    }
    names.slots[hole] = NULL;
    names.count--;
}

void names_let_go(struct offered_name *name)
{
    if (name)
        forget(locate(name->parent, name->bytes, name->length));
}

void names_forget_all(void)
{
    for (size_t i = 0; names.slots && i <= names.mask; i++) {
        if (names.slots[i]) {
            struct open_entry *entry = open_table_find(names.slots[i]->attr.ino);
            if (entry)
                entry->name = NULL;
            free(names.slots[i]);
        }
    }
    free(names.slots);
    names.slots = NULL;
    names.mask = names.count = 0;
}

void names_end(void)
{
    names_forget_all();
    names.entry_s = names.attr_s = 0;
}

static void valid_for(double timeout_s, double left_s, uint64_t *seconds, uint32_t *nanoseconds)
{
    double valid_s = timeout_s < left_s ? timeout_s : left_s;

    *seconds = (uint64_t)valid_s;
    *nanoseconds = (uint32_t)((valid_s - (double)*seconds) * 1e9);
}

bool lookup_here(const struct fuse_in_header *header, const void *body, size_t size)
{
    const char *bytes = body, *end = memchr(body, 0, size);
    double left_s = opens_left_s();
    struct fuse_entry_out answer = {0};
    size_t at;

    if (!names.count || !end || left_s <= 0)
        return false;
    at = locate(header->nodeid, bytes, (size_t)(end - bytes));
    if (!names.slots[at])
        return false;
    answer.nodeid = names.slots[at]->attr.ino;
    answer.attr = names.slots[at]->attr;
    valid_for(names.entry_s, left_s, &answer.entry_valid, &answer.entry_valid_nsec);
    valid_for(names.attr_s, left_s, &answer.attr_valid, &answer.attr_valid_nsec);
    send_reply(header->unique, 0, &answer, sizeof answer);
    forget(at);
    names.answered++;
    return true;
}

/* --- what Python sees --------------------------------------------------------------------------------------------- */

const char offer_name_doc[] = "offer_name(parent, name, attributes) -> bool\n\n"
                             "From now on the name is looked up without a word, once: it leads to the inode that has these "
                             "attributes, a struct fuse_attr, as long as that is offered. False if it is not, or if there "
                             "is no room, or the kernel must keep no names.";

PyObject *offer_name(PyObject *self, PyObject *args)
{
    unsigned long long parent;
    const char *bytes, *attributes;
    Py_ssize_t length, size;
    struct offered_name *name;
    struct open_entry *entry;
    size_t at;

    (void)self;
    if (!PyArg_ParseTuple(args, "Ky#y#", &parent, &bytes, &length, &attributes, &size))
        return NULL;
    if (size != sizeof name->attr || !length || length > NAME_BYTES_MAX || memchr(bytes, 0, (size_t)length)) {
        PyErr_SetString(PyExc_ValueError, "a name, and a struct fuse_attr");
        return NULL;
    }
    if (names.entry_s <= 0 || ((!names.slots || 2 * (names.count + 1) > names.mask) && !grow()))
        Py_RETURN_FALSE;
    name = malloc(sizeof *name + (size_t)length);
    if (!name)
        Py_RETURN_FALSE;
    name->parent = parent;
    memcpy(&name->attr, attributes, sizeof name->attr);
    name->length = (size_t)length;
    memcpy(name->bytes, bytes, (size_t)length);
    entry = open_table_find(name->attr.ino);
    if (!entry) {
        free(name);
        Py_RETURN_FALSE;
    }
    names_let_go(entry->name); /* it has another, or this one with attributes of before */
    at = locate(parent, bytes, (size_t)length);
    if (names.slots[at]) { /* it led elsewhere */
        forget(at);
        at = locate(parent, bytes, (size_t)length);
    }
    names.slots[at] = name;
    names.count++;
    entry->name = name;
    Py_RETURN_TRUE;
}

const char withdraw_name_doc[] = "withdraw_name(parent, name)\n\nWhere it leads is Python's to say.";

PyObject *withdraw_name(PyObject *self, PyObject *args)
{
    unsigned long long parent;
    const char *bytes;
    Py_ssize_t length;
    size_t at;

    (void)self;
    if (!PyArg_ParseTuple(args, "Ky#", &parent, &bytes, &length))
        return NULL;
    if (names.count) {
        at = locate(parent, bytes, (size_t)length);
        if (names.slots[at])
            forget(at);
    }
    Py_RETURN_NONE;
}

const char withdraw_names_doc[] = "withdraw_names()\n\nThe same of every name.";

PyObject *withdraw_names(PyObject *self, PyObject *args)
{
    (void)self;
    (void)args;
    names_forget_all();
    Py_RETURN_NONE;
}

const char keep_names_doc[] = "keep_names(entry_s, attr_s)\n\n"
                             "How long the kernel may keep what is answered here, if leases last as long; 0: it must keep "
                             "no name, and none is offered.";

PyObject *keep_names(PyObject *self, PyObject *args)
{
    (void)self;
    if (!PyArg_ParseTuple(args, "dd", &names.entry_s, &names.attr_s))
        return NULL;
    Py_RETURN_NONE;
}

const char looked_up_doc[] = "looked_up() -> int\n\nHow many names were looked up here.";

PyObject *looked_up(PyObject *self, PyObject *args)
{
    (void)self;
    (void)args;
    return PyLong_FromUnsignedLongLong(names.answered);
}

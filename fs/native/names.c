#include "names.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "fuse_shim.h"
#include "name_table.h"
#include "open_table.h"
#include "opens.h"

struct offered_name {
    struct named key;
    struct fuse_attr attr;
    char bytes[];
};

/* Invariant: each name in the table is that of an entry in the other one (open_table.h), and no other entry has it. */
static struct {
    struct name_table table;
    double entry_s, attr_s; /* how long the kernel may keep an answer; 0: nothing is offered */
    uint64_t answered;
} names;

static void let_go(struct named *key)
{
    struct offered_name *name = (struct offered_name *)key;
    struct open_entry *entry = open_table_find(name->attr.ino);

    if (entry && entry->name == name)
        entry->name = NULL;
    free(name);
}

/* The name is gone, here and in the entry of its inode. */
static void forget(struct named *key)
{
    name_table_remove(&names.table, key);
    let_go(key);
}

void names_let_go(struct offered_name *name)
{
    if (name)
        forget(&name->key);
}

void names_forget_all(void)
{
    name_table_clear(&names.table, let_go);
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

void names_valid_for(struct fuse_entry_out *answer, double left_s)
{
    valid_for(names.entry_s, left_s, &answer->entry_valid, &answer->entry_valid_nsec);
    valid_for(names.attr_s, left_s, &answer->attr_valid, &answer->attr_valid_nsec);
}

void names_attributes_valid_for(struct fuse_attr_out *answer, double left_s)
{
    valid_for(names.attr_s, left_s, &answer->attr_valid, &answer->attr_valid_nsec);
}

bool lookup_here(const struct fuse_in_header *header, const void *body, size_t size)
{
    const char *bytes = body, *end = memchr(body, 0, size);
    double left_s = opens_left_s();
    struct fuse_entry_out answer = {0};
    struct named *found;

    if (!names.table.count || !end || left_s <= 0)
        return false;
    found = name_table_find(&names.table, header->nodeid, bytes, (size_t)(end - bytes));
    if (!found)
        return false;
    answer.attr = ((struct offered_name *)found)->attr;
    answer.nodeid = answer.attr.ino;
    names_valid_for(&answer, left_s);
    send_reply(header->unique, 0, &answer, sizeof answer);
    forget(found);
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
    struct named *before;

    (void)self;
    if (!PyArg_ParseTuple(args, "Ky#y#", &parent, &bytes, &length, &attributes, &size))
        return NULL;
    if (size != sizeof name->attr || !length || length > NAME_BYTES_MAX || memchr(bytes, 0, (size_t)length)) {
        PyErr_SetString(PyExc_ValueError, "a name, and a struct fuse_attr");
        return NULL;
    }
    if (names.entry_s <= 0)
        Py_RETURN_FALSE;
    name = malloc(sizeof *name + (size_t)length);
    if (!name)
        Py_RETURN_FALSE;
    memcpy(&name->attr, attributes, sizeof name->attr);
    memcpy(name->bytes, bytes, (size_t)length);
    name->key = (struct named){.parent = parent, .length = (size_t)length, .bytes = name->bytes};
    entry = open_table_find(name->attr.ino);
    if (entry)
        names_let_go(entry->name); /* it has another, or this one with attributes of before */
    before = name_table_find(&names.table, parent, bytes, (size_t)length);
    if (entry && before)
        forget(before); /* it led elsewhere */
    if (!entry || !name_table_add(&names.table, &name->key)) {
        free(name);
        Py_RETURN_FALSE;
    }
    entry->name = name;
    Py_RETURN_TRUE;
}

const char withdraw_name_doc[] = "withdraw_name(parent, name)\n\nWhere it leads is Python's to say.";

PyObject *withdraw_name(PyObject *self, PyObject *args)
{
    unsigned long long parent;
    const char *bytes;
    Py_ssize_t length;
    struct named *found;

    (void)self;
    if (!PyArg_ParseTuple(args, "Ky#", &parent, &bytes, &length))
        return NULL;
    found = name_table_find(&names.table, parent, bytes, (size_t)length);
    if (found)
        forget(found);
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

#include "bare.h"

#include <errno.h>
#include <stdint.h>
#include <string.h>

#include "fuse_shim.h"
#include "node_table.h"
#include "opens.h"

static struct node_table bare = {.entry_size = sizeof(uint64_t), .count_max = BARE_MAX};
static uint64_t answered;

void bare_end(void)
{
    node_table_clear(&bare);
}

static bool begins(const char *name, const char *with)
{
    return !strncmp(name, with, strlen(with));
}

/* Whether an inode without attributes has none of this name. Others are made up from the inode, or no names at all: the
 * same rule as in fs/xattrs.py. */
static bool may_be_absent(const char *name)
{
    if (!strcmp(name, "system.posix_acl_access") || !strcmp(name, "system.posix_acl_default"))
        return true;
    if (!begins(name, "user.") && !begins(name, "security.") && !begins(name, "trusted."))
        return false;
    return !begins(name, "trusted.shoal.") && name[strlen(name) - 1] != '.';
}

bool attributes_here(const struct fuse_in_header *header, const void *body, size_t size)
{
    struct fuse_getxattr_in asked;
    struct fuse_getxattr_out none = {0};
    const char *name = (const char *)body + sizeof asked;

    if (size < sizeof asked || !node_table_find(&bare, header->nodeid) || opens_left_s() <= 0)
        return false;
    if (header->opcode == FUSE_GETXATTR) {
        if (!memchr(name, 0, size - sizeof asked) || !may_be_absent(name))
            return false;
        send_reply(header->unique, ENODATA, NULL, 0);
    } else {
        memcpy(&asked, body, sizeof asked);
        send_reply(header->unique, 0, &none, asked.size ? 0 : sizeof none); /* 0: how long would the list be? */
    }
    answered++;
    return true;
}

/* --- what Python sees --------------------------------------------------------------------------------------------- */

const char offer_bare_doc[] = "offer_bare(nodes)\n\n"
                             "From now on these inodes are said to have no extended attribute and no "
                             "access control list.";

PyObject *offer_bare(PyObject *self, PyObject *args)
{
    PyObject *given, *nodes;

    (void)self;
    if (!PyArg_ParseTuple(args, "O", &given))
        return NULL;
    nodes = PySequence_Fast(given, "nodes: a sequence of numbers");
    if (!nodes)
        return NULL;
    for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(nodes) && !PyErr_Occurred(); i++) {
        unsigned long long node = PyLong_AsUnsignedLongLong(PySequence_Fast_GET_ITEM(nodes, i));
        if (!PyErr_Occurred())
            node_table_put(&bare, node); /* each stands for itself: those before a wrong one stay */
    }
    Py_DECREF(nodes);
    if (PyErr_Occurred())
        return NULL;
    Py_RETURN_NONE;
}

const char withdraw_bare_doc[] = "withdraw_bare(node)\n\nWhat attributes it has is Python's to say.";

PyObject *withdraw_bare(PyObject *self, PyObject *args)
{
    unsigned long long node;
    void *entry;

    (void)self;
    if (!PyArg_ParseTuple(args, "K", &node))
        return NULL;
    entry = node_table_find(&bare, node);
    if (entry)
        node_table_take_out(&bare, entry);
    Py_RETURN_NONE;
}

const char withdraw_all_bare_doc[] = "withdraw_all_bare()\n\nThe same of every inode.";

PyObject *withdraw_all_bare(PyObject *self, PyObject *args)
{
    (void)self;
    (void)args;
    bare_end();
    Py_RETURN_NONE;
}

const char found_bare_doc[] = "found_bare() -> int\n\nHow often it was said here that an inode has no attributes.";

PyObject *found_bare(PyObject *self, PyObject *args)
{
    (void)self;
    (void)args;
    return PyLong_FromUnsignedLongLong(answered);
}

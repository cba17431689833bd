/*
 * Names that are looked up without asking Python: each leads to an inode that is offered (opens.h), and is offered with it
 * and no longer than it. The kernel asks once for a name, and remembers the answer; so a name that was looked up is
 * forgotten here.
 */
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <linux/fuse.h>
#include <stdbool.h>
#include <stddef.h>

struct offered_name;

/* LOOKUP. False: it has to go to Python. */
bool lookup_here(const struct fuse_in_header *header, const void *body, size_t size);

/* The inode that it leads to is offered no more. NULL: it was offered without a name. */
void names_let_go(struct offered_name *name);

void names_forget_all(void);

/* How long the kernel may keep the name and the attributes of this answer, if what is here may be believed for so long. */
void names_valid_for(struct fuse_entry_out *answer, double left_s);
void names_attributes_valid_for(struct fuse_attr_out *answer, double left_s);

/* The session ends. */
void names_end(void);

PyObject *offer_name(PyObject *self, PyObject *args);
PyObject *withdraw_name(PyObject *self, PyObject *args);
PyObject *withdraw_names(PyObject *self, PyObject *args);
PyObject *keep_names(PyObject *self, PyObject *args);
PyObject *looked_up(PyObject *self, PyObject *args);
extern const char offer_name_doc[];
extern const char withdraw_name_doc[];
extern const char withdraw_names_doc[];
extern const char keep_names_doc[];
extern const char looked_up_doc[];

#define NAMES_METHODS                                                       \
    {"offer_name", offer_name, METH_VARARGS, offer_name_doc},               \
    {"withdraw_name", withdraw_name, METH_VARARGS, withdraw_name_doc},      \
    {"withdraw_names", withdraw_names, METH_NOARGS, withdraw_names_doc},    \
    {"keep_names", keep_names, METH_VARARGS, keep_names_doc},               \
    {"looked_up", looked_up, METH_NOARGS, looked_up_doc}

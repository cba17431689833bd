/*
 * Files that are opened, read, flushed and closed without asking Python.
 *
 * Python offers an inode when it knows all that an open would bring, and has no handle on it; it withdraws the inode
 * before any of that ends (fs/handles.py, docs/leases.md), and takes over the opens that are counted here. So an inode is
 * either in the table, and then the table alone knows how often it is open, or Python's. One that is offered with its bytes
 * is read here, too; the table holds a reference to them, and lets go of it under the interpreter's lock only.
 */
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <linux/fuse.h>
#include <stdbool.h>
#include <stddef.h>

/* False: it has to go to Python. */
bool open_here(const struct fuse_in_header *header, const void *body, size_t size);
bool close_here(const struct fuse_in_header *header, const void *body, size_t size); /* FLUSH and RELEASE */
bool read_here(const struct fuse_in_header *header, const void *body, size_t size);

/*
 * A mount that is only read and whose locks are this machine's (docs/leases.md, "Mounts that are told of no open"): the
 * kernel is told once that there is no OPEN and no FLUSH here, and asks no more. What is read then comes without a handle,
 * and gets one that is made of the inode's number.
 */
bool refuse_here(const struct fuse_in_header *header); /* false: it is carried out */
void name_by_inode(const struct fuse_in_header *header, void *body, size_t size);

/* How long what is offered may still be believed; 0 or less: not any more. */
double opens_left_s(void);

/* The session ends. */
void opens_end(void);

PyObject *offer_open(PyObject *self, PyObject *args);
PyObject *withdraw(PyObject *self, PyObject *args);
PyObject *withdraw_all(PyObject *self, PyObject *args);
PyObject *read_through(PyObject *self, PyObject *args);
PyObject *any_open(PyObject *self, PyObject *args);
PyObject *believe_until(PyObject *self, PyObject *args);
PyObject *opened(PyObject *self, PyObject *args);
PyObject *refuse_opens(PyObject *self, PyObject *args);
extern const char offer_doc[];
extern const char withdraw_doc[];
extern const char withdraw_all_doc[];
extern const char read_through_doc[];
extern const char any_open_doc[];
extern const char believe_doc[];
extern const char opened_doc[];
extern const char refuse_doc[];

#define OPENS_METHODS                                              \
    {"offer", offer_open, METH_VARARGS, offer_doc}, \
    {"withdraw", withdraw, METH_VARARGS, withdraw_doc}, \
    {"withdraw_all", withdraw_all, METH_NOARGS, withdraw_all_doc}, \
    {"read_through", read_through, METH_NOARGS, read_through_doc}, \
    {"any_open", any_open, METH_NOARGS, any_open_doc}, \
    {"believe_until", believe_until, METH_VARARGS, believe_doc}, \
    {"opened", opened, METH_NOARGS, opened_doc}, \
    {"refuse_opens", refuse_opens, METH_NOARGS, refuse_doc}

/*
 * Inodes without any extended attribute and access control list, of which Python has said so: who asks one of them for an
 * attribute is told that it has none, without asking Python. `ls -l` asks each file that it lists for two. Python takes
 * an inode back before that can have changed (fs/leases.py), and nothing is said here that may not be believed any more.
 */
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <linux/fuse.h>
#include <stdbool.h>
#include <stddef.h>

#define BARE_MAX 262144 /* inodes; beyond, no more are taken in */

/* GETXATTR and LISTXATTR. False: it has to go to Python. */
bool attributes_here(const struct fuse_in_header *header, const void *body, size_t size);

/* The session ends. */
void bare_end(void);

PyObject *offer_bare(PyObject *self, PyObject *args);
PyObject *withdraw_bare(PyObject *self, PyObject *args);
PyObject *withdraw_all_bare(PyObject *self, PyObject *args);
PyObject *found_bare(PyObject *self, PyObject *args);
extern const char offer_bare_doc[];
extern const char withdraw_bare_doc[];
extern const char withdraw_all_bare_doc[];
extern const char found_bare_doc[];

#define BARE_METHODS                                                              \
    {"offer_bare", offer_bare, METH_VARARGS, offer_bare_doc},                     \
    {"withdraw_bare", withdraw_bare, METH_VARARGS, withdraw_bare_doc},            \
    {"withdraw_all_bare", withdraw_all_bare, METH_NOARGS, withdraw_all_bare_doc}, \
    {"found_bare", found_bare, METH_NOARGS, found_bare_doc}

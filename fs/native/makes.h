/*
 * Files that are made without asking Python, in directories that this mount fills alone (fs/new_files.py).
 *
 * Python grants such a directory, with all names that are in it or may be: a name that is not among them does not exist. So
 * LOOKUP of one is answered here, and CREATE makes a file with one of the inode numbers that Python has given. What is
 * written to the file one piece behind the other, and its close, stays here as well, until Python takes the file over
 * (fs/native_making.py): soon after its close, when it is open for long, and before anything else is done that concerns it.
 * From then on it is Python's, open or closed, as if Python had made it.
 *
 * Invariant: Python carries out no request that a file here has anything to do with. concerned() says of each request
 * which they are, and Python takes those before it sees the request.
 */
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <linux/fuse.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* LOOKUP of what does not exist. False: it has to go to Python. */
bool deny_here(const struct fuse_in_header *header, const void *body, size_t size);

/* CREATE; the same. */
bool make_here(const struct fuse_in_header *header, const void *body, size_t size);

/* WRITE, FLUSH, RELEASE, GETATTR, SETATTR and GETXATTR of a file that is here, GETATTR of a granted directory; the same. */
bool made_here(const struct fuse_in_header *header, const void *body, size_t size);

/* A request that was not answered here goes to Python: whatever is here and concerns it is taken first. Under the
 * interpreter's lock. */
void makes_give(const struct fuse_in_header *header, const void *body, size_t size);

/* The session ends: everything was taken. */
void makes_end(void);

PyObject *on_made(PyObject *self, PyObject *args);
PyObject *make_in(PyObject *self, PyObject *args);
PyObject *make_no_more(PyObject *self, PyObject *args);
PyObject *describe_granted(PyObject *self, PyObject *args);
PyObject *give_numbers(PyObject *self, PyObject *args);
PyObject *numbers_left(PyObject *self, PyObject *args);
PyObject *take_made(PyObject *self, PyObject *args);
PyObject *take_closed(PyObject *self, PyObject *args);
PyObject *made(PyObject *self, PyObject *args);
extern const char on_made_doc[];
extern const char make_in_doc[];
extern const char make_no_more_doc[];
extern const char describe_doc[];
extern const char give_numbers_doc[];
extern const char numbers_left_doc[];
extern const char take_made_doc[];
extern const char take_closed_doc[];
extern const char made_doc[];

#define MAKES_METHODS                                                  \
    {"on_made", on_made, METH_VARARGS, on_made_doc},                   \
    {"make_in", make_in, METH_VARARGS, make_in_doc},                   \
    {"make_no_more", make_no_more, METH_VARARGS, make_no_more_doc},    \
    {"describe", describe_granted, METH_VARARGS, describe_doc},        \
    {"give_numbers", give_numbers, METH_VARARGS, give_numbers_doc},    \
    {"numbers_left", numbers_left, METH_NOARGS, numbers_left_doc},     \
    {"take_made", take_made, METH_VARARGS, take_made_doc},             \
    {"take_closed", take_closed, METH_VARARGS, take_closed_doc},       \
    {"made", made, METH_NOARGS, made_doc}

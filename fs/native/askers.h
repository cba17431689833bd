/*
 * Threads of programs of which Python wants to know whether they have asked for anything since a certain moment: a thread that
 * has was given, and has taken in, the answer to what it asked before (fs/unparsed.py).
 */
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <linux/fuse.h>

#define ASKERS_MAX 4096 /* threads; beyond, all are forgotten, and count as silent */

/* For each request that comes. */
void asker_heard(const struct fuse_in_header *header);

/* The session ends. */
void askers_end(void);

PyObject *listen_to(PyObject *self, PyObject *args);
PyObject *has_asked(PyObject *self, PyObject *args);
extern const char listen_to_doc[];
extern const char has_asked_doc[];

#define ASKERS_METHODS                                        \
    {"listen_to", listen_to, METH_VARARGS, listen_to_doc}, \
    {"has_asked", has_asked, METH_VARARGS, has_asked_doc}

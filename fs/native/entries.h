/*
 * Replies to READDIRPLUS, made of what Python has decided of each entry (fs/directory_pages.py).
 */
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

PyObject *pack_entries(PyObject *self, PyObject *args);
extern const char pack_entries_doc[];

#define ENTRIES_METHODS {"pack_entries", pack_entries, METH_VARARGS, pack_entries_doc}

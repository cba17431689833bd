#include "askers.h"

#include <stdbool.h>
#include <stdint.h>

#include "node_table.h"

struct asker {
    uint64_t thread; /* as the kernel calls it */
    uint64_t asked;  /* the moment of its last request; 0: none yet */
};

static struct node_table askers = {.entry_size = sizeof(struct asker), .count_max = ASKERS_MAX};
static uint64_t moment; /* goes up with each request that is noted */

/* Requests for which their thread waits, so that it has none other: not what is read ahead, written back or released. */
static bool is_waited_for(uint32_t opcode)
{
    switch (opcode) {
    case FUSE_LOOKUP:
    case FUSE_GETATTR:
    case FUSE_SETATTR:
    case FUSE_READLINK:
    case FUSE_OPEN:
    case FUSE_CREATE:
    case FUSE_UNLINK:
    case FUSE_GETXATTR:
    case FUSE_LISTXATTR:
    case FUSE_OPENDIR:
    case FUSE_READDIRPLUS:
    case 52: /* FUSE_STATX, of headers newer than some */
        return true;
    default:
        return false;
    }
}

void asker_heard(const struct fuse_in_header *header)
{
    struct asker *asker;

    if (askers.count && is_waited_for(header->opcode) && (asker = node_table_find(&askers, header->pid)))
        asker->asked = ++moment;
}

void askers_end(void)
{
    node_table_clear(&askers);
}

/* --- what Python sees --------------------------------------------------------------------------------------------- */

const char listen_to_doc[] = "listen_to(thread) -> int\n\nThe present moment, for has_asked().";

PyObject *listen_to(PyObject *self, PyObject *args)
{
    unsigned int thread;

    (void)self;
    if (!PyArg_ParseTuple(args, "I", &thread))
        return NULL;
    if (thread && !node_table_put(&askers, thread)) {
        node_table_clear(&askers);
        node_table_put(&askers, thread);
    }
    return PyLong_FromUnsignedLongLong(moment);
}

const char has_asked_doc[] = "has_asked(thread, since) -> bool\n\n"
                             "Whether the thread is known to have asked for something since then, and waited for the "
                             "answer.";

PyObject *has_asked(PyObject *self, PyObject *args)
{
    unsigned int thread;
    unsigned long long since;
    struct asker *asker;

    (void)self;
    if (!PyArg_ParseTuple(args, "IK", &thread, &since))
        return NULL;
    asker = node_table_find(&askers, thread);
    return PyBool_FromLong(asker && asker->asked > since);
}

/* Files that were made here, until Python takes them (makes.h): each in a list, open or closed, and found by its number. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/queue.h>

#define MADE_FILES_MAX 256 /* a power of two */
#define MADE_BYTES_MAX (256 * 1024)         /* of one file; a longer one is Python's */
#define MADE_BYTES_ALL_MAX (16 * 1024 * 1024)

struct made_name;

struct made_file {
    TAILQ_ENTRY(made_file) link;
    uint64_t parent, node, handle;
    uint32_t mode, umask, flags, uid, gid;
    bool closed;
    int64_t made_ns, written_ns; /* CLOCK_REALTIME; written_ns 0: never */
    uint32_t set; /* which of these were set: FATTR_MODE and so on; the mode has no set-id bits */
    uint32_t set_mode, set_uid, set_gid;
    int64_t set_atime_ns, set_mtime_ns;
    int64_t changed_ns; /* when one was set last; 0: never */
    char *data;
    size_t size, room;
    struct made_name *entry; /* among the names of its directory; NULL: that is not granted any more */
    size_t length;
    char name[]; /* no NUL behind it */
};

TAILQ_HEAD(made_list, made_file);

struct made_files {
    struct made_list open, closed; /* in the order in which they were made, and closed */
    struct made_file *slots[MADE_FILES_MAX]; /* by the lowest bits of the number */
    size_t count;
    size_t bytes;
};

void made_files_begin(struct made_files *files);

/* Whether one with this number has room. Numbers that follow one another have, until there are MADE_FILES_MAX. */
bool made_files_has_room(const struct made_files *files, uint64_t node);

/* A new one, open; NULL: no memory. The caller fills in the rest. */
struct made_file *made_files_add(struct made_files *files, uint64_t node, const char *name, size_t length);

/* NULL if it is not here. */
struct made_file *made_files_find(const struct made_files *files, uint64_t node);

/* Puts the bytes behind those that it has. False: too many, or no memory; nothing has changed. */
bool made_files_write(struct made_files *files, struct made_file *file, const void *data, size_t size);

void made_files_close(struct made_files *files, struct made_file *file);

/* Takes it out, and frees it. */
void made_files_remove(struct made_files *files, struct made_file *file);

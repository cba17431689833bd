/* Names in directories: a hash table of pointers to what begins with a struct named. It owns nothing of that. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define NAME_BYTES_MAX 255 /* NAME_MAX of limits.h, without the NUL that is not stored */

struct named {
    uint64_t parent; /* as the kernel calls it */
    size_t length;
    const char *bytes; /* no NUL behind them */
};

struct name_table {
    struct named **slots; /* NULL: none yet */
    size_t mask;          /* number of slots less one; that number is a power of two, at least twice the count */
    size_t count;
};

/* NULL if it is not there. */
struct named *name_table_find(const struct name_table *table, uint64_t parent, const char *bytes, size_t length);

/* Takes in a name that is not there. False: no memory, and nothing has changed. */
bool name_table_add(struct name_table *table, struct named *name);

/* Takes out one that is there. */
void name_table_remove(struct name_table *table, const struct named *name);

/* Calls back for each name, which may free it, and forgets them all. */
void name_table_clear(struct name_table *table, void (*let_go)(struct named *));

/*
 * A hash table of entries that begin with the number of an inode, with linear probing. What is taken out leaves no mark,
 * since its successors move up. One thread uses a table: the one that answers the kernel.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

struct node_table {
    size_t entry_size; /* at least 8: an entry's first field is its number; 0: a free slot */
    size_t count_max;  /* beyond, nothing more is taken in */
    char *slots;       /* NULL: none yet */
    size_t mask;       /* number of slots less one; that number is a power of two, at least twice the count */
    size_t count;
};

/* NULL if it is not there. Good until the next call that changes the table. */
void *node_table_find(const struct node_table *table, uint64_t node);

/* The entry that is there, or a new one, all zeros but for its number; NULL if there is no room or no memory. Good as that
 * of find. */
void *node_table_put(struct node_table *table, uint64_t node);

/* It has to be there, and ``entry`` is where find says. */
void node_table_take_out(struct node_table *table, void *entry);

/* The next entry behind this one, NULL after the last; NULL to begin. The table must not change meanwhile. */
void *node_table_next(const struct node_table *table, const void *entry);

void node_table_clear(struct node_table *table);

/*
 * Files that may be opened for reading, and closed, without asking Python (opens.h), and how many opens there are of each.
 * One thread uses it: the one that answers the kernel.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define OPEN_TABLE_MAX 262144 /* inodes; beyond, nothing more is taken in */

struct open_entry {
    uint64_t node; /* 0: free */
    uint32_t opens;
    bool keep; /* the kernel's pages are the contents; true once it was opened here */
    bool read; /* to its end, from the data, and noted */
    const char *data; /* all bytes of the file; NULL: they are not here */
    size_t size;
    void *owner; /* of the data; whoever takes the entry out, or the data, lets go of it */
    struct offered_name *name; /* that leads to it (names.h), if one was offered; likewise */
};

/* The inode's entry, new or as it was; NULL if there is no room or no memory. Good as that of find. */
struct open_entry *open_table_offer(uint64_t node, bool keep);

/* NULL if it is not there. Good until the next call that changes the table. */
struct open_entry *open_table_find(uint64_t node);

/* Takes the inode out. Returns what its entry was; all zeros if it was not there. */
struct open_entry open_table_withdraw(uint64_t node);

/* Calls back for each inode, with the table unchanged meanwhile. */
void open_table_each(void (*visit)(const struct open_entry *, void *), void *argument);

void open_table_clear(void);

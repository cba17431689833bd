/* Directories in which files are made without asking Python (makes.h): all names that are in each or may be, and what it is
 * like. */
#pragma once

#include <linux/fuse.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "made_files.h"
#include "name_table.h"

struct made_name {
    struct named key;
    struct made_file *file; /* that it leads to; NULL: nothing here, ask Python */
    char bytes[];
};

struct grant {
    uint64_t node;
    uint32_t uid;            /* who may make files in it whatever groups he is in, besides root */
    bool over;               /* nothing is made, or said not to exist, any more */
    bool described;          /* the attributes are as they are */
    struct fuse_attr attr;
    struct name_table names; /* all that are in it or may be */
};

/* NULL if it is not granted. Good until a directory is granted, or not any more. */
struct grant *granted_find(uint64_t node);

/* NULL if there is no room, or it is granted already. */
struct grant *granted_add(uint64_t node, uint32_t uid);

void granted_end(struct grant *grant);
void granted_end_all(void);
size_t granted_count(void);

/* The name at the beginning of these bytes, in *length of them. False: there is none that a file could have. */
bool granted_parse(const char *bytes, size_t size, size_t *length);

/* NULL: there is no such name in the directory. */
struct made_name *granted_name(const struct grant *grant, const char *bytes, size_t length);

/* From now on the name is in the directory, or may be. NULL: no memory, or no room; then the grant is over. */
struct made_name *granted_note(struct grant *grant, const char *bytes, size_t length);

/* There was no such file after all. */
void granted_forget(struct grant *grant, struct made_name *name);

/* What the directory is like with one more. */
void granted_count_made(struct grant *grant, int64_t made_ns);

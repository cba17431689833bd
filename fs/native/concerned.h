/* Which of the files that were made here a request is about (makes.h). */
#pragma once

#include <linux/fuse.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "made_files.h"

#define ALL_FILES 0 /* no node has this number */

/* Whether Python has to take something before it carries out this request: what, in *node; a file, all files of a
 * directory, or ALL_FILES. A name that the request may bring into a granted directory is there, or may be, from now on. */
bool concerned(const struct made_files *files, const struct fuse_in_header *header, const void *body, size_t size,
               uint64_t *node);

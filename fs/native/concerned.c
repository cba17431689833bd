#include "concerned.h"

#include <string.h>

#include "granted.h"

enum { TMPFILE = 51, STATX = 52, COPY_FILE_RANGE_64 = 53 }; /* of headers newer than some */

static const char *behind(const void *body, size_t *size, size_t fixed)
{
    if (*size < fixed) {
        *size = 0;
        return body;
    }
    *size -= fixed;
    return (const char *)body + fixed;
}

/* The request may bring this name into the directory. */
static void may_appear(struct grant *grant, const char *bytes, size_t size)
{
    size_t length;

    if (grant && !grant->over && granted_parse(bytes, size, &length) && !granted_name(grant, bytes, length))
        granted_note(grant, bytes, length);
}

/* The request is about this name, and may bring it in if there is none. True: about the file in *node. */
static bool about_name(struct grant *grant, const char *bytes, size_t size, bool appears, uint64_t *node)
{
    const struct made_name *name;
    size_t length;

    if (!grant || !granted_parse(bytes, size, &length))
        return false;
    name = granted_name(grant, bytes, length);
    if (!name && appears)
        may_appear(grant, bytes, size);
    if (!name || !name->file)
        return false;
    *node = name->file->node;
    return true;
}

/* Renaming: both directories may have files here, and so may a directory that is replaced. */
static void note_rename(uint32_t opcode, const void *body, size_t size)
{
    size_t fixed = opcode == FUSE_RENAME ? sizeof(struct fuse_rename_in) : sizeof(struct fuse_rename2_in);
    const char *names = behind(body, &size, fixed), *end = memchr(names, 0, size);
    uint64_t directory;

    if (!end)
        return;
    memcpy(&directory, body, sizeof directory); /* the first field of both requests */
    may_appear(granted_find(directory), end + 1, size - (size_t)(end + 1 - names));
}

bool concerned(const struct made_files *files, const struct fuse_in_header *header, const void *body, size_t size,
               uint64_t *node)
{
    struct grant *grant = granted_find(header->nodeid);

    *node = header->nodeid;
    if (header->opcode == FUSE_FORGET || header->opcode == FUSE_BATCH_FORGET || header->opcode == FUSE_INTERRUPT)
        return false;
    if (made_files_find(files, header->nodeid)) {
        if (header->opcode == FUSE_COPY_FILE_RANGE || header->opcode == COPY_FILE_RANGE_64)
            *node = ALL_FILES; /* the other file may be one as well */
        return true;
    }
    switch (header->opcode) {
    case FUSE_LOOKUP:
    case FUSE_UNLINK:
        return about_name(grant, body, size, false, node);
    case FUSE_SYMLINK:
        return about_name(grant, body, size, true, node);
    case FUSE_CREATE:
        body = behind(body, &size, sizeof(struct fuse_create_in));
        return about_name(grant, body, size, true, node);
    case FUSE_MKNOD:
        body = behind(body, &size, sizeof(struct fuse_mknod_in));
        return about_name(grant, body, size, true, node);
    case FUSE_MKDIR:
        body = behind(body, &size, sizeof(struct fuse_mkdir_in));
        return about_name(grant, body, size, true, node);
    case FUSE_SETATTR:
    case FUSE_SETXATTR:
    case FUSE_REMOVEXATTR:
        if (grant)
            grant->over = true; /* it may become one in which Python makes no files either */
        return grant;
    case FUSE_GETATTR:
    case STATX:
    case FUSE_READDIR:
    case FUSE_READDIRPLUS:
    case FUSE_FSYNCDIR:
        return grant;
    case FUSE_INIT:
    case FUSE_STATFS:
    case FUSE_OPENDIR:
    case FUSE_RELEASEDIR:
    case FUSE_ACCESS:
    case FUSE_GETXATTR:
    case FUSE_LISTXATTR:
    case FUSE_READLINK:
    case TMPFILE: /* it gets a name by LINK */
    case FUSE_OPEN: /* from here on: of a file that is not here */
    case FUSE_READ:
    case FUSE_WRITE:
    case FUSE_FLUSH:
    case FUSE_RELEASE:
    case FUSE_FSYNC:
    case FUSE_FALLOCATE:
    case FUSE_LSEEK:
    case FUSE_IOCTL:
    case FUSE_POLL:
    case FUSE_GETLK:
    case FUSE_SETLK:
    case FUSE_SETLKW:
        return false;
    case FUSE_LINK:
        body = behind(body, &size, sizeof(struct fuse_link_in));
        may_appear(grant, body, size);
        break;
    case FUSE_RENAME:
    case FUSE_RENAME2:
        note_rename(header->opcode, body, size);
        break;
    default:
        break;
    }
    *node = ALL_FILES;
    return true;
}

#include "made_files.h"

#include <stdlib.h>
#include <string.h>

#define SLOT(node) ((node) & (MADE_FILES_MAX - 1))

void made_files_begin(struct made_files *files)
{
    TAILQ_INIT(&files->open);
    TAILQ_INIT(&files->closed);
}

bool made_files_has_room(const struct made_files *files, uint64_t node)
{
    return !files->slots[SLOT(node)] && files->bytes < MADE_BYTES_ALL_MAX;
}

struct made_file *made_files_add(struct made_files *files, uint64_t node, const char *name, size_t length)
{
    struct made_file *file = calloc(1, sizeof *file + length);

    if (!file)
        return NULL;
    file->node = node;
    file->length = length;
    memcpy(file->name, name, length);
    files->slots[SLOT(node)] = file;
    files->count++;
    TAILQ_INSERT_TAIL(&files->open, file, link);
    return file;
}

struct made_file *made_files_find(const struct made_files *files, uint64_t node)
{
    struct made_file *file = files->count ? files->slots[SLOT(node)] : NULL;

    return file && file->node == node ? file : NULL;
}

bool made_files_write(struct made_files *files, struct made_file *file, const void *data, size_t size)
{
    size_t end = file->size + size;

    if (end > MADE_BYTES_MAX)
        return false;
    if (end > file->room) {
        size_t wanted = file->room ? 2 * end : end; /* most files come in one piece */
        size_t room = wanted < MADE_BYTES_MAX ? wanted : MADE_BYTES_MAX;
        char *grown = files->bytes + room <= MADE_BYTES_ALL_MAX + file->room ? realloc(file->data, room) : NULL;
        if (!grown)
            return false;
        file->data = grown;
        files->bytes += room - file->room;
        file->room = room;
    }
    memcpy(file->data + file->size, data, size);
    file->size = end;
    return true;
}

void made_files_close(struct made_files *files, struct made_file *file)
{
    file->closed = true;
    TAILQ_REMOVE(&files->open, file, link);
    TAILQ_INSERT_TAIL(&files->closed, file, link);
}

void made_files_remove(struct made_files *files, struct made_file *file)
{
    TAILQ_REMOVE(file->closed ? &files->closed : &files->open, file, link);
    files->slots[SLOT(file->node)] = NULL;
    files->count--;
    files->bytes -= file->room;
    free(file->data);
    free(file);
}

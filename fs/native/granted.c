#include "granted.h"

#include <stdlib.h>
#include <string.h>

#define GRANTS_MAX 64
#define GRANTED_NAMES_MAX (1 << 20) /* of one directory; beyond, its files are made by Python */

static struct {
    struct grant all[GRANTS_MAX];
    size_t count;
} granted;

struct grant *granted_find(uint64_t node)
{
    for (size_t i = 0; i < granted.count; i++)
        if (granted.all[i].node == node)
            return &granted.all[i];
    return NULL;
}

struct grant *granted_add(uint64_t node, uint32_t uid)
{
    struct grant *grant = &granted.all[granted.count];

    if (granted.count == GRANTS_MAX || granted_find(node))
        return NULL;
    granted.count++;
    *grant = (struct grant){.node = node, .uid = uid};
    return grant;
}

size_t granted_count(void)
{
    return granted.count;
}

struct made_name *granted_name(const struct grant *grant, const char *bytes, size_t length)
{
    return (struct made_name *)name_table_find(&grant->names, grant->node, bytes, length);
}

struct made_name *granted_note(struct grant *grant, const char *bytes, size_t length)
{
    struct made_name *name = grant->names.count < GRANTED_NAMES_MAX ? calloc(1, sizeof *name + length) : NULL;

    if (name) {
        memcpy(name->bytes, bytes, length);
        name->key = (struct named){.parent = grant->node, .length = length, .bytes = name->bytes};
        if (name_table_add(&grant->names, &name->key))
            return name;
    }
    free(name);
    grant->over = true;
    return NULL;
}

static void let_go(struct named *key)
{
    struct made_name *name = (struct made_name *)key;

    if (name->file)
        name->file->entry = NULL;
    free(name);
}

void granted_forget(struct grant *grant, struct made_name *name)
{
    name_table_remove(&grant->names, &name->key);
    let_go(&name->key);
}

bool granted_parse(const char *bytes, size_t size, size_t *length)
{
    const char *end = memchr(bytes, 0, size);

    if (!end || end == bytes || end - bytes > NAME_BYTES_MAX)
        return false;
    *length = (size_t)(end - bytes);
    return !(bytes[0] == '.' && (*length == 1 || (*length == 2 && bytes[1] == '.')));
}

void granted_count_made(struct grant *grant, int64_t made_ns)
{
    uint64_t seconds = (uint64_t)(made_ns / 1000000000);
    uint32_t nanoseconds = (uint32_t)(made_ns % 1000000000);

    grant->attr.size++;
    if (seconds > grant->attr.mtime || (seconds == grant->attr.mtime && nanoseconds > grant->attr.mtimensec)) {
        grant->attr.mtime = seconds;
        grant->attr.mtimensec = nanoseconds;
    }
    if (seconds > grant->attr.ctime || (seconds == grant->attr.ctime && nanoseconds > grant->attr.ctimensec)) {
        grant->attr.ctime = seconds;
        grant->attr.ctimensec = nanoseconds;
    }
}

void granted_end(struct grant *grant)
{
    name_table_clear(&grant->names, let_go);
    *grant = granted.all[--granted.count];
}

void granted_end_all(void)
{
    while (granted.count)
        granted_end(&granted.all[0]);
}

/* Linear probing; what is taken out leaves no mark, since its successors move up. */
#include "name_table.h"

#include <stdlib.h>
#include <string.h>

#define FIRST_SLOTS 1024

static size_t slot_of(const struct name_table *table, uint64_t parent, const char *bytes, size_t length)
{
    uint64_t hash = 0xcbf29ce484222325u ^ parent; /* FNV-1a, draft-eastlake-fnv */

    for (size_t i = 0; i < length; i++)
        hash = (hash ^ (unsigned char)bytes[i]) * 0x100000001b3u;
    return (size_t)(hash ^ hash >> 32) & table->mask;
}

static size_t home_of(const struct name_table *table, const struct named *name)
{
    return slot_of(table, name->parent, name->bytes, name->length);
}

/* The slot of the name, or the free one where it would be. There is always a free one. */
static size_t locate(const struct name_table *table, uint64_t parent, const char *bytes, size_t length)
{
    size_t at = slot_of(table, parent, bytes, length);

    for (; table->slots[at]; at = (at + 1) & table->mask) {
        const struct named *one = table->slots[at];
        if (one->parent == parent && one->length == length && !memcmp(one->bytes, bytes, length))
            break;
    }
    return at;
}

static bool grow(struct name_table *table)
{
    size_t before = table->slots ? table->mask + 1 : 0;
    size_t after = before ? 2 * before : FIRST_SLOTS;
    struct named **old = table->slots, **slots = calloc(after, sizeof *slots);

    if (!slots)
        return false;
    table->slots = slots;
    table->mask = after - 1;
    for (size_t i = 0; i < before; i++)
        if (old[i])
            slots[locate(table, old[i]->parent, old[i]->bytes, old[i]->length)] = old[i];
    free(old);
    return true;
}

struct named *name_table_find(const struct name_table *table, uint64_t parent, const char *bytes, size_t length)
{
    return table->count ? table->slots[locate(table, parent, bytes, length)] : NULL;
}

bool name_table_add(struct name_table *table, struct named *name)
{
    if ((!table->slots || 2 * (table->count + 1) > table->mask) && !grow(table))
        return false;
    table->slots[locate(table, name->parent, name->bytes, name->length)] = name;
    table->count++;
    return true;
}

void name_table_remove(struct name_table *table, const struct named *name)
{
    size_t hole = locate(table, name->parent, name->bytes, name->length);

    for (size_t at = (hole + 1) & table->mask; table->slots[at]; at = (at + 1) & table->mask) {
        /* It may move into the hole unless it belongs behind it. */
        if (((at - home_of(table, table->slots[at])) & table->mask) >= ((at - hole) & table->mask)) {
            table->slots[hole] = table->slots[at];
            hole = at;
        }
    }
    table->slots[hole] = NULL;
    table->count--;
}

void name_table_clear(struct name_table *table, void (*let_go)(struct named *))
{
    for (size_t i = 0; table->slots && i <= table->mask; i++)
        if (table->slots[i])
            let_go(table->slots[i]);
    free(table->slots);
    *table = (struct name_table){0};
}

#include "node_table.h"

#include <stdlib.h>
#include <string.h>

#define FIRST_SLOTS 1024

static char *slot(const struct node_table *table, size_t at)
{
    return table->slots + at * table->entry_size;
}

static uint64_t node_at(const struct node_table *table, size_t at)
{
    uint64_t node;

    memcpy(&node, slot(table, at), sizeof node);
    return node;
}

static size_t home_of(const struct node_table *table, uint64_t node)
{
    node ^= node >> 31;
    node *= 0x9e3779b97f4a7c15u; /* Knuth, The Art of Computer Programming 3, 6.4: multiplicative hashing */
    return (size_t)(node >> 24) & table->mask;
}

/* The slot of the inode, or the free one where it would be. There is always a free one. */
static size_t locate(const struct node_table *table, uint64_t node)
{
    size_t at = home_of(table, node);

    for (uint64_t there; (there = node_at(table, at)) && there != node;)
        at = (at + 1) & table->mask;
    return at;
}

static int grow(struct node_table *table)
{
    struct node_table larger = *table;
    size_t before = table->slots ? table->mask + 1 : 0;
    size_t after = before ? 2 * before : FIRST_SLOTS;

    larger.slots = calloc(after, table->entry_size);
    if (!larger.slots)
        return 0;
    larger.mask = after - 1;
    for (size_t i = 0; i < before; i++) {
        uint64_t node = node_at(table, i);
        if (node)
            memcpy(slot(&larger, locate(&larger, node)), slot(table, i), table->entry_size);
    }
    free(table->slots);
    *table = larger;
    return 1;
}

void *node_table_find(const struct node_table *table, uint64_t node)
{
    size_t at;

    if (!node || !table->count)
        return NULL;
    at = locate(table, node);
    return node_at(table, at) ? slot(table, at) : NULL;
}

void *node_table_put(struct node_table *table, uint64_t node)
{
    void *entry = node_table_find(table, node);

    if (entry || !node || table->count >= table->count_max)
        return entry;
    if ((!table->slots || 2 * (table->count + 1) > table->mask) && !grow(table))
        return NULL;
    entry = slot(table, locate(table, node));
    memcpy(entry, &node, sizeof node);
    table->count++;
    return entry;
}

void node_table_take_out(struct node_table *table, void *entry)
{
    size_t hole = (size_t)((char *)entry - table->slots) / table->entry_size;

    for (size_t at = (hole + 1) & table->mask; node_at(table, at); at = (at + 1) & table->mask) {
        /* It may move into the hole unless it belongs behind it. */
        if (((at - home_of(table, node_at(table, at))) & table->mask) >= ((at - hole) & table->mask)) {
            memcpy(slot(table, hole), slot(table, at), table->entry_size);
            hole = at;
        }
    }
    memset(slot(table, hole), 0, table->entry_size);
    table->count--;
}

void *node_table_next(const struct node_table *table, const void *entry)
{
    size_t at = entry ? (size_t)((const char *)entry - table->slots) / table->entry_size + 1 : 0;

    for (; table->slots && at <= table->mask; at++)
        if (node_at(table, at))
            return slot(table, at);
    return NULL;
}

void node_table_clear(struct node_table *table)
{
    free(table->slots);
    table->slots = NULL;
    table->mask = table->count = 0;
}

/* A hash table with linear probing; what is taken out leaves no mark, since its successors move up. */
#include "open_table.h"

#include <stdlib.h>

#define FIRST_SLOTS 1024

static struct {
    struct open_entry *slots; /* NULL: none yet */
    size_t mask;              /* number of slots less one; that number is a power of two, at least twice the count */
    size_t count;
} table;

static size_t slot_of(uint64_t node)
{
    node ^= node >> 31;
    node *= 0x9e3779b97f4a7c15u; /* Knuth, The Art of Computer Programming 3, 6.4: multiplicative hashing */
    return (size_t)(node >> 24) & table.mask;
}

/* The slot of the inode, or the free one where it would be. There is always a free one. */
static size_t locate(uint64_t node)
{
    size_t at = slot_of(node);

    while (table.slots[at].node && table.slots[at].node != node)
        at = (at + 1) & table.mask;
    return at;
}

static bool grow(void)
{
    size_t before = table.slots ? table.mask + 1 : 0;
    size_t after = before ? 2 * before : FIRST_SLOTS;
    struct open_entry *old = table.slots, *slots = calloc(after, sizeof *slots);

    if (!slots)
        return false;
    table.slots = slots;
    table.mask = after - 1;
    for (size_t i = 0; i < before; i++)
        if (old[i].node)
            slots[locate(old[i].node)] = old[i];
    free(old);
    return true;
}

struct open_entry *open_table_offer(uint64_t node, bool keep)
{
    size_t at;

    if (!node || (table.count >= OPEN_TABLE_MAX && !open_table_find(node)))
        return NULL;
    if ((!table.slots || 2 * (table.count + 1) > table.mask) && !grow())
        return NULL;
    at = locate(node);
    if (!table.slots[at].node) {
        table.slots[at] = (struct open_entry){.node = node, .keep = keep};
        table.count++;
    }
    return &table.slots[at];
}

struct open_entry *open_table_find(uint64_t node)
{
    size_t at;

    if (!node || !table.slots)
        return NULL;
    at = locate(node);
    return table.slots[at].node ? &table.slots[at] : NULL;
}

struct open_entry open_table_withdraw(uint64_t node)
{
    struct open_entry *found = open_table_find(node), taken = {0};
    size_t hole, at;

    if (!found)
        return taken;
    taken = *found;
    hole = (size_t)(found - table.slots);
    for (at = (hole + 1) & table.mask; table.slots[at].node; at = (at + 1) & table.mask) {
        /* It may move into the hole unless it belongs behind it. */
        if (((at - slot_of(table.slots[at].node)) & table.mask) >= ((at - hole) & table.mask)) {
            table.slots[hole] = table.slots[at];
            hole = at;
        }
    }
    table.slots[hole] = (struct open_entry){0};
    table.count--;
    return taken;
}

void open_table_each(void (*visit)(const struct open_entry *, void *), void *argument)
{
    for (size_t i = 0; table.slots && i <= table.mask; i++)
        if (table.slots[i].node)
            visit(&table.slots[i], argument);
}

void open_table_clear(void)
{
    free(table.slots);
    table.slots = NULL;
    table.mask = table.count = 0;
}

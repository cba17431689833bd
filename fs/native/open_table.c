#include "open_table.h"

#include "node_table.h"

static struct node_table table = {.entry_size = sizeof(struct open_entry), .count_max = OPEN_TABLE_MAX};

struct open_entry *open_table_offer(uint64_t node, bool keep)
{
    struct open_entry *entry = open_table_find(node);

    if (!entry && (entry = node_table_put(&table, node)))
        entry->keep = keep;
    return entry;
}

struct open_entry *open_table_find(uint64_t node)
{
    return node_table_find(&table, node);
}

struct open_entry open_table_withdraw(uint64_t node)
{
    struct open_entry *found = open_table_find(node), taken = {0};

    if (found) {
        taken = *found;
        node_table_take_out(&table, found);
    }
    return taken;
}

void open_table_each(void (*visit)(const struct open_entry *, void *), void *argument)
{
    for (struct open_entry *entry = NULL; (entry = node_table_next(&table, entry));)
        visit(entry, argument);
}

void open_table_clear(void)
{
    node_table_clear(&table);
}

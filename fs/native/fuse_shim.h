/* What the parts of the extension know of each other. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Answer a request that needs neither Python nor libfuse. False: it has to go there. */
bool answer_here(const void *message, size_t size);

/* Returns 0 or an errno; ENOENT: the kernel does not wait for it any more. */
int send_reply(uint64_t unique, int error, const void *body, size_t size);

/* For User-Mode Linux on a processor whose registers take more room than it knows of (AMX).
 *
 * The kernel takes the whole extended state or nothing (x86 NT_X86_XSTATE of ptrace(2): EFAULT), and Linux 6.1 under
 * UML has 2696 bytes for it (HOST_FP_SIZE, arch/x86/um/user-offsets.c). Loaded before it, this sees to the rest: what UML
 * sets is laid over what the process has, what UML gets is cut. Programs in the guest must not use what lies beyond.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/uio.h>

static long (*real)(enum __ptrace_request, ...);
static char whole[64 * 1024];

long ptrace(enum __ptrace_request request, ...)
{
    va_list arguments;
    va_start(arguments, request);
    pid_t pid = va_arg(arguments, pid_t);
    void *address = va_arg(arguments, void *), *data = va_arg(arguments, void *);
    va_end(arguments);
    if (!real)
        real = (long (*)(enum __ptrace_request, ...))dlsym(RTLD_NEXT, "ptrace");
    if ((request != PTRACE_GETREGSET && request != PTRACE_SETREGSET) || (long)address != NT_X86_XSTATE)
        return real(request, pid, address, data);

    struct iovec *asked = data, all = {whole, sizeof whole};
    long result = real(PTRACE_GETREGSET, pid, address, &all);
    if (result < 0)
        return result;
    size_t known = asked->iov_len < all.iov_len ? asked->iov_len : all.iov_len;
    if (request == PTRACE_GETREGSET) {
        memcpy(asked->iov_base, whole, known);
        asked->iov_len = known;
        return result;
    }
    memcpy(whole, asked->iov_base, known);
    return real(PTRACE_SETREGSET, pid, address, &all);
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Asks this kernel what filters answer for a table of calls, without executing any of them.
 *
 * Usage: seccomp_probe FILTERS TABLE RESULTS
 *   FILTERS  for each filter, in the order of loading: u32 flags, u32 count, count x struct sock_filter
 *   TABLE    entries of { u32 way (0: syscall, 1: int $0x80), u32 number, u64 arguments[6] }
 *   RESULTS  entries of { u32 outcome, u32 value }, as many as the table has; must exist with that size
 *
 * The first filter that is loaded is the probe's own: it answers ERRNO(MARKER) to everything but its own `seccomp` calls (told by a
 * number in the sixth argument). Of equal actions the newest filter's counts, and ERRNO is stricter than USER_NOTIF, TRACE, LOG and
 * ALLOW: so a filter under test that kills, traps or returns an errno is seen as it is, and one that lets the call pass gives MARKER.
 *
 * One thread does the calls; the main thread has no filter and sees the other one go (KILL_THREAD), the parent sees the process
 * go (KILL_PROCESS) and starts another one at the next entry.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define MARKER 4001
#define OWN_CALL 0x74726961

enum { NOT_ASKED, RETURNED, TRAPPED, KILLED_THREAD, KILLED_PROCESS, ILLEGAL };

struct entry { uint32_t way, number; uint64_t arguments[6]; };
struct result { uint32_t outcome, value; };
struct shared { volatile uint32_t at, tid, is_loaded, is_done, failure; };

static struct entry *table;
static volatile struct result *results;
static struct shared *shared;
static unsigned char *filters, *filters_end;
static uint32_t entries;
static jmp_buf after_trap;
static volatile int trap_value;

static void *mapped(const char *path, int is_shared, size_t *size)
{
    struct stat status;
    int descriptor = open(path, is_shared ? O_RDWR : O_RDONLY);
    if (descriptor < 0 || fstat(descriptor, &status) < 0) {
        perror(path);
        exit(2);
    }
    *size = status.st_size;
    void *memory = mmap(NULL, *size, PROT_READ | (is_shared ? PROT_WRITE : 0), is_shared ? MAP_SHARED : MAP_PRIVATE, descriptor, 0);
    if (memory == MAP_FAILED) {
        perror(path);
        exit(2);
    }
    return memory;
}

static long called(const struct entry *e)
{
    long answer;
    if (e->way) {
        /* ebp cannot be named as an operand: the sixth argument of a 32-bit call stays what it is here. */
        __asm__ volatile("int $0x80" : "=a"(answer)
            : "a"(e->number), "b"((uint32_t)e->arguments[0]), "c"((uint32_t)e->arguments[1]), "d"((uint32_t)e->arguments[2]),
              "S"((uint32_t)e->arguments[3]), "D"((uint32_t)e->arguments[4]) : "memory", "r8", "r9", "r10", "r11");
        return (int32_t)answer;
    }
    register uint64_t r10 __asm__("r10") = e->arguments[3];
    register uint64_t r8 __asm__("r8") = e->arguments[4];
    register uint64_t r9 __asm__("r9") = e->arguments[5];
    __asm__ volatile("syscall" : "=a"(answer)
        : "a"((uint64_t)e->number), "D"(e->arguments[0]), "S"(e->arguments[1]), "d"(e->arguments[2]), "r"(r10), "r"(r8), "r"(r9)
        : "memory", "rcx", "r11");
    return answer;
}

static void on_trap(int number, siginfo_t *info, void *context)
{
    (void)number, (void)context;
    trap_value = info->si_errno;
    longjmp(after_trap, 1); /* returning would need rt_sigreturn, which the filters refuse */
}

static int load(uint32_t flags, uint32_t count, const unsigned char *instructions)
{
    struct sock_fprog program = { .len = count, .filter = (struct sock_filter *)instructions };
    return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program, 0, 0, OWN_CALL);
}

static void *worker(void *unused) __attribute__((noreturn));

static void *worker(void *unused)
{
    static struct sock_filter own[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 0, 5),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_seccomp, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[5])),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, OWN_CALL, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | MARKER),
    };
    struct sigaction action = { .sa_sigaction = on_trap, .sa_flags = SA_SIGINFO | SA_NODEFER };
    (void)unused;
    sigaction(SIGSYS, &action, NULL);
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    shared->tid = syscall(SYS_gettid);
    if (load(0, sizeof own / sizeof *own, (unsigned char *)own) < 0)
        shared->failure = errno;
    for (unsigned char *at = filters; at < filters_end && !shared->failure;) {
        uint32_t flags, count;
        memcpy(&flags, at, 4);
        memcpy(&count, at + 4, 4);
        if (load(flags, count, at + 8) < 0)
            shared->failure = errno;
        at += 8 + 8 * (size_t)count;
    }
    shared->is_loaded = 1;
    while (!shared->failure && shared->at < entries) {
        uint32_t at = shared->at;
        if (setjmp(after_trap) == 0) {
            long answer = called(&table[at]);
            results[at].value = answer < 0 && answer > -4096 ? (uint32_t)-answer : 0;
            results[at].outcome = RETURNED;
        } else {
            results[at].value = trap_value;
            results[at].outcome = TRAPPED;
        }
        shared->at = at + 1;
    }
    shared->is_done = 1;
    for (;;)
        __asm__ volatile("pause" ::: "memory");
}

static void child(void)
{
    char task[64];
    pthread_t thread;
    if (pthread_create(&thread, NULL, worker, NULL))
        _exit(3);
    while (!shared->tid)
        usleep(50);
    snprintf(task, sizeof task, "/proc/self/task/%u", shared->tid);
    while (!shared->is_done) {
        if (access(task, F_OK) < 0 && !shared->is_done) {
            results[shared->at].outcome = KILLED_THREAD;
            shared->at++;
            _exit(0);
        }
        usleep(50);
    }
    _exit(0);
}

int main(int argc, char **argv)
{
    size_t size, results_size;
    if (argc != 4)
        return 2;
    filters = mapped(argv[1], 0, &size);
    filters_end = filters + size;
    table = mapped(argv[2], 0, &size);
    entries = size / sizeof *table;
    results = mapped(argv[3], 1, &results_size);
    if (results_size != entries * sizeof *results)
        return 2;
    shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    while (shared->at < entries) {
        int status;
        shared->tid = shared->is_loaded = shared->is_done = 0;
        pid_t pid = fork();
        if (pid == 0)
            child();
        if (pid < 0 || waitpid(pid, &status, 0) < 0)
            return 3;
        if (shared->failure || !shared->is_loaded) {
            fprintf(stderr, "loading a filter: %s\n", shared->failure ? strerror(shared->failure) : "killed");
            return 4;
        }
        if (WIFSIGNALED(status)) {
            if (WTERMSIG(status) != SIGSYS && WTERMSIG(status) != SIGILL) {
                fprintf(stderr, "entry %u: signal %d\n", shared->at, WTERMSIG(status));
                return 5;
            }
            /* SIGILL is what uretprobe() does to a caller that is no uprobe: it was executed (see the test). */
            results[shared->at].outcome = WTERMSIG(status) == SIGSYS ? KILLED_PROCESS : ILLEGAL;
            shared->at++;
        } else if (WEXITSTATUS(status)) {
            return 6;
        }
    }
    return 0;
}

/* SPDX-License-Identifier: Apache-2.0
 * Makes a task in one way (its argument) whose very first call is getppid; ends with 0 whatever became of that task. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static volatile int running = 1;
static char stack[65536] __attribute__((aligned(16)));

static int task(void *unused)
{
	(void)unused;
	syscall(SYS_getppid);
	syscall(SYS_exit, 0);
	return 0;
}

int main(int argc, char **argv)
{
	pid_t child = -1;
	if (argc != 2)
		return 2;
	if (!strcmp(argv[1], "fork")) {
		child = syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
		if (child == 0)
			task(0);
	} else if (!strcmp(argv[1], "vfork")) {
		child = vfork();
		if (child == 0)
			task(0);
	} else if (!strcmp(argv[1], "clone-vfork")) {
		child = clone(task, stack + sizeof stack, CLONE_VM | CLONE_VFORK | SIGCHLD, 0);
	} else if (!strcmp(argv[1], "clone3") || !strcmp(argv[1], "clone3-vfork")) {
		struct clone_args args = {.exit_signal = SIGCHLD};
		if (argv[1][6])
			args.flags = CLONE_VFORK; /* without CLONE_VM: the child has a stack of its own */
		child = syscall(SYS_clone3, &args, sizeof args);
		if (child == 0)
			task(0);
	} else if (!strcmp(argv[1], "thread")) {
		child = clone(task, stack + sizeof stack,
			      CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM |
			      CLONE_CHILD_CLEARTID, 0, 0, 0, (void *)&running);
		if (child < 0)
			return 3;
		for (int i = 0; i < 20000 && running; i++) /* the kernel clears it when the thread ends, however it does */
			usleep(1000);
		return running;
	}
	if (child < 0)
		return 3;
	while (waitpid(child, 0, __WALL) < 0 && errno == EINTR)
		;
	return 0;
}

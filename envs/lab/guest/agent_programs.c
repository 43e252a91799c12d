/* SPDX-License-Identifier: MIT
 *
 * Programs in cgroups: how they are started, how they end, and the output of those that are not
 * load generators.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "agent.h"

#define MAX_PROGRAMS 64
#define MAX_WORDS 64
#define PIPE_BYTES (1 << 20)

struct program {
	char name[MAX_NAME];
	pid_t pid;	/* 0 = ended */
	int status;
	int output;	/* read end of a pipe, -1 once its last writer is gone */
};

static struct program programs[MAX_PROGRAMS];
static size_t n_programs;

/* fork() into a cgroup, so that nothing of the child is charged elsewhere. */
pid_t program_fork(const char *cgroup, int *error)
{
	struct clone_args args = { .flags = CLONE_INTO_CGROUP, .exit_signal = SIGCHLD };
	int fd = open(cgroup, O_PATH | O_DIRECTORY | O_CLOEXEC);
	pid_t pid;

	if (fd < 0) {
		*error = errno;
		return -1;
	}
	args.cgroup = (uint64_t)fd;
	pid = (pid_t)syscall(SYS_clone3, &args, sizeof(args));
	*error = pid < 0 ? errno : 0;
	if (pid)
		close(fd);
	return pid;
}

static struct program *find_program(const char *name)
{
	for (size_t i = 0; i < n_programs; i++)
		if (!strcmp(programs[i].name, name))
			return &programs[i];
	return NULL;
}

static void run_program(char *const argv[], int output)
{
	int nothing = open("/dev/null", O_RDONLY);

	dup2(nothing, 0);
	dup2(output, 1);
	execv(argv[0], argv);
	fprintf(stderr, "agent: spawn %s: %m\n", argv[0]);
	_exit(127);
}

static int start_program(struct program *program, const char *cgroup, char *const argv[])
{
	int ends[2], error;

	if (access(argv[0], X_OK))
		return errno;
	if (pipe2(ends, O_CLOEXEC))
		return errno;
	fcntl(ends[0], F_SETPIPE_SZ, PIPE_BYTES);
	fcntl(ends[0], F_SETFL, O_NONBLOCK);
	program->pid = program_fork(cgroup, &error);
	if (!program->pid)
		run_program(argv, ends[1]);
	close(ends[1]);
	if (program->pid < 0) {
		program->pid = 0;
		close(ends[0]);
		return error;
	}
	program->output = ends[0];
	return 0;
}

/* "spawn NAME CGROUP CMD...": the name may be that of a program that has ended. */
int program_spawn(char *words)
{
	char *name = next_word(&words), *cgroup = next_word(&words), *argv[MAX_WORDS + 1];
	struct program *program;
	size_t n = 0;
	int error;

	if (!name || !cgroup || strlen(name) >= MAX_NAME)
		return EINVAL;
	while (*words && n < MAX_WORDS && (argv[n] = next_word(&words)))
		n++;
	argv[n] = NULL;
	if (!n || *words)
		return EINVAL;
	program = find_program(name);
	if (program && program->pid)
		return EBUSY;
	if (!program && n_programs == MAX_PROGRAMS)
		return ENOSPC;
	if (program && program->output >= 0)
		close(program->output);
	if (!program)
		program = &programs[n_programs];
	*program = (struct program){ .output = -1 };
	strcpy(program->name, name);
	error = start_program(program, cgroup, argv);
	if (!error && program == &programs[n_programs])
		n_programs++;
	return error;
}

int program_signal(char *words)
{
	char *name = next_word(&words), *number = next_word(&words);
	struct program *program;
	uint64_t signal;

	if (!name || !number || *words || parse_u64(number, &signal) || signal >= NSIG)
		return EINVAL;
	program = find_program(name);
	if (!program || !program->pid)
		return ESRCH;
	return kill(program->pid, (int)signal) ? errno : 0;
}

static void program_reaped(pid_t pid, int status)
{
	for (size_t i = 0; i < n_programs; i++) {
		if (programs[i].pid != pid)
			continue;
		programs[i].pid = 0;
		programs[i].status = status;
	}
}

/* PID 1 inherits orphans, too. */
void programs_reap(void)
{
	struct rusage usage;
	int status;
	pid_t pid;

	while ((pid = wait4(-1, &status, WNOHANG, &usage)) > 0)
		if (!slot_reaped(pid, status, &usage))
			program_reaped(pid, status);
}

/* What a program has written since the last report. */
static void report_output(const char *name, struct program *program)
{
	size_t room, bytes = 0;
	ssize_t n = -1;
	char *to;

	to = report_open(name, &room);
	if (!to)
		return;
	while (program->output >= 0 && bytes < room &&
	       (n = read(program->output, to + bytes, room - bytes)) > 0)
		bytes += (size_t)n;
	report_close(bytes);
	if (!n && program->output >= 0) {
		close(program->output);
		program->output = -1;
	}
}

void programs_report(void)
{
	for (size_t i = 0; i < n_programs; i++) {
		struct program *program = &programs[i];
		char name[MAX_NAME + 16];

		snprintf(name, sizeof(name), "out/%.*s", MAX_NAME - 1, program->name);
		report_output(name, program);
		snprintf(name, sizeof(name), "program/%.*s", MAX_NAME - 1, program->name);
		report_printf(name, "alive %d\nlast_status %d\n", program->pid != 0,
			      program->status);
	}
}

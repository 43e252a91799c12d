/* SPDX-License-Identifier: MIT
 *
 * Programs in cgroups: how they are started, how they end, and the output of those that are not
 * load generators.
 *
 * "spawn" is for programs of the guest itself.  "run" is for those of a distribution: they get an
 * environment, a folder to work in, and what they complain of goes into their output, too.  It can
 * do a command over and over, each round timed.
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
	bool group;	/* it leads a process group, to which signals go */
};

/* How "run" starts one. */
struct setting {
	char *folder;
	uint64_t rounds;	/* 0 = without end */
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

static char *environment[] = { "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/tmp", "LC_ALL=C",
			       "TZ=UTC", NULL };

static void run_command(char *const argv[])
{
	execve(argv[0], argv, environment);
	fprintf(stderr, "%s: %m\n", argv[0]);
	_exit(127);
}

/*
 * In the child of a program with threads: nothing but system calls, and what needs no lock.
 * Ends with the first round that fails, as that did, or as a shell says that it was killed.
 */
static void run_rounds(char *const argv[], uint64_t rounds)
{
	for (uint64_t round = 1; !rounds || round <= rounds; round++) {
		unsigned long begin = now_ns();
		char line[128];
		int status = 0, bytes;
		pid_t pid = (pid_t)syscall(SYS_fork);

		if (!pid)
			run_command(argv);
		if (pid < 0 || waitpid(pid, &status, 0) != pid)
			_exit(126);
		bytes = snprintf(line, sizeof(line), "@round %lu %lu %lu %d\n",
				 (unsigned long)round, begin, (unsigned long)now_ns(), status);
		if (write(1, line, (size_t)bytes) != bytes)
			_exit(126);
		if (status)
			_exit(WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status));
	}
	_exit(0);
}

static void run_setting(char *const argv[], int output, const struct setting *setting)
{
	dup2(open("/dev/null", O_RDONLY), 0);
	dup2(output, 1);
	dup2(output, 2);
	setpgid(0, 0);
	if (chdir(setting->folder)) {
		fprintf(stderr, "%s: %m\n", setting->folder);
		_exit(126);
	}
	if (setting->rounds == 1)
		run_command(argv);
	run_rounds(argv, setting->rounds);
}

static int start_program(struct program *program, const char *cgroup, char *const argv[],
			 const struct setting *setting)
{
	int ends[2], error;

	if (access(argv[0], X_OK))
		return errno;
	if (pipe2(ends, O_CLOEXEC))
		return errno;
	fcntl(ends[0], F_SETPIPE_SZ, PIPE_BYTES);
	fcntl(ends[0], F_SETFL, O_NONBLOCK);
	program->pid = program_fork(cgroup, &error);
	if (!program->pid && setting)
		run_setting(argv, ends[1], setting);
	if (!program->pid)
		run_program(argv, ends[1]);
	close(ends[1]);
	if (program->pid < 0) {
		program->pid = 0;
		close(ends[0]);
		return error;
	}
	program->output = ends[0];
	if (setting)	/* as the child does, whoever comes first */
		setpgid(program->pid, program->pid);
	program->group = setting != NULL;
	return 0;
}

/* The name may be that of a program that has ended. */
static int begin_program(const char *name, const char *cgroup, char *words,
			 const struct setting *setting)
{
	char *argv[MAX_WORDS + 1];
	struct program *program;
	size_t n = 0;
	int error;

	if (strlen(name) >= MAX_NAME)
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
	error = start_program(program, cgroup, argv, setting);
	if (!error && program == &programs[n_programs])
		n_programs++;
	return error;
}

/* "spawn NAME CGROUP CMD..." */
int program_spawn(char *words)
{
	char *name = next_word(&words), *cgroup = next_word(&words);

	return name && cgroup ? begin_program(name, cgroup, words, NULL) : EINVAL;
}

/* "run NAME CGROUP FOLDER ROUNDS CMD..." */
int program_run(char *words)
{
	char *name = next_word(&words), *cgroup = next_word(&words);
	char *folder = next_word(&words), *rounds = next_word(&words);
	struct setting setting = { .folder = folder };

	if (!name || !cgroup || !folder || !rounds || parse_u64(rounds, &setting.rounds))
		return EINVAL;
	return begin_program(name, cgroup, words, &setting);
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
	return kill(program->group ? -program->pid : program->pid, (int)signal) ? errno : 0;
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

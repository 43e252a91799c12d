// SPDX-License-Identifier: MIT
/*
 * probe PREFIX OPERATION...
 *
 * Each operation is one word, its arguments behind colons.  One line per operation is said:
 * "NAME MICROSECONDS", after what it has to tell itself.
 *
 *	wait		say everything so far, then meet the host twice: once to tell it that the
 *			probe is here (PREFIX.at), once to be let go on (PREFIX.go)
 *	fifo:PATH	make a FIFO
 *	burn:MS		use the processor for this long
 *	sleep:MS
 *	put:PATH:TEXT	one write(2), as a shell's echo would; tells the errno
 *	get:PATH[:NAME]	tell the number in a file, or the one behind a name at a line's start
 *	adj:VALUE	set the probe's own oom_score_adj
 *	hz		tell the length of a jiffy, in nanoseconds
 *	mark		where "again" goes back to
 *	again:COUNT	go back, so often
 *
 * Memory operations are in probe_memory.c.  What the probe says is kept until it waits, so that
 * saying it does not disturb what is measured.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "clock.h"
#include "probe.h"

static char text[1 << 18];
static size_t used;
static const char *prefix;

void say(const char *format, ...)
{
	va_list args;
	int bytes;

	va_start(args, format);
	bytes = vsnprintf(text + used, sizeof(text) - used, format, args);
	va_end(args);
	if ((size_t)bytes >= sizeof(text) - used)
		die("too much to say");
	used += (size_t)bytes;
}

static void flush(void)
{
	size_t at = 0;

	while (at < used) {
		ssize_t n = write(1, text + at, used - at);

		if (n <= 0)
			_exit(3);
		at += (size_t)n;
	}
	used = 0;
}

void die(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	fputs("probe: ", stderr);
	vfprintf(stderr, format, args);
	fputc('\n', stderr);
	va_end(args);
	_exit(2);
}

uint64_t number(const struct args *args, int at)
{
	char *end;
	uint64_t value;

	if (at >= args->n)
		die("argument %d is missing", at);
	value = strtoull(args->word[at], &end, 0);
	if (*end || end == args->word[at])
		die("%s: not a number", args->word[at]);
	return value;
}

/* Opening a FIFO to read waits until somebody opens it to write. */
static void meet(const char *what)
{
	char path[256], byte;
	int fd;

	snprintf(path, sizeof(path), "%s.%s", prefix, what);
	fd = open(path, O_RDONLY);
	if (fd < 0)
		die("%s: %m", path);
	while (read(fd, &byte, 1) > 0)
		;
	close(fd);
}

static void wait_for_host(void)
{
	say("wait 0\n");
	flush();
	meet("at");
	meet("go");
}

static void burn_ms(uint64_t ms)
{
	uint64_t end = now_ns() + ms * NS_PER_MS;

	while (now_ns() < end)
		burn(100);
}

static void put(const char *path, const char *data)
{
	int fd = open(path, O_WRONLY), error = 0;

	if (fd < 0 || write(fd, data, strlen(data)) < 0)
		error = errno;
	if (fd >= 0)
		close(fd);
	say("errno %d\n", error);
}

/*
 * Two reasons not to leave it to the agent: a setting of the kernel's refuses to be read by the
 * megabyte, and some numbers depend on the scheduling class of who reads them.
 */
static void get(const char *path, const char *name)
{
	FILE *file = fopen(path, "r");
	size_t length = strlen(name);
	char line[256];
	bool found = false;

	if (!file)
		die("%s: %m", path);
	while (!found && fgets(line, sizeof(line), file))
		found = !strncmp(line, name, length) && (!length || strchr(" :", line[length]));
	fclose(file);
	if (!found)
		die("%s: no %s", path, name);
	say("value %lld\n", strtoll(line + length + (length > 0), NULL, 0));
}

static void say_jiffy(void)
{
	struct timespec t;

	clock_getres(CLOCK_MONOTONIC_COARSE, &t);
	say("jiffy_ns %ld\n", t.tv_nsec);
}

static void set_oom_score_adj(const char *value)
{
	int fd = open("/proc/self/oom_score_adj", O_WRONLY);

	if (fd < 0 || write(fd, value, strlen(value)) < 0)
		die("oom_score_adj %s: %m", value);
	close(fd);
}

static int other_op(const char *name, const struct args *args)
{
	if (!strcmp(name, "fifo")) {
		if (mkfifo(args->word[0], 0600))
			die("%s: %m", args->word[0]);
	} else if (!strcmp(name, "burn")) {
		burn_ms(number(args, 0));
	} else if (!strcmp(name, "sleep")) {
		sleep_until(now_ns() + number(args, 0) * NS_PER_MS);
	} else if (!strcmp(name, "put") && args->n == 2) {
		put(args->word[0], args->word[1]);
	} else if (!strcmp(name, "get") && args->n > 0) {
		get(args->word[0], args->n > 1 ? args->word[1] : "");
	} else if (!strcmp(name, "adj") && args->n == 1) {
		set_oom_score_adj(args->word[0]);
	} else if (!strcmp(name, "hz")) {
		say_jiffy();
	} else {
		return 0;
	}
	return 1;
}

static void split(char *word, struct args *args, char **name)
{
	char *rest = word;

	*name = strsep(&rest, ":");
	for (args->n = 0; rest && args->n < MAX_ARGS; args->n++)
		args->word[args->n] = strsep(&rest, ":");
	if (rest)
		die("%s: too many arguments", *name);
}

static void run_op(const char *word)
{
	char copy[256], *name;
	struct args args;
	uint64_t begin = now_ns();

	if (strlen(word) >= sizeof(copy))
		die("%s: too long", word);
	strcpy(copy, word);
	split(copy, &args, &name);
	if (!memory_op(name, &args) && !other_op(name, &args))
		die("%s: no such operation", word);
	say("%s %.1f\n", name, (double)(now_ns() - begin) * 1e-3);
}

int main(int argc, char **argv)
{
	uint64_t rounds = 0;
	int mark = 1;

	if (argc < 2)
		die("usage: probe PREFIX OPERATION...");
	prefix = argv[1];
	memset(text, 0, sizeof(text));
	if (mlockall(MCL_CURRENT))
		die("mlockall: %m");
	for (int at = 2; at < argc; at++) {
		if (!strcmp(argv[at], "wait")) {
			wait_for_host();
		} else if (!strcmp(argv[at], "mark")) {
			mark = at;
		} else if (!strncmp(argv[at], "again:", 6)) {
			if (rounds++ < strtoull(argv[at] + 6, NULL, 10))
				at = mark;
			else
				rounds = 0;
		} else {
			run_op(argv[at]);
		}
	}
	flush();
	return 0;
}

/* SPDX-License-Identifier: MIT
 *
 * The command block: lines of words, one errno each.  A bad command is EINVAL and no more.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "agent.h"

#define MAX_LINE 8192

/* What is left of the block; a write command takes its data from here. */
static const char *at, *end;

static int *results;
static size_t n_results, room_results;

/* "write F LEN PATH", then LEN bytes and a newline. */
static int command_write(char *words)
{
	char *mode = next_word(&words), *length = next_word(&words), *path = next_word(&words);
	int flags = O_WRONLY | O_TRUNC | O_CLOEXEC, error = 0;
	const char *data = at;
	uint64_t bytes;
	int fd;

	if (!mode || !length || !path || *words || parse_u64(length, &bytes))
		return EINVAL;
	if (bytes >= (uint64_t)(end - at) || at[bytes] != '\n')
		return EINVAL;
	at += bytes + 1;
	if (!strcmp(mode, "n"))
		flags |= O_NONBLOCK;
	else if (strcmp(mode, "-"))
		return EINVAL;
	fd = open(path, flags);
	if (fd < 0)
		return errno;
	if (write(fd, data, bytes) < 0)
		error = errno;
	close(fd);
	return error;
}

static int command_mkdir(char *words)
{
	char *path = next_word(&words);

	if (!path || *words)
		return EINVAL;
	return mkdir(path, 0755) ? errno : 0;
}

static int command_rmdir(char *words)
{
	char *path = next_word(&words);

	if (!path || *words)
		return EINVAL;
	return rmdir(path) ? errno : 0;
}

static int command_watch(char *words)
{
	char *name = next_word(&words), *path = next_word(&words);

	if (!name || !path || *words)
		return EINVAL;
	return watch_add(name, path);
}

static int command_unwatch(char *words)
{
	char *name = next_word(&words);

	if (!name || *words)
		return EINVAL;
	return watch_remove(name);
}

static const struct {
	const char *name;
	int (*run)(char *words);
} commands[] = {
	{ "write", command_write },
	{ "mkdir", command_mkdir },
	{ "rmdir", command_rmdir },
	{ "watch", command_watch },
	{ "unwatch", command_unwatch },
	{ "mount", device_mount },
	{ "fill", device_fill },
	{ "mkswap", device_mkswap },
	{ "swapon", device_swapon },
	{ "slot", slot_declare },
	{ "region", slot_add_region },
	{ "lock", slot_add_lock },
	{ "start", slot_start },
	{ "launch", slot_launch },
	{ "await", slot_await },
	{ "stop", slot_stop },
	{ "demand", slot_demand },
	{ "remix", slot_remix },
	{ "free_burst", slot_free_burst },
	{ "reclaim", reclaim_ask },
	{ "spawn", program_spawn },
	{ "run", program_run },
	{ "signal", program_signal },
};

static int run_command(char *line)
{
	char *words = line, *name = next_word(&words);

	for (size_t i = 0; name && i < sizeof(commands) / sizeof(commands[0]); i++)
		if (!strcmp(name, commands[i].name))
			return commands[i].run(words);
	return EINVAL;
}

static void add_result(int error)
{
	if (n_results == room_results) {
		size_t room = room_results ? 2 * room_results : 1024;
		int *more = realloc(results, room * sizeof(*more));

		if (!more)
			fail("results: out of memory");
		results = more;
		room_results = room;
	}
	results[n_results++] = error;
}

/* The next line of the block, without its end; an overlong one is cut, and then not understood. */
static bool next_line(char line[MAX_LINE])
{
	const char *stop;
	size_t bytes;

	if (at >= end)
		return false;
	stop = memchr(at, '\n', (size_t)(end - at));
	if (!stop)
		stop = end;
	bytes = (size_t)(stop - at);
	if (bytes >= MAX_LINE)
		bytes = 0;
	memcpy(line, at, bytes);
	line[bytes] = 0;
	at = stop < end ? stop + 1 : end;
	return true;
}

enum after commands_run(const char *text, size_t bytes)
{
	static char line[MAX_LINE];

	at = text;
	end = text + bytes;
	n_results = 0;
	while (next_line(line)) {
		if (!strcmp(line, "tick"))
			return AFTER_TICK;
		if (!strcmp(line, "pause"))
			return AFTER_PAUSE;
		if (!strcmp(line, "poweroff"))
			return AFTER_POWEROFF;
		add_result(run_command(line));
	}
	return AFTER_PAUSE;
}

void commands_report_results(void)
{
	size_t room, bytes = 0;
	char *to = report_open("results", &room);

	if (!to)
		return;
	for (size_t i = 0; i < n_results && room - bytes > 16; i++)
		bytes += (size_t)snprintf(to + bytes, room - bytes, "%d\n", results[i]);
	report_close(bytes);
}

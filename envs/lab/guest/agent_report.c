/* SPDX-License-Identifier: MIT
 *
 * The report: named texts, one after the other in the shared memory.  Watched files are read
 * straight into it, through descriptors that stay open.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "agent.h"

#define MAX_READ 65536UL	/* /proc/sys allocates what is asked for, and refuses 4 MiB */

struct watch {
	char *name;
	char *path;
	int fd;		/* -1 = not open: not there yet, or gone */
};

static uint8_t *area;
static size_t used, size, entry_at;
static bool overflowed;

static struct watch *watches;
static size_t n_watches, room_watches;

void report_begin(void *memory, size_t bytes)
{
	area = memory;
	size = bytes;
	used = 0;
	overflowed = false;
}

size_t report_end(void)
{
	return used;
}

bool report_overflowed(void)
{
	return overflowed;
}

/* Where the text of a new file goes, and how much of it fits; NULL if not even its name does. */
char *report_open(const char *name, size_t *room)
{
	uint32_t name_bytes = (uint32_t)strlen(name);
	size_t head = sizeof(struct entry) + name_bytes;

	if (size - used < head) {
		overflowed = true;
		return NULL;
	}
	entry_at = used;
	memcpy(area + used, &name_bytes, sizeof(name_bytes));
	memcpy(area + used + sizeof(struct entry), name, name_bytes);
	used += head;
	*room = size - used;
	return (char *)area + used;
}

void report_close(size_t bytes)
{
	uint32_t text_bytes = (uint32_t)bytes;

	memcpy(area + entry_at + offsetof(struct entry, text_bytes), &text_bytes,
	       sizeof(text_bytes));
	used += bytes;
}

/* Take back what report_open() began. */
static void report_drop(void)
{
	used = entry_at;
}

void report_text(const char *name, const char *text, size_t bytes)
{
	size_t room;
	char *to = report_open(name, &room);

	if (!to)
		return;
	if (bytes > room) {
		overflowed = true;
		report_drop();
		return;
	}
	memcpy(to, text, bytes);
	report_close(bytes);
}

void report_printf(const char *name, const char *format, ...)
{
	char text[1024];
	va_list args;
	int bytes;

	va_start(args, format);
	bytes = vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	report_text(name, text, (size_t)bytes < sizeof(text) ? (size_t)bytes : sizeof(text) - 1);
}

/* The whole of a file from its start; -errno, or how many bytes. */
static ssize_t read_all(int fd, bool seeks, char *to, size_t room)
{
	size_t got = 0;

	while (got < room) {
		size_t most = room - got < MAX_READ ? room - got : MAX_READ;
		ssize_t n = seeks ? pread(fd, to + got, most, (off_t)got) :
				    read(fd, to + got, most);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN && !seeks)	/* a pipe that is empty for now */
			return (ssize_t)got;
		if (n < 0)
			return -errno;
		if (!n)
			return (ssize_t)got;
		got += (size_t)n;
	}
	return -ENOSPC;
}

static void close_file(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

/*
 * Left out if there is no such file now.  A descriptor may be of a file that is gone, while
 * another has taken its name; and some files can only be read once from front to back.
 */
static void report_file(const char *name, const char *path, int *fd)
{
	bool seeks = true;

	for (int trial = 0; trial < 2; trial++) {
		ssize_t bytes;
		size_t room;
		char *to;

		if (*fd < 0)
			*fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
		to = *fd < 0 ? NULL : report_open(name, &room);
		if (!to)
			return;
		bytes = read_all(*fd, seeks, to, room);
		if (bytes >= 0)
			report_close((size_t)bytes);
		else
			report_drop();
		if (bytes < 0 || !seeks)
			close_file(fd);
		if (bytes >= 0)
			return;
		if (bytes == -ENOSPC)
			overflowed = true;
		seeks = bytes != -ESPIPE;
	}
}

void report_path(const char *name, const char *path)
{
	int fd = -1;

	report_file(name, path, &fd);
	close_file(&fd);
}

static struct watch *find_watch(const char *name)
{
	for (size_t i = 0; i < n_watches; i++)
		if (!strcmp(watches[i].name, name))
			return &watches[i];
	return NULL;
}

static void forget_watch(struct watch *watch)
{
	close_file(&watch->fd);
	free(watch->name);
	free(watch->path);
}

int watch_add(const char *name, const char *path)
{
	struct watch *watch = find_watch(name);

	if (watch)
		forget_watch(watch);
	if (!watch && n_watches == room_watches) {
		size_t room = room_watches ? 2 * room_watches : 256;
		struct watch *more = realloc(watches, room * sizeof(*more));

		if (!more)
			return ENOMEM;
		watches = more;
		room_watches = room;
	}
	if (!watch)
		watch = &watches[n_watches++];
	watch->name = strdup(name);
	watch->path = strdup(path);
	watch->fd = -1;
	if (!watch->name || !watch->path)
		fail("watch %s: out of memory", name);
	return 0;
}

int watch_remove(const char *name)
{
	struct watch *watch = find_watch(name);

	if (!watch)
		return ENOENT;
	forget_watch(watch);
	n_watches--;
	memmove(watch, watch + 1, (size_t)(watches + n_watches - watch) * sizeof(*watch));
	return 0;
}

void watch_report(void)
{
	for (size_t i = 0; i < n_watches; i++)
		report_file(watches[i].name, watches[i].path, &watches[i].fd);
}

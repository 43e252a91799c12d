// SPDX-License-Identifier: MIT
/*
 * The smallest guest that speaks the protocol: it says what it was told and what the kernel counts,
 * and fails in the ways a guest can fail.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/io.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "protocol.h"
#include "standstill.h"

#define IVSHMEM_DEVICE "0x1110"
#define WORK_BYTES (8UL << 20)

static char *shared;
static struct header *header;
static uint32_t report_bytes;
static char resumed_ns[32] = "0";

static void die(const char *why)
{
	printf("agent: %s: %m\n", why);
	exit(1); /* PID 1: the kernel panics, and the machine sees it */
}

static void open_console(void)
{
	int fd = open("/dev/console", O_RDWR);

	dup2(fd, 0);
	dup2(fd, 1);
	dup2(fd, 2);
	setvbuf(stdout, NULL, _IONBF, 0);
}

static size_t slurp(const char *path, char *text, size_t size)
{
	int fd = open(path, O_RDONLY);
	size_t have = 0;
	ssize_t got = 1;

	while (fd >= 0 && got > 0 && have < size) {
		got = read(fd, text + have, size - have);
		have += got > 0 ? got : 0;
	}
	if (fd >= 0)
		close(fd);
	return have;
}

static void map_shared(void)
{
	const char *root = "/sys/bus/pci/devices";
	char path[512], id[16];
	struct dirent *entry;
	DIR *dir = opendir(root);

	while (dir && (entry = readdir(dir))) {
		snprintf(path, sizeof(path), "%s/%s/device", root, entry->d_name);
		memset(id, 0, sizeof(id));
		slurp(path, id, sizeof(id) - 1);
		if (strncmp(id, IVSHMEM_DEVICE, strlen(IVSHMEM_DEVICE)))
			continue;
		snprintf(path, sizeof(path), "%s/%s/resource2", root, entry->d_name);
		shared = mmap(NULL, SHARED_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED,
			      open(path, O_RDWR), 0);
	}
	if (!shared || shared == MAP_FAILED)
		die("shared memory");
	header = (struct header *)shared;
}

static void put(const char *name, const char *text, size_t bytes)
{
	struct entry entry = { .name_bytes = strlen(name), .text_bytes = bytes };
	char *at = shared + REPORT_OFFSET + report_bytes;

	memcpy(at, &entry, sizeof(entry));
	memcpy(at + sizeof(entry), name, entry.name_bytes);
	memcpy(at + sizeof(entry) + entry.name_bytes, text, bytes);
	report_bytes += sizeof(entry) + entry.name_bytes + bytes;
}

static void put_file(const char *name, const char *path)
{
	static char text[1 << 16];

	put(name, text, slurp(path, text, sizeof(text)));
}

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000ULL + now.tv_nsec;
}

static void report(enum state state)
{
	header->magic = PROTOCOL_MAGIC;
	header->version = PROTOCOL_VERSION;
	header->state = state;
	header->report_bytes = report_bytes;
	report_bytes = 0;
	header->time_ns = now_ns();
	standstill();
	snprintf(resumed_ns, sizeof(resumed_ns), "%llu", (unsigned long long)now_ns());
}

static void obey(const char *text, size_t bytes)
{
	const struct timespec tick = { .tv_nsec = 100000000 };

	put("echo", text, bytes);
	put("resumed_ns", resumed_ns, strlen(resumed_ns));
	if (!strncmp(text, "poweroff", 8))
		reboot(RB_POWER_OFF);
	if (!strncmp(text, "panic", 5))
		die("told to");
	if (!strncmp(text, "hang", 4))
		for (;;)
			pause();
	if (!strncmp(text, "fail", 4)) {
		printf("agent: told to fail\n");
		report(STATE_FAILED);
	}
	if (!strncmp(text, "stale", 5))
		standstill();
	nanosleep(&tick, NULL);
	header->tick++;
}

static void list(const char *name, const char *path)
{
	char text[4096] = "";
	struct dirent *entry;
	DIR *dir = opendir(path);

	while (dir && (entry = readdir(dir)))
		if (entry->d_name[0] != '.' && strlen(text) + 300 < sizeof(text))
			sprintf(text + strlen(text), "%s\n", entry->d_name);
	if (dir)
		closedir(dir);
	put(name, text, strlen(text));
}

/*
 * Something that never rests, so that the machine stops in the midst of work; how far it got says
 * to the page whether two machines did the same.
 */
static volatile uint64_t *start_work(void)
{
	const struct sched_param priority = { .sched_priority = 50 };
	volatile uint64_t *done = mmap(NULL, 4096, PROT_READ | PROT_WRITE,
				       MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	volatile char *pages = mmap(NULL, WORK_BYTES, PROT_READ | PROT_WRITE,
				    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (done == MAP_FAILED || pages == MAP_FAILED)
		die("work");
	if (!fork())
		for (;; (*done)++) {
			pages[*done * 4096 % WORK_BYTES]++;
			if (*done % 1000 == 0)
				madvise((char *)pages, WORK_BYTES / 4, MADV_DONTNEED);
		}
	if (sched_setscheduler(0, SCHED_FIFO, &priority))
		die("priority");
	return done;
}

int main(void)
{
	enum state state = STATE_READY;
	volatile uint64_t *done;
	char text[32];

	mount("proc", "/proc", "proc", 0, NULL);
	mount("sysfs", "/sys", "sysfs", 0, NULL);
	mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
	open_console();
	map_shared();
	if (ioperm(PAUSE_PORT, 1, 1) || standstill_prepare())
		die("standstill");
	done = start_work();
	for (;; state = STATE_PAUSED) {
		put_file("version", "/proc/version");
		put_file("cmdline", "/proc/cmdline");
		put_file("meminfo", "/proc/meminfo");
		put_file("vmstat", "/proc/vmstat");
		put_file("interrupts", "/proc/interrupts");
		put_file("order", "/modules/order");
		list("modules", "/modules");
		list("nodes", "/sys/devices/system/node");
		list("tiers", "/sys/devices/virtual/memory_tiering");
		snprintf(text, sizeof(text), "%llu", (unsigned long long)*done);
		put("work", text, strlen(text));
		report(state);
		obey(shared + COMMAND_OFFSET, header->command_bytes);
	}
}

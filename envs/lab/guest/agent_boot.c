/* SPDX-License-Identifier: MIT
 *
 * From an empty initramfs to a machine in which cgroups can be made.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/io.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "agent.h"

#define IVSHMEM_DEVICE "0x1110"
#define PCI_DEVICES "/sys/bus/pci/devices"
#define BURN_LOOPS 20000UL	/* about 3 ms where an instruction takes 2 ns */
#define BURN_TRIALS 5

static const struct {
	const char *type, *target, *options;
	bool needed;
} mounts[] = {
	{ "proc", "/proc", NULL, true },
	{ "sysfs", "/sys", NULL, true },
	{ "devtmpfs", "/dev", NULL, true },
	{ "tmpfs", "/dev/shm", "size=0", true },
	{ "tmpfs", "/tmp", NULL, false },
	/* not memory_recursiveprot: the workloads' parent is protected without limit, to pass on */
	/* what its children claim, and would hand out all the rest as well */
	{ "cgroup2", "/sys/fs/cgroup", "nsdelegate", true },
	{ "debugfs", "/sys/kernel/debug", NULL, false },
	{ "tracefs", "/sys/kernel/tracing", NULL, false },
	{ "configfs", "/sys/kernel/config", NULL, false },
};

static void mount_all(bool again)
{
	for (size_t i = 0; i < sizeof(mounts) / sizeof(mounts[0]); i++) {
		const char *type = mounts[i].type, *target = mounts[i].target;

		if (again != !strcmp(type, "configfs"))
			continue;
		mkdir(target, 0755);
		if (mount(type, target, type, 0, mounts[i].options) && errno != EBUSY &&
		    mounts[i].needed)
			fail("mount %s on %s: %m", type, target);
	}
}

static void take_console(void)
{
	int fd = open("/dev/console", O_RDWR | O_CLOEXEC);

	if (fd < 0)
		return;
	for (int i = 0; i < 3; i++)
		dup2(fd, i);
	setvbuf(stdout, NULL, _IOLBF, 0);
}

void boot_mount(void)
{
	mount_all(false);
	take_console();
}

static void load_module(const char *name)
{
	char path[256];
	int fd;

	snprintf(path, sizeof(path), "/modules/%s.ko", name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		fail("%s: %m", path);
	if (syscall(SYS_finit_module, fd, "", 0) && errno != EEXIST)
		fprintf(stderr, "agent: %s: %m\n", path);
	close(fd);
}

/* configfs may be a module itself, so its mount comes after. */
void boot_modules(void)
{
	FILE *order = fopen("/modules/order", "re");
	char line[128];

	while (order && fgets(line, sizeof(line), order)) {
		line[strcspn(line, "\n")] = 0;
		if (line[0])
			load_module(line);
	}
	if (order)
		fclose(order);
	mount_all(true);
}

static bool is_ivshmem(const char *device)
{
	char path[320], text[16] = "";
	FILE *file;

	snprintf(path, sizeof(path), PCI_DEVICES "/%s/device", device);
	file = fopen(path, "re");
	if (!file)
		return false;
	if (!fgets(text, sizeof(text), file))
		text[0] = 0;
	fclose(file);
	return !strncmp(text, IVSHMEM_DEVICE, strlen(IVSHMEM_DEVICE));
}

static void *map_device(const char *device)
{
	char path[320];
	void *area;
	int fd;

	snprintf(path, sizeof(path), PCI_DEVICES "/%s/enable", device);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0 || write(fd, "1", 1) != 1)
		fail("%s: %m", path);
	close(fd);
	snprintf(path, sizeof(path), PCI_DEVICES "/%s/resource2", device);
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		fail("%s: %m", path);
	area = mmap(NULL, SHARED_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (area == MAP_FAILED)
		fail("%s: %m", path);
	close(fd);
	madvise(area, SHARED_BYTES, MADV_DONTFORK);
	return area;
}

void *boot_map_shared(void)
{
	DIR *devices = opendir(PCI_DEVICES);
	void *area = NULL;

	if (!devices)
		fail("%s: %m", PCI_DEVICES);
	for (struct dirent *e = readdir(devices); e && !area; e = readdir(devices))
		if (is_ivshmem(e->d_name))
			area = map_device(e->d_name);
	closedir(devices);
	if (!area)
		fail("no ivshmem device: the machine needs -device ivshmem-plain");
	if (ioperm(PAUSE_PORT, 1, 1))
		fail("ioperm %#x: %m", PAUSE_PORT);
	return area;
}

static uint64_t thread_cpu_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return (uint64_t)t.tv_sec * NS_PER_S + (uint64_t)t.tv_nsec;
}

/* Loops of burn() in a microsecond: the best of a few trials, for an interrupt only takes time. */
double boot_measure_burn(void)
{
	uint64_t best = UINT64_MAX;

	for (int i = 0; i < BURN_TRIALS; i++) {
		uint64_t begin = thread_cpu_ns(), took;

		burn(BURN_LOOPS);
		took = thread_cpu_ns() - begin;
		if (took < best)
			best = took;
	}
	if (!best)
		fail("CLOCK_THREAD_CPUTIME_ID stands still");
	return (double)BURN_LOOPS * 1e3 / (double)best;
}

/* Children and other threads begin as ordinary ones. */
void boot_take_priority(void)
{
	struct sched_param param = { .sched_priority = 50 };

	if (sched_setscheduler(0, SCHED_FIFO | SCHED_RESET_ON_FORK, &param))
		fail("SCHED_FIFO: %m");
}

/* SPDX-License-Identifier: MIT
 *
 * Mounts, and block devices as swap space.  There is no shell in the guest to do it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/swap.h>
#include <unistd.h>

#include "agent.h"

#define MIB (1UL << 20)

/* The first page of a swap device: include/linux/swap.h, union swap_header. */
struct swap_header {
	char boot_sector[1024];
	uint32_t version;
	uint32_t last_page;
	uint32_t n_bad_pages;
	uint8_t uuid[16];
	char label[16];
	uint8_t unused[PAGE_BYTES - 1024 - 3 * sizeof(uint32_t) - 32 - 10];
	char magic[10];
} __attribute__((packed));

_Static_assert(sizeof(struct swap_header) == PAGE_BYTES, "one page");

/* All of a buffer, past the page cache: it must be aligned. */
static int write_direct(const char *path, const void *data, size_t bytes, unsigned long times)
{
	int fd = open(path, O_WRONLY | O_DIRECT | O_CLOEXEC), error = 0;

	if (fd < 0)
		return errno;
	for (unsigned long i = 0; i < times && !error; i++) {
		ssize_t n = write(fd, data, bytes);

		if (n != (ssize_t)bytes)
			error = n < 0 ? errno : ENOSPC;
	}
	close(fd);
	return error;
}

/* "fill DEV MIB": a device that lives in memory takes all of it now, and not when it is needed. */
int device_fill(char *words)
{
	char *path = next_word(&words), *size = next_word(&words);
	uint64_t mib;
	void *data;
	int error;

	if (!path || !size || *words || parse_u64(size, &mib))
		return EINVAL;
	data = aligned_alloc(PAGE_BYTES, MIB);
	if (!data)
		return ENOMEM;
	memset(data, 0x5A, MIB);
	error = write_direct(path, data, MIB, mib);
	free(data);
	return error;
}

static int device_bytes(const char *path, uint64_t *bytes)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC), error = 0;

	if (fd < 0)
		return errno;
	if (ioctl(fd, BLKGETSIZE64, bytes))
		error = errno;
	close(fd);
	return error;
}

int device_mkswap(char *words)
{
	char *path = next_word(&words);
	struct swap_header *head;
	uint64_t bytes;
	int error;

	if (!path || *words)
		return EINVAL;
	error = device_bytes(path, &bytes);
	if (error)
		return error;
	if (bytes < 2 * PAGE_BYTES || bytes / PAGE_BYTES > UINT32_MAX)
		return EINVAL;
	head = aligned_alloc(PAGE_BYTES, PAGE_BYTES);
	if (!head)
		return ENOMEM;
	memset(head, 0, PAGE_BYTES);
	head->version = 1;
	head->last_page = (uint32_t)(bytes / PAGE_BYTES - 1);
	memcpy(head->magic, "SWAPSPACE2", sizeof(head->magic));
	error = write_direct(path, head, PAGE_BYTES, 1);
	free(head);
	return error;
}

int device_swapon(char *words)
{
	char *path = next_word(&words), *priority_word = next_word(&words);
	uint64_t priority;

	if (!path || !priority_word || *words || parse_u64(priority_word, &priority) ||
	    priority > SWAP_FLAG_PRIO_MASK)
		return EINVAL;
	return swapon(path, SWAP_FLAG_PREFER | (int)priority) ? errno : 0;
}

/* "mount TYPE SOURCE TARGET OPTIONS|-" */
int device_mount(char *words)
{
	char *type = next_word(&words), *source = next_word(&words);
	char *target = next_word(&words), *options = next_word(&words);

	if (!type || !source || !target || !options || *words)
		return EINVAL;
	if (!strcmp(options, "-"))
		options = NULL;
	return mount(source, target, type, 0, options) ? errno : 0;
}

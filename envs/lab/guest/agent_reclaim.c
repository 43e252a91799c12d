/* SPDX-License-Identifier: MIT
 *
 * Background reclaim: one thread a slot, in the root cgroup, an ordinary task.  The kernel
 * reclaims in whoever writes memory.reclaim, so the control thread must not be the one.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "agent.h"

#define CHUNK_BYTES (4UL << 20)
#define STACK_BYTES (64UL << 10)
#define MAX_OPTIONS 32

struct worker {
	bool started;
	char path[256];
	char options[MAX_OPTIONS];	/* " swappiness=60", or nothing */
	_Atomic uint32_t order;		/* futex: a new order is another number */
	_Atomic uint64_t order_bytes;
	uint64_t asked;
	_Atomic uint64_t done;
	_Atomic int error;
	_Atomic bool busy;
};

static struct worker workers[MAX_SLOTS];

static int write_chunk(int fd, uint64_t bytes, const char *options)
{
	char text[64];
	int length = snprintf(text, sizeof(text), "%llu%s", (unsigned long long)bytes, options);

	return write(fd, text, (size_t)length) < 0 ? errno : 0;
}

/* Until done, until the kernel finds no more to take, or until there is another order. */
static void carry_out(struct worker *worker, uint32_t order)
{
	uint64_t left = atomic_load(&worker->order_bytes);
	int fd, error = 0;

	if (!left)
		return;
	fd = open(worker->path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		error = errno;
	while (!error && left && atomic_load(&worker->order) == order) {
		uint64_t chunk = left < CHUNK_BYTES ? left : CHUNK_BYTES;

		error = write_chunk(fd, chunk, worker->options);
		if (!error)
			atomic_fetch_add(&worker->done, chunk);
		left -= chunk;
	}
	atomic_store(&worker->error, error);
	if (fd >= 0)
		close(fd);
}

static void *work(void *arg)
{
	struct worker *worker = arg;

	for (;;) {
		uint32_t order = atomic_load(&worker->order);

		atomic_store(&worker->busy, true);
		carry_out(worker, order);
		atomic_store(&worker->busy, false);
		futex_wait(&worker->order, order, NEVER);
	}
	return NULL;
}

static int start_worker(struct worker *worker)
{
	pthread_attr_t attr;
	pthread_t thread;
	int error;

	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, STACK_BYTES);
	error = pthread_create(&thread, &attr, work, worker);
	pthread_attr_destroy(&attr);
	worker->started = !error;
	return error;
}

/* "reclaim I BYTES [swappiness=N]": takes the place of what is left of an earlier one. */
int reclaim_ask(char *words)
{
	char *slot_word = next_word(&words), *bytes_word = next_word(&words);
	char *option = next_word(&words);
	const char *cgroup;
	struct worker *worker;
	uint64_t slot, bytes;

	if (!slot_word || !bytes_word || *words || parse_u64(slot_word, &slot) ||
	    parse_u64(bytes_word, &bytes) || (option && strlen(option) > MAX_OPTIONS - 2))
		return EINVAL;
	cgroup = slot_cgroup(slot);
	if (!cgroup)
		return EINVAL;
	worker = &workers[slot];
	snprintf(worker->path, sizeof(worker->path), "%s/memory.reclaim", cgroup);
	snprintf(worker->options, sizeof(worker->options), "%s%s", option ? " " : "",
		 option ? option : "");
	worker->asked += bytes;
	atomic_store(&worker->order_bytes, bytes);
	atomic_fetch_add(&worker->order, 1);
	if (!worker->started)
		return start_worker(worker);
	futex_wake_all(&worker->order);
	return 0;
}

/* The tick is over: nobody begins another chunk. */
void reclaim_cut_off(void)
{
	for (int i = 0; i < MAX_SLOTS; i++) {
		atomic_store(&workers[i].order_bytes, 0);
		atomic_fetch_add(&workers[i].order, workers[i].started);
	}
}

size_t reclaim_stats(uint32_t slot, char *text, size_t room)
{
	struct worker *worker = &workers[slot];

	return (size_t)snprintf(text, room,
				"reclaim_asked %llu\nreclaim_done %llu\n"
				"reclaim_errno %d\nreclaim_busy %d\n",
				(unsigned long long)worker->asked,
				(unsigned long long)atomic_load(&worker->done),
				atomic_load(&worker->error), atomic_load(&worker->busy));
}

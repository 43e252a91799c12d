/* SPDX-License-Identifier: MIT
 *
 * Named mutexes: making them, who uses them, and what is left when a user dies.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "agent.h"
#include "waiting.h"

/* Robust, so that a holder that is killed leaves the mutex to the next waiter. */
static void make_mutex(pthread_mutex_t *mutex)
{
	pthread_mutexattr_t attr;

	if (pthread_mutexattr_init(&attr) ||
	    pthread_mutexattr_setpshared(&attr, PTHREAD_PROCESS_SHARED) ||
	    pthread_mutexattr_setrobust(&attr, PTHREAD_MUTEX_ROBUST) ||
	    pthread_mutex_init(mutex, &attr))
		fail("lock: no robust mutex shared by processes");
	pthread_mutexattr_destroy(&attr);
}

/* It stays open here, so that the pipe and its size outlive its users. */
static void make_pipe(const char *name)
{
	char path[MAX_NAME + sizeof(KERNEL_LOCKS)];
	int fd;

	snprintf(path, sizeof(path), KERNEL_LOCKS "%s", name);
	if (mkfifo(path, 0600) && errno != EEXIST)
		fail("lock: %s: %m", path);
	fd = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0 || fcntl(fd, F_SETPIPE_SZ, KERNEL_LOCK_BYTES) < 0)
		fail("lock: %s: %m", path);
}

static struct named_lock *find_or_make(const char *name, uint32_t kind, uint32_t *index)
{
	struct named_lock *lock;

	for (*index = 0; *index < block->n_locks; (*index)++)
		if (!strcmp(block->locks[*index].name, name))
			return &block->locks[*index];
	if (block->n_locks == MAX_LOCKS)
		return NULL;
	lock = &block->locks[block->n_locks];
	strcpy(lock->name, name);
	lock->kind = kind;
	if (kind == LOCK_KERNEL)
		make_pipe(name);
	else
		make_mutex(&lock->mutex);
	block->n_locks++;
	return lock;
}

/* Fill in which lock and which member of it a slot's declaration means. */
int lock_join(uint32_t slot, struct lock_spec *spec)
{
	struct named_lock *lock = find_or_make(spec->name, spec->kind, &spec->lock);
	uint32_t m = 0;

	if (!lock)
		return ENOSPC;
	if (lock->kind != spec->kind)
		return EINVAL;
	while (m < lock->n_members && lock->member_slot[m] != slot)
		m++;
	if (m == lock->n_members) {
		lock->member_slot[m] = slot;
		lock->n_members++;
	}
	spec->member = m;
	if (spec->role == ROLE_HOLDER)
		atomic_store(&lock->section_ns, (uint64_t)(spec->section_us * 1e3));
	return 0;
}

/* A slot's generator is gone: end its waits, and the section it was in. */
void lock_left_by(uint32_t slot)
{
	uint64_t at = now_us(), held_us, waited_us;

	lock_ongoing(slot, &held_us, &waited_us);
	atomic_fetch_add(&block->slots[slot].counters[COUNT_LOCK_HELD_US], held_us);
	atomic_fetch_add(&block->slots[slot].counters[COUNT_LOCK_WAITERS_US], waited_us);
	for (uint32_t i = 0; i < block->n_locks; i++) {
		struct named_lock *lock = &block->locks[i];
		uint32_t owner = slot + 1;

		atomic_compare_exchange_strong(&lock->owner, &owner, 0);
		for (uint32_t m = 0; m < lock->n_members; m++)
			if (lock->member_slot[m] == slot)
				waiting_forget(&lock->waiting[m], at);
	}
}

uint64_t lock_section_us(uint32_t lock)
{
	return atomic_load(&block->locks[lock].section_ns) / 1000;
}

/* What the sections that a slot's holders are in have cost others so far. */
void lock_ongoing(uint32_t slot, uint64_t *held_us, uint64_t *waited_us)
{
	uint64_t at = now_us();

	*held_us = *waited_us = 0;
	for (uint32_t i = 0; i < block->n_locks; i++) {
		struct named_lock *lock = &block->locks[i];

		if (atomic_load(&lock->owner) != slot + 1)
			continue;
		*held_us += section_held_us(lock, at);
		*waited_us += section_waited_us(lock, at);
	}
}

/* SPDX-License-Identifier: MIT
 *
 * Mutexes shared by all generators of the guest, and the account of who waits for whom.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>

#include "loadgen.h"
#include "waiting.h"

static void consistent(struct named_lock *lock, int error)
{
	if (error == EOWNERDEAD)
		error = pthread_mutex_consistent(&lock->mutex);
	if (error)
		die("lock %s: error %d", lock->name, error);
}

static void count_wait(const struct named_lock *lock, bool critical, uint64_t waited)
{
	uint64_t rest = 2 * atomic_load(&lock->section_ns);

	count(COUNT_LOCK_WAITS, 1);
	count(COUNT_LOCK_WAIT_NS, waited);
	if (!critical)
		return;
	count(COUNT_LOCK_CRITICAL_WAIT_NS, waited);
	if (waited > rest)
		count(COUNT_LOCK_EXCESS_NS, waited - rest);
}

/* The lock is taken: wait for it, where everybody can see since when. */
static void wait_for(struct named_lock *lock, const struct lock_spec *spec, struct thread *thread)
{
	struct wait *wait = &slot->waits[thread->index];
	uint64_t begin = now_ns(), end, none = 0;
	int error;

	wait->lock = spec->lock;
	wait->critical = thread->critical;
	waiting_begin(&lock->waiting[spec->member], begin / 1000);
	atomic_compare_exchange_strong(&lock->first_wait_us, &none, begin / 1000);
	atomic_store(&wait->since_ns, begin);
	error = pthread_mutex_lock(&lock->mutex);
	end = now_ns();
	atomic_store(&wait->since_ns, 0);
	waiting_end(&lock->waiting[spec->member], end / 1000);
	consistent(lock, error);
	count_wait(lock, thread->critical, end - begin);
}

static void begin_section(struct named_lock *lock)
{
	uint64_t at = now_us();

	if (!lock_waiting_number(lock))
		atomic_store(&lock->first_wait_us, 0);
	atomic_store(&lock->since_us, at);
	atomic_store(&lock->waited_us, lock_waiting_total_us(lock, at));
	atomic_store(&lock->owner, slot_number + 1);
}

static void end_section(struct named_lock *lock)
{
	uint64_t at;

	atomic_store(&lock->owner, 0);
	at = now_us();
	count(COUNT_LOCK_HELD_US, section_held_us(lock, at));
	count(COUNT_LOCK_WAITERS_US, section_waited_us(lock, at));
}

void lock_enter(struct thread *thread, const struct lock_spec *spec)
{
	struct named_lock *lock = &block->locks[spec->lock];
	int error = pthread_mutex_trylock(&lock->mutex);

	if (error == EBUSY)
		wait_for(lock, spec, thread);
	else
		consistent(lock, error);
	if (spec->role == ROLE_HOLDER)
		begin_section(lock);
}

void lock_leave(const struct lock_spec *spec)
{
	struct named_lock *lock = &block->locks[spec->lock];

	if (spec->role == ROLE_HOLDER)
		end_section(lock);
	pthread_mutex_unlock(&lock->mutex);
}

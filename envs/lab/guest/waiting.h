/* SPDX-License-Identifier: MIT
 *
 * Who waits for a lock, and for how long the lock's owner has kept others waiting.
 *
 * One word of a member says how many of its threads wait and how long they have waited together.
 * n is the upper 16 bits, b the lower 48 taken as signed: a thread that begins to wait at time t
 * adds 1 to n and takes t from b, one that ends adds t to b and takes 1 from n.  All waiting until
 * time t is then b + n * t.  Both are changed by one addition, so that whoever reads the word sees
 * either none or both of it.  48 bits of microseconds hold 4 years of waiting threads.
 */
#ifndef MEMCG_GYM_WAITING_H
#define MEMCG_GYM_WAITING_H

#include "block.h"
#include "clock.h"

#define WAITING_ONE (1LL << 48)

static inline int64_t waiting_number(int64_t word)
{
	return (word + WAITING_ONE / 2) >> 48;
}

static inline int64_t waiting_total_us(int64_t word, uint64_t at_us)
{
	int64_t number = waiting_number(word);

	return word - number * WAITING_ONE + number * (int64_t)at_us;
}

static inline void waiting_begin(_Atomic int64_t *word, uint64_t at_us)
{
	atomic_fetch_add(word, WAITING_ONE - (int64_t)at_us);
}

static inline void waiting_end(_Atomic int64_t *word, uint64_t at_us)
{
	atomic_fetch_add(word, (int64_t)at_us - WAITING_ONE);
}

/* A member died: its threads wait no more, what they waited stays. */
static inline void waiting_forget(_Atomic int64_t *word, uint64_t at_us)
{
	int64_t old = atomic_load(word);

	while (!atomic_compare_exchange_weak(word, &old, waiting_total_us(old, at_us)))
		;
}

static inline int64_t lock_waiting_number(struct named_lock *lock)
{
	int64_t number = 0;

	for (uint32_t m = 0; m < lock->n_members; m++)
		number += waiting_number(atomic_load(&lock->waiting[m]));
	return number;
}

static inline int64_t lock_waiting_total_us(struct named_lock *lock, uint64_t at_us)
{
	int64_t total = 0;

	for (uint32_t m = 0; m < lock->n_members; m++)
		total += waiting_total_us(atomic_load(&lock->waiting[m]), at_us);
	return total;
}

/* How long, of the section that is on, somebody has waited: waiters come but do not go in it. */
static inline uint64_t section_held_us(struct named_lock *lock, uint64_t at_us)
{
	uint64_t first = atomic_load(&lock->first_wait_us);
	uint64_t since = atomic_load(&lock->since_us);

	if (!first)
		return 0;
	if (first < since)
		first = since;
	return at_us > first ? at_us - first : 0;
}

/* How long all waiters together have waited in the section that is on. */
static inline uint64_t section_waited_us(struct named_lock *lock, uint64_t at_us)
{
	int64_t waited = lock_waiting_total_us(lock, at_us) - atomic_load(&lock->waited_us);

	return waited > 0 ? (uint64_t)waited : 0;
}

#endif

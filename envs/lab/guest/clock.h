/* SPDX-License-Identifier: MIT
 *
 * Guest time, CPU time to burn, and waiting for a word of memory to change.
 */
#ifndef MEMCG_GYM_CLOCK_H
#define MEMCG_GYM_CLOCK_H

#include <linux/futex.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define NS_PER_S 1000000000ULL
#define NS_PER_MS 1000000ULL
#define NEVER UINT64_MAX

static inline uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * NS_PER_S + (uint64_t)t.tv_nsec;
}

static inline uint64_t now_us(void)
{
	return now_ns() / 1000;
}

static inline struct timespec to_timespec(uint64_t ns)
{
	struct timespec t = { .tv_sec = ns / NS_PER_S, .tv_nsec = ns % NS_PER_S };

	return t;
}

static inline void sleep_until(uint64_t ns)
{
	struct timespec t = to_timespec(ns);

	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL))
		;
}

/* Sleep while *word == value, until a time or a wake-up; either may come early. */
static inline void futex_wait(_Atomic uint32_t *word, uint32_t value, uint64_t until_ns)
{
	struct timespec t = to_timespec(until_ns);

	syscall(SYS_futex, word, FUTEX_WAIT_BITSET, value, until_ns == NEVER ? NULL : &t, NULL,
		FUTEX_BITSET_MATCH_ANY);
}

static inline void futex_wake_all(_Atomic uint32_t *word)
{
	syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

/*
 * Burn CPU.  The body is long because an emulator pays for every jump and for no nop: guest time
 * passes by instructions all the same.
 */
static inline void burn(uint64_t loops)
{
	if (!loops)
		return;
	asm volatile("1:\n\t"
		     ".rept 62\n\tnop\n\t.endr\n\t"
		     "dec %0\n\t"
		     "jnz 1b"
		     : "+r"(loops)
		     :
		     : "cc");
}

#endif

/* SPDX-License-Identifier: MIT
 *
 * The memory that the agent and its load generators share: what a workload is, what it shall do
 * now, and what it has done.  A memfd of the agent, who touches and locks it first, so that the
 * root cgroup pays for it.
 *
 * Units: pages of 4 KiB, nanoseconds and microseconds as named.
 */
#ifndef MEMCG_GYM_BLOCK_H
#define MEMCG_GYM_BLOCK_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>

#define PAGE_BYTES 4096UL
#define MAX_SLOTS 64
#define MAX_REGIONS 16
#define MAX_LOCKS 64		/* names in all */
#define MAX_SLOT_LOCKS 4	/* of one slot */
#define MAX_THREADS 64		/* that serve requests in one slot */
#define MAX_QUEUE 65536		/* requests that may wait in one slot */
#define MAX_NAME 64
#define N_BINS 8
#define N_LATENCY_BINS 256

enum kind { KIND_ANON, KIND_FILE, KIND_FILE_READ, KIND_SHARED };
enum pattern { PATTERN_HEAT, PATTERN_SWEEP, PATTERN_IDLE };
enum role { ROLE_HOLDER, ROLE_WAITER };
enum lock_kind { LOCK_USER, LOCK_KERNEL };
/* What a request's CPU time is: work for the guest's few CPUs, or time, as if each thread had one. */
enum compute { COMPUTE_BURNS, COMPUTE_SLEEPS };

struct region_spec {
	uint32_t kind;
	uint32_t pattern;
	uint32_t burst;
	uint32_t prefill;
	uint64_t pages;
	uint64_t offset_pages;
	double touches_per_request;
	double touches_per_s;
	double write_share;
	double critical_share;
	double bin_pages[N_BINS];
	double bin_heat[N_BINS];
	char device[MAX_NAME];
	char object[MAX_NAME];
};

struct lock_spec {
	uint32_t lock;		/* index into block.locks */
	uint32_t member;	/* this slot's place among those who use the lock */
	uint32_t role;
	uint32_t kind;
	double section_us;
	double per_s;
	double charge_share;
	char name[MAX_NAME];
};

struct workload {
	uint32_t threads_critical;
	uint32_t threads_tolerant;
	double cpu_us;
	double requests_per_s;
	double queue_s;
	double burst_on_path;
	uint32_t compute;
	uint64_t seed;
	uint32_t n_regions;
	uint32_t n_locks;
	struct region_spec regions[MAX_REGIONS];
	struct lock_spec locks[MAX_SLOT_LOCKS];
};

/* A stretch of constant arrival rate: how many were due when it began, and how many a ns since. */
struct stretch {
	uint64_t since_ns;
	double due;
	double per_ns;
};

/*
 * What the agent wants of a generator.  "change" is a futex and a sequence count at once: odd
 * while the rest is being written, another even number afterwards.
 */
struct orders {
	double load;
	double shed;
	double burst_pages_per_s;
	double burst_target_pages;
	uint32_t burst_on;
	uint32_t remixes;	/* how often asked for; the last one's arguments follow */
	uint32_t frees;
	double remix_overlap;
	uint64_t remix_seed;
	uint64_t free_keep_pages;
	struct stretch now;
	struct stretch before;
};

enum counter {
	COUNT_ARRIVED,
	COUNT_DONE,
	COUNT_FAILED,
	COUNT_TOUCHES,
	COUNT_CRITICAL_FAULTS,
	COUNT_LOCK_WAITS,
	COUNT_LOCK_WAIT_NS,
	COUNT_LOCK_CRITICAL_WAIT_NS,
	COUNT_LOCK_EXCESS_NS,
	COUNT_LOCK_HELD_US,
	COUNT_LOCK_WAITERS_US,
	N_COUNTERS
};

/* A thread that waits for a lock now; the agent adds what it has waited to the counters. */
struct wait {
	_Atomic uint64_t since_ns;	/* 0 = it does not */
	uint32_t lock;
	uint32_t critical;
};

struct slot {
	struct workload work;
	_Atomic uint32_t change;
	struct orders orders;
	_Atomic uint32_t ready;		/* futex: set once everything is mapped and filled */
	_Atomic uint64_t counters[N_COUNTERS];
	_Atomic uint64_t latency[N_LATENCY_BINS];
	_Atomic uint64_t burst_pages;
	struct wait waits[MAX_THREADS + 1];	/* the last is the burst thread's */
};

/* Where the pipe is whose mutex a lock of the kernel is. */
#define KERNEL_LOCKS "/dev/shm/lock-"
#define KERNEL_LOCK_BYTES (1 << 20)	/* of the pipe; sections of all holders must fit */

/*
 * A named mutex: a program's, or that of a pipe in the kernel.  Waiting is kept per member, so that a member that dies leaves nothing behind;
 * see waiting.h.  What follows "owner" belongs to the holder that is in a section.
 */
struct named_lock {
	char name[MAX_NAME];
	uint32_t kind;
	pthread_mutex_t mutex;
	_Atomic uint32_t holder;	/* kernel: slot + 1 of who went in last */
	_Atomic uint64_t told_us;	/* kernel: until when waits have been told */
	uint32_t n_members;
	uint32_t member_slot[MAX_SLOTS];
	_Atomic int64_t waiting[MAX_SLOTS];
	_Atomic uint64_t section_ns;	/* how long a section takes where nothing stalls it */
	_Atomic uint32_t owner;		/* slot + 1; 0 = no holder is in a section */
	_Atomic uint64_t since_us;
	_Atomic int64_t waited_us;	/* by all members until then */
	_Atomic uint64_t first_wait_us;
};

/* When the agent read its files: with one CPU nothing else ran. */
struct interruption {
	uint64_t begin_ns;
	uint64_t end_ns;
};

#define N_INTERRUPTIONS 4

struct block {
	double loops_per_us;
	/* The last ones; none with more CPUs. */
	struct interruption interruptions[N_INTERRUPTIONS];
	uint32_t n_locks;
	struct named_lock locks[MAX_LOCKS];
	struct slot slots[MAX_SLOTS];
};

#endif

/* SPDX-License-Identifier: MIT
 *
 * The load generator: one process a slot, in the slot's cgroup.
 *
 * Threads: the main one keeps the queue and obeys orders and touches no workload memory, so that
 * nothing the kernel does to allocators stops it; "workers" serve requests; one touches what is
 * touched without requests; one grows the burst.
 */
#ifndef MEMCG_GYM_LOADGEN_H
#define MEMCG_GYM_LOADGEN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "block.h"
#include "clock.h"
#include "rng.h"

#define STEP_NS (10 * NS_PER_MS)	/* of what goes on without requests */
#define LATE_NS (100 * NS_PER_MS)	/* what is late by more than this is not made up for */

struct region {
	const struct region_spec *spec;
	uint8_t *base;			/* NULL for file_read */
	int fd;				/* -1 for anon */
	uint64_t pages;
	uint32_t *place;		/* heat: which page is where */
	_Atomic uint64_t *filled;	/* anon: one bit a page */
	uint32_t bin_begin[N_BINS + 1];	/* first place of each bin */
	uint32_t bin_below[N_BINS];	/* a draw below this is in this bin or an earlier one */
	_Atomic uint64_t position;	/* sweep: how many pages were passed */
	_Atomic uint64_t grown;		/* burst: pages allocated, from the first on */
};

/* A thread that touches memory. */
struct thread {
	uint32_t index;			/* among slot.waits */
	bool critical;
	struct rng rng;
	uint64_t touches;		/* not yet added to the slot's */
	uint64_t faults_counted;
	uint64_t faults_at_ns;
	double touches_due[MAX_REGIONS];
	double locks_due[MAX_SLOT_LOCKS];
	double burst_due;
	double burst_inside;
	uint8_t *buffer;		/* one page, for read() */
	struct section *section;	/* what to do in a kernel lock's section; NULL = in none */
	struct section *sections;	/* memory for it */
};

extern struct block *block;
extern struct slot *slot;
extern const struct workload *work;
extern uint32_t slot_number;
extern uint32_t n_regions;
extern struct region regions[MAX_REGIONS];

/* loadgen.c */
void die(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));
void *locked_alloc(size_t bytes);
void count(enum counter counter, uint64_t by);
uint64_t carry_over(double *due, double more);
uint32_t orders_read(struct orders *orders);

/* loadgen_region.c */
void regions_prepare(void);
void regions_map(void);
void regions_prefill(struct thread *thread);
void regions_remix(double overlap, uint64_t seed);

/* loadgen_touch.c */
void touch_prepare(void);
void touch_page(struct region *region, struct thread *thread, uint64_t page, bool write);
void touch_new_page(struct region *region, struct thread *thread, uint64_t page);
void touch_some(struct region *region, struct thread *thread, uint64_t touches);
void touch_account(struct thread *thread);
void touch_fill(uint64_t *words, uint64_t page);

/* loadgen_queue.c */
void queue_prepare(void);
void queue_open(void);
uint64_t queue_next(struct thread *thread, struct orders *orders);
void queue_done(uint64_t due_ns);
void queue_refuse_surplus(void);

/* loadgen_locks.c */
void lock_enter(struct thread *thread, const struct lock_spec *spec);
void lock_leave(struct thread *thread, const struct lock_spec *spec);
void lock_spend(struct thread *thread, double us);
void lock_touch(struct thread *thread, uint64_t *word, bool write);
void lock_fill(struct thread *thread, uint64_t *words, uint64_t page);
struct section *lock_section_alloc(void);
void locks_prepare(void);

/* loadgen_burst.c */
void burst_grow(struct thread *thread, uint64_t pages);
void burst_free(uint64_t keep_pages);
void *burst_thread(void *arg);
void *background_thread(void *arg);
bool has_burst(void);
bool has_background(void);

/* loadgen_worker.c */
void *worker_thread(void *arg);
void worker_calibrate(struct thread *thread);

#endif

/* SPDX-License-Identifier: MIT
 *
 * loadgen BLOCK_FD SLOT: the workload of one slot, as the agent's shared block describes it.
 *
 * All that is not the workload's own memory is allocated and locked before the first of its
 * pages, so that reclaim finds nothing else to take: threads come first, wait, and are let go when
 * everything is mapped and filled.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>

#include "loadgen.h"

#define STACK_BYTES (64UL << 10)
#define MAIN_STEP_NS (100 * NS_PER_MS)	/* how often surplus is refused if no thread comes by */
#define BURST_WAIT MAX_THREADS		/* the burst thread's place among slot.waits */
#define SLICE_NS 100000ULL		/* the shortest slice the scheduler grants */

/* struct sched_attr of include/uapi/linux/sched/types.h; the C library has none. */
struct slice_attr {
	uint32_t size;
	uint32_t policy;
	uint64_t flags;
	int32_t nice;
	uint32_t priority;
	uint64_t runtime;
	uint64_t deadline;
	uint64_t period;
};

struct block *block;
struct slot *slot;
const struct workload *work;
uint32_t slot_number;
uint32_t n_regions;
struct region regions[MAX_REGIONS];

static _Atomic uint32_t go;	/* futex: threads wait for it */

void die(const char *format, ...)
{
	va_list args;
	char text[256];

	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	fprintf(stderr, "loadgen: slot %u: %s\n", slot_number, text);
	exit(1);
}

/* Zeroed memory for tables: locked with everything else before the workload's memory is mapped. */
void *locked_alloc(size_t bytes)
{
	void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

	if (memory == MAP_FAILED)
		die("%zu bytes for tables: %m", bytes);
	return memory;
}

void count(enum counter counter, uint64_t by)
{
	atomic_fetch_add(&slot->counters[counter], by);
}

/* What is due in whole numbers; the fraction is kept for the next time. */
uint64_t carry_over(double *due, double more)
{
	uint64_t whole;

	*due += more;
	whole = (uint64_t)*due;
	*due -= (double)whole;
	return whole;
}

/* A copy of the orders as they are now; returns the count to wait on for others. */
uint32_t orders_read(struct orders *orders)
{
	uint32_t before, after;

	do {
		before = atomic_load(&slot->change);
		memcpy(orders, &slot->orders, sizeof(*orders));
		atomic_thread_fence(memory_order_seq_cst);
		after = atomic_load(&slot->change);
	} while (before != after || before & 1);
	return before;
}

static void map_block(const char *fd_word, const char *slot_word)
{
	block = mmap(NULL, sizeof(*block), PROT_READ | PROT_WRITE, MAP_SHARED, atoi(fd_word), 0);
	if (block == MAP_FAILED)
		die("block: %m");
	slot_number = (uint32_t)atoi(slot_word);
	if (slot_number >= MAX_SLOTS)
		die("no such slot");
	slot = &block->slots[slot_number];
	work = &slot->work;
	n_regions = work->n_regions;
}

/*
 * A host has many CPUs and serves a latency-critical thread when it wakes; here there are one or
 * two.  A short slice is an early deadline: the thread goes before those with longer ones.
 */
static void take_short_slice(void)
{
	struct slice_attr attr = { .size = sizeof(attr), .runtime = SLICE_NS };

	if (syscall(SYS_sched_setattr, 0, &attr, 0))
		die("sched_setattr: %m");
}

struct start {
	void *(*run)(void *thread);
	struct thread thread;
};

static void *await_go(void *arg)
{
	struct start *start = arg;

	if (start->thread.critical || work->compute == COMPUTE_SLEEPS)
		take_short_slice();
	while (!atomic_load(&go))
		futex_wait(&go, 0, NEVER);
	return start->run(&start->thread);
}

static void init_thread(struct thread *thread, uint32_t index, bool critical)
{
	thread->index = index;
	thread->critical = critical;
	thread->buffer = locked_alloc(PAGE_BYTES);
	thread->section = NULL;
	thread->sections = lock_section_alloc();
	rng_seed(&thread->rng, work->seed, index + 1);
}

static void add_thread(void *(*run)(void *thread), uint32_t index, bool critical)
{
	struct start *start = locked_alloc(sizeof(*start));
	pthread_attr_t attr;
	pthread_t handle;

	start->run = run;
	init_thread(&start->thread, index, critical);
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, STACK_BYTES);
	if (pthread_create(&handle, &attr, await_go, start))
		die("no thread");
	pthread_attr_destroy(&attr);
}

/* What goes on without requests is critical only where everything is. */
static void add_threads(void)
{
	uint32_t workers = work->threads_critical + work->threads_tolerant;
	bool all_critical = !work->threads_tolerant;

	for (uint32_t t = 0; t < workers; t++)
		add_thread(worker_thread, t, t < work->threads_critical);
	if (has_burst())
		add_thread(burst_thread, BURST_WAIT, all_critical);
	if (has_background())
		add_thread(background_thread, BURST_WAIT + 1, all_critical);
}

static void obey(const struct orders *orders, struct orders *obeyed)
{
	if (orders->remixes != obeyed->remixes)
		regions_remix(orders->remix_overlap, orders->remix_seed);
	if (orders->frees != obeyed->frees)
		burst_free(orders->free_keep_pages);
	*obeyed = *orders;
}

int main(int argc, char **argv)
{
	struct orders orders, obeyed;
	struct thread filler = { .index = 0 };

	if (argc != 3)
		die("got %d words, expected loadgen BLOCK_FD SLOT", argc);
	map_block(argv[1], argv[2]);
	prctl(PR_SET_TIMERSLACK, 1);
	regions_prepare();
	touch_prepare();
	queue_prepare();
	locks_prepare();
	init_thread(&filler, BURST_WAIT + 2, false);
	orders_read(&obeyed);
	add_threads();
	if (mlockall(MCL_CURRENT))
		die("mlockall: %m");
	regions_map();
	regions_prefill(&filler);
	worker_calibrate(&filler);
	queue_open();
	atomic_store(&go, 1);
	futex_wake_all(&go);
	atomic_store(&slot->ready, 1);
	futex_wake_all(&slot->ready);
	for (;;) {
		uint32_t change = orders_read(&orders);

		obey(&orders, &obeyed);
		queue_refuse_surplus();
		futex_wait(&slot->change, change, now_ns() + MAIN_STEP_NS);
	}
}

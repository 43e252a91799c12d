/* SPDX-License-Identifier: MIT
 *
 * Serving a request: CPU, touches and locks in a few pieces, so that they mix as in a program.
 *
 * Units: microseconds, pages.
 */
#define _GNU_SOURCE

#include "loadgen.h"

#define PIECES 4	/* (assumption: enough that a request neither begins nor ends with all */
			/* of one kind) */

#define TRIALS 16

/*
 * What a request takes beside its CPU time when nothing stalls it: touching resident pages, waking
 * up.  A workload's cpu_us has all of that in it, so it is taken off.
 */
static double overhead_us;

/* What is left to do of a request. */
struct request {
	uint64_t touches[MAX_REGIONS];
	uint64_t burst_pages;
	uint64_t entries[MAX_SLOT_LOCKS];	/* how often each lock is taken */
	uint64_t to_come[MAX_SLOT_LOCKS];
	double cpu_us;
};

/*
 * How many times the mean a thread of this class touches a region, so that the critical threads
 * make their share of all touches: requests go to any thread.
 */
static double class_factor(const struct region_spec *region, bool critical)
{
	double threads = work->threads_critical + work->threads_tolerant;

	if (!work->threads_critical || !work->threads_tolerant)
		return 1.0;
	if (critical)
		return region->critical_share * threads / work->threads_critical;
	return (1.0 - region->critical_share) * threads / work->threads_tolerant;
}

/* Pages of the burst that are a request's part: what its rate makes due from one to the next. */
static double burst_share(const struct orders *orders)
{
	double requests_per_s = orders->now.per_ns * 1e9 * (1.0 - orders->shed);

	if (!orders->burst_on || requests_per_s <= 0.0)
		return 0.0;
	return orders->burst_pages_per_s * work->burst_on_path / requests_per_s;
}

static void plan_request(struct request *request, struct thread *thread,
			 const struct orders *orders)
{
	request->burst_pages = carry_over(&thread->burst_due, burst_share(orders));
	request->cpu_us = work->cpu_us - overhead_us;
	for (uint32_t i = 0; i < n_regions; i++) {
		const struct region_spec *region = regions[i].spec;

		request->touches[i] =
			carry_over(&thread->touches_due[i], region->touches_per_request *
							    class_factor(region, thread->critical));
	}
	for (uint32_t i = 0; i < work->n_locks; i++) {
		const struct lock_spec *lock = &work->locks[i];

		request->entries[i] = carry_over(&thread->locks_due[i],
						 lock->per_s / work->requests_per_s);
		request->to_come[i] = request->entries[i];
		if (lock->role == ROLE_HOLDER)
			request->cpu_us -= lock->section_us * (double)request->entries[i];
	}
	if (request->cpu_us < 0.0)
		request->cpu_us = 0.0;
}

static void compute_us(double us)
{
	if (work->compute == COMPUTE_SLEEPS)
		sleep_until(now_ns() + (uint64_t)(us * 1e3));
	else
		burn((uint64_t)(us * block->loops_per_us));
}

/* One of n equal parts of a share of what a request began with, as far as it still is there. */
static uint64_t part(uint64_t all, double share, uint64_t n, uint64_t left)
{
	uint64_t pages = (uint64_t)((double)all * share / (double)n + 0.5);

	return pages < left ? pages : left;
}

/* A holder's section: its part of the request's allocations, and the time it takes at rest. */
static void hold(struct thread *thread, struct request *request, const struct request *whole,
		 uint32_t i)
{
	const struct lock_spec *lock = &work->locks[i];
	uint64_t n = whole->entries[i], pages;

	lock_enter(thread, lock);
	for (uint32_t r = 0; r < n_regions; r++) {
		pages = part(whole->touches[r], lock->charge_share, n, request->touches[r]);
		request->touches[r] -= pages;
		touch_some(&regions[r], thread, pages);
	}
	pages = part(whole->burst_pages, lock->charge_share, n, request->burst_pages);
	request->burst_pages -= pages;
	burst_grow(thread, pages);
	if (lock->kind == LOCK_KERNEL)
		lock_spend(thread, lock->section_us);
	else
		compute_us(lock->section_us);
	lock_leave(thread, lock);
}

static void take_locks(struct thread *thread, struct request *request,
		       const struct request *whole, uint64_t pieces_left)
{
	for (uint32_t i = 0; i < work->n_locks; i++) {
		const struct lock_spec *lock = &work->locks[i];
		uint64_t now = request->to_come[i] / pieces_left;

		request->to_come[i] -= now;
		for (; now; now--) {
			if (lock->role == ROLE_HOLDER) {
				hold(thread, request, whole, i);
			} else {
				lock_enter(thread, lock);
				lock_leave(thread, lock);
			}
		}
	}
}

/* Sections come first in a piece, so that what they leave is done outside. */
static void serve(struct thread *thread, const struct request *whole)
{
	struct request left = *whole;

	for (uint64_t piece = PIECES; piece; piece--) {
		take_locks(thread, &left, whole, piece);
		for (uint32_t r = 0; r < n_regions; r++) {
			uint64_t touches = left.touches[r] / piece;

			left.touches[r] -= touches;
			touch_some(&regions[r], thread, touches);
		}
		burst_grow(thread, left.burst_pages / piece);
		left.burst_pages -= left.burst_pages / piece;
		compute_us(whole->cpu_us / PIECES);
	}
}

/* A request without locks that touches only what prefilling has made resident. */
static void plan_trial(struct request *trial, struct thread *thread)
{
	*trial = (struct request){ .cpu_us = work->cpu_us };
	for (uint32_t i = 0; i < n_regions; i++) {
		const struct region_spec *region = regions[i].spec;

		if (region->prefill)
			trial->touches[i] =
				carry_over(&thread->touches_due[i], region->touches_per_request);
	}
}

/* The quickest of some trials: what took longer was stalled. */
void worker_calibrate(struct thread *thread)
{
	double best_us = 1e12;

	for (int i = 0; i < TRIALS; i++) {
		struct request trial;
		uint64_t begin;
		double took_us;

		plan_trial(&trial, thread);
		begin = now_ns();
		serve(thread, &trial);
		took_us = (double)(now_ns() - begin) * 1e-3;
		if (took_us < best_us)
			best_us = took_us;
	}
	overhead_us = best_us > work->cpu_us ? best_us - work->cpu_us : 0.0;
	thread->touches = 0;
}

void *worker_thread(void *arg)
{
	struct thread *thread = arg;

	for (;;) {
		struct request request;
		struct orders orders;
		uint64_t due = queue_next(thread, &orders);

		plan_request(&request, thread, &orders);
		serve(thread, &request);
		queue_done(due);
		touch_account(thread);
	}
	return NULL;
}

/* SPDX-License-Identifier: MIT
 *
 * What goes on without requests: the burst grows, and some memory is touched all the time.
 *
 * Units: pages of 4 KiB.
 */
#define _GNU_SOURCE
#include <sys/mman.h>

#include "loadgen.h"

#define SECTION_PAGES 64UL	/* most that one section of the burst thread allocates */

bool has_burst(void)
{
	for (uint32_t i = 0; i < n_regions; i++)
		if (regions[i].spec->burst)
			return true;
	return false;
}

bool has_background(void)
{
	for (uint32_t i = 0; i < n_regions; i++)
		if (regions[i].spec->touches_per_s > 0.0)
			return true;
	return false;
}

/* The next page of a region for this thread alone; false: the region has all it shall have. */
static bool claim_page(struct region *region, uint64_t most, uint64_t *page)
{
	*page = atomic_load(&region->grown);
	do {
		if (*page >= most)
			return false;
	} while (!atomic_compare_exchange_weak(&region->grown, page, *page + 1));
	atomic_fetch_add(&slot->burst_pages, 1);
	return true;
}

/* The target is of all burst regions together. */
static uint64_t most_pages(const struct region *region, const struct orders *orders)
{
	double room = orders->burst_target_pages - (double)atomic_load(&slot->burst_pages);
	uint64_t grown = atomic_load(&region->grown);

	if (orders->burst_target_pages <= 0.0 || room >= (double)(region->pages - grown))
		return region->pages;
	return room > 0.0 ? grown + (uint64_t)room : 0;
}

/* Allocate so many more pages, if there is room for them. */
void burst_grow(struct thread *thread, uint64_t pages)
{
	struct orders orders;

	if (!pages)
		return;
	orders_read(&orders);
	for (uint32_t i = 0; i < n_regions && pages; i++) {
		struct region *region = &regions[i];
		uint64_t most, page;

		if (!region->spec->burst)
			continue;
		most = most_pages(region, &orders);
		while (pages && claim_page(region, most, &page)) {
			touch_new_page(region, thread, page);
			pages--;
		}
	}
}

/*
 * Give back all but so many pages, from the last on.  A thread may be about to fill one of them:
 * it is then allocated without being counted, until the region grows over it again.
 */
void burst_free(uint64_t keep_pages)
{
	for (uint32_t i = 0; i < n_regions; i++) {
		struct region *region = &regions[i];
		uint64_t grown = atomic_load(&region->grown), keep;

		if (!region->spec->burst)
			continue;
		do {
			keep = grown < keep_pages ? grown : keep_pages;
		} while (!atomic_compare_exchange_weak(&region->grown, &grown, keep));
		keep_pages -= keep;
		if (grown == keep)
			continue;
		atomic_fetch_sub(&slot->burst_pages, grown - keep);
		madvise(region->base + keep * PAGE_BYTES, (region->pages - keep) * PAGE_BYTES,
			MADV_DONTNEED);
	}
}

static const struct lock_spec *held_lock(void)
{
	for (uint32_t i = 0; i < work->n_locks; i++)
		if (work->locks[i].role == ROLE_HOLDER)
			return &work->locks[i];
	return NULL;
}

/* A piece of at most SECTION_PAGES: its share under the lock, the rest outside. */
static void grow_piece(struct thread *thread, uint64_t pages)
{
	const struct lock_spec *lock = held_lock();
	uint64_t inside = 0;

	if (lock)
		inside = carry_over(&thread->burst_inside, lock->charge_share * (double)pages);
	if (inside > pages)
		inside = pages;
	if (inside) {
		lock_enter(thread, lock);
		burst_grow(thread, inside);
		lock_leave(thread, lock);
	}
	burst_grow(thread, pages - inside);
}

/* The pages of one step; the kernel may hold it up, and the burst be over before its end. */
static void grow_step(struct thread *thread, uint64_t pages)
{
	struct orders orders;

	while (pages) {
		uint64_t piece = pages < SECTION_PAGES ? pages : SECTION_PAGES;

		orders_read(&orders);
		if (!orders.burst_on)
			return;
		grow_piece(thread, piece);
		pages -= piece;
	}
}

static uint64_t step_length(uint64_t *at)
{
	uint64_t now = now_ns(), passed = now - *at;

	*at = now;
	return passed < LATE_NS ? passed : LATE_NS;
}

void *burst_thread(void *arg)
{
	struct thread *thread = arg;
	struct orders orders;
	uint64_t at = 0;
	double due = 0.0;
	bool growing = false;

	for (;;) {
		uint32_t change = orders_read(&orders);
		double rate = orders.burst_pages_per_s * (1.0 - work->burst_on_path);

		if (!orders.burst_on || rate <= 0.0) {
			growing = false;
			futex_wait(&slot->change, change, NEVER);
			continue;
		}
		if (!growing)
			at = now_ns();
		growing = true;
		sleep_until(at + STEP_NS);
		grow_step(thread, carry_over(&due, rate * (double)step_length(&at) * 1e-9));
		touch_account(thread);
	}
	return NULL;
}

void *background_thread(void *arg)
{
	struct thread *thread = arg;
	uint64_t at = now_ns();

	for (;;) {
		uint64_t passed;

		sleep_until(at + STEP_NS);
		passed = step_length(&at);
		for (uint32_t i = 0; i < n_regions; i++) {
			double due = regions[i].spec->touches_per_s * (double)passed * 1e-9;

			touch_some(&regions[i], thread,
				   carry_over(&thread->touches_due[i], due));
		}
		touch_account(thread);
	}
	return NULL;
}

/* SPDX-License-Identifier: MIT
 *
 * Touching pages.  A touch is one word read, or one written; the first of an anonymous or shared
 * page fills it, so that it costs memory, and compresses as memory does.
 */
#define _GNU_SOURCE
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "loadgen.h"

/*
 * 36 % of a page is noise and the rest zero: it shrinks to 1/2.8, what fleets report of zswap
 * (assumption: 3 is Google's, ASPLOS'19; half of that is common for lz4).
 */
#define NOISE_WORDS 184
#define WORD_BYTES sizeof(uint64_t)
#define NUMBER_WORD 0	/* page number + 1: tells a filled page from a fresh one */
#define TOUCH_WORD 1
#define NOISE_WORD 2
#define FAULTS_EVERY_NS (10 * NS_PER_MS)

static uint64_t *noise;

void touch_prepare(void)
{
	struct rng rng;

	rng_seed(&rng, work->seed, 0);
	noise = locked_alloc(NOISE_WORDS * WORD_BYTES);
	for (int i = 0; i < NOISE_WORDS; i++)
		noise[i] = rng_u64(&rng);
}

void touch_fill(uint64_t *words, uint64_t page)
{
	words[NUMBER_WORD] = page + 1;
	memcpy(words + NOISE_WORD, noise, NOISE_WORDS * WORD_BYTES);
}

static bool is_filled(const struct region *region, uint64_t page)
{
	return atomic_load_explicit(&region->filled[page / 64], memory_order_relaxed) >>
	       (page % 64) & 1;
}

static void touch_word(volatile uint64_t *words, bool write)
{
	if (write)
		words[TOUCH_WORD]++;
	else
		(void)words[NUMBER_WORD];
}

static void touch_file_read(const struct region *region, struct thread *thread, uint64_t page,
			    bool write)
{
	off_t at = (off_t)((region->spec->offset_pages + page) * PAGE_BYTES);
	ssize_t n = write ? pwrite(region->fd, thread->buffer, PAGE_BYTES, at) :
			    pread(region->fd, thread->buffer, PAGE_BYTES, at);

	if (n != (ssize_t)PAGE_BYTES)
		die("%s: page %llu: %m", region->spec->device, (unsigned long long)page);
}

void touch_page(struct region *region, struct thread *thread, uint64_t page, bool write)
{
	uint64_t *words = (uint64_t *)(region->base + page * PAGE_BYTES);

	thread->touches++;
	if (thread->section && region->base) {
		lock_touch(thread, words + (write ? TOUCH_WORD : NUMBER_WORD), write);
		return;
	}
	if (region->filled) {
		if (is_filled(region, page)) {
			touch_word(words, write);
			return;
		}
		touch_fill(words, page);
		atomic_fetch_or(&region->filled[page / 64], 1ULL << (page % 64));
	} else if (region->spec->kind == KIND_FILE_READ) {
		touch_file_read(region, thread, page, write);
	} else if (region->spec->kind == KIND_SHARED &&
		   !*(volatile uint64_t *)&words[NUMBER_WORD]) {
		touch_fill(words, page);
	} else {
		touch_word(words, write);
	}
}

/* A page of a burst region that is its own for the first time. */
void touch_new_page(struct region *region, struct thread *thread, uint64_t page)
{
	uint64_t *words = (uint64_t *)(region->base + page * PAGE_BYTES);

	thread->touches++;
	if (thread->section)
		lock_fill(thread, words, page);
	else
		touch_fill(words, page);
}

static uint64_t draw_heat(const struct region *region, struct rng *rng)
{
	uint64_t bits = rng_u64(rng);
	uint32_t draw = (uint32_t)(bits >> 32), begin, pages;
	int b = 0;

	while (draw >= region->bin_below[b] && b < N_BINS - 1)
		b++;
	begin = region->bin_begin[b];
	pages = region->bin_begin[b + 1] - begin;
	if (!pages)	/* a bin of less than half a page */
		return region->place[begin < region->pages ? begin : region->pages - 1];
	return region->place[begin + rng_scale((uint32_t)bits, pages)];
}

static bool draw_write(const struct region *region, struct rng *rng)
{
	double share = region->spec->write_share;

	if (share <= 0.0 || share >= 1.0)
		return share > 0.0;
	return rng_unit(rng) < share;
}

/* Touches of one region after its pattern; of a burst region, of what is allocated of it. */
void touch_some(struct region *region, struct thread *thread, uint64_t touches)
{
	struct rng *rng = &thread->rng;

	for (uint64_t i = 0; i < touches; i++) {
		uint64_t page;

		if (region->spec->burst) {
			uint64_t grown = atomic_load(&region->grown);

			if (!grown)
				return;
			page = rng_scale((uint32_t)rng_u64(rng), grown);
		} else if (region->spec->pattern == PATTERN_HEAT) {
			page = draw_heat(region, rng);
		} else if (region->spec->pattern == PATTERN_SWEEP) {
			page = atomic_fetch_add(&region->position, 1) % region->pages;
		} else {
			return;
		}
		touch_page(region, thread, page, draw_write(region, rng));
	}
}

/* Add what a thread has done to the slot's counters. */
void touch_account(struct thread *thread)
{
	struct rusage usage;
	uint64_t now, faults;

	count(COUNT_TOUCHES, thread->touches);
	thread->touches = 0;
	if (!thread->critical)
		return;
	now = now_ns();
	if (now - thread->faults_at_ns < FAULTS_EVERY_NS)
		return;
	thread->faults_at_ns = now;
	getrusage(RUSAGE_THREAD, &usage);
	faults = (uint64_t)usage.ru_minflt + (uint64_t)usage.ru_majflt;
	count(COUNT_CRITICAL_FAULTS, faults - thread->faults_counted);
	thread->faults_counted = faults;
}

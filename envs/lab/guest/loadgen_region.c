/* SPDX-License-Identifier: MIT
 *
 * Regions: tables, mapping, filling, and another working set.
 *
 * Units: pages of 4 KiB.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "loadgen.h"

#define OBJECTS "/dev/shm"
#define PERMUTATION_STREAM 0x10000ULL	/* apart from the threads' */

/* Bins are told in fractions of pages: each begins at the nearest whole one. */
static void prepare_bins(struct region *region)
{
	const struct region_spec *spec = region->spec;
	double pages = 0.0, heat = 0.0, all_pages = 0.0, all_heat = 0.0;

	for (int b = 0; b < N_BINS; b++) {
		all_pages += spec->bin_pages[b];
		all_heat += spec->bin_heat[b];
	}
	for (int b = 0; b < N_BINS; b++) {
		pages += spec->bin_pages[b];
		heat += spec->bin_heat[b];
		region->bin_begin[b + 1] =
			(uint32_t)lround(pages / all_pages * (double)region->pages);
		region->bin_below[b] = (uint32_t)fmin(heat / all_heat * 0x1p32, UINT32_MAX);
	}
	region->bin_below[N_BINS - 1] = UINT32_MAX;
}

/* Put places[i] for chosen i in another order; all of them where "chosen" is NULL. */
static void shuffle(uint32_t *place, const uint32_t *chosen, uint64_t n, struct rng *rng)
{
	for (uint64_t i = n; i > 1; i--) {
		uint32_t a = (uint32_t)i - 1, b = rng_scale((uint32_t)(rng_u64(rng) >> 32), i);
		uint32_t *x = &place[chosen ? chosen[a] : a], *y = &place[chosen ? chosen[b] : b];
		uint32_t old = *x;

		*x = *y;
		*y = old;
	}
}

static uint64_t object_seed(const char *object)
{
	uint64_t seed = 0;

	for (; *object; object++)
		seed = splitmix64(seed + (unsigned char)*object);
	return seed;
}

/* Heat lies scattered over addresses, for all sharers of an object at the same ones. */
static void prepare_places(struct region *region, uint32_t index)
{
	bool shared = region->spec->object[0];
	struct rng rng;

	rng_seed(&rng, shared ? object_seed(region->spec->object) : work->seed,
		 PERMUTATION_STREAM + (shared ? 0 : index));
	region->place = locked_alloc(region->pages * sizeof(*region->place));
	for (uint64_t p = 0; p < region->pages; p++)
		region->place[p] = (uint32_t)p;
	shuffle(region->place, NULL, region->pages, &rng);
}

void regions_prepare(void)
{
	for (uint32_t i = 0; i < n_regions; i++) {
		struct region *region = &regions[i];

		region->spec = &work->regions[i];
		region->pages = region->spec->pages;
		region->fd = -1;
		if (region->spec->pattern == PATTERN_HEAT && !region->spec->burst) {
			prepare_bins(region);
			prepare_places(region, i);
		}
		if (region->spec->kind == KIND_ANON && !region->spec->burst)
			region->filled = locked_alloc((region->pages + 63) / 64 * 8);
	}
}

static void open_object(struct region *region)
{
	char path[MAX_NAME + 16];
	struct stat stat;

	snprintf(path, sizeof(path), OBJECTS "/%.*s", MAX_NAME - 1, region->spec->object);
	region->fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (region->fd < 0 || fstat(region->fd, &stat))
		die("%s: %m", path);
	if ((uint64_t)stat.st_size < region->pages * PAGE_BYTES &&
	    ftruncate(region->fd, (off_t)(region->pages * PAGE_BYTES)))
		die("%s: %m", path);
}

static void open_device(struct region *region)
{
	const struct region_spec *spec = region->spec;

	region->fd = open(spec->device, O_RDWR | O_CLOEXEC);
	if (region->fd < 0)
		die("%s: %m", spec->device);
	if (lseek(region->fd, 0, SEEK_END) <
	    (off_t)((spec->offset_pages + spec->pages) * PAGE_BYTES))
		die("%s: smaller than offset_pages + pages", spec->device);
	if (spec->kind == KIND_FILE_READ && spec->pattern == PATTERN_HEAT)
		posix_fadvise(region->fd, (off_t)(spec->offset_pages * PAGE_BYTES),
			      (off_t)(spec->pages * PAGE_BYTES), POSIX_FADV_RANDOM);
}

static void map_region(struct region *region)
{
	const struct region_spec *spec = region->spec;
	int flags = spec->kind == KIND_ANON ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;
	off_t offset = spec->kind == KIND_FILE ? (off_t)(spec->offset_pages * PAGE_BYTES) : 0;
	size_t bytes = region->pages * PAGE_BYTES;

	region->base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, flags | MAP_NORESERVE, region->fd,
			    offset);
	if (region->base == MAP_FAILED)
		die("region of %zu bytes: %m", bytes);
	if (spec->kind == KIND_ANON && madvise(region->base, bytes, MADV_NOHUGEPAGE))
		die("MADV_NOHUGEPAGE: %m");
}

void regions_map(void)
{
	for (uint32_t i = 0; i < n_regions; i++) {
		struct region *region = &regions[i];

		if (region->spec->kind == KIND_SHARED)
			open_object(region);
		if (region->spec->kind == KIND_FILE || region->spec->kind == KIND_FILE_READ)
			open_device(region);
		if (region->spec->kind != KIND_FILE_READ)
			map_region(region);
	}
}

/* In order of addresses, over which heat is scattered: a program that loads its data. */
static void prefill_heat(struct region *region, struct thread *thread)
{
	for (uint64_t p = 0; p < region->pages; p++)
		touch_page(region, thread, p, false);
}

void regions_prefill(struct thread *thread)
{
	for (uint32_t i = 0; i < n_regions; i++) {
		struct region *region = &regions[i];

		if (!region->spec->prefill || region->spec->burst)
			continue;
		if (region->spec->pattern == PATTERN_HEAT)
			prefill_heat(region, thread);
		else
			for (uint64_t p = 0; p < region->pages; p++)
				touch_page(region, thread, p, false);
	}
	touch_account(thread);
}

/*
 * Another working set: all but "overlap" of the places, chosen at random, change hands.  Threads
 * go on touching meanwhile; what they read is always some page of the region.
 */
static void remix_region(struct region *region, double overlap, struct rng *rng)
{
	uint32_t *chosen = locked_alloc(region->pages * sizeof(*chosen));
	uint64_t n = 0;

	for (uint64_t p = 0; p < region->pages; p++)
		if (rng_unit(rng) >= overlap)
			chosen[n++] = (uint32_t)p;
	shuffle(region->place, chosen, n, rng);
	munmap(chosen, region->pages * sizeof(*chosen));
}

void regions_remix(double overlap, uint64_t seed)
{
	for (uint32_t i = 0; i < n_regions; i++) {
		struct rng rng;

		if (!regions[i].place || regions[i].spec->object[0])
			continue;
		rng_seed(&rng, seed, PERMUTATION_STREAM + i);
		remix_region(&regions[i], overlap, &rng);
	}
}

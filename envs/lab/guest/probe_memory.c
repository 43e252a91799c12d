// SPDX-License-Identifier: MIT
/*
 * Memory operations of the probe.  R is a letter that names a region, counts are pages of 4 KiB.
 *
 *	anon:R:PAGES		private memory in small pages
 *	huge:R:PAGES		private memory that asks for huge pages
 *	file:R:PATH:PAGES	a shared mapping of a file, from its start
 *	pread:PATH:COUNT	read a file's first pages through its descriptor, one at a time
 *	random:R		accesses will be random: neither readahead nor recency (MADV_RANDOM)
 *	write:R:FROM:COUNT	touch: a word of each page is written
 *	read:R:FROM:COUNT	touch: a word of each page is read
 *	noise:R:FROM:COUNT	fill with what does not compress
 *	partly:R:FROM:COUNT	fill a third of each page with that
 *	same:R:FROM:COUNT	fill with one byte that is not zero
 *	zero:R:FROM:COUNT	fill with zeroes
 *	stalls:R:FROM:COUNT:US	as "write", and tell every page that took longer: "stall PAGE US"
 *	populate:R:FROM:COUNT	as "write", in one system call
 *	drop:R:FROM:COUNT	give back (MADV_DONTNEED)
 *	sync:R			write a file's dirty pages (msync)
 *	resident:R:FROM:COUNT	tell how many pages are in memory (mincore)
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "clock.h"
#include "probe.h"
#include "rng.h"

#define PAGE 4096UL
#define HUGE_BYTES (2UL << 20)
#define PARTLY_BYTES 1368UL
#define MAX_PAGES (1UL << 18)

static struct region {
	uint8_t *base;
	uint64_t pages;
} regions[26];

static struct region *region_of(const struct args *args)
{
	char letter = args->n ? args->word[0][0] : 0;

	if (letter < 'a' || letter > 'z' || args->word[0][1])
		die("a region is one letter");
	return &regions[letter - 'a'];
}

static void check_mapped(void *base)
{
	if (base == MAP_FAILED)
		die("mmap: %m");
}

static void map_anon(struct region *r, uint64_t pages, int advice)
{
	uint64_t bytes = pages * PAGE;
	uint8_t *base = mmap(NULL, bytes + HUGE_BYTES, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	check_mapped(base);
	base += -(uintptr_t)base & (HUGE_BYTES - 1);
	if (madvise(base, bytes, advice))
		die("madvise: %m");
	*r = (struct region){ base, pages };
}

static void map_file(struct region *r, const char *path, uint64_t pages)
{
	int fd = open(path, O_RDWR | O_CREAT, 0600);
	struct stat st;

	if (fd < 0 || fstat(fd, &st))
		die("%s: %m", path);
	if (S_ISREG(st.st_mode) && (uint64_t)st.st_size < pages * PAGE &&
	    ftruncate(fd, (off_t)(pages * PAGE)))
		die("%s: %m", path);
	r->base = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	check_mapped(r->base);
	r->pages = pages;
	close(fd);
}

/* The pages an operation is about: arguments FROM and COUNT. */
static uint8_t *range_of(const struct args *args, uint64_t *count)
{
	struct region *r = region_of(args);
	uint64_t from = number(args, 1);

	*count = number(args, 2);
	if (!r->base || from + *count > r->pages)
		die("%s: pages %lu + %lu of %lu", args->word[0], from, *count, r->pages);
	return r->base + from * PAGE;
}

static void write_page(uint8_t *page, uint64_t value)
{
	*(volatile uint64_t *)page = value;
}

static void fill_noise(uint8_t *page, uint64_t bytes)
{
	static struct rng rng = { 0x9E3779B97F4A7C15ULL };

	for (uint64_t at = 0; at < bytes; at += sizeof(uint64_t)) {
		uint64_t word = rng_u64(&rng);

		memcpy(page + at, &word, sizeof(word));
	}
}

static void write_stalls(uint8_t *page, uint64_t count, uint64_t least_us)
{
	for (uint64_t i = 0; i < count; i++) {
		uint64_t begin = now_ns(), took;

		write_page(page + i * PAGE, i + 1);
		took = now_ns() - begin;
		if (took >= least_us * 1000)
			say("stall %lu %.1f\n", i, (double)took * 1e-3);
	}
}

static void say_resident(uint8_t *page, uint64_t count)
{
	static unsigned char there[MAX_PAGES];
	uint64_t resident = 0;

	if (count > MAX_PAGES || mincore(page, count * PAGE, there))
		die("mincore: %m");
	for (uint64_t i = 0; i < count; i++)
		resident += there[i] & 1;
	say("resident_pages %lu\n", resident);
}

static int map_op(const char *name, const struct args *args)
{
	if (!strcmp(name, "anon"))
		map_anon(region_of(args), number(args, 1), MADV_NOHUGEPAGE);
	else if (!strcmp(name, "huge"))
		map_anon(region_of(args), number(args, 1), MADV_HUGEPAGE);
	else if (!strcmp(name, "file") && args->n == 3)
		map_file(region_of(args), args->word[1], number(args, 2));
	else
		return 0;
	return 1;
}

static int touch_op(const char *name, const struct args *args, uint8_t *page, uint64_t count)
{
	volatile uint64_t sum = 0;

	if (!strcmp(name, "write"))
		for (uint64_t i = 0; i < count; i++)
			write_page(page + i * PAGE, i + 1);
	else if (!strcmp(name, "read"))
		for (uint64_t i = 0; i < count; i++)
			sum += *(volatile uint64_t *)(page + i * PAGE);
	else if (!strcmp(name, "noise"))
		fill_noise(page, count * PAGE);
	else if (!strcmp(name, "partly"))
		for (uint64_t i = 0; i < count; i++)
			fill_noise(page + i * PAGE, PARTLY_BYTES);
	else if (!strcmp(name, "same"))
		memset(page, 0x5A, count * PAGE);
	else if (!strcmp(name, "zero"))
		memset(page, 0, count * PAGE);
	else if (!strcmp(name, "stalls"))
		write_stalls(page, count, number(args, 3));
	else if (!strcmp(name, "resident"))
		say_resident(page, count);
	else
		return 0;
	return 1;
}

static int advise_op(const char *name, uint8_t *page, uint64_t count)
{
	int advice;

	if (!strcmp(name, "populate"))
		advice = MADV_POPULATE_WRITE;
	else if (!strcmp(name, "drop"))
		advice = MADV_DONTNEED;
	else
		return 0;
	if (madvise(page, count * PAGE, advice))
		die("madvise: %m");
	return 1;
}

static void read_file(const char *path, uint64_t count)
{
	static uint8_t page[PAGE];
	int fd = open(path, O_RDONLY);

	if (fd < 0)
		die("%s: %m", path);
	for (uint64_t i = 0; i < count; i++)
		if (pread(fd, page, PAGE, (off_t)(i * PAGE)) != (ssize_t)PAGE)
			die("%s: page %lu: %m", path, i);
	close(fd);
}

static void sync_region(struct region *r)
{
	if (msync(r->base, r->pages * PAGE, MS_SYNC))
		die("msync: %m");
}

static void advise_random(struct region *r)
{
	if (madvise(r->base, r->pages * PAGE, MADV_RANDOM))
		die("madvise: %m");
}

int memory_op(const char *name, const struct args *args)
{
	uint64_t count;
	uint8_t *page;

	if (map_op(name, args))
		return 1;
	if (!strcmp(name, "sync")) {
		sync_region(region_of(args));
		return 1;
	}
	if (!strcmp(name, "pread") && args->n == 2) {
		read_file(args->word[0], number(args, 1));
		return 1;
	}
	if (!strcmp(name, "random")) {
		advise_random(region_of(args));
		return 1;
	}
	if (args->n < 3)
		return 0;
	page = range_of(args, &count);
	return touch_op(name, args, page, count) || advise_op(name, page, count);
}

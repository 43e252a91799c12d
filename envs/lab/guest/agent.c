/* SPDX-License-Identifier: MIT
 *
 * PID 1 of the lab's guest.  Boots, then for ever: do a command block, wait for the tick, read
 * every watched file, stop the machine.
 *
 * The control thread runs SCHED_FIFO, so that ticks are exact whatever the load.  On a machine
 * with one CPU nothing else runs while it works; agent/collect_us and agent/command_us say for
 * how long that was.
 */
#define _GNU_SOURCE
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/reboot.h>
#include <unistd.h>

#include "agent.h"
#include "standstill.h"

volatile struct header *header;
struct block *block;
int block_fd = -1;

static uint8_t *shared;
static bool one_cpu;

/* Stop the machine here; the next line runs when the host lets it go on. */
static void stop_machine(enum state state, size_t report_bytes)
{
	header->report_bytes = (uint32_t)report_bytes;
	header->state = state;
	atomic_thread_fence(memory_order_seq_cst);
	standstill();
	atomic_thread_fence(memory_order_seq_cst);
}

/* There is nothing to keep: dirty pages lie on devices that store nothing. */
static void power_off(void)
{
	reboot(RB_POWER_OFF);
	for (;;)
		pause();
}

/* Nothing sensible can go on: tell the host why, and go down. */
void fail(const char *format, ...)
{
	char text[512];
	va_list args;

	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	fprintf(stderr, "agent: %s\n", text);
	if (header) {
		report_begin(shared + REPORT_OFFSET, REPORT_BYTES);
		report_text("error", text, strlen(text));
		stop_machine(STATE_FAILED, report_end());
	}
	power_off();
	abort();
}

static void make_block(void)
{
	block_fd = memfd_create("block", MFD_CLOEXEC);
	if (block_fd < 0 || ftruncate(block_fd, sizeof(*block)))
		fail("block: memfd: %m");
	block = mmap(NULL, sizeof(*block), PROT_READ | PROT_WRITE, MAP_SHARED, block_fd, 0);
	if (block == MAP_FAILED)
		fail("block: mmap: %m");
}

static void boot(void)
{
	boot_mount();
	boot_modules();
	shared = boot_map_shared();
	header = (volatile struct header *)shared;
	header->magic = PROTOCOL_MAGIC;
	header->version = PROTOCOL_VERSION;
	if (standstill_prepare())
		fail("standstill: %m");
	make_block();
	block->loops_per_us = boot_measure_burn();
	one_cpu = sysconf(_SC_NPROCESSORS_ONLN) == 1;
	if (mlockall(MCL_CURRENT | MCL_FUTURE))
		fail("mlockall: %m");
	boot_take_priority();
	idle_spin();
	report_begin(shared + REPORT_OFFSET, REPORT_BYTES);
	report_path("boot/version", "/proc/version");
	report_path("boot/meminfo", "/proc/meminfo");
	report_path("boot/cmdline", "/proc/cmdline");
	report_printf("agent/loops_per_us", "%.6f\n", block->loops_per_us);
	header->time_ns = now_ns();
	stop_machine(STATE_READY, report_end());
}

/*
 * Boundaries lie at whole seconds after the first tick command.  Commands that took longer than
 * what was left of the second move all later ones.
 */
static void wait_for_tick(void)
{
	static bool ticking;
	static uint64_t boundary;
	uint64_t now = now_ns();

	if (!ticking)
		boundary = now;
	ticking = true;
	boundary += NS_PER_S;
	header->overrun_ns = now > boundary ? now - boundary : 0;
	if (now > boundary)
		boundary = now;
	else
		sleep_until(boundary);
	header->tick++;
	reclaim_cut_off();
}

/*
 * What the agent's own work adds to latencies is an artefact where it takes the only CPU, and is
 * taken off again by those who measure.  A command may sleep while others run, so it does not
 * count.
 */
static void note_interruption(uint64_t begin_ns)
{
	static unsigned int n;

	if (!one_cpu)
		return;
	block->interruptions[n++ % N_INTERRUPTIONS] =
		(struct interruption){ .begin_ns = begin_ns, .end_ns = now_ns() };
}

static void report_and_stop(uint64_t command_ns)
{
	uint64_t begin = now_ns();

	header->time_ns = begin;
	report_begin(shared + REPORT_OFFSET, REPORT_BYTES);
	programs_reap();
	slots_report();
	watch_report();
	programs_report();
	commands_report_results();
	report_printf("agent/command_us", "%.3f\n", (double)command_ns * 1e-3);
	report_printf("agent/collect_us", "%.3f\n", (double)(now_ns() - begin) * 1e-3);
	if (report_overflowed())
		fail("report: more than %lu bytes", REPORT_BYTES);
	note_interruption(begin);
	stop_machine(STATE_PAUSED, report_end());
}

int main(void)
{
	boot();
	for (;;) {
		uint64_t begin = now_ns(), end;
		size_t bytes = header->command_bytes;
		enum after after;

		if (bytes > COMMAND_BYTES)
			fail("command block: %zu bytes, at most %lu fit", bytes, COMMAND_BYTES);
		header->overrun_ns = 0;
		after = commands_run((const char *)shared + COMMAND_OFFSET, bytes);
		end = now_ns();
		if (after == AFTER_POWEROFF)
			power_off();
		if (after == AFTER_TICK)
			wait_for_tick();
		report_and_stop(end - begin);
	}
}

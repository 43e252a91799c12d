/* SPDX-License-Identifier: MIT
 *
 * Slots: what a load generator is to be, starting and stopping it, telling it what to do, and the
 * statistics of all that ever ran in the slot.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "agent.h"
#include "waiting.h"

#define GENERATOR "/loadgen"
#define BLOCK_FD 3
#define START_TIMEOUT_NS (120 * NS_PER_S)
#define START_POLL_NS (10 * NS_PER_MS)	/* how soon one that died while it starts is seen */
#define SHARE_ERROR 1e-3		/* bins are told with nine digits */
#define MAX_STATS 8192

/* What only the agent knows of a slot. */
struct process {
	bool declared;
	char cgroup[256];
	pid_t pid;		/* 0 = none runs */
	int stat_fd;		/* /proc/PID/stat */
	uint64_t starts, exits;
	int last_status;
	uint64_t faults;	/* of those that have ended */
	uint64_t reported[N_COUNTERS];
};

static struct process processes[MAX_SLOTS];

static const struct field slot_fields[] = {
	{ "threads_critical", FIELD_U32, offsetof(struct workload, threads_critical), NULL },
	{ "threads_tolerant", FIELD_U32, offsetof(struct workload, threads_tolerant), NULL },
	{ "cpu_us", FIELD_DOUBLE, offsetof(struct workload, cpu_us), NULL },
	{ "requests_per_s", FIELD_DOUBLE, offsetof(struct workload, requests_per_s), NULL },
	{ "queue_s", FIELD_DOUBLE, offsetof(struct workload, queue_s), NULL },
	{ "compute", FIELD_CHOICE, offsetof(struct workload, compute), "burn sleep" },
	{ "burst_on_path", FIELD_DOUBLE, offsetof(struct workload, burst_on_path), NULL },
	{ "seed", FIELD_U64, offsetof(struct workload, seed), NULL },
};

static const struct field region_fields[] = {
	{ "kind", FIELD_CHOICE, offsetof(struct region_spec, kind), "anon file file_read shared" },
	{ "pattern", FIELD_CHOICE, offsetof(struct region_spec, pattern), "heat sweep idle" },
	{ "burst", FIELD_U32, offsetof(struct region_spec, burst), NULL },
	{ "prefill", FIELD_U32, offsetof(struct region_spec, prefill), NULL },
	{ "pages", FIELD_U64, offsetof(struct region_spec, pages), NULL },
	{ "offset_pages", FIELD_U64, offsetof(struct region_spec, offset_pages), NULL },
	{ "touches_per_request", FIELD_DOUBLE,
	  offsetof(struct region_spec, touches_per_request), NULL },
	{ "touches_per_s", FIELD_DOUBLE, offsetof(struct region_spec, touches_per_s), NULL },
	{ "write_share", FIELD_DOUBLE, offsetof(struct region_spec, write_share), NULL },
	{ "critical_share", FIELD_DOUBLE, offsetof(struct region_spec, critical_share), NULL },
	{ "bin_pages", FIELD_BINS, offsetof(struct region_spec, bin_pages), NULL },
	{ "bin_heat", FIELD_BINS, offsetof(struct region_spec, bin_heat), NULL },
	{ "device", FIELD_NAME, offsetof(struct region_spec, device), NULL },
	{ "object", FIELD_NAME, offsetof(struct region_spec, object), NULL },
};

static const struct field lock_fields[] = {
	{ "name", FIELD_NAME, offsetof(struct lock_spec, name), NULL },
	{ "role", FIELD_CHOICE, offsetof(struct lock_spec, role), "holder waiter" },
	{ "kind", FIELD_CHOICE, offsetof(struct lock_spec, kind), "user kernel" },
	{ "section_us", FIELD_DOUBLE, offsetof(struct lock_spec, section_us), NULL },
	{ "per_s", FIELD_DOUBLE, offsetof(struct lock_spec, per_s), NULL },
	{ "charge_share", FIELD_DOUBLE, offsetof(struct lock_spec, charge_share), NULL },
};

static const struct field demand_fields[] = {
	{ "load", FIELD_DOUBLE, offsetof(struct orders, load), NULL },
	{ "shed", FIELD_DOUBLE, offsetof(struct orders, shed), NULL },
	{ "burst_on", FIELD_U32, offsetof(struct orders, burst_on), NULL },
	{ "burst_pages_per_s", FIELD_DOUBLE, offsetof(struct orders, burst_pages_per_s), NULL },
	{ "burst_target_pages", FIELD_DOUBLE, offsetof(struct orders, burst_target_pages), NULL },
};

static const struct field remix_fields[] = {
	{ "overlap", FIELD_DOUBLE, offsetof(struct orders, remix_overlap), NULL },
	{ "seed", FIELD_U64, offsetof(struct orders, remix_seed), NULL },
};

#define PARSE(words, fields, target) \
	parse_fields(words, fields, sizeof(fields) / sizeof(fields[0]), target)

/* The number of a declared slot, cut off the words. */
static int take_slot(char **words, uint64_t *slot)
{
	char *word = next_word(words);

	if (!word || parse_u64(word, slot) || *slot >= MAX_SLOTS || !processes[*slot].declared)
		return EINVAL;
	return 0;
}

const char *slot_cgroup(uint64_t slot)
{
	return slot < MAX_SLOTS && processes[slot].declared ? processes[slot].cgroup : NULL;
}

static bool is_share(double value)
{
	return value >= 0.0 && value <= 1.0;
}

/* The orders for writing; readers see an odd count until the change is closed. */
static struct orders *orders_open(struct slot *slot)
{
	atomic_fetch_add(&slot->change, 1);
	return &slot->orders;
}

static void orders_close(struct slot *slot)
{
	atomic_fetch_add(&slot->change, 1);
	futex_wake_all(&slot->change);
}

/* From now on requests arrive at another rate; what was due until now stays due. */
static void set_rate(struct orders *orders, double requests_per_s)
{
	uint64_t now = now_ns();

	orders->before = orders->now;
	orders->now.due += orders->now.per_ns * (double)(now - orders->now.since_ns);
	orders->now.since_ns = now;
	orders->now.per_ns = requests_per_s * 1e-9;
}

/* Nothing is wanted until the next demand. */
static void want_nothing(struct slot *slot)
{
	struct orders *orders = orders_open(slot);

	orders->load = orders->shed = 0.0;
	orders->burst_on = 0;
	orders->burst_pages_per_s = orders->burst_target_pages = 0.0;
	set_rate(orders, 0.0);
	orders_close(slot);
}

/* "slot I CGROUP key=value...": forgets regions, locks and demand, not the counters. */
int slot_declare(char *words)
{
	char *word = next_word(&words), *cgroup = next_word(&words);
	struct workload work = { .requests_per_s = 1.0, .queue_s = 0.5, .threads_tolerant = 1 };
	uint64_t slot, threads;

	if (!word || !cgroup || parse_u64(word, &slot) || slot >= MAX_SLOTS ||
	    strlen(cgroup) >= sizeof(processes[slot].cgroup) || PARSE(words, slot_fields, &work))
		return EINVAL;
	threads = (uint64_t)work.threads_critical + work.threads_tolerant;
	if (!threads || threads > MAX_THREADS || work.requests_per_s <= 0.0 ||
	    work.requests_per_s * work.queue_s > MAX_QUEUE || !is_share(work.burst_on_path))
		return EINVAL;
	if (processes[slot].pid)
		return EBUSY;
	processes[slot].declared = true;
	strcpy(processes[slot].cgroup, cgroup);
	block->slots[slot].work = work;
	want_nothing(&block->slots[slot]);
	return 0;
}

static bool bins_add_up(const double bins[N_BINS], double total)
{
	double sum = 0.0;

	for (int b = 0; b < N_BINS; b++)
		sum += bins[b];
	return fabs(sum - total) <= SHARE_ERROR * total;
}

/* By name (tmpfs), or as the same pages of a device (page cache). */
static bool can_be_shared(uint32_t kind)
{
	return kind == KIND_SHARED || kind == KIND_FILE;
}

static bool region_makes_sense(const struct region_spec *region)
{
	bool on_device = region->kind == KIND_FILE || region->kind == KIND_FILE_READ;

	if (!region->pages || region->pages > UINT32_MAX || !is_share(region->write_share) ||
	    !is_share(region->critical_share))
		return false;
	if (on_device != !!region->device[0])
		return false;
	if (region->object[0] ? !can_be_shared(region->kind) : region->kind == KIND_SHARED)
		return false;
	if (region->burst)
		return region->kind == KIND_ANON;
	return region->pattern != PATTERN_HEAT ||
	       (bins_add_up(region->bin_pages, (double)region->pages) &&
		bins_add_up(region->bin_heat, 1.0));
}

int slot_add_region(char *words)
{
	struct region_spec region = { .pages = 0 };
	struct workload *work;
	uint64_t slot;

	if (take_slot(&words, &slot) || PARSE(words, region_fields, &region) ||
	    !region_makes_sense(&region))
		return EINVAL;
	if (processes[slot].pid)
		return EBUSY;
	work = &block->slots[slot].work;
	if (work->n_regions == MAX_REGIONS)
		return ENOSPC;
	work->regions[work->n_regions++] = region;
	return 0;
}

int slot_add_lock(char *words)
{
	struct lock_spec lock = { .charge_share = 0.0 };
	struct workload *work;
	uint64_t slot;
	int error;

	if (take_slot(&words, &slot) || PARSE(words, lock_fields, &lock) || !lock.name[0] ||
	    !is_share(lock.charge_share))
		return EINVAL;
	if (processes[slot].pid)
		return EBUSY;
	work = &block->slots[slot].work;
	if (work->n_locks == MAX_SLOT_LOCKS)
		return ENOSPC;
	error = lock_join((uint32_t)slot, &lock);
	if (!error)
		work->locks[work->n_locks++] = lock;
	return error;
}

/* "demand I key=value...": a key that is not given keeps its value. */
int slot_demand(char *words)
{
	struct orders wanted, *orders;
	struct slot *slot;
	uint64_t number;
	double rate;

	if (take_slot(&words, &number))
		return EINVAL;
	slot = &block->slots[number];
	wanted = slot->orders;
	if (PARSE(words, demand_fields, &wanted) || !is_share(wanted.shed))
		return EINVAL;
	rate = wanted.load * slot->work.requests_per_s;
	if (!memcmp(&wanted, &slot->orders, sizeof(wanted)) && wanted.now.per_ns == rate * 1e-9)
		return 0;
	orders = orders_open(slot);
	*orders = wanted;
	if (orders->now.per_ns != rate * 1e-9)
		set_rate(orders, rate);
	orders_close(slot);
	return 0;
}

int slot_remix(char *words)
{
	struct orders wanted = { .remix_overlap = 0.0 }, *orders;
	uint64_t slot;

	if (take_slot(&words, &slot) || PARSE(words, remix_fields, &wanted) ||
	    !is_share(wanted.remix_overlap))
		return EINVAL;
	if (!processes[slot].pid)
		return ESRCH;
	orders = orders_open(&block->slots[slot]);
	orders->remixes++;
	orders->remix_overlap = wanted.remix_overlap;
	orders->remix_seed = wanted.remix_seed;
	orders_close(&block->slots[slot]);
	return 0;
}

/* "free_burst I [KEEP_PAGES]" */
int slot_free_burst(char *words)
{
	uint64_t slot, keep = 0;
	struct orders *orders;
	char *word;

	if (take_slot(&words, &slot))
		return EINVAL;
	word = next_word(&words);
	if (*words || (word && parse_u64(word, &keep)))
		return EINVAL;
	if (!processes[slot].pid)
		return ESRCH;
	orders = orders_open(&block->slots[slot]);
	orders->frees++;
	orders->free_keep_pages = keep;
	orders_close(&block->slots[slot]);
	return 0;
}

static void run_generator(uint64_t slot)
{
	char fd_word[16], slot_word[16];
	char *argv[] = { (char *)GENERATOR, fd_word, slot_word, NULL };

	snprintf(fd_word, sizeof(fd_word), "%d", BLOCK_FD);
	snprintf(slot_word, sizeof(slot_word), "%llu", (unsigned long long)slot);
	if (dup2(block_fd, BLOCK_FD) == BLOCK_FD)
		execv(GENERATOR, argv);
	fprintf(stderr, "agent: %s: %m\n", GENERATOR);
	_exit(127);
}

/* Wait until the generator has filled its memory, or is dead. */
static int await_ready(struct process *process, struct slot *slot)
{
	uint64_t deadline = now_ns() + START_TIMEOUT_NS;

	while (process->pid && !atomic_load(&slot->ready)) {
		if (now_ns() > deadline)
			return ETIMEDOUT;
		futex_wait(&slot->ready, 0, now_ns() + START_POLL_NS);
		programs_reap();
	}
	return process->pid ? 0 : ECHILD;
}

/* "launch I": start a generator and go on; "await I" waits for it. */
int slot_launch(char *words)
{
	struct process *process;
	uint64_t slot;
	char path[64];
	pid_t pid;
	int error;

	if (take_slot(&words, &slot) || *words)
		return EINVAL;
	process = &processes[slot];
	if (process->pid)
		return EBUSY;
	atomic_store(&block->slots[slot].ready, 0);
	pid = program_fork(process->cgroup, &error);
	if (!pid)
		run_generator(slot);
	if (pid < 0)
		return error;
	process->pid = pid;
	process->starts++;
	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	process->stat_fd = open(path, O_RDONLY | O_CLOEXEC);
	return 0;
}

int slot_await(char *words)
{
	uint64_t slot;

	if (take_slot(&words, &slot) || *words)
		return EINVAL;
	return await_ready(&processes[slot], &block->slots[slot]);
}

/* "start I": both. */
int slot_start(char *words)
{
	char again[16];
	int error;

	snprintf(again, sizeof(again), "%s", words);
	error = slot_launch(words);
	return error ? error : slot_await(again);
}

/* Faults of a running process with all its threads; fields 10 and 12 of proc_pid_stat(5). */
static uint64_t faults_now(const struct process *process)
{
	unsigned long long minor, major;
	char text[512], *name_end;
	ssize_t n;

	if (!process->pid || process->stat_fd < 0)
		return 0;
	n = pread(process->stat_fd, text, sizeof(text) - 1, 0);
	if (n <= 0)
		return 0;
	text[n] = 0;
	name_end = strrchr(text, ')');
	if (!name_end || sscanf(name_end + 1, " %*c %*d %*d %*d %*d %*d %*u %llu %*u %llu",
				&minor, &major) != 2)
		return 0;
	return minor + major;
}

/* Book what a wait that its thread did not live to end has cost. */
static void end_wait(struct slot *slot, struct wait *wait, uint64_t now)
{
	uint64_t since = atomic_exchange(&wait->since_ns, 0);
	uint64_t rest = lock_section_us(wait->lock) * 2000;
	uint64_t waited = since && now > since ? now - since : 0;

	if (!since)
		return;
	atomic_fetch_add(&slot->counters[COUNT_LOCK_WAITS], 1);
	atomic_fetch_add(&slot->counters[COUNT_LOCK_WAIT_NS], waited);
	if (!wait->critical)
		return;
	atomic_fetch_add(&slot->counters[COUNT_LOCK_CRITICAL_WAIT_NS], waited);
	atomic_fetch_add(&slot->counters[COUNT_LOCK_EXCESS_NS], waited > rest ? waited - rest : 0);
}

/* A child was reaped: true if it was a generator. */
bool slot_reaped(pid_t pid, int status, const struct rusage *usage)
{
	uint32_t i = 0;

	while (i < MAX_SLOTS && processes[i].pid != pid)
		i++;
	if (i == MAX_SLOTS)
		return false;
	processes[i].pid = 0;
	processes[i].exits++;
	processes[i].last_status = status;
	processes[i].faults += (uint64_t)usage->ru_minflt + (uint64_t)usage->ru_majflt;
	if (processes[i].stat_fd >= 0)
		close(processes[i].stat_fd);
	processes[i].stat_fd = -1;
	for (int t = 0; t <= MAX_THREADS; t++)
		end_wait(&block->slots[i], &block->slots[i].waits[t], now_ns());
	lock_left_by(i);
	atomic_store(&block->slots[i].burst_pages, 0);
	return true;
}

int slot_stop(char *words)
{
	struct rusage usage;
	uint64_t slot;
	int status;
	pid_t pid;

	if (take_slot(&words, &slot) || *words)
		return EINVAL;
	pid = processes[slot].pid;
	if (!pid)
		return ESRCH;
	kill(pid, SIGKILL);
	if (wait4(pid, &status, 0, &usage) != pid)
		return errno;
	slot_reaped(pid, status, &usage);
	return 0;
}

/* The counters with what is still going on: waits that have not ended, a section that is on. */
static void count_ongoing(uint32_t i, uint64_t counts[N_COUNTERS])
{
	struct slot *slot = &block->slots[i];
	uint64_t now = now_ns(), held_us, waited_us;

	for (int c = 0; c < N_COUNTERS; c++)
		counts[c] = atomic_load(&slot->counters[c]);
	for (int t = 0; t <= MAX_THREADS; t++) {
		const struct wait *wait = &slot->waits[t];
		uint64_t since = atomic_load(&wait->since_ns), waited, rest;

		if (!since || since > now)
			continue;
		waited = now - since;
		rest = lock_section_us(wait->lock) * 2000;
		counts[COUNT_LOCK_WAIT_NS] += waited;
		if (!wait->critical)
			continue;
		counts[COUNT_LOCK_CRITICAL_WAIT_NS] += waited;
		counts[COUNT_LOCK_EXCESS_NS] += waited > rest ? waited - rest : 0;
	}
	lock_ongoing(i, &held_us, &waited_us);
	counts[COUNT_LOCK_HELD_US] += held_us;
	counts[COUNT_LOCK_WAITERS_US] += waited_us;
}

static const struct {
	const char *name;
	enum counter counter;
	uint64_t divisor;
} counter_names[] = {
	{ "arrived", COUNT_ARRIVED, 1 },
	{ "done", COUNT_DONE, 1 },
	{ "failed", COUNT_FAILED, 1 },
	{ "touches", COUNT_TOUCHES, 1 },
	{ "critical_faults", COUNT_CRITICAL_FAULTS, 1 },
	{ "lock_waits", COUNT_LOCK_WAITS, 1 },
	{ "lock_wait_us", COUNT_LOCK_WAIT_NS, 1000 },
	{ "lock_critical_wait_us", COUNT_LOCK_CRITICAL_WAIT_NS, 1000 },
	{ "lock_excess_us", COUNT_LOCK_EXCESS_NS, 1000 },
	{ "lock_held_us", COUNT_LOCK_HELD_US, 1 },
	{ "lock_waiters_us", COUNT_LOCK_WAITERS_US, 1 },
};

/*
 * A generator was stopped between two of its instructions: what moves from "going on" to "counted"
 * may be in neither for a moment, but a counter never falls.
 */
static size_t put_counters(uint32_t i, char *text, size_t room)
{
	uint64_t counts[N_COUNTERS], *reported = processes[i].reported;
	size_t used = 0;

	count_ongoing(i, counts);
	for (int c = 0; c < N_COUNTERS; c++)
		if (counts[c] > reported[c])
			reported[c] = counts[c];
	for (size_t n = 0; n < sizeof(counter_names) / sizeof(counter_names[0]); n++)
		used += (size_t)snprintf(text + used, room - used, "%s %llu\n",
					 counter_names[n].name,
					 (unsigned long long)(reported[counter_names[n].counter] /
							      counter_names[n].divisor));
	return used;
}

static size_t put_latency(const struct slot *slot, char *text, size_t room)
{
	size_t used = (size_t)snprintf(text, room, "latency");

	for (int k = 0; k < N_LATENCY_BINS; k++) {
		unsigned long long count = atomic_load(&slot->latency[k]);

		if (count)
			used += (size_t)snprintf(text + used, room - used, " %d:%llu", k, count);
	}
	return used + (size_t)snprintf(text + used, room - used, "\n");
}

static void report_slot(uint32_t i)
{
	const struct process *process = &processes[i];
	struct slot *slot = &block->slots[i];
	char text[MAX_STATS], name[32];
	size_t used;

	used = (size_t)snprintf(text, sizeof(text),
				"alive %d\nstarts %llu\nexits %llu\nlast_status %d\nfaults %llu\n"
				"burst_pages %llu\n",
				process->pid != 0, (unsigned long long)process->starts,
				(unsigned long long)process->exits, process->last_status,
				(unsigned long long)(process->faults + faults_now(process)),
				(unsigned long long)atomic_load(&slot->burst_pages));
	used += put_counters(i, text + used, sizeof(text) - used);
	used += reclaim_stats(i, text + used, sizeof(text) - used);
	used += put_latency(slot, text + used, sizeof(text) - used);
	snprintf(name, sizeof(name), "slot/%u/stats", i);
	report_text(name, text, used);
}

void slots_report(void)
{
	for (uint32_t i = 0; i < MAX_SLOTS; i++)
		if (processes[i].declared)
			report_slot(i);
}

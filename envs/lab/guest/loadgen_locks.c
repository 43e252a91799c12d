/* SPDX-License-Identifier: MIT
 *
 * Locks shared by all generators of the guest, and the account of who waits for whom.
 *
 * A lock of the kernel is the mutex of a pipe.  The kernel holds it while it copies between the
 * pipe and a program's memory, page faults and the reclaim they need included; so a section is a
 * writev() from the pages it reads and a readv() into the pages it writes, some bytes of each, and
 * as many more as take the section's time.  A waiter asks how much there is to read, which takes
 * the mutex and gives it back.  memory.high does not make a thread sleep in there: that happens on
 * the way out.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/uio.h>

#include "loadgen.h"
#include "waiting.h"

#define SECTION_TOUCHES 256	/* of either kind, between two moments without the lock */
#define MOVE_BYTES (128UL << 10)	/* most that is moved at once to pass time */
#define WAITED_NS 20000	/* a visit of a free lock takes 3 us, a section hundreds (assumption) */
#define WORD_BYTES sizeof(uint64_t)
#define TRIALS 8

/* What a section of a kernel lock is going to do. */
struct section {
	uint32_t reads, writes, fills;
	struct iovec read[SECTION_TOUCHES + 1], write[SECTION_TOUCHES + 1];
	uint64_t *fill[SECTION_TOUCHES];	/* pages that are new */
	uint64_t page[SECTION_TOUCHES];
	double spend_us;
};

static int pipes[MAX_SLOT_LOCKS];
static uint8_t *moved;			/* what is read and written to pass time */
static double bytes_per_us;		/* that move in and out again */

static void consistent(struct named_lock *lock, int error)
{
	if (error == EOWNERDEAD)
		error = pthread_mutex_consistent(&lock->mutex);
	if (error)
		die("lock %s: error %d", lock->name, error);
}

static void count_wait(const struct named_lock *lock, bool critical, uint64_t waited)
{
	uint64_t rest = 2 * atomic_load(&lock->section_ns);

	count(COUNT_LOCK_WAITS, 1);
	count(COUNT_LOCK_WAIT_NS, waited);
	if (!critical)
		return;
	count(COUNT_LOCK_CRITICAL_WAIT_NS, waited);
	if (waited > rest)
		count(COUNT_LOCK_EXCESS_NS, waited - rest);
}

static int pipe_of(const struct lock_spec *spec)
{
	return pipes[spec - work->locks];
}

/* A holder's time is that in which somebody waits: what others have told of it is taken off. */
static void tell_holder(struct named_lock *lock, uint64_t begin, uint64_t end)
{
	uint32_t holder = atomic_load(&lock->holder);
	uint64_t until = atomic_load(&lock->told_us);
	struct slot *told = &block->slots[holder ? holder - 1 : 0];

	if (!holder)
		return;
	while (until < end && !atomic_compare_exchange_weak(&lock->told_us, &until, end))
		;
	if (until < end)
		atomic_fetch_add(&told->counters[COUNT_LOCK_HELD_US],
				 end - (until > begin ? until : begin));
	atomic_fetch_add(&told->counters[COUNT_LOCK_WAITERS_US], end - begin);
}

/* Take the mutex of a pipe and give it back; what takes long has waited. */
static void visit(struct named_lock *lock, const struct lock_spec *spec, struct thread *thread)
{
	struct wait *wait = &slot->waits[thread->index];
	uint64_t begin = now_ns(), end;
	int bytes;

	wait->lock = spec->lock;
	wait->critical = thread->critical;
	atomic_store(&wait->since_ns, begin);
	if (ioctl(pipe_of(spec), FIONREAD, &bytes))
		die("lock %s: FIONREAD: %m", spec->name);
	end = now_ns();
	atomic_store(&wait->since_ns, 0);
	if (end - begin < WAITED_NS)
		return;
	count_wait(lock, thread->critical, end - begin);
	tell_holder(lock, begin / 1000, end / 1000);
}

/* The lock is taken: wait for it, where everybody can see since when. */
static void wait_for(struct named_lock *lock, const struct lock_spec *spec, struct thread *thread)
{
	struct wait *wait = &slot->waits[thread->index];
	uint64_t begin = now_ns(), end, none = 0;
	int error;

	wait->lock = spec->lock;
	wait->critical = thread->critical;
	waiting_begin(&lock->waiting[spec->member], begin / 1000);
	atomic_compare_exchange_strong(&lock->first_wait_us, &none, begin / 1000);
	atomic_store(&wait->since_ns, begin);
	error = pthread_mutex_lock(&lock->mutex);
	end = now_ns();
	atomic_store(&wait->since_ns, 0);
	waiting_end(&lock->waiting[spec->member], end / 1000);
	consistent(lock, error);
	count_wait(lock, thread->critical, end - begin);
}

static void begin_section(struct named_lock *lock)
{
	uint64_t at = now_us();

	if (!lock_waiting_number(lock))
		atomic_store(&lock->first_wait_us, 0);
	atomic_store(&lock->since_us, at);
	atomic_store(&lock->waited_us, lock_waiting_total_us(lock, at));
	atomic_store(&lock->owner, slot_number + 1);
}

static void end_section(struct named_lock *lock)
{
	uint64_t at;

	atomic_store(&lock->owner, 0);
	at = now_us();
	count(COUNT_LOCK_HELD_US, section_held_us(lock, at));
	count(COUNT_LOCK_WAITERS_US, section_waited_us(lock, at));
}

/*
 * One call of the kernel that holds the lock.  Whether it had to wait cannot be told from how long
 * it took, so a visit goes before.
 */
static void move(struct thread *thread, const struct lock_spec *spec, ssize_t (*call)(int fd,
		 const struct iovec *iov, int n), const struct iovec *iov, uint32_t n)
{
	struct named_lock *lock = &block->locks[spec->lock];

	visit(lock, spec, thread);
	atomic_store(&lock->holder, slot_number + 1);
	/* full or empty: others have what is missing */
	if (call(pipe_of(spec), iov, (int)n) < 0 && errno != EAGAIN)
		die("lock %s: pipe: %m", lock->name);
}

/* The bytes that pass time, and those by which reads and writes of a section differ. */
static void move_section(struct thread *thread, const struct lock_spec *spec, size_t bytes)
{
	struct section *section = thread->section;
	size_t in = WORD_BYTES * section->reads, out = WORD_BYTES * section->writes;

	section->read[section->reads] =
		(struct iovec){ moved, bytes + (out > in ? out - in : 0) };
	section->write[section->writes] =
		(struct iovec){ moved, bytes + (in > out ? in - out : 0) };
	move(thread, spec, writev, section->read, section->reads + 1);
	move(thread, spec, readv, section->write, section->writes + 1);
}

/* Do what was gathered, with the lock held. */
static void run_section(struct thread *thread, const struct lock_spec *spec)
{
	struct section *section = thread->section;
	size_t left = (size_t)(section->spend_us * bytes_per_us);

	do {
		size_t bytes = left < MOVE_BYTES ? left : MOVE_BYTES;

		move_section(thread, spec, bytes);
		section->reads = section->writes = 0;
		left -= bytes;
	} while (left);
	for (uint32_t i = 0; i < section->fills; i++)
		touch_fill(section->fill[i], section->page[i]);
	section->fills = 0;
	section->spend_us = 0.0;
}

static const struct lock_spec *kernel_lock(void)
{
	for (uint32_t i = 0; i < work->n_locks; i++)
		if (work->locks[i].kind == LOCK_KERNEL && work->locks[i].role == ROLE_HOLDER)
			return &work->locks[i];
	return NULL;
}

void lock_touch(struct thread *thread, uint64_t *word, bool write)
{
	struct section *section = thread->section;
	struct iovec at = { word, WORD_BYTES };

	if (write)
		section->write[section->writes++] = at;
	else
		section->read[section->reads++] = at;
	if (section->reads == SECTION_TOUCHES || section->writes == SECTION_TOUCHES)
		run_section(thread, kernel_lock());
}

/* A new page: allocated under the lock, filled when it is free again. */
void lock_fill(struct thread *thread, uint64_t *words, uint64_t page)
{
	struct section *section = thread->section;

	section->fill[section->fills] = words;
	section->page[section->fills++] = page;
	lock_touch(thread, words, true);
}

void lock_spend(struct thread *thread, double us)
{
	thread->section->spend_us += us;
}

/* A holder of a kernel lock gathers from here on what it is going to do. */
static void enter_kernel(struct thread *thread, const struct lock_spec *spec)
{
	struct named_lock *lock = &block->locks[spec->lock];

	if (spec->role == ROLE_HOLDER)
		thread->section = thread->sections;
	else
		visit(lock, spec, thread);
}

void lock_enter(struct thread *thread, const struct lock_spec *spec)
{
	struct named_lock *lock = &block->locks[spec->lock];
	int error;

	if (spec->kind == LOCK_KERNEL) {
		enter_kernel(thread, spec);
		return;
	}
	error = pthread_mutex_trylock(&lock->mutex);
	if (error == EBUSY)
		wait_for(lock, spec, thread);
	else
		consistent(lock, error);
	if (spec->role == ROLE_HOLDER)
		begin_section(lock);
}

void lock_leave(struct thread *thread, const struct lock_spec *spec)
{
	struct named_lock *lock = &block->locks[spec->lock];

	if (spec->kind == LOCK_KERNEL) {
		if (thread->section)
			run_section(thread, spec);
		thread->section = NULL;
		return;
	}
	if (spec->role == ROLE_HOLDER)
		end_section(lock);
	pthread_mutex_unlock(&lock->mutex);
}

/* For a thread of this slot; NULL if there is no lock of the kernel to hold. */
struct section *lock_section_alloc(void)
{
	return kernel_lock() ? locked_alloc(sizeof(struct section)) : NULL;
}

/* The quickest of some trials: what took longer was interrupted. */
static void measure_moving(int fd)
{
	struct iovec all = { moved, MOVE_BYTES };
	uint64_t best = UINT64_MAX;

	for (int i = 0; i < TRIALS; i++) {
		uint64_t begin = now_ns(), took;

		if (writev(fd, &all, 1) < 0 || readv(fd, &all, 1) < 0)
			die("lock: pipe: %m");
		took = now_ns() - begin;
		if (took < best)
			best = took;
	}
	bytes_per_us = (double)MOVE_BYTES * 1e3 / (double)best;
}

void locks_prepare(void)
{
	for (uint32_t i = 0; i < work->n_locks; i++) {
		char path[MAX_NAME + sizeof(KERNEL_LOCKS)];

		if (work->locks[i].kind != LOCK_KERNEL)
			continue;
		snprintf(path, sizeof(path), KERNEL_LOCKS "%s", work->locks[i].name);
		pipes[i] = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
		if (pipes[i] < 0)
			die("%s: %m", path);
		if (!moved)
			moved = locked_alloc(MOVE_BYTES + SECTION_TOUCHES * WORD_BYTES);
		if (!bytes_per_us)
			measure_moving(pipes[i]);
	}
}

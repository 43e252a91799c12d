/* SPDX-License-Identifier: MIT
 *
 * Open-loop arrivals and the queue they wait in.
 *
 * Arrivals are a Poisson process of the agent's rate: number k is due when the rate, summed over
 * time, reaches the sum of k exponential draws.  So a change of rate moves those that are not due
 * yet, and those that wait already keep their time.  A thread takes the next one, due or not, and
 * sleeps until it is.
 *
 * Units: requests, nanoseconds.
 */
#define _GNU_SOURCE
#include <math.h>
#include <pthread.h>

#include "loadgen.h"

#define ARRIVAL_STREAM 0x20000ULL	/* apart from the threads' */
#define BINS_PER_OCTAVE 8

static struct {
	pthread_mutex_t mutex;
	struct rng rng;
	double next;		/* the sum of draws at which the next one is due */
	uint64_t *due_ns;	/* ring of those that wait */
	uint64_t first, waiting, most;
} queue = { .mutex = PTHREAD_MUTEX_INITIALIZER };

void queue_prepare(void)
{
	queue.most = (uint64_t)ceil(work->requests_per_s * work->queue_s);
	if (!queue.most)
		queue.most = 1;
	queue.due_ns = locked_alloc(queue.most * sizeof(*queue.due_ns));
	rng_seed(&queue.rng, work->seed, ARRIVAL_STREAM);
}

static void draw_next(void)
{
	queue.next += rng_exponential(&queue.rng);
}

/* Nothing that was due before the generator could serve counts. */
void queue_open(void)
{
	struct orders orders;

	orders_read(&orders);
	queue.next = orders.now.due +
		     orders.now.per_ns * (double)(now_ns() - orders.now.since_ns);
	draw_next();
}

/* When a sum of draws is due; a request may be left over from the stretch before this one. */
static uint64_t when_due(const struct orders *orders, double sum)
{
	const struct stretch *stretch = &orders->now;
	double ns;

	if (sum < stretch->due)
		stretch = &orders->before;
	if (stretch->per_ns <= 0.0)
		return stretch == &orders->now ? NEVER : orders->now.since_ns;
	ns = ceil((sum - stretch->due) / stretch->per_ns);
	return ns < 1e18 ? stretch->since_ns + (ns > 0.0 ? (uint64_t)ns : 0) : NEVER;
}

/* Shedding: the share of arrivals that clients keep to themselves. */
static bool is_shed(const struct orders *orders, struct rng *rng)
{
	count(COUNT_ARRIVED, 1);
	return orders->shed > 0.0 && rng_unit(rng) < orders->shed;
}

/* Move what has become due into the ring; the oldest goes where there is no room. */
static void admit(const struct orders *orders, uint64_t now)
{
	uint64_t due;

	while ((due = when_due(orders, queue.next)) <= now) {
		draw_next();
		if (is_shed(orders, &queue.rng))
			continue;
		if (queue.waiting == queue.most) {
			count(COUNT_FAILED, 1);
			queue.first = (queue.first + 1) % queue.most;
			queue.waiting--;
		}
		queue.due_ns[(queue.first + queue.waiting) % queue.most] = due;
		queue.waiting++;
	}
}

/* The oldest that waits, or the next one that will be due: then its sum of draws, and 0. */
static uint64_t take(const struct orders *orders, double *sum)
{
	uint64_t due = 0;

	pthread_mutex_lock(&queue.mutex);
	admit(orders, now_ns());
	if (queue.waiting) {
		due = queue.due_ns[queue.first];
		queue.first = (queue.first + 1) % queue.most;
		queue.waiting--;
	} else {
		*sum = queue.next;
		draw_next();
	}
	pthread_mutex_unlock(&queue.mutex);
	return due;
}

/* Sleep until a request is due, whatever the rate becomes meanwhile. */
static uint64_t await_due(struct orders *orders, double sum)
{
	for (;;) {
		uint32_t change = orders_read(orders);
		uint64_t due = when_due(orders, sum);

		if (due <= now_ns())
			return due;
		futex_wait(&slot->change, change, due);
	}
}

/* The next request to serve: when it was due, and what the orders are now that it is. */
uint64_t queue_next(struct thread *thread, struct orders *orders)
{
	for (;;) {
		double sum = 0.0;
		uint64_t due;

		orders_read(orders);
		due = take(orders, &sum);
		if (due)
			return due;
		due = await_due(orders, sum);
		if (!is_shed(orders, &thread->rng))
			return due;
	}
}

/* floor(8 * log2(us)) without a logarithm: the octave, and which eighth of it. */
static int latency_bin(uint64_t ns)
{
	static const double eighths[BINS_PER_OCTAVE] = {
		1.0,
		1.0905077326652577,
		1.189207115002721,
		1.2968395546510096,
		1.4142135623730951,
		1.5422108254079407,
		1.681792830507429,
		1.8340080864093424,
	};
	double us = (double)ns * 1e-3, part;
	int octave, eighth = BINS_PER_OCTAVE - 1, bin;

	if (us < 1.0)
		return 0;
	part = 2.0 * frexp(us, &octave);
	while (part < eighths[eighth])
		eighth--;
	bin = BINS_PER_OCTAVE * (octave - 1) + eighth;
	return bin < N_LATENCY_BINS ? bin : N_LATENCY_BINS - 1;
}

/* The part of a stretch of time in which the agent held the only CPU. */
static uint64_t interrupted_ns(uint64_t from, uint64_t until)
{
	uint64_t sum = 0;

	for (int i = 0; i < N_INTERRUPTIONS; i++) {
		uint64_t begin = block->interruptions[i].begin_ns;
		uint64_t end = block->interruptions[i].end_ns;

		if (begin < from)
			begin = from;
		if (end > until)
			end = until;
		if (end > begin)
			sum += end - begin;
	}
	return sum;
}

/* A request is served: it took from when it was due until now. */
void queue_done(uint64_t due_ns)
{
	uint64_t now = now_ns(), took = now > due_ns ? now - due_ns : 0;

	took -= interrupted_ns(due_ns, now);
	atomic_fetch_add(&slot->latency[latency_bin(took)], 1);
	count(COUNT_DONE, 1);
}

/* Where every thread is stuck, nobody else looks at the queue. */
void queue_refuse_surplus(void)
{
	struct orders orders;

	orders_read(&orders);
	pthread_mutex_lock(&queue.mutex);
	admit(&orders, now_ns());
	pthread_mutex_unlock(&queue.mutex);
}

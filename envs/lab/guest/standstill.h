/* SPDX-License-Identifier: MIT
 *
 * Stop the machine so that nothing in the guest can tell for how long, or how.
 *
 * The write to the pause port stops the processor at that instruction.  Before the whole machine
 * stands still, QEMU's main loop may see a processor that does nothing, and then moves the guest's
 * clock on to its next timer, as it does for one that is idle; whether it does is a race on the
 * host.  So a timer is set to come soon, and the next instruction is a jump to itself that only
 * this timer's signal ends: wherever the clock was moved to, and however often the jump was taken,
 * the guest goes on from the same instruction at the same time.
 *
 * Exact with one processor.  With more, the others run on until the main loop has stopped them.
 */
#ifndef MEMCG_GYM_STANDSTILL_H
#define MEMCG_GYM_STANDSTILL_H

#include <signal.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#include "protocol.h"

/* Longer than the way from setting the timer to the port, in which it must not come. */
#define STANDSTILL_NS 20000
/* It comes again, should it have come too early all the same. */
#define STANDSTILL_AGAIN_NS 1000000
#define STANDSTILL_SIGNAL SIGRTMAX

#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif

extern const char standstill_loop[];

static timer_t standstill_timer;

/* Past the jump, if this is where the signal came. */
static void standstill_end(int number, siginfo_t *info, void *context)
{
	const struct itimerspec never = { 0 };
	ucontext_t *thread = context;
	greg_t *at = &thread->uc_mcontext.gregs[REG_RIP];

	(void)number;
	(void)info;
	if (*at != (greg_t)standstill_loop)
		return;
	timer_settime(standstill_timer, 0, &never, NULL);
	*at += 2; /* the jump's length */
}

/* Once, by the thread that will stop the machine; ioperm for the port is the caller's. */
static inline int standstill_prepare(void)
{
	struct sigaction action = { .sa_sigaction = standstill_end, .sa_flags = SA_SIGINFO };
	struct sigevent event = {
		.sigev_notify = SIGEV_THREAD_ID,
		.sigev_signo = STANDSTILL_SIGNAL,
	};

	event.sigev_notify_thread_id = (pid_t)syscall(SYS_gettid);
	if (sigaction(STANDSTILL_SIGNAL, &action, NULL))
		return -1;
	return timer_create(CLOCK_MONOTONIC, &event, &standstill_timer);
}

/* Returns when the host has let the machine go on.  Not inlined: the label exists once. */
static __attribute__((noinline, noclone)) void standstill(void)
{
	const struct itimerspec soon = {
		.it_value.tv_nsec = STANDSTILL_NS,
		.it_interval.tv_nsec = STANDSTILL_AGAIN_NS,
	};

	timer_settime(standstill_timer, 0, &soon, NULL);
	__asm__ volatile("outb %0, %1\n"
			 "standstill_loop:\n\t"
			 ".byte 0xeb, 0xfe\n" /* jmp standstill_loop, in two bytes */
			 :
			 : "a"((uint8_t)PAUSE_BIT), "d"((uint16_t)PAUSE_PORT)
			 : "memory");
}

#endif

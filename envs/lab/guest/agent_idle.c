/* SPDX-License-Identifier: MIT
 *
 * A processor that never halts, for runs that repeat to the byte.
 *
 * With an instruction counter and no sleep, QEMU moves the clock of a halted processor on to its
 * next timer.  Which thread of QEMU does so first, and whether the instructions just before the
 * halt are counted by then, is a race on the host: under load the clock goes some nanoseconds to
 * milliseconds too far, now and then.  A thread that takes what time nobody else wants leaves
 * nothing to race for.  It costs the host about 70 ms for each idle second of the guest.
 *
 * What it changes for those who look: "nice" in /proc/stat is the idle time, as nothing else is
 * nice, and /proc/pressure/cpu counts this thread as one that waits; no other cgroup's does.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "agent.h"

#define ASK "spin_idle"		/* on the kernel's command line, with any value */
#define NICE 19
#define LOOPS (1UL << 30)	/* as good as any: it is preempted when somebody wakes */
#define STACK_BYTES (64UL << 10)

static void *spin(void *arg)
{
	struct sched_param param = { .sched_priority = 0 };

	if (setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), NICE) ||
	    sched_setscheduler(0, SCHED_IDLE, &param))
		fail("idle thread: %m");
	for (;;)
		burn(LOOPS);
	return arg;
}

/*
 * The kernel hands words it does not know to PID 1 as its environment.  Not with more processors:
 * they share one instruction counter, and a spinning one would take half the other's speed.
 */
void idle_spin(void)
{
	pthread_attr_t attr;
	pthread_t thread;

	if (!getenv(ASK) || sysconf(_SC_NPROCESSORS_ONLN) > 1)
		return;
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, STACK_BYTES);
	if (pthread_create(&thread, &attr, spin, NULL))
		fail("idle thread: not created");
	pthread_attr_destroy(&attr);
}

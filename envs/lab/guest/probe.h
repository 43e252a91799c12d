/* SPDX-License-Identifier: MIT
 *
 * A program that does exactly what its arguments say, one operation after the other, and tells how
 * long each took: the hand that pokes the kernel while its golden values are checked.
 */
#ifndef MEMCG_GYM_PROBE_H
#define MEMCG_GYM_PROBE_H

#include <stdint.h>

#define MAX_ARGS 8

/* The arguments of an operation: "touch:a:0:64" is touch with three. */
struct args {
	int n;
	char *word[MAX_ARGS];
};

/* probe.c */
void die(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
uint64_t number(const struct args *args, int at);

/* probe_memory.c: one memory operation; false if there is none of that name */
int memory_op(const char *name, const struct args *args);

#endif

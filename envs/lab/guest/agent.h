/* SPDX-License-Identifier: MIT
 *
 * The agent is PID 1: it does what the host's command blocks say, and reports.
 */
#ifndef MEMCG_GYM_AGENT_H
#define MEMCG_GYM_AGENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/resource.h>
#include <sys/types.h>

#include "block.h"
#include "clock.h"
#include "protocol.h"

extern struct block *block;
extern int block_fd;

/* agent.c */
extern volatile struct header *header;
void fail(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));

/* agent_boot.c */
void boot_mount(void);
void boot_modules(void);
void *boot_map_shared(void);
double boot_measure_burn(void);
void boot_take_priority(void);

/* agent_idle.c */
void idle_spin(void);

/* agent_commands.c: what ends a command block */
enum after { AFTER_TICK, AFTER_PAUSE, AFTER_POWEROFF };
enum after commands_run(const char *text, size_t bytes);
void commands_report_results(void);

/* agent_report.c */
void report_begin(void *area, size_t bytes);
size_t report_end(void);
bool report_overflowed(void);
void report_text(const char *name, const char *text, size_t bytes);
void report_printf(const char *name, const char *format, ...)
	__attribute__((format(printf, 2, 3)));
void report_path(const char *name, const char *path);
char *report_open(const char *name, size_t *room);
void report_close(size_t bytes);
int watch_add(const char *name, const char *path);
int watch_remove(const char *name);
void watch_report(void);

/* agent_parse.c: "key=value ..." into struct members; all return an errno */
enum field_type { FIELD_U32, FIELD_U64, FIELD_DOUBLE, FIELD_BINS, FIELD_NAME, FIELD_CHOICE };
struct field {
	const char *key;
	enum field_type type;
	size_t offset;
	const char *choices;	/* of FIELD_CHOICE: words; the value is the position */
};
int parse_fields(char *words, const struct field *fields, size_t n_fields, void *target);
int parse_u64(const char *word, uint64_t *value);
char *next_word(char **rest);

/* agent_slots.c; all commands return an errno */
int slot_declare(char *words);
int slot_add_region(char *words);
int slot_add_lock(char *words);
int slot_start(char *words);
int slot_launch(char *words);
int slot_await(char *words);
int slot_stop(char *words);
int slot_demand(char *words);
int slot_remix(char *words);
int slot_free_burst(char *words);
const char *slot_cgroup(uint64_t slot);
bool slot_reaped(pid_t pid, int status, const struct rusage *usage);
void slots_report(void);

/* agent_locks.c */
int lock_join(uint32_t slot, struct lock_spec *spec);
void lock_left_by(uint32_t slot);
uint64_t lock_section_us(uint32_t lock);
void lock_ongoing(uint32_t slot, uint64_t *held_us, uint64_t *waited_us);

/* agent_reclaim.c */
int reclaim_ask(char *words);
void reclaim_cut_off(void);
size_t reclaim_stats(uint32_t slot, char *text, size_t room);

/* agent_devices.c */
int device_fill(char *words);
int device_mkswap(char *words);
int device_swapon(char *words);
int device_mount(char *words);

/* agent_programs.c */
pid_t program_fork(const char *cgroup, int *error);
int program_spawn(char *words);
int program_run(char *words);
int program_signal(char *words);
void programs_reap(void);
void programs_report(void);

#endif

/* SPDX-License-Identifier: MIT
 *
 * What the host and the agent say to each other: envs/lab/protocol.py is the same in Python and
 * says what it means.  The shared memory is BAR 2 of an ivshmem-plain device.
 */
#ifndef MEMCG_GYM_PROTOCOL_H
#define MEMCG_GYM_PROTOCOL_H

#include <stdint.h>

#define PROTOCOL_MAGIC 0x4C47434DU /* "MCGL" */
#define PROTOCOL_VERSION 1U
#define SHARED_BYTES (32UL << 20)
#define COMMAND_OFFSET (4UL << 10)
#define COMMAND_BYTES ((4UL << 20) - COMMAND_OFFSET)
#define REPORT_OFFSET (4UL << 20)
#define REPORT_BYTES (SHARED_BYTES - REPORT_OFFSET)

enum state { STATE_BOOTING, STATE_READY, STATE_PAUSED, STATE_FAILED };

struct header {
	uint32_t magic;
	uint32_t version;
	uint32_t state;
	uint32_t reserved;
	uint64_t tick;
	uint64_t time_ns;
	uint32_t command_bytes;
	uint32_t report_bytes;
	uint64_t overrun_ns;
};

/* A file of a report: this, the name, the text; the next one follows at once. */
struct entry {
	uint32_t name_bytes;
	uint32_t text_bytes;
};

/* Writing bit 0 here stops the machine under -action panic=pause: the agent's way to say "look". */
#define PAUSE_PORT 0x505
#define PAUSE_BIT 0x01

#endif

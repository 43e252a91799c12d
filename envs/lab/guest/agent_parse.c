/* SPDX-License-Identifier: MIT
 *
 * Words and "key=value" pairs.  What is not exactly as it must be is EINVAL.
 */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "agent.h"

/* Cut the next word off; afterwards *rest is what follows it, empty after the last. */
char *next_word(char **rest)
{
	char *word = *rest, *space;

	if (!*word || *word == ' ')
		return NULL;
	space = strchr(word, ' ');
	if (space)
		*space = 0;
	*rest = space ? space + 1 : word + strlen(word);
	return word;
}

int parse_u64(const char *word, uint64_t *value)
{
	char *end;

	if (*word < '0' || *word > '9')
		return EINVAL;
	errno = 0;
	*value = strtoull(word, &end, 10);
	return *end || errno ? EINVAL : 0;
}

static int parse_u32(const char *word, uint32_t *value)
{
	uint64_t wide;

	if (parse_u64(word, &wide) || wide > UINT32_MAX)
		return EINVAL;
	*value = (uint32_t)wide;
	return 0;
}

/* No quantity of a workload is negative or endless. */
static int parse_double(const char *word, double *value)
{
	char *end;

	*value = strtod(word, &end);
	return end == word || *end || !isfinite(*value) || *value < 0.0 ? EINVAL : 0;
}

static int parse_bins(char *word, double bins[N_BINS])
{
	for (int b = 0; b < N_BINS; b++) {
		char *comma = strchr(word, ',');

		if (!comma != (b == N_BINS - 1))
			return EINVAL;
		if (comma)
			*comma = 0;
		if (parse_double(word, &bins[b]))
			return EINVAL;
		word = comma + 1;
	}
	return 0;
}

static int parse_name(const char *word, char name[MAX_NAME])
{
	if (!*word || strlen(word) >= MAX_NAME)
		return EINVAL;
	strcpy(name, word);
	return 0;
}

static int parse_choice(const char *word, const char *choices, uint32_t *value)
{
	size_t length = strlen(word);

	for (*value = 0; *choices; (*value)++) {
		size_t choice = strcspn(choices, " ");

		if (choice == length && !memcmp(word, choices, length))
			return 0;
		choices += choice;
		choices += *choices == ' ';
	}
	return EINVAL;
}

static int parse_value(char *word, const struct field *field, void *target)
{
	void *to = (char *)target + field->offset;

	switch (field->type) {
	case FIELD_U32:
		return parse_u32(word, to);
	case FIELD_U64:
		return parse_u64(word, to);
	case FIELD_DOUBLE:
		return parse_double(word, to);
	case FIELD_BINS:
		return parse_bins(word, to);
	case FIELD_NAME:
		return parse_name(word, to);
	case FIELD_CHOICE:
		return parse_choice(word, field->choices, to);
	}
	return EINVAL;
}

/* A key that is given twice counts the last time; one that is not given leaves its member alone. */
int parse_fields(char *words, const struct field *fields, size_t n_fields, void *target)
{
	while (*words) {
		char *word = next_word(&words), *value = word ? strchr(word, '=') : NULL;
		size_t i = 0;

		if (!value)
			return EINVAL;
		*value++ = 0;
		while (i < n_fields && strcmp(word, fields[i].key))
			i++;
		if (i == n_fields || parse_value(value, &fields[i], target))
			return EINVAL;
	}
	return 0;
}

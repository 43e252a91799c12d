/* SPDX-License-Identifier: MIT
 *
 * Seeded random numbers: xorshift64* (Vigna, "An experimental exploration of Marsaglia's xorshift
 * generators, scrambled"), its state from splitmix64.
 */
#ifndef MEMCG_GYM_RNG_H
#define MEMCG_GYM_RNG_H

#include <math.h>
#include <stdint.h>

struct rng {
	uint64_t state;
};

static inline uint64_t splitmix64(uint64_t x)
{
	x += 0x9E3779B97F4A7C15ULL;
	x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ULL;
	x = (x ^ (x >> 27)) * 0x94D049BB133111EBULL;
	return x ^ (x >> 31);
}

static inline void rng_seed(struct rng *rng, uint64_t seed, uint64_t stream)
{
	rng->state = splitmix64(splitmix64(seed) + stream);
	if (!rng->state)
		rng->state = 1;
}

static inline uint64_t rng_u64(struct rng *rng)
{
	uint64_t x = rng->state;

	x ^= x >> 12;
	x ^= x << 25;
	x ^= x >> 27;
	rng->state = x;
	return x * 0x2545F4914F6CDD1DULL;
}

/* Below n, for n up to 2^32; r are 32 random bits.  The bias is below n / 2^32. */
static inline uint32_t rng_scale(uint32_t r, uint64_t n)
{
	return (uint32_t)((r * n) >> 32);
}

static inline double rng_unit(struct rng *rng)
{
	return (double)(rng_u64(rng) >> 11) * 0x1p-53;
}

static inline double rng_exponential(struct rng *rng)
{
	return -log1p(-rng_unit(rng));
}

#endif

// The passes over a whole vocabulary row, and the order of tokens. See sampler.h.
#pragma once

#include <cstdint>
#include <vector>

namespace octavo::sampler {

// A row is cut into blocks of 1024 values; value i of a block belongs to lane i % 16. A "group" is a lane of a
// block: 64 values. The maxima of all groups (16 per block) are found in one pass and save later ones.
constexpr int64_t kLanes = 16;
constexpr int64_t kBlock = 1024;

inline int64_t blocks_of(int64_t vocab) { return (vocab + kBlock - 1) / kBlock; }

// Writes the maxima of all groups, blocks_of(vocab) * 16 floats (-inf for a group without values; a NaN is not a
// maximum). Returns whether there is a NaN.
bool group_maxima(const float* x, int64_t vocab, float* maxima);

// The weight of a logit: exp((logit - top) / temperature), 0 where it would be below exp(-87) or the logit below
// `least`. `top` is the largest logit.
// One block (or what a row has left of it): its group maxima, with NaN among them when there is one in the block, and
// the sum of e^(x - the block's largest).
void block_stats(const float* x, int64_t count, float* maxima, double* sum);

struct Weighting {
  Weighting(float top, float temperature, float least);
  float of(float logit) const;  // as in exp_sums, to an ulp
  float top;
  float scale;  // log2(e) / temperature
  float floor;
};

// Sum of the weights of the row; also by block.
double exp_sums(const float* x, int64_t vocab, const Weighting& weighting, double* by_block);

// How many values are greater than `value`, or equal to it; for `count` values.
int64_t count_above(const float* x, int64_t count, float value);
int64_t count_not_below(const float* x, int64_t count, float value);

// The place of a token in the order as an integer: a larger one comes earlier (larger logit, then lower id).
uint64_t key_of(float logit, int32_t id);
int32_t id_of(uint64_t key);
float logit_of(uint64_t key);

}  // namespace octavo::sampler

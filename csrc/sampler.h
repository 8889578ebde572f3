// The native sampler: from rows of logits to tokens and log-probabilities.
//
// A row goes through: a grammar's mask, allowed ids, banned ids, logit bias, repetition / frequency / presence
// penalties, then either the most likely token (temperature 0) or temperature, min_p, top_k, top_p and one draw. Tokens
// are ordered by logit, the lower id first among equals; min_p, top_k and top_p each keep a prefix of that order. The
// draw walks the kept tokens by id with one uniform number of Philox4x32-10(seed, position), so that it depends on
// nothing but the row. octavo/runner/sampling_reference.py is the slow twin.
#pragma once

#include <array>
#include <cstdint>

namespace octavo {

class Pool;

namespace sampler {

// What came of a row; kOk is the only one with a token.
enum Flag : uint8_t { kOk = 0, kNan = 1, kInfinite = 2, kNothingAllowed = 3 };

// Row i is at data + i * stride, `vocab` float32 values. A row with edits is changed while it is sampled and has
// its own values again afterwards: cheaper than a copy of a large vocabulary.
struct Logits {
  float* data;
  int64_t rows;
  int64_t vocab;
  int64_t stride;
  // Where whoever made the logits has seen to it: for each row, block_stats of all its blocks. Null: not yet.
  const float* maxima = nullptr;  // [rows, blocks * kLanes]
  const double* sums = nullptr;   // [rows, blocks]
};

// Settings by slot (a sequence's place), each array as long as there are slots.
struct Settings {
  const float* temperature;  // 0: greedy
  const float* top_p;        // (0, 1]
  const float* min_p;        // 0..1
  const float* repetition;   // > 0
  const float* presence;
  const float* frequency;
  const int64_t* top_k;     // 0: all
  const int64_t* seed;      // its 64 bits are Philox's key
  const int64_t* position;  // number of output tokens so far
  const int64_t* logprobs;  // -2: none; k >= 0: chosen and k best; -1: all
};

// Lists of token ids by row: row i has ids[begin[i] .. begin[i + 1]). begin null: no row has any. Ids outside
// the vocabulary are skipped.
struct Lists {
  const int64_t* begin = nullptr;
  const int32_t* ids = nullptr;
  bool has(int64_t row) const { return begin != nullptr && begin[row] < begin[row + 1]; }
};

// What grammars allow: row i may only have the tokens whose bits are set in row[i] of `bits`, 32 to a word, the lowest
// bit first. A row[i] below 0 allows everything, and so does `row` null.
struct Masks {
  const int32_t* row = nullptr;
  const uint32_t* bits = nullptr;
  int64_t words = 0;  // of one row, enough for the vocabulary
  const uint32_t* of(int64_t index) const {
    return row == nullptr || row[index] < 0 ? nullptr : bits + row[index] * words;
  }
};

// Changes to the logits. An empty `allowed` list allows everything. `seen` holds each distinct token of prompt
// and output once; `seen_counts` how often it is in the output (0: prompt only).
struct Edits {
  Lists allowed;
  Lists banned;
  Lists bias;
  const float* bias_values = nullptr;
  Lists seen;
  const int32_t* seen_counts = nullptr;
  Masks masks;
  bool copied(int64_t row) const { return allowed.has(row) || masks.of(row) != nullptr; }
  bool has(int64_t row) const { return copied(row) || banned.has(row) || bias.has(row) || seen.has(row); }
};

// Where answers go. `logprob` and `rank` (1: most likely) are of the chosen token in the logits as given, before
// any edit. Row i's best tokens lie at top_begin[i] .. top_begin[i + 1] of top_ids and top_values, descending.
struct Answers {
  int32_t* token;
  uint8_t* flag;
  float* logprob;
  int32_t* rank;
  const int64_t* top_begin;
  int32_t* top_ids;
  float* top_values;
};

// Samples row i under settings of slot slots[i]. Rows with logprobs -2 leave logprob 0 and rank 0. `pool` may be
// null: rows one after the other.
void sample(const Logits& logits, const int32_t* slots, const Settings& settings, const Edits& edits,
            const Answers& answers, Pool* pool);

// Log-probability and rank of given[i] in row i, and the best tokens; answers.token gets given[i].
void score(const Logits& logits, const int32_t* given, const Answers& answers, Pool* pool);

// Philox4x32-10 of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
std::array<uint32_t, 4> philox(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);

// The uniform number in [0, 1) of an output position: 53 bits of philox((position, 0, 0), seed).
double uniform(int64_t seed, int64_t position);

}  // namespace sampler
}  // namespace octavo

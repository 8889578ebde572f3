// See sampler.h for what a row goes through. No path sorts the vocabulary: maxima of groups of 64 logits give a
// bound that only few tokens pass, and those are selected from.
#include "sampler.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <utility>
#include <vector>

#include "pool.h"
#include "sampler_passes.h"

namespace octavo::sampler {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
constexpr float kLeast = std::numeric_limits<float>::lowest();
constexpr float kGreedyBelow = 1e-5f;  // a smaller temperature is 0, as in vLLM
constexpr int64_t kNoLogprobs = -2;

using Keys = std::vector<uint64_t>;
using Undo = std::vector<std::pair<int32_t, float>>;  // ids and the logits that they had
const auto kDescending = std::greater<uint64_t>();

// A row with its group maxima.
struct Row {
  const float* x;
  int64_t vocab;
  std::vector<float> maxima;
  float top = kMinusInfinity;
  const double* sums = nullptr;  // by block, of e^(x - the block's largest), where they are known

  Flag scan(const float* values, int64_t count, const float* known_maxima = nullptr,
            const double* known_sums = nullptr) {
    x = values;
    vocab = count;
    sums = known_sums;
    const auto groups = static_cast<size_t>(blocks_of(count) * kLanes);
    maxima.resize(groups);
    if (known_maxima) {
      std::copy(known_maxima, known_maxima + groups, maxima.begin());
      if (std::any_of(maxima.begin(), maxima.end(), [](float m) { return m != m; })) return kNan;
    } else if (group_maxima(x, vocab, maxima.data())) {
      return kNan;
    }
    top = *std::max_element(maxima.begin(), maxima.end());
    if (top == std::numeric_limits<float>::infinity()) return kInfinite;
    return top == kMinusInfinity ? kNothingAllowed : kOk;
  }
};

// Memory that a worker keeps between rows.
struct Scratch {
  Row raw, edited;
  std::vector<float> copy, pivots;
  std::vector<double> by_block;
  std::vector<uint64_t> bitmap;
  Keys keys;
  Undo undo;
};

// The lowest id among the largest logits.
int32_t most_likely(const Row& row) {
  const int64_t groups = static_cast<int64_t>(row.maxima.size());
  for (int64_t b = 0; b * kLanes < groups; ++b) {
    const float* lanes = row.maxima.data() + b * kLanes;
    if (std::find(lanes, lanes + kLanes, row.top) == lanes + kLanes) continue;
    const float* from = row.x + b * kBlock;
    return static_cast<int32_t>(std::find(from, row.x + row.vocab, row.top) - row.x);
  }
  return -1;
}

// Keys of all tokens with logit >= least, in no particular order.
void collect(const Row& row, float least, Keys& keys) {
  keys.clear();
  const int64_t groups = static_cast<int64_t>(row.maxima.size());
  for (int64_t g = 0; g < groups; ++g) {
    if (!(row.maxima[static_cast<size_t>(g)] >= least)) continue;
    const int64_t first = g / kLanes * kBlock + g % kLanes;
    const int64_t end = std::min(g / kLanes * kBlock + kBlock, row.vocab);
    for (int64_t i = first; i < end; i += kLanes) {
      if (row.x[i] >= least) keys.push_back(key_of(row.x[i], static_cast<int32_t>(i)));
    }
  }
}

// A bound that at least `count` logits reach, and not many more; -FLT_MAX when groups are too few to tell.
float bound_for(const Row& row, int64_t count, std::vector<float>& pivots) {
  if (count > static_cast<int64_t>(row.maxima.size())) return kLeast;
  pivots = row.maxima;
  const auto nth = pivots.begin() + (count - 1);
  std::nth_element(pivots.begin(), nth, pivots.end(), std::greater<float>());
  return std::max(*nth, kLeast);
}

// The `count` first tokens of the order with logit >= least (fewer when there are not so many), unsorted.
void best(const Row& row, int64_t count, float least, Scratch& s) {
  collect(row, std::max(bound_for(row, count, s.pivots), least), s.keys);
  if (count >= static_cast<int64_t>(s.keys.size())) return;
  std::nth_element(s.keys.begin(), s.keys.begin() + count, s.keys.end(), kDescending);
  s.keys.resize(static_cast<size_t>(count));
}

double mass_of(const Weighting& weighting, const uint64_t* first, const uint64_t* last) {
  double mass = 0;
  for (; first != last; ++first) mass += static_cast<double>(weighting.of(logit_of(*first)));
  return mass;
}

// Cuts `keys` to its shortest prefix of the order whose mass reaches `enough`. False: all of it does not.
bool cut_to_mass(const Weighting& weighting, double enough, Keys& keys) {
  uint64_t* low = keys.data();
  uint64_t* high = low + keys.size();
  double before = 0;
  if (mass_of(weighting, low, high) < enough) return false;
  while (high - low > 32) {
    uint64_t* middle = low + (high - low) / 2;
    std::nth_element(low, middle, high, kDescending);
    const double mass = mass_of(weighting, low, middle);
    if (before + mass >= enough) {
      high = middle;
    } else {
      before += mass;
      low = middle;
    }
  }
  std::sort(low, high, kDescending);
  while (low < high && before < enough) before += static_cast<double>(weighting.of(logit_of(*low++)));
  keys.resize(static_cast<size_t>(std::max<int64_t>(low - keys.data(), 1)));
  return true;
}

// Draws among s.keys, walking them by id. A bitmap puts them in that order without a sort.
int32_t draw_from_keys(const Row& row, const Weighting& weighting, double u, Scratch& s) {
  s.bitmap.assign(static_cast<size_t>(row.vocab / 64 + 1), 0);
  for (uint64_t key : s.keys) {
    const auto id = static_cast<uint32_t>(id_of(key));
    s.bitmap[id / 64] |= uint64_t{1} << (id % 64);
  }
  const double target = u * mass_of(weighting, s.keys.data(), s.keys.data() + s.keys.size());
  double sum = 0;
  int32_t last = -1;
  for (size_t word = 0; word < s.bitmap.size(); ++word) {
    for (uint64_t bits = s.bitmap[word]; bits != 0; bits &= bits - 1) {
      const auto id = static_cast<int32_t>(word * 64 + static_cast<size_t>(__builtin_ctzll(bits)));
      const double weight = static_cast<double>(weighting.of(row.x[id]));
      sum += weight;
      if (weight > 0) last = id;
      if (sum > target) return last;
    }
  }
  return last;  // rounding only: u * mass came out as the whole sum
}

// Draws among all tokens; s.by_block holds their weights by block.
int32_t draw_from_row(const Row& row, const Weighting& weighting, double target, const Scratch& s) {
  double sum = 0;
  int64_t block = 0, chosen = 0;
  for (; block < static_cast<int64_t>(s.by_block.size()); ++block) {
    const double weight = s.by_block[static_cast<size_t>(block)];
    if (weight > 0) chosen = block;
    if (sum + weight > target) break;
    sum += weight;
  }
  const bool beyond = block == static_cast<int64_t>(s.by_block.size());  // rounding only, as above
  int32_t last = -1;
  for (int64_t i = chosen * kBlock; i < std::min((chosen + 1) * kBlock, row.vocab); ++i) {
    const double weight = static_cast<double>(weighting.of(row.x[i]));
    sum += weight;
    if (weight > 0) last = static_cast<int32_t>(i);
    if (!beyond && sum > target) break;
  }
  return last;
}

// The smallest logit that min_p keeps: exp((logit - top) / temperature) >= min_p.
float floor_of(float top, float temperature, float min_p) {
  if (min_p <= 0) return kLeast;
  const double least =
      static_cast<double>(top) + static_cast<double>(temperature) * std::log(static_cast<double>(min_p));
  if (least <= static_cast<double>(kLeast)) return kLeast;
  const auto rounded = static_cast<float>(least);
  return static_cast<double>(rounded) < least ? std::nextafterf(rounded, top) : rounded;
}

// The weights of all blocks, into s.by_block, and of the row. What is known at temperature 1 is brought to one top.
double weigh(const Row& row, const Weighting& weighting, bool plain, Scratch& s) {
  s.by_block.resize(static_cast<size_t>(blocks_of(row.vocab)));
  if (!row.sums || !plain) return exp_sums(row.x, row.vocab, weighting, s.by_block.data());
  double total = 0;
  for (size_t b = 0; b < s.by_block.size(); ++b) {
    const float* lanes = row.maxima.data() + b * kLanes;
    const double below = static_cast<double>(*std::max_element(lanes, lanes + kLanes)) - static_cast<double>(row.top);
    s.by_block[b] = row.sums[b] * std::exp(below);
    total += s.by_block[b];
  }
  return total;
}

// Temperature, min_p, top_k, top_p and the draw.
int32_t draw(const Row& row, const Settings& settings, int32_t slot, Scratch& s) {
  const float temperature = settings.temperature[slot];
  if (!(temperature >= kGreedyBelow)) return most_likely(row);
  const Weighting weighting(row.top, temperature, floor_of(row.top, temperature, settings.min_p[slot]));
  const double u = uniform(settings.seed[slot], settings.position[slot]);
  const int64_t top_k = settings.top_k[slot];
  const double top_p = static_cast<double>(settings.top_p[slot]);
  if (top_k > 0 && top_k < row.vocab) {
    if (top_k == 1) return most_likely(row);
    best(row, top_k, weighting.floor, s);
    if (top_p < 1) {
      cut_to_mass(weighting, top_p * mass_of(weighting, s.keys.data(), s.keys.data() + s.keys.size()), s.keys);
    }
    return draw_from_keys(row, weighting, u, s);
  }
  const double total = weigh(row, weighting, temperature == 1.0f && settings.min_p[slot] <= 0, s);
  if (top_p >= 1) return draw_from_row(row, weighting, u * total, s);
  const int64_t groups = static_cast<int64_t>(row.maxima.size());
  for (int64_t count = std::min<int64_t>(64, groups);;) {  // most often few tokens hold the mass
    const float bound = std::max(bound_for(row, count, s.pivots), weighting.floor);
    collect(row, bound, s.keys);
    if (cut_to_mass(weighting, top_p * total, s.keys) || bound == weighting.floor) break;
    count = count < groups ? std::min(count * 8, groups) : groups + 1;
  }
  return draw_from_keys(row, weighting, u, s);
}

// Applies `edit(id, k)` for row's entries k that lie in the vocabulary.
template <class F>
void for_each(const Lists& lists, int64_t row, int64_t vocab, F edit) {
  if (!lists.has(row)) return;
  for (int64_t k = lists.begin[row]; k < lists.begin[row + 1]; ++k) {
    if (lists.ids[k] >= 0 && lists.ids[k] < vocab) edit(lists.ids[k], k);
  }
}

// The logits of a row whose bits are set, the others -inf.
void masked(const float* x, int64_t vocab, const uint32_t* bits, float* y) {
  for (int64_t first = 0; first < vocab; first += 32) {
    const uint32_t word = bits[first / 32];
    const int64_t count = std::min<int64_t>(32, vocab - first);
    if (word == 0) {
      std::fill_n(y + first, count, kMinusInfinity);
    } else if (word == ~uint32_t{0}) {
      std::copy_n(x + first, count, y + first);
    } else {
      for (int64_t i = 0; i < count; ++i) y[first + i] = word >> i & 1 ? x[first + i] : kMinusInfinity;
    }
  }
}

// Only the logits of a row that its mask and its list of allowed ids leave, the others -inf.
float* allowed_only(const float* x, int64_t vocab, int64_t row, const Edits& edits, std::vector<float>& copy) {
  const uint32_t* bits = edits.masks.of(row);
  if (!edits.allowed.has(row)) {
    copy.resize(static_cast<size_t>(vocab));
    masked(x, vocab, bits, copy.data());
    return copy.data();
  }
  copy.assign(static_cast<size_t>(vocab), kMinusInfinity);
  for_each(edits.allowed, row, vocab, [&](int32_t id, int64_t) {
    if (bits == nullptr || bits[id / 32] >> (id % 32) & 1) copy[static_cast<size_t>(id)] = x[id];
  });
  return copy.data();
}

// Bans, biases and penalties on the logits y, in vLLM's order; `undo` gets what was there.
void edit(float* y, int64_t vocab, int64_t row, const Edits& edits, const Settings& settings, int32_t slot,
          Undo& undo) {
  undo.clear();
  const auto set = [&](int32_t id, float value) {
    undo.emplace_back(id, y[id]);
    y[id] = value;
  };
  for_each(edits.banned, row, vocab, [&](int32_t id, int64_t) { set(id, kMinusInfinity); });
  for_each(edits.bias, row, vocab, [&](int32_t id, int64_t k) { set(id, y[id] + edits.bias_values[k]); });
  const float repetition = settings.repetition[slot];
  const float presence = settings.presence[slot], frequency = settings.frequency[slot];
  for_each(edits.seen, row, vocab, [&](int32_t id, int64_t k) {
    float value = y[id] > 0 ? y[id] / repetition : y[id] * repetition;
    if (edits.seen_counts[k] > 0) {
      value -= frequency * static_cast<float>(edits.seen_counts[k]);
      value -= presence;
    }
    set(id, value);
  });
}

void restore(float* y, const Undo& undo) {
  for (auto entry = undo.rbegin(); entry != undo.rend(); ++entry) y[entry->first] = entry->second;
}

// Log-probability and rank of `token` and the best tokens of the raw row, with weights at temperature 1.
void describe(const Row& row, int32_t token, int64_t index, const Answers& answers, Scratch& s) {
  s.by_block.resize(static_cast<size_t>(blocks_of(row.vocab)));
  const Weighting weighting(row.top, 1.0f, kLeast);
  const double total =
      static_cast<double>(row.top) + std::log(exp_sums(row.x, row.vocab, weighting, s.by_block.data()));
  const auto logprob = [&](float logit) {
    return static_cast<float>(std::min(static_cast<double>(logit) - total, 0.0));
  };
  const float value = row.x[token];
  answers.logprob[index] = logprob(value);
  answers.rank[index] = static_cast<int32_t>(1 + count_not_below(row.x, token, value) +
                                             count_above(row.x + token + 1, row.vocab - token - 1, value));
  const int64_t begin = answers.top_begin[index], count = answers.top_begin[index + 1] - begin;
  if (count <= 0) return;
  best(row, count, kMinusInfinity, s);
  std::sort(s.keys.begin(), s.keys.end(), kDescending);
  for (int64_t k = 0; k < count; ++k) {
    const bool there = k < static_cast<int64_t>(s.keys.size());
    answers.top_ids[begin + k] = there ? id_of(s.keys[static_cast<size_t>(k)]) : -1;
    answers.top_values[begin + k] = there ? logprob(logit_of(s.keys[static_cast<size_t>(k)])) : kMinusInfinity;
  }
}

// Marks a row that has no token.
void fail(int64_t index, Flag flag, const Answers& answers) {
  answers.token[index] = -1;
  answers.flag[index] = flag;
  answers.logprob[index] = 0;
  answers.rank[index] = 0;
  for (int64_t k = answers.top_begin[index]; k < answers.top_begin[index + 1]; ++k) {
    answers.top_ids[k] = -1;
    answers.top_values[k] = 0;
  }
}

void sample_row(const Logits& logits, int64_t index, int32_t slot, const Settings& settings, const Edits& edits,
                const Answers& answers, Scratch& s) {
  float* x = logits.data + index * logits.stride;
  const int64_t blocks = blocks_of(logits.vocab);
  Flag flag = s.raw.scan(x, logits.vocab, logits.maxima ? logits.maxima + index * blocks * kLanes : nullptr,
                         logits.sums ? logits.sums + index * blocks : nullptr);
  int32_t token = -1;
  if (flag == kOk && edits.has(index)) {
    float* y = edits.copied(index) ? allowed_only(x, logits.vocab, index, edits, s.copy) : x;
    edit(y, logits.vocab, index, edits, settings, slot, s.undo);
    flag = s.edited.scan(y, logits.vocab);
    if (flag == kOk) token = draw(s.edited, settings, slot, s);
    restore(y, s.undo);
  } else if (flag == kOk) {
    token = draw(s.raw, settings, slot, s);
  }
  if (flag != kOk) return fail(index, flag, answers);
  answers.flag[index] = kOk;
  answers.token[index] = token;
  answers.logprob[index] = 0;
  answers.rank[index] = 0;
  if (settings.logprobs[slot] != kNoLogprobs) describe(s.raw, token, index, answers, s);
}

void score_row(const Logits& logits, int64_t index, int32_t given, const Answers& answers, Scratch& s) {
  const Flag flag = s.raw.scan(logits.data + index * logits.stride, logits.vocab);
  if (flag != kOk || given < 0 || given >= logits.vocab) {
    return fail(index, flag == kOk ? kNothingAllowed : flag, answers);
  }
  answers.flag[index] = kOk;
  answers.token[index] = given;
  describe(s.raw, given, index, answers, s);
}

// Runs work(row, scratch) for every row, on the pool when there is one.
template <class F>
void for_rows(int64_t rows, Pool* pool, F work) {
  if (pool == nullptr || rows < 2) {
    Scratch scratch;
    for (int64_t i = 0; i < rows; ++i) work(i, scratch);
    return;
  }
  std::vector<Scratch> scratch(static_cast<size_t>(pool->size()));
  pool->run(static_cast<int>(rows), [&](int task, int worker) { work(task, scratch[static_cast<size_t>(worker)]); });
}

}  // namespace

void sample(const Logits& logits, const int32_t* slots, const Settings& settings, const Edits& edits,
            const Answers& answers, Pool* pool) {
  for_rows(logits.rows, pool,
           [&](int64_t i, Scratch& scratch) { sample_row(logits, i, slots[i], settings, edits, answers, scratch); });
}

void score(const Logits& logits, const int32_t* given, const Answers& answers, Pool* pool) {
  for_rows(logits.rows, pool, [&](int64_t i, Scratch& scratch) { score_row(logits, i, given[i], answers, scratch); });
}

std::array<uint32_t, 4> philox(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53} * counter[0], b = uint64_t{0xCD9E8D57} * counter[2];
    counter = {static_cast<uint32_t>(b >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(b),
               static_cast<uint32_t>(a >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(a)};
    key = {key[0] + 0x9E3779B9u, key[1] + 0xBB67AE85u};
  }
  return counter;
}

double uniform(int64_t seed, int64_t position) {
  const auto s = static_cast<uint64_t>(seed), p = static_cast<uint64_t>(position);
  const auto words = philox({static_cast<uint32_t>(p), static_cast<uint32_t>(p >> 32), 0, 0},
                            {static_cast<uint32_t>(s), static_cast<uint32_t>(s >> 32)});
  const uint64_t bits = uint64_t{words[0]} << 32 | words[1];
  return static_cast<double>(bits >> 11) * 0x1p-53;
}

}  // namespace octavo::sampler

// The sampler against plain loops over doubles.
#include <limits>
#include <numeric>

#include "check.h"
#include "pool.h"
#include "sampler.h"

namespace octavo::test {
namespace {

using namespace octavo::sampler;

struct Wish {
  float temperature, top_p, min_p;
  int64_t top_k;
};

// The tokens that min_p, top_k and top_p keep, and their weights, by id.
std::vector<double> kept(const float* x, int64_t vocab, const Wish& w) {
  std::vector<int64_t> order(static_cast<size_t>(vocab));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return x[a] > x[b]; });
  const double top = static_cast<double>(x[order[0]]), temperature = static_cast<double>(w.temperature);
  std::vector<double> weights(static_cast<size_t>(vocab));
  size_t n = 0;
  const size_t most = w.top_k > 0 ? static_cast<size_t>(std::min(w.top_k, vocab)) : order.size();
  double all = 0, before = 0;
  for (; n < most; ++n) {
    const double weight = std::exp((static_cast<double>(x[order[n]]) - top) / temperature);
    if (weight < static_cast<double>(w.min_p)) break;
    weights[static_cast<size_t>(order[n])] = weight;
    all += weight;
  }
  for (size_t i = 0; i < n; ++i) {
    double& weight = weights[static_cast<size_t>(order[i])];
    const bool enough = before >= static_cast<double>(w.top_p) * all && i > 0;
    before += weight;
    if (enough) weight = 0;
  }
  return weights;
}

// Whether `token` is what a draw at `u` gives, up to rounding.
bool drawn(const std::vector<double>& weights, double u, int32_t token) {
  if (token < 0 || token >= static_cast<int32_t>(weights.size())) return false;
  const double all = std::accumulate(weights.begin(), weights.end(), 0.0);
  const double below = std::accumulate(weights.begin(), weights.begin() + token, 0.0);
  const double own = weights[static_cast<size_t>(token)], slack = 1e-5 * all;
  return own > 0 && u * all >= below - slack && u * all <= below + own + slack;
}

struct Asked {
  std::vector<int32_t> tokens, ranks, top_ids;
  std::vector<uint8_t> flags;
  Floats logprobs, top_values;
};

// Samples `rows` rows of `vocab` logits under one wish, with the `best` most likely tokens of each.
Asked ask(Floats& x, int64_t rows, int64_t vocab, const Wish& w, int64_t best, const Edits& edits, Pool* pool) {
  const auto n = static_cast<size_t>(rows);
  const Floats temperature(n, w.temperature), top_p(n, w.top_p), min_p(n, w.min_p), ones(n, 1.0f), zeros(n);
  const std::vector<int64_t> top_k(n, w.top_k), logprobs(n, best), seed(n, 11);
  std::vector<int64_t> position(n), begin(n + 1);
  for (size_t i = 0; i < n; ++i) position[i] = static_cast<int64_t>(i);
  for (size_t i = 0; i <= n; ++i) begin[i] = static_cast<int64_t>(i) * best;
  std::vector<int32_t> slots(n);
  std::iota(slots.begin(), slots.end(), 0);
  const Settings settings{temperature.data(), top_p.data(), min_p.data(), ones.data(),     zeros.data(),
                          zeros.data(),       top_k.data(), seed.data(),  position.data(), logprobs.data()};
  Asked a{std::vector<int32_t>(n),
          std::vector<int32_t>(n),
          std::vector<int32_t>(n * static_cast<size_t>(best)),
          std::vector<uint8_t>(n),
          Floats(n),
          Floats(n * static_cast<size_t>(best))};
  const Answers answers{a.tokens.data(), a.flags.data(),   a.logprobs.data(),  a.ranks.data(),
                        begin.data(),    a.top_ids.data(), a.top_values.data()};
  sample({x.data(), rows, vocab, vocab}, slots.data(), settings, edits, answers, pool);
  return a;
}

void draws(Pool& pool) {
  const Wish wishes[] = {{0, 1, 0, 0},     {1, 1, 0, 0},       {0.7f, 1, 0, 5},         {1.3f, 0.9f, 0, 0},
                         {1, 1, 0.05f, 0}, {1, 0.5f, 0, 2000}, {0.8f, 0.95f, 0.01f, 40}};
  for (const int64_t vocab : {1, 17, 1024, 1025, 5003})
    for (const Wish& w : wishes) {
      const int64_t rows = 9, best = std::min<int64_t>(3, vocab);
      Floats x = noise(rows * vocab, 3);
      const Floats before = x;
      const Asked a = ask(x, rows, vocab, w, best, {}, &pool);
      check(x == before, "the sampler changes logits");
      for (int64_t r = 0; r < rows; ++r) {
        const float* row = x.data() + r * vocab;
        const int32_t token = a.tokens[static_cast<size_t>(r)];
        const auto top = static_cast<int32_t>(std::max_element(row, row + vocab) - row);
        const std::string what = "sampler, vocabulary " + std::to_string(vocab) + ", top_k " + std::to_string(w.top_k);
        check(w.temperature == 0 ? token == top : drawn(kept(row, vocab, w), uniform(11, r), token), what + ": token");
        const std::vector<double> all = kept(row, vocab, {1, 1, 0, 0});
        const double total = std::log(std::accumulate(all.begin(), all.end(), 0.0)) + static_cast<double>(row[top]);
        const double expected = static_cast<double>(row[token]) - total;
        check(std::fabs(static_cast<double>(a.logprobs[static_cast<size_t>(r)]) - expected) < 1e-4 &&
                  a.top_ids[static_cast<size_t>(r * best)] == top &&
                  a.ranks[static_cast<size_t>(r)] ==
                      1 + std::count_if(row, row + vocab, [&](float v) { return v > row[token]; }),
              what + ": log-probability, rank or best token");
      }
    }
}

void troubles() {
  Floats x = noise(3 * 40);
  x[7] = std::numeric_limits<float>::quiet_NaN();
  x[47] = std::numeric_limits<float>::infinity();
  const std::vector<int64_t> begin = {0, 0, 0, 2};
  const std::vector<int32_t> ids = {5, 90};  // one beyond the vocabulary
  Edits edits;
  edits.allowed = {begin.data(), ids.data()};
  const Asked a = ask(x, 3, 40, {1, 1, 0, 0}, 2, edits, nullptr);
  check(a.flags == std::vector<uint8_t>({kNan, kInfinite, kOk}), "the sampler's flags");
  check(a.tokens == std::vector<int32_t>({-1, -1, 5}), "the sampler's tokens in trouble");
}

}  // namespace

void sampler_parts() {
  Pool pool(3);
  draws(pool);
  troubles();
}

}  // namespace octavo::test

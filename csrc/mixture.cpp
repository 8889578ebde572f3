// The routing of mixtures of experts.
#include "mixture.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "plan.h"

namespace octavo {
namespace {

bool seen_alike(const Weight& a, const Weight& b) {
  const PackedMatrix &p = a.packed(), &q = b.packed();
  return a.order().empty() && b.order().empty() && p.format == q.format && p.dtype == q.dtype && p.cols == q.cols &&
         p.offset == q.offset && p.group == q.group && p.inputs == q.inputs && p.x_scale == q.x_scale &&
         p.x_zero == q.x_zero;
}

}  // namespace

bool Mixture::alike() const {
  const auto same = [&](const std::shared_ptr<Weight>& w) { return seen_alike(*w, *gate.front()); };
  return std::all_of(gate.begin(), gate.end(), same) && std::all_of(up.begin(), up.end(), same);
}

int64_t Mixture::widest() const {
  int64_t most = 0;
  for (const auto* all : {&gate, &up, &down})
    for (const auto& w : *all) most = std::max(most, w->cols());
  return most;
}

bool Mixture::fits(int64_t in, int64_t scores, int64_t out) const {
  const int64_t n = experts();
  if (n == 0 || up.size() != gate.size() || down.size() != gate.size() || scores != n || top_k < 1 || top_k > n)
    return false;
  const int64_t ffn = gate.front() ? gate.front()->rows() : 0;
  const auto all = [](const std::vector<std::shared_ptr<Weight>>& weights, int64_t rows, int64_t cols) {
    return std::all_of(weights.begin(), weights.end(), [&](const std::shared_ptr<Weight>& w) {
      return w && !w->is_vector() && w->rows() == rows && w->inputs() == cols;
    });
  };
  const auto added = [&](const std::shared_ptr<Weight>& bias, int64_t rows) {
    return !bias || (bias->is_vector() && bias->rows() == n * rows);
  };
  return all(gate, ffn, in) && all(up, ffn, in) && all(down, out, ffn) && added(gate_bias, ffn) &&
         added(up_bias, ffn) && added(down_bias, out);
}

void Routing::reset(int64_t count, const Mixture& mixture) {
  const auto pairs = static_cast<size_t>(count * mixture.top_k);
  experts.resize(pairs);
  shares.resize(pairs);
  rows.resize(pairs);
  tokens.resize(pairs);
  first.resize(static_cast<size_t>(mixture.experts()) + 1);
}

void Routing::choose(int64_t token, const float* scores, const Mixture& m) {
  const int64_t count = m.experts(), k = m.top_k;
  int32_t* chosen = experts.data() + token * k;
  float* share = shares.data() + token * k;
  const auto rank = [&](int64_t e) {  // what is no number comes last
    return std::isnan(scores[e]) ? -std::numeric_limits<float>::infinity() : scores[e];
  };
  int64_t found = 0;
  for (int64_t e = 0; e < count; ++e) {
    int64_t at = found;
    while (at > 0 && rank(e) > rank(chosen[at - 1])) --at;
    if (at == k) continue;
    found = std::min(found + 1, k);
    for (int64_t i = found - 1; i > at; --i) chosen[i] = chosen[i - 1];
    chosen[at] = static_cast<int32_t>(e);
  }
  const float most = scores[chosen[0]];
  std::sort(chosen, chosen + k);
  float total = 0, sum = 0;
  if (m.scoring == Scoring::softmax)
    for (int64_t e = 0; e < count; ++e) total += std::exp(scores[e] - most);
  for (int64_t i = 0; i < k; ++i) {
    const float score = scores[chosen[i]];
    share[i] = m.scoring == Scoring::sigmoid ? 1.0f / (1.0f + std::exp(-score)) : std::exp(score - most);
    sum += share[i];
  }
  if (m.scoring == Scoring::chosen || m.renormalise) total = sum;
  else if (m.scoring == Scoring::sigmoid) total = 1;
  for (int64_t i = 0; i < k; ++i) share[i] = share[i] / total * m.scale;
}

void Routing::sort(const Mixture& m) {
  std::fill(first.begin(), first.end(), 0);
  for (const int32_t e : experts) ++first[static_cast<size_t>(e) + 1];
  for (size_t e = 1; e < first.size(); ++e) first[e] += first[e - 1];
  std::vector<int64_t> next(first.begin(), first.end() - 1);
  for (size_t pair = 0; pair < experts.size(); ++pair) {
    const int64_t row = next[static_cast<size_t>(experts[pair])]++;
    rows[pair] = static_cast<int32_t>(row);
    tokens[static_cast<size_t>(row)] = static_cast<int32_t>(pair / static_cast<size_t>(m.top_k));
  }
}

}  // namespace octavo

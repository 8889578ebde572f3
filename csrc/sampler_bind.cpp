// The sampler's two functions in octavo._native: NumPy arrays in and out, the GIL released in between.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>

#include <algorithm>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "bind.h"
#include "pool.h"
#include "sampler.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace octavo {
namespace {

template <class T, int Dimensions>
using In = nb::ndarray<const T, nb::ndim<Dimensions>, nb::c_contig, nb::device::cpu>;
using Rows = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
template <class T>
using Out = nb::ndarray<nb::numpy, T, nb::ndim<1>>;

void require(bool good, const char* what) {
  if (!good) throw std::invalid_argument(std::string("octavo sampler: ") + what);
}

// A NumPy array that owns `values`.
template <class T>
Out<T> give(std::vector<T>&& values) {
  auto owned = std::make_unique<std::vector<T>>(std::move(values));
  T* data = owned->data();
  const size_t size = owned->size();
  nb::capsule owner(owned.release(), [](void* p) noexcept { delete static_cast<std::vector<T>*>(p); });
  return Out<T>(data, {size}, owner);
}

// The answers' memory; counts[i] best tokens for row i.
struct Results {
  std::vector<int32_t> token, rank, top_ids;
  std::vector<uint8_t> flag;
  std::vector<float> logprob, top_values;
  std::vector<int64_t> top_begin;

  explicit Results(const std::vector<int64_t>& counts)
      : token(counts.size()), rank(counts.size()), flag(counts.size()), logprob(counts.size()), top_begin{0} {
    for (int64_t count : counts) top_begin.push_back(top_begin.back() + count);
    top_ids.resize(static_cast<size_t>(top_begin.back()));
    top_values.resize(static_cast<size_t>(top_begin.back()));
  }

  sampler::Answers view() {
    return {token.data(),     flag.data(),    logprob.data(),   rank.data(),
            top_begin.data(), top_ids.data(), top_values.data()};
  }

  nb::tuple tuple() {
    return nb::make_tuple(give(std::move(token)), give(std::move(flag)), give(std::move(logprob)),
                          give(std::move(rank)), give(std::move(top_begin)), give(std::move(top_ids)),
                          give(std::move(top_values)));
  }
};

// How many best tokens a logprobs setting asks for.
int64_t best_of(int64_t logprobs, int64_t vocab) {
  return logprobs == -1 || logprobs > vocab ? vocab : std::max<int64_t>(logprobs, 0);
}

// A (begin, ids) pair for `rows` rows; null where begin is empty.
sampler::Lists lists(const In<int64_t, 1>& begin, const In<int32_t, 1>& ids, size_t rows) {
  if (begin.shape(0) == 0) return {};
  require(begin.shape(0) == rows + 1 && begin.data()[0] == 0, "a list's bounds do not fit the rows");
  for (size_t i = 0; i < rows; ++i) require(begin.data()[i] <= begin.data()[i + 1], "a list's bounds decrease");
  require(begin.data()[rows] == static_cast<int64_t>(ids.shape(0)), "a list's bounds do not fit its ids");
  return {begin.data(), ids.data()};
}

using MaskArrays = std::pair<In<int32_t, 1>, In<int32_t, 2>>;

// The masks of `rows` rows, where there are any.
sampler::Masks masks_of(const std::optional<MaskArrays>& given, size_t rows, int64_t vocab) {
  if (!given) return {};
  const auto& [mask_rows, masks] = *given;
  require(mask_rows.shape(0) == rows, "mask rows and logits differ in length");
  const auto words = static_cast<int64_t>(masks.shape(1));
  require(words * 32 >= vocab, "a mask is shorter than the vocabulary");
  for (size_t i = 0; i < rows; ++i) {
    require(mask_rows.data()[i] < static_cast<int64_t>(masks.shape(0)), "a mask row lies outside the masks");
  }
  return {mask_rows.data(), reinterpret_cast<const uint32_t*>(masks.data()), words};
}

nb::tuple sample_rows(const Rows& logits, const In<int32_t, 1>& slots, const In<float, 2>& reals,
                      const In<int64_t, 2>& integers, const In<int64_t, 1>& allowed_begin,
                      const In<int32_t, 1>& allowed, const In<int64_t, 1>& banned_begin, const In<int32_t, 1>& banned,
                      const In<int64_t, 1>& bias_begin, const In<int32_t, 1>& bias, const In<float, 1>& bias_values,
                      const In<int64_t, 1>& seen_begin, const In<int32_t, 1>& seen, const In<int32_t, 1>& seen_counts,
                      Pool* pool, const std::optional<std::pair<In<float, 2>, In<double, 2>>>& stats,
                      const std::optional<MaskArrays>& masks) {
  const size_t rows = logits.shape(0), places = reals.shape(1);
  const auto vocab = static_cast<int64_t>(logits.shape(1));
  require(vocab > 0, "the vocabulary is empty");
  require(slots.shape(0) == rows, "logits and slots differ in length");
  require(reals.shape(0) == 6 && integers.shape(0) == 4 && integers.shape(1) == places, "settings of a wrong shape");
  require(bias_values.shape(0) == bias.shape(0), "bias ids and values differ in length");
  require(seen_counts.shape(0) == seen.shape(0), "seen ids and counts differ in length");
  const float* r = reals.data();
  const int64_t* n = integers.data();
  const sampler::Settings settings{r, r + places, r + 2 * places, r + 3 * places, r + 4 * places, r + 5 * places,
                                   n, n + places, n + 2 * places, n + 3 * places};
  const sampler::Edits edits{lists(allowed_begin, allowed, rows), lists(banned_begin, banned, rows),
                             lists(bias_begin, bias, rows),       bias_values.data(),
                             lists(seen_begin, seen, rows),       seen_counts.data(),
                             masks_of(masks, rows, vocab)};
  std::vector<int64_t> counts(rows);
  for (size_t i = 0; i < rows; ++i) {
    const int32_t slot = slots.data()[i];
    require(slot >= 0 && static_cast<size_t>(slot) < places, "a slot lies outside the settings");
    counts[i] = best_of(settings.logprobs[slot], vocab);
  }
  Results results(counts);
  sampler::Logits given{logits.data(), static_cast<int64_t>(rows), vocab, vocab};
  if (stats) {
    const auto blocks = static_cast<size_t>((vocab + 1023) / 1024);
    require(stats->first.shape(0) == rows && stats->first.shape(1) == 16 * blocks, "maxima of a wrong shape");
    require(stats->second.shape(0) == rows && stats->second.shape(1) == blocks, "sums of a wrong shape");
    given.maxima = stats->first.data();
    given.sums = stats->second.data();
  }
  {
    nb::gil_scoped_release release;
    sampler::sample(given, slots.data(), settings, edits, results.view(), pool);
  }
  return results.tuple();
}

nb::tuple score_rows(const Rows& logits, const In<int32_t, 1>& given, int64_t best, Pool* pool) {
  const size_t rows = logits.shape(0);
  const auto vocab = static_cast<int64_t>(logits.shape(1));
  require(vocab > 0, "the vocabulary is empty");
  require(given.shape(0) == rows, "logits and given tokens differ in length");
  Results results(std::vector<int64_t>(rows, best_of(best, vocab)));
  {
    nb::gil_scoped_release release;
    sampler::score({logits.data(), static_cast<int64_t>(rows), vocab, vocab}, given.data(), results.view(), pool);
  }
  return results.tuple();
}

}  // namespace

void bind_sampler(nb::module_& m) {
  m.def("sample", &sample_rows, "logits"_a, "slots"_a, "reals"_a, "integers"_a, "allowed_begin"_a, "allowed"_a,
        "banned_begin"_a, "banned"_a, "bias_begin"_a, "bias"_a, "bias_values"_a, "seen_begin"_a, "seen"_a,
        "seen_counts"_a, "pool"_a.none() = nb::none(), "stats"_a.none() = nb::none(), "masks"_a.none() = nb::none(),
        "Sample one token per row of logits; see octavo/runner/sampling.py for the arrays.");
  m.def("score", &score_rows, "logits"_a, "given"_a, "best"_a, "pool"_a.none() = nb::none(),
        "Log-probability and rank of the given token of each row, and the best tokens.");
  m.def("philox_uniform", &sampler::uniform, "seed"_a, "position"_a,
        "The uniform number that the draw at an output position uses.");
}

}  // namespace octavo

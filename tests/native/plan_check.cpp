// A small model's forward pass: the same to the last bit on one thread and on three, on every instruction set.
#include <stdexcept>

#include "check.h"
#include "plan.h"

namespace octavo::test {
namespace {

constexpr int64_t kWidth = 128, kVocab = 300, kTokens = 150, kBlocks = 12;
constexpr int kHeads = 4, kKvHeads = 2, kHeadDim = 32, kBlockSize = 16;

struct Model {
  Floats table, qkv, out, head, norm;
  Model()
      : table(noise(kVocab * kWidth)),
        qkv(noise(2 * kWidth * kWidth, 0.1f)),
        out(noise(kWidth * kWidth, 0.1f)),
        head(noise(kVocab * kWidth, 0.1f)),
        norm(noise(kWidth)) {}
};

Floats logits(const Model& m, const Kernels* kernels, int threads, Rounding rounding, CacheDtype cache, Format format,
              int64_t tokens) {
  auto pool = std::make_shared<Pool>(threads);
  auto arena = std::make_shared<Arena>();
  const auto weight = [&](const Floats& x) {
    const int64_t rows = static_cast<int64_t>(x.size()) / kWidth;
    if (format == Format::dense) return Weight::matrix(*pool, arena, x.data(), Dtype::f32, rows, kWidth);
    PackedMatrix shape{nullptr, Dtype::bf16, rows, kWidth, format, Offset::none, 32};
    return Weight::rounded(*pool, arena, scalar_kernels(), x.data(), Dtype::f32, shape);
  };
  Plan plan(pool, kernels, {kTokens, 2, 4, kBlockSize, kBlocks}, rounding, cache);
  const auto ref = [](int slot, int64_t col, int64_t width) { return Ref{slot, col, width}; };
  const int hidden = plan.slot(kWidth, false), normed = plan.slot(kWidth, false), wide = plan.slot(2 * kWidth, false);
  const int attended = plan.slot(kWidth, false), taken = plan.slot(kWidth, true), last = plan.slot(kVocab, true);
  const auto node = [&](OpKind kind, std::array<Ref, 3> in, Ref out, std::shared_ptr<Weight> w = nullptr) {
    Node n{};
    n.kind = kind;
    n.in = in;
    n.out = out;
    n.weight = std::move(w);
    n.cache = -1;
    return n;
  };
  const Ref h = ref(hidden, 0, kWidth), x = ref(normed, 0, kWidth), o = ref(attended, 0, kWidth);
  plan.add(node(OpKind::embedding, {}, h, weight(m.table)));
  Node norm = node(OpKind::rms_norm, {h}, x, Weight::vector(arena, m.norm.data(), kWidth));
  norm.a = 1e-5f;
  norm.i = kWidth;
  plan.add(norm);
  plan.add(node(OpKind::linear, {x}, ref(wide, 0, 2 * kWidth), weight(m.qkv)));
  constexpr int64_t narrow = int64_t{kKvHeads} * kHeadDim;
  Node attention =
      node(OpKind::attention, {ref(wide, 0, kWidth), ref(wide, kWidth, narrow), ref(wide, kWidth + narrow, narrow)}, o);
  attention.a = 0.2f;
  attention.i = kHeads;
  attention.cache = plan.cache_layer({kKvHeads, kHeadDim});
  plan.add(attention);
  plan.add(node(OpKind::linear, {o}, x, weight(m.out)));
  plan.add(node(OpKind::add, {h, x}, h));
  plan.add(node(OpKind::take, {h}, ref(taken, 0, kWidth)));
  plan.add(node(OpKind::linear, {ref(taken, 0, kWidth)}, ref(last, 0, kVocab), weight(m.head)));
  plan.allocate_cache(kBlocks);

  const auto n = static_cast<int32_t>(tokens);
  std::vector<int32_t> ids, positions, lens(static_cast<size_t>(tokens), n), blocks;
  for (int32_t t = 0; t < n; ++t) {
    ids.push_back(t * 7 % static_cast<int32_t>(kVocab));
    positions.push_back(t < n / 2 ? t : t - n / 2);
  }
  for (int32_t b = 0; b < 2 * kBlocks; ++b) blocks.push_back(b % static_cast<int32_t>(kBlocks));
  std::rotate(blocks.begin() + kBlocks, blocks.begin() + kBlocks + kBlocks / 2, blocks.end());
  const std::vector<int32_t> starts = {0, n / 2, n}, contexts = {n / 2, n - n / 2}, wanted = {n / 2 - 1, n - 1};
  plan.run({ids.data(), positions.data(), lens.data(), starts.data(), contexts.data(), blocks.data(), wanted.data(),
            tokens, 2, 2, kBlocks});
  Floats result;
  for (int64_t r = 0; r < 2; ++r) result.insert(result.end(), plan.logits().row(r), plan.logits().row(r) + kVocab);
  return result;
}

}  // namespace

void plan_parts() {
  const Model model;
  const Kernels* all[8];
  const int n = list_kernels(all, 8);
  for (int i = 0; i < n; ++i)
    for (const Format format : {Format::dense, Format::int8, Format::int4})
      for (const CacheDtype cache :
           {CacheDtype::f32, CacheDtype::f16, CacheDtype::bf16, CacheDtype::int8, CacheDtype::f8})
        for (const int64_t tokens : {2, 33, 150}) {
          const Rounding rounding = cache == CacheDtype::f32 ? Rounding{} : Rounding{Seen::bf16, Seen::int8};
          const Floats one = logits(model, all[i], 1, rounding, cache, format, tokens);
          const Floats three = logits(model, all[i], 3, rounding, cache, format, tokens);
          const Floats scalar = logits(model, scalar_kernels(), 1, rounding, cache, format, tokens);
          const std::string what = std::string(all[i]->name) + " plan of " + std::to_string(tokens) + " tokens: ";
          check(one == three, what + "threads show in the result");
          float worst = 0;
          for (size_t j = 0; j < one.size(); ++j) worst = std::max(worst, std::fabs(one[j] - scalar[j]));
          check(worst < 0.1f, what + "off by " + std::to_string(worst));
        }
}

}  // namespace octavo::test

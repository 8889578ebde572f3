#include "plan.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <stdexcept>

namespace octavo {
namespace {

constexpr const char* kNames[] = {"embedding",  "linear", "rms_norm",   "layer_norm", "add",       "mul",     "scale",
                                  "activation", "gated",  "rope_table", "rotate",     "attention", "softcap", "take"};

constexpr int kQueryTokens = 16;  // tokens of a prompt that one attention task takes

[[noreturn]] void fail(const std::string& what) { throw std::invalid_argument("octavo plan: " + what); }

// Packs up to sixteen rows of `depth` units (a float, a half, or a pair of bf16) from rows `stride` bytes apart;
// in blocks that stay in the first cache while they are turned round.
template <class Unit>
void pack_rows(const char* source, size_t stride, int64_t lanes, int64_t depth, Unit* out) {
  constexpr int64_t block = 64 / sizeof(Unit);
  for (int64_t k0 = 0; k0 < depth; k0 += block) {
    const int64_t end = std::min(depth, k0 + block);
    for (int64_t lane = 0; lane < lanes; ++lane) {
      const char* row = source + static_cast<size_t>(lane) * stride;
      for (int64_t k = k0; k < end; ++k)
        std::memcpy(out + k * kTile + lane, row + static_cast<size_t>(k) * sizeof(Unit), sizeof(Unit));
    }
  }
}

void pack_tile(const void* source, const PackedMatrix& shape, int64_t tile, void* out) {
  const size_t stride = static_cast<size_t>(shape.cols) * size_of(shape.dtype);
  const char* rows = static_cast<const char*>(source) + static_cast<size_t>(tile * kTile) * stride;
  const int64_t lanes = std::min<int64_t>(kTile, shape.rows - tile * kTile);
  if (shape.dtype == Dtype::f32) return pack_rows(rows, stride, lanes, shape.cols, static_cast<uint32_t*>(out));
  if (shape.dtype == Dtype::f16) return pack_rows(rows, stride, lanes, shape.cols, static_cast<uint16_t*>(out));
  const int64_t pairs = shape.cols / 2;
  pack_rows(rows, stride, lanes, pairs, static_cast<uint32_t*>(out));
  if (shape.cols & 1)  // the odd column meets zero
    for (int64_t lane = 0; lane < lanes; ++lane)
      std::memcpy(static_cast<uint32_t*>(out) + pairs * kTile + lane,
                  rows + static_cast<size_t>(lane) * stride + static_cast<size_t>(pairs) * 4, 2);
}

}  // namespace

std::shared_ptr<Weight> Weight::matrix(Pool& pool, std::shared_ptr<Arena> arena, const void* source, Dtype dtype,
                                       int64_t rows, int64_t cols) {
  auto w = std::make_shared<Weight>();
  w->dtype_ = dtype;
  w->rows_ = rows;
  w->cols_ = cols;
  const PackedMatrix shape{nullptr, dtype, rows, cols};
  const size_t stride = shape.tile_bytes();
  w->data_ = arena->take(stride * static_cast<size_t>(shape.tiles()));
  w->bytes_ = stride * static_cast<size_t>(shape.tiles());
  w->arena_ = std::move(arena);
  char* out = static_cast<char*>(w->data_);
  pool.run(static_cast<int>(shape.tiles()),
           [&](int tile, int) { pack_tile(source, shape, tile, out + stride * static_cast<size_t>(tile)); });
  return w;
}

std::shared_ptr<Weight> Weight::vector(std::shared_ptr<Arena> arena, const float* source, int64_t n) {
  auto w = std::make_shared<Weight>();
  w->rows_ = n;
  w->cols_ = 1;
  w->vector_ = true;
  w->bytes_ = static_cast<size_t>(n) * 4;
  w->data_ = arena->take(w->bytes_ + 64);  // kernels read whole vectors
  w->arena_ = std::move(arena);
  std::memcpy(w->data_, source, w->bytes_);
  return w;
}

Plan::Plan(std::shared_ptr<Pool> pool, const Kernels* kernels, PlanLimits limits, bool bf16, Dtype cache)
    : pool_(std::move(pool)), kernels_(kernels), limits_(limits), bf16_(bf16), cache_dtype_(cache) {
  if (!kernels_) fail("no such instruction set on this machine");
  if (limits.tokens <= 0 || limits.sequences <= 0 || limits.logit_rows <= 0) fail("limits must be positive");
  if (limits.block_size <= 0 || limits.block_size % kTile) fail("block_size must be a multiple of 16");
}

int Plan::slot(int64_t width, bool logit_rows) {
  if (width <= 0) fail("a slot needs a width");
  const int64_t rows = logit_rows ? limits_.logit_rows : limits_.tokens;
  slots_.push_back({Memory(static_cast<size_t>(rows * width) * 4 + 64), width, logit_rows});
  return static_cast<int>(slots_.size()) - 1;
}

int Plan::cache_layer(CacheSpec spec) {
  if (spec.kv_heads <= 0 || spec.head_dim <= 0) fail("a cache layer needs heads");
  layers_.push_back({spec, {}, {}});
  scratch_stride_ = std::max(scratch_stride_, attend_scratch(spec.head_dim));
  scratch_.assign(scratch_stride_ * static_cast<size_t>(pool_->size()), 0.0f);
  return static_cast<int>(layers_.size()) - 1;
}

View Plan::view(const Ref& ref) const {
  const Slot& s = slots_[static_cast<size_t>(ref.slot)];
  return {s.memory.as<float>() + ref.col, s.width, ref.width};
}

int64_t Plan::rows_of(const Ref& ref) const {
  return slots_[static_cast<size_t>(ref.slot)].logit_rows ? batch_.rows : batch_.tokens;
}

void Plan::check(const Node& n) const {
  const auto inside = [&](const Ref& r) {
    if (r.slot < 0) return;
    if (r.slot >= static_cast<int>(slots_.size())) fail("no such slot");
    if (r.col < 0 || r.width <= 0 || r.col + r.width > slots_[static_cast<size_t>(r.slot)].width)
      fail("a view outside its slot");
  };
  for (const Ref& r : n.in) inside(r);
  inside(n.out);
  if (n.out.slot < 0) fail("an op without output");
  const auto same = [&](bool ok) {
    if (!ok) fail(std::string("widths do not fit in ") + kNames[static_cast<int>(n.kind)]);
  };
  const int64_t in = n.in[0].width, out = n.out.width;
  switch (n.kind) {
    case OpKind::embedding:
      same(n.weight && !n.weight->is_vector() && n.weight->cols() == out);
      break;
    case OpKind::linear:
      same(n.weight && !n.weight->is_vector() && n.weight->cols() == in && n.weight->rows() == out);
      same(!n.bias || (n.bias->is_vector() && n.bias->rows() == out));
      break;
    case OpKind::rms_norm:
    case OpKind::layer_norm:
      same(in == out && n.i > 0 && in % n.i == 0);
      same(!n.weight || (n.weight->is_vector() && n.weight->rows() == n.i));
      same(!n.bias || (n.bias->is_vector() && n.bias->rows() == n.i));
      break;
    case OpKind::add:
    case OpKind::mul:
      same(in == out && n.in[1].width == out);
      break;
    case OpKind::gated:
      same(in == 2 * out);
      break;
    case OpKind::rope_table:
      same(n.rope && out == 2 * static_cast<int64_t>(n.rope->inv_freq.size()));
      break;
    case OpKind::rotate:
      same(in == out && n.i > 0 && in % n.i == 0 && n.in[1].width <= n.i);
      break;
    case OpKind::attention: {
      same(n.cache >= 0 && n.cache < static_cast<int64_t>(layers_.size()));
      const CacheSpec& c = layers_[static_cast<size_t>(n.cache)].spec;
      same(n.i > 0 && n.i % c.kv_heads == 0 && in == n.i * c.head_dim && out == in);
      same(n.in[1].width == int64_t{c.kv_heads} * c.head_dim && n.in[2].width == n.in[1].width);
      break;
    }
    default:
      same(in == out);
  }
}

void Plan::add(Node node) {
  check(node);
  if (node.kind == OpKind::linear) max_in_ = std::max(max_in_, node.in[0].width);
  nodes_.push_back(std::move(node));
  seconds_.push_back(0);
  if (bf16_ && max_in_ > 0) {
    const int64_t rows = std::max(limits_.tokens, limits_.logit_rows);
    const size_t bytes = static_cast<size_t>(rows * (max_in_ + 2)) * 4;
    if (rounded_.bytes() < bytes) rounded_ = Memory(bytes);
  }
}

void Plan::allocate_cache(int64_t blocks) {
  if (blocks <= 0) fail("the cache needs at least one block");
  for (Layer& layer : layers_) {
    const CacheView v{nullptr,
                      nullptr,
                      cache_dtype_,
                      static_cast<int>(limits_.block_size),
                      layer.spec.kv_heads,
                      layer.spec.head_dim,
                      (layer.spec.head_dim + 15) / 16 * 16};
    layer.keys = Memory();
    layer.values = Memory();
    layer.keys = Memory(static_cast<size_t>(blocks * v.key_block()) * size_of(cache_dtype_));
    layer.values = Memory(static_cast<size_t>(blocks * v.value_block()) * size_of(cache_dtype_));
  }
  blocks_ = blocks;
}

View Plan::logits() const { return view(nodes_.back().out); }

size_t Plan::buffer_bytes() const {
  size_t total = rounded_.bytes();
  for (const Slot& s : slots_) total += s.memory.bytes();
  return total;
}

size_t Plan::cache_bytes() const {
  size_t total = 0;
  for (const Layer& l : layers_) total += l.keys.bytes() + l.values.bytes();
  return total;
}

void Plan::check(const BatchArrays& b) const {
  if (nodes_.empty()) fail("empty");
  if (b.tokens <= 0 || b.tokens > limits_.tokens) fail("too many tokens in a step");
  if (b.sequences <= 0 || b.sequences > limits_.sequences) fail("too many sequences in a step");
  if (b.rows > limits_.logit_rows) fail("too many logit rows in a step");
  if (!layers_.empty() && blocks_ == 0) fail("no cache allocated");
  if (b.seq_starts[0] != 0 || b.seq_starts[b.sequences] != b.tokens) fail("seq_starts do not cover the tokens");
  for (int64_t s = 0; s < b.sequences; ++s) {
    const int64_t count = b.seq_starts[s + 1] - b.seq_starts[s], context = b.context_lens[s];
    const int64_t used = (context + limits_.block_size - 1) / limits_.block_size;
    if (count <= 0 || context < count || used > b.table_stride || used > limits_.max_blocks)
      fail("a sequence does not fit its context or block table");
    if (layers_.empty()) continue;
    for (int64_t i = 0; i < used; ++i) {
      const int32_t block = b.block_tables[s * b.table_stride + i];
      if (block < 0 || block >= blocks_) fail("a block number outside the cache");
    }
  }
  for (int64_t t = 0; t < b.tokens; ++t)
    if (b.positions[t] < 0) fail("a negative position");
  for (int64_t r = 0; r < b.rows; ++r)
    if (b.logit_rows[r] < 0 || b.logit_rows[r] >= b.tokens) fail("a logit row outside the step");
}

void Plan::prepare(const BatchArrays& b) {
  batch_ = b;
  spans_.clear();
  attend_tasks_.clear();
  for (int64_t s = 0; s < b.sequences; ++s) {
    const int first = b.seq_starts[s], rows = b.seq_starts[s + 1] - first;
    spans_.push_back({first, rows, b.context_lens[s] - rows, b.block_tables + s * b.table_stride});
    for (int row = 0; row < rows; row += kQueryTokens)
      attend_tasks_.push_back({static_cast<int>(s), row, std::min(rows, row + kQueryTokens)});
  }
}

void Plan::run(const BatchArrays& batch) {
  check(batch);
  prepare(batch);
  using clock = std::chrono::steady_clock;
  for (size_t i = 0; i < nodes_.size(); ++i) {
    if (!profiling_) {
      execute(nodes_[i]);
      continue;
    }
    const auto start = clock::now();
    execute(nodes_[i]);
    seconds_[i] += std::chrono::duration<double>(clock::now() - start).count();
  }
}

void Plan::set_profiling(bool on) {
  profiling_ = on;
  std::fill(seconds_.begin(), seconds_.end(), 0.0);
}

std::vector<std::pair<std::string, double>> Plan::profile() const {
  std::vector<std::pair<std::string, double>> out;
  for (size_t i = 0; i < nodes_.size(); ++i) {
    const Node& n = nodes_[i];
    std::string name = kNames[static_cast<int>(n.kind)];
    if (n.kind == OpKind::linear)
      name += " " + std::to_string(n.weight->rows()) + "x" + std::to_string(n.weight->cols());
    out.emplace_back(name, seconds_[i]);
  }
  return out;
}

void Plan::execute(const Node& n) {
  switch (n.kind) {
    case OpKind::embedding:
      return embedding(n);
    case OpKind::linear:
      return linear(n);
    case OpKind::rms_norm:
    case OpKind::layer_norm:
      return norm(n);
    case OpKind::rope_table:
      return rope_table(n);
    case OpKind::rotate:
      return rotate(n);
    case OpKind::attention:
      return attention(n);
    case OpKind::take:
      return take(n);
    default:
      return elementwise(n);
  }
}

void Plan::embedding(const Node& n) {
  const int32_t* ids = n.i == 0 ? batch_.token_ids : batch_.positions;
  const PackedMatrix table = n.weight->packed();
  for (int64_t t = 0; t < batch_.tokens; ++t)
    if (ids[t] < 0 || ids[t] + n.j >= table.rows) fail("a token or position outside its table");
  const View out = view(n.out);
  over_rows(batch_.tokens, out.width, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) kernels_->matrix_row(table, ids[t] + n.j, out.row(t));
  });
}

void Plan::linear(const Node& n) {
  const View x = view(n.in[0]);
  const int64_t rows = rows_of(n.out);
  if (rows == 0) return;
  LinearArgs args{
      n.weight->packed(), n.bias ? n.bias->values() : nullptr, view(n.out), rows, x.data, nullptr, x.stride};
  if (bf16_) {
    const int64_t stride = (x.width + 1) / 2 * 2;
    const bool dot = kernels_->bf16_dot && args.weight.dtype == Dtype::bf16;
    auto* halves = rounded_.as<uint16_t>();
    auto* floats = rounded_.as<float>();
    over_rows(rows, x.width, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        if (dot) kernels_->round_bf16(x.row(r), halves + r * stride, x.width);
        else kernels_->round_bf16_f32(x.row(r), floats + r * stride, x.width);
      }
    });
    args.x_stride = stride;
    args.x = floats;
    if (dot) args.x_bf16 = halves;
  }
  const int64_t tiles = args.weight.tiles();
  const int64_t most = rows >= 32 ? (tiles + 3) / 4 : std::min<int64_t>(tiles, int64_t{32} * pool_->size());
  const bool small = tiles * static_cast<int64_t>(args.weight.tile_bytes()) * rows < 4 * kInline;
  const int64_t tasks = small ? 1 : most;
  pool_->run(static_cast<int>(tasks),
             [&](int task, int) { kernels_->linear(args, tiles * task / tasks, tiles * (task + 1) / tasks); });
}

}  // namespace octavo

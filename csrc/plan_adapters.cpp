// Low-rank adapters beside linears (Hu et al. 2022): y += scale * B (A x), for the rows of the sequences that ask.
// Beside an embedding A x is a row of A, which then stands as [ids, rank].
#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

#include "plan.h"

namespace octavo {
namespace {

constexpr int64_t kAdapterRows = 256;  // rows that go through an adapter at once: they stay in the second cache
constexpr int64_t kAdapterTiles = 4;   // tiles of B that a task multiplies, into memory of its worker
constexpr int kMostAdapters = 4096;

[[noreturn]] void fail(const std::string& what) { throw std::invalid_argument("octavo adapter: " + what); }

void need(Memory& memory, int64_t floats) {
  const size_t bytes = static_cast<size_t>(floats) * 4 + 256;
  if (memory.bytes() < bytes) memory = Memory(bytes);
}

}  // namespace

int Plan::adapt_last(Ref out) {
  if (nodes_.empty() || (nodes_.back().kind != OpKind::linear && nodes_.back().kind != OpKind::embedding))
    fail("only a linear or an embedding can be adapted");
  Node& n = nodes_.back();
  if (n.out.slot != out.slot || out.col < 0 || out.col + out.width > slots_[static_cast<size_t>(out.slot)].width)
    fail("a view outside its slot");
  n.adapted = out;
  n.site = sites_++;
  site_nodes_.push_back(nodes_.size() - 1);
  return n.site;
}

void Plan::clear_adapter(int slot) {
  if (slot < 0 || slot >= kMostAdapters) fail("no such place");
  if (static_cast<size_t>(slot) < adapters_.size()) adapters_[static_cast<size_t>(slot)].clear();
}

void Plan::set_adapter(int slot, int site, AdapterSite weights) {
  if (slot < 0 || slot >= kMostAdapters || site < 0 || site >= sites_) fail("no such place");
  const Node& n = nodes_[site_nodes_[static_cast<size_t>(site)]];
  const auto matrix = [](const std::shared_ptr<Weight>& w) {
    return w && !w->is_vector() && w->packed().format == Format::dense;
  };
  const bool table = n.kind == OpKind::embedding;
  if (!matrix(weights.a) || (table ? weights.a->rows() != n.weight->rows() : weights.a->cols() != n.in[0].width))
    fail("A does not fit the matrix");
  const int64_t ranks = table ? weights.a->cols() : weights.a->rows();
  int64_t widest = weights.a->cols();
  for (const AdapterPart& p : weights.parts) {
    if (!matrix(p.b) || p.offset < 0 || p.offset + p.b->cols() > ranks) fail("B does not fit A");
    if (p.first < 0 || p.first + p.b->rows() > n.adapted.width) fail("B does not fit the matrix");
    widest = std::max(widest, p.b->cols());
  }
  if (adapters_.size() <= static_cast<size_t>(slot)) adapters_.resize(static_cast<size_t>(slot) + 1);
  auto& own = adapters_[static_cast<size_t>(slot)];
  own.resize(static_cast<size_t>(sites_));
  need(adapter_in_, kAdapterRows * (widest + 2));
  need(adapter_mid_, kAdapterRows * ranks);
  need(adapter_out_, kAdapterRows * kAdapterTiles * kTile * pool_->size());
  own[static_cast<size_t>(site)] = std::move(weights);
}

// Which rows of the step each adapter has.
void Plan::prepare_adapters(const BatchArrays& b) {
  adapter_rows_.clear();
  if (!b.adapters) return;
  const auto of = [&](int32_t slot) -> AdapterRows& {
    for (AdapterRows& rows : adapter_rows_)
      if (rows.slot == slot) return rows;
    adapter_rows_.push_back({slot, {}, {}});
    return adapter_rows_.back();
  };
  for (int64_t s = 0; s < b.sequences; ++s)
    if (b.adapters[s] >= 0)
      for (int32_t t = b.seq_starts[s]; t < b.seq_starts[s + 1]; ++t) of(b.adapters[s]).tokens.push_back(t);
  for (int64_t r = 0; r < b.rows; ++r) {
    const int64_t s =
        std::upper_bound(b.seq_starts, b.seq_starts + b.sequences + 1, b.logit_rows[r]) - b.seq_starts - 1;
    if (b.adapters[s] >= 0) of(b.adapters[s]).logits.push_back(static_cast<int32_t>(r));
  }
}

const AdapterSite* Plan::adapter_at(const AdapterRows& rows, const Node& n) const {
  const auto& own = adapters_[static_cast<size_t>(rows.slot)];
  return own.empty() || !own[static_cast<size_t>(n.site)].a ? nullptr : &own[static_cast<size_t>(n.site)];
}

bool Plan::adapted(const Node& n) const {
  return n.site >= 0 && std::any_of(adapter_rows_.begin(), adapter_rows_.end(),
                                    [&](const AdapterRows& rows) { return adapter_at(rows, n) != nullptr; });
}

void Plan::adapt(const Node& n) {
  const bool logits = slots_[static_cast<size_t>(n.adapted.slot)].logit_rows;
  for (const AdapterRows& group : adapter_rows_) {
    const AdapterSite* site = adapter_at(group, n);
    if (!site) continue;
    const std::vector<int32_t>& rows = logits ? group.logits : group.tokens;
    const auto count = static_cast<int64_t>(rows.size());
    for (int64_t first = 0; first < count; first += kAdapterRows)
      adapt_rows(n, *site, rows.data() + first, std::min(kAdapterRows, count - first));
  }
}

// What the matrix `w` sees of rows of x (`rows` says which; null: the first n), gathered.
LinearArgs Plan::adapter_args(const View& x, const int32_t* rows, int64_t n, const Weight& w) {
  LinearArgs args{};
  args.weight = w.packed();
  args.n = n;
  args.x_stride = (x.width + 1) / 2 * 2;
  const bool rounds = rounding_.dense == Seen::bf16;
  const bool dot = rounds && kernels_->bf16_dot && args.weight.dtype == Dtype::bf16;
  auto* floats = adapter_in_.as<float>();
  auto* halves = adapter_in_.as<uint16_t>();
  over_rows(n, x.width, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const float* in = x.row(rows ? rows[r] : r);
      if (dot) kernels_->round_bf16(in, x.width, halves, n, r);
      else if (rounds) kernels_->round_bf16_f32(in, floats + r * args.x_stride, x.width);
      else std::memcpy(floats + r * args.x_stride, in, static_cast<size_t>(x.width) * 4);
    }
  });
  args.x = floats;
  if (dot) args.x_bf16 = halves;
  return args;
}

void Plan::adapt_rows(const Node& node, const AdapterSite& site, const int32_t* rows, int64_t n) {
  const View y = view(node.adapted);
  const auto over_tiles = [&](const PackedMatrix& w, int64_t step, auto f) {
    const int64_t tasks = (w.tiles() + step - 1) / step;
    if (w.tiles() * static_cast<int64_t>(w.tile_bytes()) * n >= 4 * kInline)
      return pool_->run(static_cast<int>(tasks), [&](int task, int worker) {
        f(task * step, std::min<int64_t>(w.tiles(), (task + 1) * step), worker);
      });
    for (int64_t task = 0; task < tasks; ++task) f(task * step, std::min<int64_t>(w.tiles(), (task + 1) * step), 0);
  };
  const bool table = node.kind == OpKind::embedding;
  const int64_t ranks = table ? site.a->cols() : site.a->rows();
  const View low{adapter_mid_.as<float>(), ranks, ranks};
  if (table) {
    const int32_t* ids = node.i == 0 ? batch_.token_ids : batch_.positions;
    for (int64_t r = 0; r < n; ++r) kernels_->matrix_row(site.a->packed(), ids[rows[r]] + node.j, low.row(r));
  } else {
    LinearArgs down = adapter_args(view(node.in[0]), rows, n, *site.a);
    down.out = low;
    over_tiles(down.weight, 1,
               [&](int64_t begin, int64_t end, int) { kernels_->linear(down, begin, end, down.weight.data); });
  }
  for (const AdapterPart& part : site.parts) {
    const View mid{low.data + part.offset, low.stride, part.b->cols()};
    for (int64_t r = 0; r < n; ++r) kernels_->scale(mid.row(r), part.scale, mid.row(r), mid.width);
    const LinearArgs up = adapter_args(mid, nullptr, n, *part.b);
    over_tiles(up.weight, kAdapterTiles, [&](int64_t begin, int64_t end, int worker) {
      LinearArgs some = up;
      some.weight.data = static_cast<const char*>(up.weight.data) + static_cast<size_t>(begin) * up.weight.tile_bytes();
      some.weight.rows = std::min(up.weight.rows, end * kTile) - begin * kTile;
      constexpr int64_t width = kAdapterTiles * kTile;
      some.out = {adapter_out_.as<float>() + worker * kAdapterRows * width, width, some.weight.rows};
      kernels_->linear(some, 0, end - begin, some.weight.data);
      for (int64_t r = 0; r < n; ++r) {
        float* out = y.row(rows[r]) + part.first + begin * kTile;
        kernels_->add(out, some.out.row(r), out, some.weight.rows);
      }
    });
  }
}

}  // namespace octavo

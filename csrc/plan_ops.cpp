// The ops between the matrices: norms, elementwise, rotary embedding, attention.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "plan.h"

namespace octavo {

void Plan::norm(const Node& n) {
  const View x = view(n.in[0]), out = view(n.out);
  const float* weight = n.weight ? n.weight->values() : nullptr;
  const float* bias = n.bias ? n.bias->values() : nullptr;
  over_rows(rows_of(n.out), x.width, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      if (n.kind == OpKind::rms_norm) kernels_->rms_norm(x.row(r), out.row(r), weight, n.b, n.a, n.i, x.width);
      else kernels_->layer_norm(x.row(r), out.row(r), weight, bias, n.a, n.i, x.width);
    }
  });
}

void Plan::elementwise(const Node& n) {
  const View x = view(n.in[0]), out = view(n.out);
  const View y = n.in[1].slot >= 0 ? view(n.in[1]) : View{};
  const auto kind = static_cast<Activation>(n.i);
  const int64_t w = out.width;
  over_rows(rows_of(n.out), w, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const float* a = x.row(r);
      float* o = out.row(r);
      switch (n.kind) {
        case OpKind::add:
          kernels_->add(a, y.row(r), o, w);
          break;
        case OpKind::mul:
          kernels_->mul(a, y.row(r), o, w);
          break;
        case OpKind::scale:
          kernels_->scale(a, n.a, o, w);
          break;
        case OpKind::activation:
          kernels_->activation(a, o, kind, w);
          break;
        case OpKind::gated:
          kernels_->gated(a, a + w, o, kind, w);
          break;
        case OpKind::softcap:
          kernels_->softcap(a, o, n.a, w);
          break;
        default:
          break;
      }
    }
  });
}

void Plan::sigmoid_gate(const Node& n) {
  const View x = view(n.in[0]), gate = view(n.in[1]), out = view(n.out);
  over_rows(rows_of(n.out), out.width, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      kernels_->scale(x.row(r), 1.0f / (1.0f + std::exp(-gate.row(r)[0])), out.row(r), out.width);
  });
}

void Plan::rope_table(const Node& n) {
  const RopeSpec& rope = *n.rope;
  const View out = view(n.out);
  const int64_t half = out.width / 2;
  over_rows(batch_.tokens, out.width * 32, [&](int64_t begin, int64_t end) {
    std::vector<float> own;
    int64_t own_length = -1;
    for (int64_t t = begin; t < end; ++t) {
      const int64_t length = batch_.rope_lens[t];
      const bool beyond = rope.switch_tokens >= 0 && length > rope.switch_tokens;
      const float* freq = rope.inv_freq.data();
      if (beyond && !rope.long_inv_freq.empty()) {
        freq = rope.long_inv_freq.data();
      } else if (beyond && rope.dynamic_factor > 0) {
        if (length != own_length) {
          const double dim = static_cast<double>(out.width), f = rope.dynamic_factor;
          const double grown = f * static_cast<double>(length) / static_cast<double>(rope.switch_tokens) - (f - 1);
          const double base = rope.base * std::pow(grown, dim / (dim - 2));
          own.resize(static_cast<size_t>(half));
          for (int64_t i = 0; i < half; ++i)
            own[static_cast<size_t>(i)] = static_cast<float>(std::pow(base, -2.0 * static_cast<double>(i) / dim));
          own_length = length;
        }
        freq = own.data();
      }
      const float magnitude = beyond ? rope.long_magnitude : rope.magnitude;
      float* row = out.row(t);
      for (int64_t i = 0; i < half; ++i) {
        const float angle = static_cast<float>(batch_.positions[t]) * freq[i];
        row[i] = std::cos(angle) * magnitude;
        row[half + i] = std::sin(angle) * magnitude;
      }
    }
  });
}

void Plan::rotate(const Node& n) {
  const View x = view(n.in[0]), table = view(n.in[1]), out = view(n.out);
  const int heads = static_cast<int>(x.width / n.i);
  over_rows(batch_.tokens, x.width, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      kernels_->rotate(x.row(r), out.row(r), table.row(r), static_cast<int>(table.width), static_cast<int>(n.i), heads,
                       n.j != 0);
  });
}

// Cuts the step's attention into parts: as many tokens as one pass over the keys serves. When those are too few to
// keep the threads busy, what stands in one part is cut at the segments of its keys as well.
void Plan::cut_attention(const AttentionArgs& args) {
  const int group = args.heads / args.cache.kv_heads, tokens = std::max(1, kAttendRows / group);
  const int all = std::numeric_limits<int>::max();
  int64_t parts = 0;
  for (const SequenceSpan& s : spans_) parts += (s.rows + tokens - 1) / tokens;
  const bool few = parts * args.cache.kv_heads < int64_t{4} * pool_->size() && pool_->size() > 1;
  float* free = partials_.as<float>();
  float* const end = free + partials_.bytes() / sizeof(float);
  attend_parts_.clear();
  for (const SequenceSpan& s : spans_) {
    const int64_t segments = (s.first_pos + s.rows + kSegment - 1) / kSegment;
    const int64_t floats = segments * s.rows * args.heads * args.partial_floats();
    const bool split = few && s.rows <= tokens && segments > 1 && floats <= end - free;
    if (!split) {
      for (int row = 0; row < s.rows; row += tokens)
        attend_parts_.push_back({&s, {0, row, std::min(s.rows, row + tokens), 0, all, segments, nullptr}});
      continue;
    }
    for (int64_t i = args.low(s.first_pos) / kSegment; i < segments; ++i) {
      const int key = static_cast<int>(i) * kSegment;
      attend_parts_.push_back({&s, {0, 0, s.rows, key, key + kSegment, segments, free}});
    }
    free += floats;
  }
}

void Plan::attention(const Node& n) {
  const Layer& layer = layers_[static_cast<size_t>(n.cache)];
  const CacheView cache{layer.keys.as<void>(),
                        layer.values.as<void>(),
                        cache_dtype_,
                        static_cast<int>(limits_.block_size),
                        layer.spec.kv_heads,
                        layer.spec.head_dim,
                        (layer.spec.head_dim + 15) / 16 * 16};
  const bool rounded = rounding_.dense == Seen::bf16 && cache_dtype_ >= CacheDtype::bf16;
  const AttentionArgs args{cache,
                           view(n.in[0]),
                           view(n.in[1]),
                           view(n.in[2]),
                           view(n.out),
                           static_cast<int>(n.i),
                           n.a,
                           n.b,
                           static_cast<int>(n.j),
                           rounded,
                           n.slopes.empty() ? nullptr : n.slopes.data(),
                           n.weight ? n.weight->values() : nullptr,
                           n.k != 0};
  const int64_t write_cost = int64_t{2} * cache.kv_heads * cache.head_dim * 4;
  over_rows(batch_.tokens, write_cost, [&](int64_t begin, int64_t end) {
    auto span = std::upper_bound(spans_.begin(), spans_.end(), begin,
                                 [](int64_t t, const SequenceSpan& s) { return t < s.first_row; }) -
                1;
    for (int64_t t = begin; t < end; ++t) {
      if (t >= span->first_row + span->rows) ++span;
      kernels_->write_kv(args, *span, static_cast<int>(t) - span->first_row);
    }
  });
  cut_attention(args);
  int64_t work = 0;
  for (const SequenceSpan& s : spans_) work += int64_t{s.rows} * (s.first_pos + s.rows);
  const int tasks = static_cast<int>(attend_parts_.size()) * cache.kv_heads;
  // A part's numbers of one head of the cache; those of the next one stand behind them.
  const auto range = [&](const AttendPart& part, int kv_head) {
    AttendRange r = part.range;
    r.kv_head = kv_head;
    if (r.partials)
      r.partials += r.segments * r.row_end * (args.heads / cache.kv_heads) * args.partial_floats() * kv_head;
    return r;
  };
  const auto one = [&](int task, int worker) {
    // The last rows of a prompt see the most keys: they go first.
    const AttendPart& part = attend_parts_[static_cast<size_t>((tasks - 1 - task) / cache.kv_heads)];
    kernels_->attend(args, *part.span, range(part, task % cache.kv_heads),
                     scratch_.data() + scratch_stride_ * static_cast<size_t>(worker));
  };
  if (work * args.heads * cache.head_dim < 2 * kInline)
    for (int task = 0; task < tasks; ++task) one(task, 0);
  else pool_->run(tasks, one);
  for (const AttendPart& part : attend_parts_)
    if (part.range.partials && part.range.key_end >= part.span->first_pos + part.span->rows)
      for (int head = 0; head < cache.kv_heads; ++head) kernels_->attend_join(args, *part.span, range(part, head));
}

void Plan::take(const Node& n) {
  const View x = view(n.in[0]), out = view(n.out);
  int64_t touched = batch_.rows;
  for (int64_t r = 0; batch_.logit_firsts && r < batch_.rows; ++r)
    touched += batch_.logit_rows[r] - batch_.logit_firsts[r];
  over_rows(batch_.rows, out.width * (touched / std::max<int64_t>(batch_.rows, 1)), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const int64_t last = batch_.logit_rows[r], first = batch_.logit_firsts ? batch_.logit_firsts[r] : last;
      std::memcpy(out.row(r), x.row(first), static_cast<size_t>(out.width) * 4);
      for (int64_t t = first + 1; t <= last; ++t) kernels_->add(out.row(r), x.row(t), out.row(r), out.width);
      if (first < last) kernels_->scale(out.row(r), 1.0f / static_cast<float>(last - first + 1), out.row(r), out.width);
    }
  });
}

}  // namespace octavo

// The table of kernels that one instruction set offers, and the plain structs they read.
//
// All activations are float32 rows with a stride. Kernels work on a range of rows, tiles or tasks, so that the
// caller decides how the work is cut; nothing they compute depends on the cut.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace octavo {

enum class Dtype : int { f32 = 0, f16 = 1, bf16 = 2 };
inline size_t size_of(Dtype d) { return d == Dtype::f32 ? 4 : 2; }

constexpr int kTile = 16;  // output rows of a weight tile, and keys of an attention step

constexpr int kBlock = 32;  // columns of a quantized weight that share one activation scale

// What the numbers of a matrix are. dense: see Dtype. int8: codes -128 .. 127. int4, int5, int6: codes 0 .. 2^bits - 1,
// the middle one of which is zero unless the matrix says otherwise. lut4: codes 0 .. 15 into a table of int8;
// lut4_wide: into one of three bytes an entry. e4m3, e5m2: 8-bit floats. Those with 16: in blocks of 16 columns.
enum class Format : int {
  dense = 0,
  int8 = 1,
  int4 = 2,
  lut4 = 3,
  int5 = 4,
  int6 = 5,
  lut4_wide = 6,
  e4m3 = 7,
  e5m2 = 8,
  int8_16 = 9,
  int4_16 = 10,
  lut4_16 = 11,
  int6_16 = 12,
  int8_full = 13  // never packed: int8 that meets inputs of -128 where dot8 does not take them
};
constexpr int kFormats = 13;  // that are packed
constexpr int block_of(Format f) { return f >= Format::int8_16 && f <= Format::int6_16 ? 16 : kBlock; }
constexpr bool is_table(Format f) { return f == Format::lut4 || f == Format::lut4_wide || f == Format::lut4_16; }
constexpr bool is_fp8(Format f) { return f == Format::e4m3 || f == Format::e5m2; }
constexpr int bits_of(Format f) {
  if (f == Format::int8 || f == Format::int8_16 || f == Format::int8_full || is_fp8(f)) return 8;
  return f == Format::int5 ? 5 : f == Format::int6 || f == Format::int6_16 ? 6 : 4;
}
constexpr size_t block_bytes_of(Format f) { return static_cast<size_t>(block_of(f) * bits_of(f) * 2); }
// What is added to scale * code in a group: nothing, -scale * zero, or a minimum.
enum class Offset : int { none = 0, zero = 1, minimum = 2 };

// The table of a matrix, whole numbers: as float32, and as digits -128 .. 127 (plus 128). lut4: one is the number.
// lut4_wide: the number / 256, rounded, is 256 high + low; what is lost is far below the rounding of int8 inputs.
struct Table {
  float values[16];
  uint8_t one[16], low[16], high[16];
};

// How the inputs of an int8 product are rounded: a scale for each block (largest / 127); or, as W8A8 checkpoints have
// it, for each row, without a zero (largest / 127.5) or with one; or the matrix's own scale and zero.
enum class Inputs : int { block = 0, row = 1, row_zero = 2, fixed = 3 };

constexpr int64_t kRunColumns = 128;  // of inputs under one scale, see PackedMatrix::run()

// A matrix [rows, cols] packed in tiles of 16 output rows; rows are padded with zeros to full tiles.
// Dense:
//   f32: tile, k, row.   f16: the same with 2 bytes.   bf16: tile, k/2, row, (even k, odd k): a pair is 32 bits.
// Quantized: a tile is a stream of 64-byte lines, columns padded to whole blocks of 32. A header holds the scales
// of the next group (16 rows, then as many offsets), or of the next two groups where that fills a line; the blocks
// of those groups follow. With `per`, the header of that many groups holds units (16 rows, then those of the minima)
// and for each group a byte a row (then one of the minimum): the scale is their product. A line of codes is 16 rows by
// 4 columns of a byte: code + 128 of columns 4q .. 4q+3 for int8; for 4 bits columns 4q .. in the low half and, half
// a block on, in the high half. 5 and 6 bits: the same for the low four, then a line whose bit q is the fifth of
// columns 4q .., or lines of four quads each whose bits 2q, 2q+1 are the fifth and sixth. 8-bit floats: column by
// column, 16 rows each.
struct PackedMatrix {
  const void* data;
  Dtype dtype;  // of the numbers; of the scales when quantized
  int64_t rows, cols;
  Format format = Format::dense;
  Offset offset = Offset::none;
  int64_t group = 0;  // columns that share a scale, a multiple of 32
  float factor = 1;   // on the whole matrix
  const Table* table = nullptr;
  int64_t per = 0;  // groups that share a unit; 0: scales stand as they are
  Inputs inputs = Inputs::block;
  float x_scale = 0, x_zero = 0;  // of fixed inputs
  const float* sums = nullptr;    // of each row's numbers, where inputs have a zero

  int block() const { return block_of(format); }
  int64_t blocks() const { return (cols + block() - 1) / block(); }
  size_t scales_bytes() const { return kTile * size_of(dtype) * (offset == Offset::none ? 1 : 2); }
  int header_groups() const { return per > 0 ? static_cast<int>(per) : scales_bytes() < 64 ? 2 : 1; }
  size_t header_bytes() const {
    if (per == 0) return scales_bytes() * static_cast<size_t>(header_groups());
    const size_t bytes = kTile * static_cast<size_t>(per) * (offset == Offset::none ? 1 : 2);
    return (scales_bytes() + bytes + 63) / 64 * 64;
  }
  size_t block_bytes() const { return block_bytes_of(format); }
  // Blocks whose inputs share a scale: the fewer scales, the fewer steps between the products of 8-bit weights.
  int64_t run() const { return format == Format::int8 && (group % kRunColumns == 0 || group >= cols) ? 4 : 1; }
  // Whether each group is one such run, and its scales of two bytes are all that is known of it.
  bool plain() const {
    return per == 0 && offset == Offset::none && size_of(dtype) == 2 && group == run() * block() &&
           format != Format::dense;
  }
  size_t tile_bytes() const {
    if (format != Format::dense) {
      const int64_t chunk = header_groups() * group / block(), headers = (blocks() + chunk - 1) / chunk;
      return static_cast<size_t>(blocks()) * block_bytes() + static_cast<size_t>(headers) * header_bytes();
    }
    const int64_t depth = dtype == Dtype::bf16 ? (cols + 1) / 2 * 2 : cols;
    return static_cast<size_t>(depth) * kTile * size_of(dtype);
  }
  int64_t tiles() const { return (rows + kTile - 1) / kTile; }
  bool has_zero() const { return inputs == Inputs::row_zero || (inputs == Inputs::fixed && x_zero != 0); }
};

// A linear's input as quantized matrices read it: int8 in blocks (of 32 columns or 16), each run of them with a scale.
// Rows stand in panels of as many as the kernel takes at once (the last one may hold fewer), so that it reads on and
// on.
struct QuantizedRows {
  int8_t* codes;    // panels of [blocks * quads of a block, rows, 4 columns], zero-padded
  float* scales;    // panels of [blocks, rows]: a run's stands at its first block
  float* sums;      // panels of [groups of the weights, rows], a panel's first where its scales are: of scale * code
  int32_t* biases;  // the same: what the sum of products starts from, see quantize_row
  float* zeros;     // [n]: scale * zero of a row, which every column has too much
  int64_t blocks, n;
};

struct View {
  float* data;
  int64_t stride;  // floats from row to row
  int64_t width;
  float* row(int64_t r) const { return data + r * stride; }
};

struct LinearArgs {
  PackedMatrix weight;
  const float* bias;  // [rows] or null
  View out;           // [n, rows]
  int64_t n;
  const float* x;          // [n, x_stride] float32, or
  const uint16_t* x_bf16;  // panels as round_bf16 writes them; used when not null
  int64_t x_stride;
  QuantizedRows x_int8;  // used by quantized matrices when its codes are not null
  // Results are written past the cache: they are many, and 64-byte aligned as their stride is.
  bool past_cache = false;
};

// What an entry of the KV cache is. int8: codes, and for every token and head a scale (largest / 127); f8: e4m3,
// saturated.
enum class CacheDtype : int { f32 = 0, f16 = 1, bf16 = 2, int8 = 3, f8 = 4 };
inline size_t size_of(CacheDtype d) { return d == CacheDtype::f32 ? 4 : d >= CacheDtype::int8 ? 1 : 2; }

enum class Activation : int { silu, gelu, gelu_tanh, relu, relu2, quick_gelu };

// Keys and values of one layer, bf16 in pairs that a dot product of two takes as they stand:
//   keys [block][kv_head][head_dim][block_size], so that sixteen keys meet one query in lanes and any head size works
//     (bf16: [block][kv_head][head_dim/2][block_size][2], an odd last dimension beside a zero);
//   values [block][kv_head][block_size][value_stride], padded to 16 (bf16: [..][block_size/2][value_stride][2]).
// Entries of 8 bits stand in lines of 64 bytes, two vectors of sixteen pairs (simd_cache.h):
//   keys [block][kv_head][head_dim/4][block_size/16] lines: of four dimensions the first two, and the others, of 16
//   keys; values [block][kv_head][block_size/2][value_stride/32] lines: 16 dimensions, and the next 16, of two keys.
// Behind the codes of a head stand int8's scales [block_size], float32.
struct CacheView {
  void* keys;
  void* values;
  CacheDtype dtype;
  int block_size, kv_heads, head_dim, value_stride;
  // Bytes of one head of a block, and of a block.
  int64_t key_codes() const {
    const int side_by_side = dtype >= CacheDtype::int8 ? 4 : dtype == CacheDtype::bf16 ? 2 : 1;
    return int64_t{(head_dim + side_by_side - 1) / side_by_side * side_by_side} * row();
  }
  int64_t value_codes() const { return int64_t{value_stride} * row(); }
  int64_t key_head() const { return key_codes() + scales(); }
  int64_t value_head() const { return value_codes() + scales(); }
  int64_t key_block() const { return kv_heads * key_head(); }
  int64_t value_block() const { return kv_heads * value_head(); }

 private:
  int64_t row() const { return static_cast<int64_t>(size_of(dtype)) * block_size; }
  int64_t scales() const { return dtype == CacheDtype::int8 ? int64_t{4} * block_size : 0; }
};

// One sequence's part of a step: rows first_row .. first_row+rows-1 stand at positions first_pos ...
struct SequenceSpan {
  int first_row, rows, first_pos;
  const int32_t* blocks;
};

struct AttentionArgs {
  CacheView cache;
  View q, k, v, out;
  int heads;
  float scale, softcap;  // softcap 0: none
  int window;            // 0: none
  bool rounded;          // query and softmax weights are rounded to bf16 too
  const float* slopes;   // [heads] ALiBi: score += slope * (key's position - query's); or null
  const float* sinks;    // [heads] scores of a key without a value; or null
  bool both = false;     // keys behind the query's position are seen too, with a window as many as before it
  // The first key that a query at `pos` sees, and the one behind the last.
  int low(int pos) const { return window > 0 ? std::max(0, pos - window + 1) : 0; }
  int high(const SequenceSpan& s, int pos) const {
    if (!both) return pos + 1;
    const int end = s.first_pos + s.rows;
    return window > 0 ? std::min(end, pos + window) : end;
  }
  // Floats of what one row knows of one segment: weighted values, total, exponent.
  int64_t partial_floats() const { return (cache.head_dim + 15) / 16 * 16 + 16; }
};

// Which multiply-add: of float32, of pairs of bf16 where there are such (else float32), of four bytes.
enum class Multiply : int { f32 = 0, bf16 = 1, int8 = 2 };

// Attention is summed in segments of this many keys, at fixed positions, joined in order: segments may be computed
// anywhere, and the result does not show it.
constexpr int kSegment = 512;

// Query rows [row_begin, row_end) of a span for one KV head and keys [key_begin, key_end), which starts and ends
// between segments. With `partials` [row x heads of the group][segments][partial_floats] every segment's part is
// left there for attend_join(); without, all keys are seen and the rows' outputs are written.
struct AttendRange {
  int kv_head, row_begin, row_end, key_begin, key_end;
  int64_t segments;
  float* partials;
};

struct Kernels {
  const char* name;
  bool bf16_dot;  // linear takes x_bf16 (otherwise inputs rounded to bf16 come as float32)
  // `next` is what the thread is likely to read after these tiles: its first lines are fetched meanwhile.
  void (*linear)(const LinearArgs&, int64_t tile_begin, int64_t tile_end, const void* next);
  void (*round_bf16)(const float* in, int64_t n, uint16_t* out, int64_t rows, int64_t row);  // see x_bf16
  void (*round_bf16_f32)(const float* in, float* out, int64_t n);
  void (*rms_norm)(const float* x, float* out, const float* weight, float offset, float eps, int64_t group, int64_t n);
  void (*layer_norm)(const float* x, float* out, const float* weight, const float* bias, float eps, int64_t group,
                     int64_t n);
  void (*add)(const float* x, const float* y, float* out, int64_t n);
  void (*mul)(const float* x, const float* y, float* out, int64_t n);
  void (*scale)(const float* x, float factor, float* out, int64_t n);
  void (*activation)(const float* x, float* out, Activation kind, int64_t n);
  void (*gated)(const float* gate, const float* up, float* out, Activation kind, int64_t n);
  void (*copy_past)(const float* x, float* out, int64_t n);  // past the cache
  void (*softcap)(const float* x, float* out, float cap, int64_t n);
  void (*rotate)(const float* x, float* out, const float* table, int rotary_dim, int head_dim, int heads,
                 bool interleaved);
  void (*write_kv)(const AttentionArgs&, const SequenceSpan&, int row);
  void (*attend)(const AttentionArgs&, const SequenceSpan&, const AttendRange&, float* scratch);  // attend_scratch()
  void (*attend_join)(const AttentionArgs&, const SequenceSpan&, const AttendRange&);
  void (*matrix_row)(const PackedMatrix&, int64_t row, float* out);
  // Row `row` of n columns for products with `weight`.
  void (*quantize_row)(const float* x, int64_t n, const PackedMatrix& weight, const QuantizedRows& out, int64_t row);
  // Rounds a tile of a dense matrix (`source` [rows, cols] of `dtype`) to `shape`, an int8 or int4 format.
  void (*round_tile)(const void* source, Dtype dtype, const PackedMatrix& shape, int64_t tile, void* out);
  float (*read)(const float* p, int64_t n);                     // sums n floats (a multiple of 128): what memory can do
  int64_t (*peak)(Multiply kind, int64_t rounds, float* sink);  // what arithmetic can do: its operations
};

constexpr int kAttendRows = 128;  // query rows that one pass over the keys serves
constexpr int kAttendStep = 64;   // keys between two looks at the largest score
// Floats of attend()'s queries and sums, and of all its scratch: results, and 64 keys and values that were 8 bits.
inline size_t attend_rows_floats(int head_dim) {
  return kAttendRows * (2 * ((static_cast<size_t>(head_dim) + 15) / 16 * 16) + 17);
}
inline size_t attend_scratch(int head_dim) {
  const size_t width = (static_cast<size_t>(head_dim) + 15) / 16 * 16;
  return attend_rows_floats(head_dim) + kAttendRows * (width + 16) + kAttendStep * width;
}

const Kernels* scalar_kernels();
#if defined(OCTAVO_X86)
const Kernels* avx2_kernels();
const Kernels* avx2vnni_kernels();
const Kernels* avx512_kernels();
const Kernels* avx512vnni_kernels();
const Kernels* avx512bf16_kernels();
#elif defined(OCTAVO_ARM64)
const Kernels* neon_kernels();
const Kernels* neondot_kernels();
const Kernels* neoni8mm_kernels();
#endif

// The best table this machine can run, or the one `name` asks for (null when it cannot run here).
const Kernels* select_kernels(const char* name = nullptr);
int list_kernels(const Kernels** out, int capacity);

}  // namespace octavo

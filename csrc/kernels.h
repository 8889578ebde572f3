// The table of kernels that one instruction set offers, and the plain structs they read.
//
// All activations are float32 rows with a stride. Kernels work on a range of rows, tiles or tasks, so that the
// caller decides how the work is cut; nothing they compute depends on the cut.
#pragma once

#include <cstddef>
#include <cstdint>

namespace octavo {

enum class Dtype : int { f32 = 0, f16 = 1, bf16 = 2 };
inline size_t size_of(Dtype d) { return d == Dtype::f32 ? 4 : 2; }

constexpr int kTile = 16;  // output rows of a weight tile, and keys of an attention step

constexpr int kBlock = 32;  // columns of a quantized weight that share one activation scale

// What the numbers of a matrix are. dense: see Dtype. int8: codes -128 .. 127. int4: codes 0 .. 15, eight of
// which is zero unless the matrix says otherwise. lut4: codes 0 .. 15 into a table.
enum class Format : int { dense = 0, int8 = 1, int4 = 2, lut4 = 3 };
// What is added to scale * code in a group: nothing, -scale * zero, or a minimum.
enum class Offset : int { none = 0, zero = 1, minimum = 2 };

// The table of a lut4 matrix: as float32, and, where all entries are whole numbers of int8, those plus 128.
struct Table {
  float values[16];
  uint8_t bytes[16];
  bool whole;
};

// A matrix [rows, cols] packed in tiles of 16 output rows; rows are padded with zeros to full tiles.
// Dense:
//   f32: tile, k, row.   f16: the same with 2 bytes.   bf16: tile, k/2, row, (even k, odd k): a pair is 32 bits.
// Quantized: a tile is a stream of 64-byte lines, columns padded to whole blocks of 32. A header holds the scales
// of the next group (16 rows, then as many offsets), or of the next two groups where that fills a line; the blocks
// of those groups follow. A line of codes is 16 rows by 4 columns of a byte: code + 128 of columns 4q .. 4q+3 for
// int8; for 4 bits columns 4q .. in the low half and 16 + 4q .. in the high half.
struct PackedMatrix {
  const void* data;
  Dtype dtype;  // of the numbers; of the scales when quantized
  int64_t rows, cols;
  Format format = Format::dense;
  Offset offset = Offset::none;
  int64_t group = 0;  // columns that share a scale, a multiple of 32
  float factor = 1;   // on the whole matrix
  const Table* table = nullptr;

  int64_t blocks() const { return (cols + kBlock - 1) / kBlock; }
  size_t scales_bytes() const { return kTile * size_of(dtype) * (offset == Offset::none ? 1 : 2); }
  int header_groups() const { return scales_bytes() < 64 ? 2 : 1; }
  size_t header_bytes() const { return scales_bytes() * static_cast<size_t>(header_groups()); }
  size_t block_bytes() const { return format == Format::int8 ? 512 : 256; }
  size_t tile_bytes() const {
    if (format != Format::dense) {
      const int64_t chunk = header_groups() * group / kBlock, headers = (blocks() + chunk - 1) / chunk;
      return static_cast<size_t>(blocks()) * block_bytes() + static_cast<size_t>(headers) * header_bytes();
    }
    const int64_t depth = dtype == Dtype::bf16 ? (cols + 1) / 2 * 2 : cols;
    return static_cast<size_t>(depth) * kTile * size_of(dtype);
  }
  int64_t tiles() const { return (rows + kTile - 1) / kTile; }
  // Whether the codes meet int8 activations; otherwise they are widened to float32.
  bool whole() const { return format != Format::lut4 || table->whole; }
};

// A linear's input as quantized matrices read it: int8 in blocks of 32 columns, each with a scale. Rows stand in
// panels of as many as the kernel takes at once (the last one may hold fewer), so that it reads on and on.
struct QuantizedRows {
  int8_t* codes;    // panels of [8 * blocks, rows, 4 columns], zero-padded
  float* scales;    // panels of [blocks, rows]
  float* sums;      // the same: scale * sum of the codes
  int32_t* biases;  // the same: what the sum of products starts from, see quantize_row
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
// Behind the codes of a head stand int8's scales [block_size], float32.
struct CacheView {
  void* keys;
  void* values;
  CacheDtype dtype;
  int block_size, kv_heads, head_dim, value_stride;
  // Bytes of one head of a block, and of a block.
  int64_t key_codes() const { return int64_t{dtype == CacheDtype::bf16 ? (head_dim + 1) / 2 * 2 : head_dim} * row(); }
  int64_t value_codes() const { return int64_t{value_stride} * row(); }
  int64_t key_head() const { return key_codes() + scales(); }
  int64_t value_head() const { return value_codes() + scales(); }
  int64_t key_block() const { return kv_heads * key_head(); }
  int64_t value_block() const { return kv_heads * value_head(); }

 private:
  int64_t row() const { return static_cast<int64_t>(size_of(dtype)) * block_size; }
  int64_t scales() const { return dtype == CacheDtype::int8 ? int64_t{4} * block_size : 0; }
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
  // Floats of what one row knows of one segment: weighted values, total, exponent.
  int64_t partial_floats() const { return (cache.head_dim + 15) / 16 * 16 + 16; }
};

// One sequence's part of a step: rows first_row .. first_row+rows-1 stand at positions first_pos ...
struct SequenceSpan {
  int first_row, rows, first_pos;
  const int32_t* blocks;
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
  void (*linear)(const LinearArgs&, int64_t tile_begin, int64_t tile_end);
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
#endif

// The best table this machine can run, or the one `name` asks for (null when it cannot run here).
const Kernels* select_kernels(const char* name = nullptr);
int list_kernels(const Kernels** out, int capacity);

}  // namespace octavo

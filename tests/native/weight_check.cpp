// Packing against the kernels that read it, and weights that go to a file and come back.
#include <cstdlib>
#include <stdexcept>

#include <unistd.h>

#include "check.h"
#include "plan.h"

namespace octavo::test {
namespace {

// An unnamed file with `bytes` from `offset` on.
class File {
 public:
  File(const void* bytes, size_t size, int64_t offset) : file_(std::tmpfile()) {
    good_ = file_ && pwrite(fd(), bytes, size, static_cast<off_t>(offset)) == static_cast<ssize_t>(size);
  }
  ~File() {
    if (file_) std::fclose(file_);
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  int fd() const { return fileno(file_); }
  bool good() const { return good_; }

 private:
  std::FILE* file_;
  bool good_ = false;
};

Weight::Stored form_of(const Weight& w, Pool& pool) {
  Weight::Stored s;
  s.vector = w.is_vector();
  s.shape = w.packed();
  if (s.shape.table) s.table = *s.shape.table;
  s.order = w.order();
  s.bytes = w.bytes();
  s.checksum = w.checksum(pool);
  return s;
}

bool refused(Pool& pool, const Weight::Stored& form, const File& file, int64_t offset) {
  try {
    Weight::stored(pool, std::make_shared<Arena>(), form, file.fd(), offset);
  } catch (const std::runtime_error&) {
    return true;
  }
  return false;
}

void through_a_file(Pool& pool, const Weight& w, const std::string& what) {
  constexpr int64_t offset = 4096;
  const Weight::Stored form = form_of(w, pool);
  const File file(w.bytes_begin(), w.bytes(), offset);
  check(file.good(), what + ": cannot write a file");
  const auto back = Weight::stored(pool, std::make_shared<Arena>(), form, file.fd(), offset);
  check(back->bytes() == w.bytes() && std::memcmp(back->bytes_begin(), w.bytes_begin(), w.bytes()) == 0,
        what + ": comes back changed");
  check(refused(pool, form, file, offset + 1), what + ": a file that ends early is taken");
  std::vector<uint8_t> bytes(w.bytes_begin(), w.bytes_begin() + w.bytes());
  bytes[bytes.size() / 2] ^= 1;
  check(refused(pool, form, File(bytes.data(), bytes.size(), offset), offset), what + ": damage is not seen");
  Weight::Stored longer = form;
  longer.bytes += 64;
  check(refused(pool, longer, file, offset), what + ": a wrong size is taken");
}

void dense(Pool& pool) {
  const int64_t rows = 37, cols = 131;
  const Floats source = noise(rows * cols);
  const auto w = Weight::matrix(pool, std::make_shared<Arena>(), source.data(), Dtype::f32, rows, cols);
  Floats back(source.size());
  for (int64_t r = 0; r < rows; ++r) scalar_kernels()->matrix_row(w->packed(), r, back.data() + r * cols);
  check(back == source, "a packed matrix differs");
  through_a_file(pool, *w, "dense");
  std::vector<uint16_t> halves;
  for (int64_t i = 0; i < rows * cols; ++i) halves.push_back(static_cast<uint16_t>(0x3f00 + i % 77));
  for (const Dtype dtype : {Dtype::f16, Dtype::bf16})
    through_a_file(pool, *Weight::matrix(pool, std::make_shared<Arena>(), halves.data(), dtype, rows, cols), "halves");
  through_a_file(pool, *Weight::vector(std::make_shared<Arena>(), source.data(), rows), "vector");
}

void quantized(Pool& pool) {
  const int64_t rows = 21, cols = 75, groups = 3;
  std::vector<uint8_t> codes(static_cast<size_t>(rows * cols));
  for (uint8_t& c : codes) c = static_cast<uint8_t>(pick(0, 255));
  const Floats scales = noise(rows * groups), zeros = noise(rows * groups);
  QuantSource source{};
  source.codes = codes.data();
  source.scales = scales.data();
  source.groups = groups;
  Floats entries;
  for (int i = 0; i < 16; ++i) entries.push_back(static_cast<float>(i * i - 100));
  source.table = table_of(entries);
  for (const Format format : {Format::int8, Format::int4, Format::lut4_wide})
    for (const bool offset : {false, true}) {
      PackedMatrix shape{nullptr, Dtype::f32, rows, cols, format, offset ? Offset::zero : Offset::none, 32};
      source.offsets = offset ? zeros.data() : nullptr;
      const auto w = Weight::quantized(pool, std::make_shared<Arena>(), source, shape);
      const std::string what = "quantized " + std::to_string(static_cast<int>(format));
      bool good = true;
      Floats row(static_cast<size_t>(cols));
      for (int64_t r = 0; r < rows; ++r) {
        scalar_kernels()->matrix_row(w->packed(), r, row.data());
        for (int64_t k = 0; k < cols; ++k) {
          const auto at = static_cast<size_t>(r * groups + k / 32);
          const int pair = codes[static_cast<size_t>(r * ((cols + 1) / 2) + k / 2)];
          const int code = k & 1 ? pair >> 4 : pair & 15;
          float number = static_cast<float>(static_cast<int8_t>(codes[static_cast<size_t>(r * cols + k)]));
          if (format == Format::int4) number = static_cast<float>(offset ? code : code - 8);
          if (is_table(format)) number = source.table.values[code];
          const float expected = scales[at] * (number - (offset ? zeros[at] : 0));
          good &= std::fabs(row[static_cast<size_t>(k)] - expected) <= 1e-4f * (1 + std::fabs(expected));
        }
      }
      check(good, what + ": a packed matrix differs");
      through_a_file(pool, *w, what);
    }
}

}  // namespace

void weight_parts() {
  Pool pool(3);
  dense(pool);
  quantized(pool);
  const Floats source = noise(33 * 70);
  PackedMatrix shape{nullptr, Dtype::bf16, 33, 70, Format::int4, Offset::none, 64};
  through_a_file(pool,
                 *Weight::rounded(pool, std::make_shared<Arena>(), select_kernels(), source.data(), Dtype::f32, shape),
                 "rounded");
}

}  // namespace octavo::test

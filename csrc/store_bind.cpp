// Python's door to store.cpp.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>

#include "bind.h"
#include "plan.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace octavo {
namespace {

// (vector, format, dtype, rows, cols, offset, group, factor, table, order): all of a weight but its bytes.
using Form = std::tuple<bool, int, int, int64_t, int64_t, int, int64_t, float, std::vector<float>, std::vector<int>,
                        std::vector<int32_t>, bool>;

Form form_of(const Weight& w) {
  const PackedMatrix& m = w.packed();
  std::vector<float> values;
  std::vector<int> bytes;
  if (m.table) {
    values.assign(m.table->values, m.table->values + 16);
    bytes.assign(m.table->bytes, m.table->bytes + 16);
  }
  return {w.is_vector(),
          static_cast<int>(m.format),
          static_cast<int>(m.dtype),
          m.rows,
          m.cols,
          static_cast<int>(m.offset),
          m.group,
          m.factor,
          values,
          bytes,
          w.order(),
          m.table && m.table->whole};
}

Weight::Stored stored_form(const Form& f, size_t bytes, uint64_t checksum) {
  Weight::Stored s;
  const auto& [vector, format, dtype, rows, cols, offset, group, factor, values, codes, order, whole] = f;
  const auto in = [](int x, int end) {
    if (x < 0 || x >= end) throw std::runtime_error("octavo packed weights: a form that is none");
  };
  in(format, 4);
  in(dtype, 3);
  in(offset, 3);
  if (rows <= 0 || cols <= 0 || rows > int64_t{1} << 32 || cols > int64_t{1} << 32 || group < 0)
    throw std::runtime_error("octavo packed weights: a shape that is none");
  s.vector = vector;
  s.shape = {nullptr,
             static_cast<Dtype>(dtype),
             rows,
             cols,
             static_cast<Format>(format),
             static_cast<Offset>(offset),
             group,
             factor,
             nullptr};
  s.order = order;
  check_order(order, cols);
  if (s.shape.format == Format::lut4) {
    if (values.size() != 16 || codes.size() != 16) in(-1, 0);
    for (size_t i = 0; i < 16; ++i) {
      in(codes[i], 256);
      s.table.values[i] = values[i];
      s.table.bytes[i] = static_cast<uint8_t>(codes[i]);
    }
    s.table.whole = whole;
  }
  s.bytes = bytes;
  s.checksum = checksum;
  return s;
}

}  // namespace

void bind_store(nb::module_& m) {
  m.def("weight_form", &form_of, "All of a weight but its bytes, as plain numbers.");
  m.def("weight_bytes", [](const std::shared_ptr<Weight>& w) {
    return nb::ndarray<nb::numpy, const uint8_t, nb::ndim<1>>(w->bytes_begin(), {w->bytes()}, nb::cast(w));
  });
  m.def(
      "weight_checksum", [](const Weight& w, Pool& pool) { return w.checksum(pool); },
      nb::call_guard<nb::gil_scoped_release>());
  m.def(
      "weight_stored",
      [](Pool& pool, std::shared_ptr<Arena> arena, const Form& form, int fd, int64_t offset, size_t bytes,
         uint64_t checksum) {
        const Weight::Stored stored = stored_form(form, bytes, checksum);
        nb::gil_scoped_release release;
        return Weight::stored(pool, std::move(arena), stored, fd, offset);
      },
      "pool"_a, "arena"_a, "form"_a, "fd"_a, "offset"_a, "bytes"_a, "checksum"_a,
      "A weight read back from a file. RuntimeError when it is not what was written.");
}

}  // namespace octavo

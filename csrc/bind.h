// What the parts of the extension module register.
#pragma once

#include <nanobind/nanobind.h>

namespace octavo {
void bind_sampler(nanobind::module_& m);
void bind_store(nanobind::module_& m);
}  // namespace octavo

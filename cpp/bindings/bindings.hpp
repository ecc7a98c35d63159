// What the binding files share: one bind_* function each, and the ways arrays come in and go out.
// Nothing is normalised, parsed, threaded or defaulted here: Python coerces before, the core
// computes with the GIL released.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <memory>
#include <vector>

#include "delfsearch/span.hpp"

namespace delfsearch::bindings {

namespace py = pybind11;

template <typename T>
using Array = py::array_t<T, py::array::c_style>;

template <typename T>
Span<const T> view(const Array<T>& array) {
  return {array.data(), static_cast<std::size_t>(array.size())};
}

// Hands a vector to NumPy without a copy; the array owns it through a typed capsule.
template <typename T>
Array<T> to_numpy(std::vector<T>&& values, std::vector<py::ssize_t> shape) {
  auto owner = std::make_unique<std::vector<T>>(std::move(values));
  T* data = owner->data();
  py::capsule capsule(owner.get(), [](void* p) { delete static_cast<std::vector<T>*>(p); });
  owner.release();
  return Array<T>(std::move(shape), data, capsule);
}

template <typename T>
Array<T> to_numpy(std::vector<T>&& values) {
  const auto n = static_cast<py::ssize_t>(values.size());
  return to_numpy(std::move(values), {n});
}

void bind_aggregate(py::module_& m);
void bind_codes(py::module_& m);
void bind_found_rows(py::module_& m);
void bind_kdtree(py::module_& m);
void bind_nms(py::module_& m);
void bind_packed_ids(py::module_& m);
void bind_ransac(py::module_& m);

}  // namespace delfsearch::bindings

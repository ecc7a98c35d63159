#include "bindings.hpp"
#include "delfsearch/cpu.hpp"

PYBIND11_MODULE(_core, m) {
  m.doc() =
      "The compiled core of delfsearch. Use the Python classes; arguments here are unchecked.";
  m.attr("__version__") = DELFSEARCH_VERSION;
  m.def(
      "simd", [] { return delfsearch::amx() ? "amx" : delfsearch::simd_name(delfsearch::simd()); },
      "The instruction set that the kernels use: scalar, avx2, avx512, amx or neon.");
  delfsearch::bindings::bind_aggregate(m);
  delfsearch::bindings::bind_codes(m);
  delfsearch::bindings::bind_found_rows(m);
  delfsearch::bindings::bind_kdtree(m);
  delfsearch::bindings::bind_nms(m);
  delfsearch::bindings::bind_packed_ids(m);
  delfsearch::bindings::bind_ransac(m);
}

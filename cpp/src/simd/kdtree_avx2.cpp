#include "kdtree_kernels.hpp"

namespace delfsearch::kdtree {
const Kernels* avx2_kernels() { return nullptr; }
}  // namespace delfsearch::kdtree

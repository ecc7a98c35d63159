// Vectors that begin where a cache line does: no vector of a processor's lies across two.
#pragma once

#include <cstddef>
#include <new>
#include <vector>

namespace delfsearch {

template <typename T>
struct LineAllocator {
  using value_type = T;
  static constexpr std::align_val_t kLine{64};

  LineAllocator() = default;
  template <typename Other>
  LineAllocator(const LineAllocator<Other>&) noexcept {}

  T* allocate(std::size_t n) { return static_cast<T*>(::operator new(n * sizeof(T), kLine)); }
  void deallocate(T* at, std::size_t) noexcept { ::operator delete(at, kLine); }

  template <typename Other>
  bool operator==(const LineAllocator<Other>&) const noexcept {
    return true;
  }
  template <typename Other>
  bool operator!=(const LineAllocator<Other>&) const noexcept {
    return false;
  }
};

template <typename T>
using AlignedVector = std::vector<T, LineAllocator<T>>;

}  // namespace delfsearch

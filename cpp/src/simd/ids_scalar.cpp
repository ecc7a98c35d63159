#include "bits.hpp"
#include "delfsearch/cpu.hpp"
#include "ids_kernels.hpp"

#define DELFSEARCH_TARGET

namespace delfsearch::ids {
namespace {

inline std::size_t how_many(std::uint64_t word) {
  return static_cast<std::size_t>(count_bits(word));
}

inline std::size_t nth(std::uint64_t word, std::size_t n) {
  return n < 64 ? static_cast<std::size_t>(nth_bit(word, n)) : 64;
}

inline std::size_t first(std::uint64_t word) { return static_cast<std::size_t>(lowest_bit(word)); }

inline std::uint64_t low_part(const Sequence& sequence, std::size_t i) {
  if (sequence.low_bits == 0) return 0;
  const std::size_t at = i * static_cast<std::size_t>(sequence.low_bits);
  const int shift = static_cast<int>(at % 64);
  std::uint64_t value = sequence.low[at / 64] >> shift;
  if (shift + sequence.low_bits > 64) value |= sequence.low[at / 64 + 1] << (64 - shift);
  return value & ((std::uint64_t{1} << sequence.low_bits) - 1);
}

inline std::size_t begun(const std::uint32_t* starts, std::uint32_t place) {
  std::size_t n = 0;
  for (std::size_t list = 0; list < kShortLists; ++list) n += starts[list] <= place;
  return n;
}

inline std::size_t word_of(const std::uint16_t* before, std::size_t i) {
  std::size_t word = 0;
  for (std::size_t step = kShortWords / 2; step > 0; step /= 2)
    word += before[word + step] <= i ? step : 0;
  return word;
}

#include "ids_lanes.inl"

}  // namespace

const Kernels& kernels_scalar() {
  static const Kernels table{get_some_of, get_all_of, open_short, get_each_of};
  return table;
}

const Kernels& kernels() {
#ifdef DELFSEARCH_X86
  if (simd() == Simd::kAvx512 || simd() == Simd::kAvx2) return kernels_bmi2();
#endif
  return kernels_scalar();
}

}  // namespace delfsearch::ids

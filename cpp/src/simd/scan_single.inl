// The distance of one code of a block: entries summed in the order of parts.

template <int kBits>
DELFSEARCH_INLINE float distance_of(std::size_t n_parts, const std::uint8_t* part,
                                    const float* entries, std::uint32_t place) {
  constexpr std::size_t kPartBytes = 32 + 8 * (kBits - 4);
  const std::uint32_t half = place < 32 ? 0 : 4;
  float sum = 0.0f;
  for (std::size_t p = 0; p < n_parts;
       ++p, part += kPartBytes, entries += std::size_t{1} << kBits) {
    unsigned number = part[place % 32] >> half & 15u;
    for (int bit = 4; bit < kBits; ++bit)
      number |= (part[32 + 8 * (bit - 4) + place / 8] >> place % 8 & 1u) << bit;
    sum = sum + entries[number];
  }
  return sum;
}

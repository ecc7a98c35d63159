// From the number of bits to the loop made for it.

std::size_t distances(const ProductCode& code, const std::uint8_t* blocks, const Passed* which,
                      std::size_t n, const float* entries, float limit, std::uint32_t first_place,
                      float* values, std::uint32_t* places) {
  const auto of = code.bits == 4   ? distances_of<4>
                  : code.bits == 5 ? distances_of<5>
                  : code.bits == 6 ? distances_of<6>
                  : code.bits == 7 ? distances_of<7>
                                   : distances_of<8>;
  return of(code.n_parts, blocks, which, n, entries, limit, first_place, values, places);
}

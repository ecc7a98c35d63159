// From the numbers of bits and of tables to the loop made for them.

template <int kBits>
void may_pass_bits(std::size_t n_parts, const std::uint8_t* blocks, std::size_t n_blocks,
                   const std::uint8_t* next, const ByteTable* tables, std::size_t n_tables,
                   Passed* const* out, std::size_t* counts) {
  switch (n_tables) {
    case 1:
      return may_pass_of<kBits, 1>(n_parts, blocks, n_blocks, next, tables, out, counts);
    case 2:
      return may_pass_of<kBits, 2>(n_parts, blocks, n_blocks, next, tables, out, counts);
    case 3:
      return may_pass_of<kBits, 3>(n_parts, blocks, n_blocks, next, tables, out, counts);
    default:
      return may_pass_of<kBits, 4>(n_parts, blocks, n_blocks, next, tables, out, counts);
  }
}

void may_pass(const ProductCode& code, const std::uint8_t* blocks, std::size_t n_blocks,
              const std::uint8_t* next, const ByteTable* tables, std::size_t n_tables,
              Passed* const* out, std::size_t* counts) {
  switch (code.bits) {
    case 4:
      return may_pass_bits<4>(code.n_parts, blocks, n_blocks, next, tables, n_tables, out, counts);
    case 5:
      return may_pass_bits<5>(code.n_parts, blocks, n_blocks, next, tables, n_tables, out, counts);
    case 6:
      return may_pass_bits<6>(code.n_parts, blocks, n_blocks, next, tables, n_tables, out, counts);
    case 7:
      return may_pass_bits<7>(code.n_parts, blocks, n_blocks, next, tables, n_tables, out, counts);
    default:
      return may_pass_bits<8>(code.n_parts, blocks, n_blocks, next, tables, n_tables, out, counts);
  }
}

#include "delfsearch/product_code.hpp"

#include <stdexcept>

namespace delfsearch {

void ProductCode::check() const {
  if (bits < 4 || bits > 8) throw std::invalid_argument("bits must be 4 to 8");
  if (n_parts < 1 || n_parts > 4096) throw std::invalid_argument("n_parts must be 1 to 4096");
}

void put_code(const ProductCode& code, std::uint8_t* block, std::size_t place,
              const std::uint8_t* numbers) {
  for (std::size_t part = 0; part < code.n_parts; ++part, block += code.part_bytes()) {
    const unsigned number = numbers[part];
    const unsigned half = place < 32 ? 0 : 4;
    block[place % 32] = static_cast<std::uint8_t>(block[place % 32] | (number & 15u) << half);
    for (int bit = 4; bit < code.bits; ++bit) {
      std::uint8_t& byte = block[32 + 8 * static_cast<std::size_t>(bit - 4) + place / 8];
      byte = static_cast<std::uint8_t>(byte | (number >> bit & 1u) << place % 8);
    }
  }
}

void get_code(const ProductCode& code, const std::uint8_t* block, std::size_t place,
              std::uint8_t* numbers) {
  for (std::size_t part = 0; part < code.n_parts; ++part, block += code.part_bytes()) {
    unsigned number = block[place % 32] >> (place < 32 ? 0 : 4) & 15u;
    for (int bit = 4; bit < code.bits; ++bit) {
      const unsigned byte = block[32 + 8 * static_cast<std::size_t>(bit - 4) + place / 8];
      number |= (byte >> place % 8 & 1u) << bit;
    }
    numbers[part] = static_cast<std::uint8_t>(number);
  }
}

std::vector<std::uint8_t> pack_numbers(const ProductCode& code, Span<const std::uint8_t> numbers) {
  code.check();
  if (numbers.size() % code.n_parts != 0)
    throw std::invalid_argument("numbers must be (n, n_parts)");
  const std::size_t n = numbers.size() / code.n_parts;
  std::vector<std::uint8_t> blocks(code.n_blocks(n) * code.block_bytes());
  for (std::size_t i = 0; i < n; ++i)
    put_code(code, blocks.data() + i / kCodeBlock * code.block_bytes(), i % kCodeBlock,
             numbers.data() + i * code.n_parts);
  return blocks;
}

std::vector<std::uint8_t> unpack_numbers(const ProductCode& code, Span<const std::uint8_t> blocks,
                                         std::size_t n) {
  code.check();
  if (blocks.size() < code.n_blocks(n) * code.block_bytes())
    throw std::invalid_argument("blocks must hold n codes");
  std::vector<std::uint8_t> numbers(n * code.n_parts);
  for (std::size_t i = 0; i < n; ++i)
    get_code(code, blocks.data() + i / kCodeBlock * code.block_bytes(), i % kCodeBlock,
             numbers.data() + i * code.n_parts);
  return numbers;
}

}  // namespace delfsearch

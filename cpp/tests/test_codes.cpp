// Product codes, and the kernels that scan them, against plain loops.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <set>
#include <stdexcept>
#include <vector>

#include "check.hpp"
#include "delfsearch/lopq.hpp"
#include "nearest_codes.hpp"
#include "simd/scan_kernels.hpp"
#include "vectors.hpp"

using namespace delfsearch;
using delfsearch_test::gaussian;
using delfsearch_test::squared;

namespace {

void codes_are_packed_to_the_bit() {
  for (int bits = 4; bits <= 8; ++bits)
    for (const std::size_t n : {0, 1, 63, 64, 65, 200}) {
      const ProductCode code{7, bits};
      std::mt19937 generator(static_cast<unsigned>(bits));
      std::vector<std::uint8_t> numbers(n * code.n_parts);
      for (auto& number : numbers)
        number = static_cast<std::uint8_t>(generator() % code.n_centroids());
      const auto blocks = pack_numbers(code, numbers);
      CHECK(blocks.size() * 8 ==
            code.n_blocks(n) * kCodeBlock * code.n_parts * static_cast<std::size_t>(bits));
      CHECK(unpack_numbers(code, blocks, n) == numbers);
    }
}

std::vector<const scan::Kernels*> scans() {
  std::vector<const scan::Kernels*> all{&scan::kernels_scalar()};
  if (&scan::kernels() != all[0]) all.push_back(&scan::kernels());
#ifdef DELFSEARCH_X86
  if (&scan::kernels() == &scan::kernels_avx512()) all.push_back(&scan::kernels_avx2());
#endif
  return all;
}

// Of blocks with all, some and few codes wanted, on every instruction set, what is within the
// limit.
void distances_are_alike(const ProductCode& code, const std::vector<std::uint8_t>& blocks,
                         const std::vector<std::uint8_t>& numbers,
                         const std::vector<float>& floats) {
  const std::vector<scan::Passed> which{
      {~std::uint64_t{0}, 0}, {0x00f000ff12345678ULL, 2}, {0x8000000000000001ULL, 3}, {1, 7}};
  for (const float limit : {3000.0f, 5000.0f, 1e9f}) {
    std::vector<std::pair<std::uint32_t, float>> expected;
    for (const scan::Passed& one : which)
      for (std::size_t bit = 0; bit < kCodeBlock; ++bit) {
        const std::size_t place = one.block * kCodeBlock + bit;
        float sum = 0.0f;
        for (std::size_t p = 0; p < code.n_parts; ++p)
          sum = sum + floats[p * code.n_centroids() + numbers[place * code.n_parts + p]];
        if (one.codes >> bit & 1 && sum <= limit)
          expected.push_back({static_cast<std::uint32_t>(place) + 1000, sum});
      }
    for (const auto* kernels : scans()) {
      std::vector<float> values(64 * which.size() + scan::kRoom);
      std::vector<std::uint32_t> places(64 * which.size() + scan::kRoom);
      const std::size_t n =
          kernels->distances(code, blocks.data(), which.data(), which.size(), floats.data(), limit,
                             1000, values.data(), places.data());
      std::vector<std::pair<std::uint32_t, float>> got;
      for (std::size_t i = 0; i < n; ++i) got.push_back({places[i], values[i]});
      std::sort(got.begin(), got.end());
      CHECK(got == expected);
    }
  }
}

void every_instruction_set_scans_alike() {
  for (int bits = 4; bits <= 8; ++bits) {
    const ProductCode code{10, bits};
    std::mt19937 generator(7);
    std::vector<std::uint8_t> numbers(1000 * code.n_parts);
    for (auto& number : numbers)
      number = static_cast<std::uint8_t>(generator() % code.n_centroids());
    const auto blocks = pack_numbers(code, numbers);
    std::vector<std::uint8_t> entries(4 * code.n_parts * code.n_centroids());
    for (auto& entry : entries) entry = static_cast<std::uint8_t>(generator() % 50);
    std::vector<float> floats(code.n_parts * code.n_centroids());
    for (float& value : floats) value = static_cast<float>(generator() % 10000) * 0.1f;
    for (std::size_t n_tables = 1; n_tables <= 4; ++n_tables) {
      scan::ByteTable tables[4];
      for (std::size_t q = 0; q < n_tables; ++q)
        tables[q] = {entries.data() + q * code.n_parts * code.n_centroids(),
                     static_cast<std::uint8_t>(120 + 45 * q)};
      const std::size_t n_blocks = code.n_blocks(1000);
      std::vector<scan::Passed> first[4];
      for (const auto* kernels : scans()) {
        std::vector<scan::Passed> found[4];
        scan::Passed* out[4];
        std::size_t counts[4];
        for (std::size_t q = 0; q < n_tables; ++q) {
          found[q].resize(n_blocks);
          out[q] = found[q].data();
        }
        kernels->may_pass(code, blocks.data(), n_blocks, blocks.data(), tables, n_tables, out,
                          counts);
        for (std::size_t q = 0; q < n_tables; ++q) {
          found[q].resize(counts[q]);
          if (first[q].empty()) first[q] = found[q];
          CHECK(!found[q].empty() && found[q].size() == first[q].size());
          for (std::size_t i = 0; i < found[q].size(); ++i)
            CHECK(found[q][i].codes == first[q][i].codes && found[q][i].block == first[q][i].block);
        }
      }
    }
    distances_are_alike(code, blocks, numbers, floats);
    std::vector<float> least(code.n_parts);
    for (std::size_t p = 0; p < code.n_parts; ++p)
      least[p] = *std::min_element(floats.data() + p * code.n_centroids(),
                                   floats.data() + (p + 1) * code.n_centroids());
    std::vector<std::uint8_t> expected(floats.size()), got(floats.size());
    scan::kernels_scalar().round_down(code, floats.data(), least.data(), 0.3f, expected.data());
    CHECK(*std::max_element(expected.begin(), expected.end()) == 255);
    for (const auto* kernels : scans()) {
      kernels->round_down(code, floats.data(), least.data(), 0.3f, got.data());
      CHECK(got == expected);
    }
    const std::size_t words = (code.n_centroids() + 31) / 32;
    for (const std::size_t n_leaves : {1, 7, 8, 16, 19}) {
      std::vector<std::uint32_t> present(n_leaves * code.n_parts * words);
      for (auto& word : present) {
        word = static_cast<std::uint32_t>(generator()) & static_cast<std::uint32_t>(generator());
        word = (word | 2u) & (bits == 4 ? 0xffffu : ~0u);
      }
      std::vector<float> slow(n_leaves), bounds(n_leaves);
      scan::kernels_scalar().leaf_bounds(code, present.data(), n_leaves, floats.data(),
                                         slow.data());
      for (const auto* kernels : scans()) {
        kernels->leaf_bounds(code, present.data(), n_leaves, floats.data(), bounds.data());
        CHECK(bounds == slow);
      }
    }
  }
}

void every_instruction_set_keeps_alike() {
  std::mt19937 generator(17);
  for (const std::size_t n : {1, 5, 8, 16, 17, 64, 100, 191}) {
    std::vector<float> values(n + scan::kRoom);
    std::vector<std::uint32_t> keys(n + scan::kRoom), expected(n);
    for (std::size_t i = 0; i < n; ++i) {
      values[i] = static_cast<float>(generator() % 40);  // many tie
      keys[i] = static_cast<std::uint32_t>(generator() % 50);
    }
    std::vector<std::uint32_t> order(n);
    for (std::size_t i = 0; i < n; ++i) order[i] = static_cast<std::uint32_t>(i);
    std::stable_sort(order.begin(), order.end(),
                     [&](std::uint32_t a, std::uint32_t b) { return keys[a] < keys[b]; });
    for (std::size_t i = 0; i < n; ++i) expected[order[i]] = static_cast<std::uint32_t>(i);
    for (const auto* kernels : scans()) {
      std::vector<std::uint32_t> ranks(n + scan::kRoom);
      kernels->ranks(keys.data(), n, ranks.data());
      CHECK(std::equal(expected.begin(), expected.end(), ranks.begin()));
      float least, greatest;
      kernels->range(values.data(), n, &least, &greatest);
      CHECK(least == *std::min_element(values.begin(), values.begin() + static_cast<int>(n)));
      CHECK(greatest == *std::max_element(values.begin(), values.begin() + static_cast<int>(n)));
      for (const float limit : {-1.0f, 0.0f, 20.0f, 39.0f}) {
        auto kept = values;
        auto places = keys;
        std::vector<float> slow_values;
        std::vector<std::uint32_t> slow_places;
        for (std::size_t i = 0; i < n; ++i)
          if (values[i] <= limit) {
            slow_values.push_back(values[i]);
            slow_places.push_back(keys[i]);
          }
        CHECK(kernels->count_within(values.data(), n, limit) == slow_values.size());
        CHECK(kernels->keep_within(kept.data(), places.data(), n, limit) == slow_values.size());
        CHECK(std::equal(slow_values.begin(), slow_values.end(), kept.begin()));
        CHECK(std::equal(slow_places.begin(), slow_places.end(), places.begin()));
      }
    }
  }
}

// Whatever is given in whatever portions, and however much of it ties, the k least are left.
void nearest_codes_are_the_least() {
  std::mt19937 generator(18);
  for (const auto* kernels : scans())
    for (const std::size_t k : {1, 10, 64, 300})
      for (const unsigned kinds : {1u, 7u, 100000u})
        for (const std::size_t portion : {3, 64, 900}) {
          std::vector<float> values(NearestCodes::room(k));
          std::vector<std::uint32_t> places(NearestCodes::room(k));
          NearestCodes nearest;
          nearest.reset(k, values.data(), places.data());
          std::vector<std::pair<float, std::int64_t>> all;
          std::uint32_t place = 5000;
          for (int times = 0; times < 8; ++times) {
            std::vector<float> some(portion + scan::kRoom);
            std::vector<std::uint32_t> at(portion + scan::kRoom);
            std::size_t n = 0;
            for (std::size_t i = 0; i < portion; ++i) {
              const float value = static_cast<float>(generator() % kinds) * 0.25f;
              all.push_back({value, --place});
              if (value > nearest.limit()) continue;
              some[n] = value;
              at[n++] = place;
            }
            nearest.take(*kernels, some.data(), at.data(), n);
          }
          std::vector<float> distances(k);
          std::vector<std::int64_t> found(k);
          nearest.write(*kernels, distances.data(), found.data());
          std::sort(all.begin(), all.end());
          for (std::size_t i = 0; i < k; ++i) {
            CHECK(found[i] == (i < all.size() ? all[i].second : -1));
            CHECK(i < all.size() ? distances[i] == all[i].first : std::isinf(distances[i]));
          }
        }
}

}  // namespace

int main() {
  codes_are_packed_to_the_bit();
  every_instruction_set_scans_alike();
  every_instruction_set_keeps_alike();
  nearest_codes_are_the_least();
  return delfsearch_test::report("test_codes");
}

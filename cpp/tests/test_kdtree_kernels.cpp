// The kernels that this processor gets (or DELFSEARCH_SIMD names) beside the portable ones: same
// bytes, except for filter, which may pass more.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "check.hpp"
#include "simd/kdtree_kernels.hpp"

using namespace delfsearch::kdtree;

namespace {

constexpr std::size_t kRows = 16;

template <typename T>
bool same_bytes(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

struct Setup {
  std::size_t d4, n_blocks, n_queries;
  std::vector<std::uint8_t> codes;
  std::vector<float> norms;
  std::vector<std::int8_t> high, low;
  std::vector<std::int16_t> fine;
  std::vector<Query> queries;
  std::vector<float> pending;
  std::vector<std::uint32_t> pending_row;

  Setup(std::size_t d4_, std::size_t n_blocks_, std::size_t n_queries_, unsigned seed)
      : d4(d4_), n_blocks(n_blocks_), n_queries(n_queries_) {
    std::mt19937 random(seed);
    codes.resize(n_blocks * d4 * 64);
    for (auto& c : codes) c = static_cast<std::uint8_t>(random());
    norms.resize(n_blocks * kRows);
    for (auto& x : norms) x = static_cast<float>(random() % 100000) / 7.0f;
    norms.back() = std::numeric_limits<float>::infinity();
    const std::size_t d = d4 * 4;
    high.resize(n_queries * d);
    low.resize(n_queries * d);
    fine.resize(n_queries * d);
    queries.resize(n_queries);
    pending.resize(n_queries * (n_blocks * kRows + 2 * kRows));
    pending_row.resize(pending.size());
    for (std::size_t q = 0; q < n_queries; ++q) {
      std::int32_t high_sum = 0, fine_sum = 0;
      for (std::size_t i = q * d; i < (q + 1) * d; ++i) {
        const int v = static_cast<int>(random() % 65025) - 32512;
        high[i] = static_cast<std::int8_t>((v + 128) >> 8);
        low[i] = static_cast<std::int8_t>(v - 256 * high[i]);
        fine[i] = static_cast<std::int16_t>(v);
        high_sum += high[i];
        fine_sum += v;
      }
      Query& query = queries[q];
      query.high = high.data() + q * d;
      query.low = low.data() + q * d;
      query.fine = fine.data() + q * d;
      query.high_offset = 128 * high_sum;
      query.fine_offset = 128 * fine_sum;
      query.scale = 3.1e-5f;
      query.rank_scale = 256 * query.scale;
      query.limit = static_cast<float>(random() % 14000);
    }
  }

  std::vector<float> rank(const Kernels& with) const {
    std::vector<float> scores(n_queries * n_blocks * kRows);
    with.rank(codes.data(), norms.data(), n_blocks, d4, queries.data(), n_queries, scores.data(),
              n_blocks * kRows);
    return scores;
  }

  // What is pending of a query after the rows of each group of blocks.
  std::vector<std::uint32_t> refine(const Kernels& with, std::size_t q, std::uint64_t rows) {
    const std::size_t stride = n_blocks * kRows + 2 * kRows;
    Query query = queries[q];
    query.count = 0;
    query.pending = pending.data() + q * stride;
    query.pending_row = pending_row.data() + q * stride;
    for (std::size_t b = 0; b < n_blocks; b += 4) {
      Group group{};
      group.codes = codes.data() + b * d4 * 64;
      group.norms = norms.data() + b * kRows;
      group.first_row = static_cast<std::uint32_t>(b * kRows);
      group.n_blocks = static_cast<std::uint32_t>(std::min<std::size_t>(4, n_blocks - b));
      group.valid = ~std::uint64_t{0} >> (64 - group.n_blocks * kRows);
      with.refine(group, d4, rows & group.valid, query);
    }
    std::vector<std::uint32_t> found;
    for (std::uint32_t i = 0; i < query.count; ++i) {
      std::uint32_t bits;
      std::memcpy(&bits, query.pending + i, 4);
      found.push_back(bits);
      found.push_back(query.pending_row[i]);
    }
    return found;
  }
};

void test_sums() {
  for (const std::size_t d4 : {1, 2, 5, 10, 33})
    for (const std::size_t n_blocks : {1, 3, 4, 9}) {
      Setup setup(d4, n_blocks, 7, static_cast<unsigned>(d4 * 100 + n_blocks));
      CHECK(same_bytes(setup.rank(kernels()), setup.rank(scalar_kernels())));
      for (std::size_t q = 0; q < setup.n_queries; ++q)
        for (const std::uint64_t rows :
             {~std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{0x8000000100020000},
              std::uint64_t{0x00ff000000000fff}})
          CHECK(same_bytes(setup.refine(kernels(), q, rows),
                           setup.refine(scalar_kernels(), q, rows)));
    }
}

void test_choices() {
  std::mt19937 random(9);
  for (const std::size_t n : {1, 5, 16, 17, 63, 64, 200, 501}) {
    std::vector<float> values(n + kRows);
    for (auto& x : values) x = static_cast<float>(static_cast<int>(random() % 400) - 150) / 3.0f;
    for (const std::size_t k : {std::size_t{1}, n / 2 + 1, n}) {
      const float expected = scalar_kernels().kth_smallest(values.data(), n, k, 0);
      CHECK(kernels().kth_smallest(values.data(), n, k, 0) == expected);
      // With room to spare at least k values, and no more than k + spare unless they tie.
      const float limit = kernels().kth_smallest(values.data(), n, k, 4);
      CHECK(limit >= expected);
      std::size_t count = 0;
      for (std::size_t i = 0; i < n; ++i) count += values[i] <= limit ? 1 : 0;
      CHECK(count >= k && (count <= k + 4 || limit == expected));
      std::vector<float> kept[2];
      std::vector<std::uint32_t> rows[2];
      const Kernels* tables[2] = {&kernels(), &scalar_kernels()};
      for (int t = 0; t < 2; ++t) {
        kept[t].resize(n + kRows);
        rows[t].resize(n + kRows);
        const std::size_t found =
            tables[t]->keep(values.data(), nullptr, n, expected, kept[t].data(), rows[t].data());
        kept[t].resize(found);
        rows[t].resize(found);
      }
      CHECK(same_bytes(kept[0], kept[1]) && same_bytes(rows[0], rows[1]));
    }
    std::vector<std::uint64_t> keys(n);
    for (auto& key : keys) key = std::uint64_t{random()} << 32 | random();
    auto sorted = keys;
    std::sort(sorted.begin(), sorted.end());
    kernels().sort_keys(keys.data(), n);
    CHECK(keys == sorted);
  }
}

void test_nearest() {
  std::mt19937 random(11);
  for (const std::size_t n : {1, 3, 8, 9, 128})
    for (const std::size_t stride : {16, 80}) {
      std::vector<float> scores(n * stride), bases(n);
      for (auto& x : scores) x = static_cast<float>(static_cast<int>(random() % 3000) - 900) / 7.0f;
      for (auto& x : bases) x = static_cast<float>(random() % 50);
      std::vector<std::int32_t> a(kNearest * stride), b(kNearest * stride);
      kernels().nearest(scores.data(), stride, bases.data(), n, a.data());
      scalar_kernels().nearest(scores.data(), stride, bases.data(), n, b.data());
      CHECK(same_bytes(a, b));
    }
}

}  // namespace

int main() {
  test_sums();
  test_choices();
  test_nearest();
  return delfsearch_test::report("kdtree_kernels");
}

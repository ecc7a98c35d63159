#include "delfsearch/rerank.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "delfsearch/parallel.hpp"
#include "simd/rerank_kernels.hpp"

namespace delfsearch {
namespace {

constexpr std::size_t kTask = 16;  // queries

}  // namespace

Reranked rerank(Span<const std::uint8_t> exact, Span<const float> lower, Span<const float> step,
                Span<const float> queries, Span<const std::int64_t> candidates, std::size_t k,
                int n_threads) {
  const std::size_t d = lower.size();
  if (d == 0 || step.size() != d || exact.size() % d != 0 || queries.size() % d != 0)
    throw std::invalid_argument("exact must be (n, d), queries (m, d), lower and step (d)");
  if (k < 1) throw std::invalid_argument("k must be at least 1");
  const std::size_t m = queries.size() / d, n = exact.size() / d;
  Reranked found{std::vector<float>(m * k, std::numeric_limits<float>::infinity()),
                 std::vector<std::int64_t>(m * k, -1)};
  if (m == 0) return found;
  if (candidates.size() % m != 0) throw std::invalid_argument("candidates must be (m, r)");
  if (n > std::size_t{1} << 32) throw std::invalid_argument("exact must have at most 2^32 rows");
  const std::size_t r = candidates.size() / m, padded = (d + 7) / 8 * 8;
  std::vector<float> from(padded), of_step(padded);
  std::copy(lower.begin(), lower.end(), from.begin());
  std::copy(step.begin(), step.end(), of_step.begin());
  const rerank_kernels::Distances distances = rerank_kernels::distances();
  parallel_for((m + kTask - 1) / kTask, n_threads, [&](std::size_t task, int) {
    std::vector<double> values(padded);
    std::vector<const std::uint8_t*> rows(r);
    std::vector<float> squared(r);
    std::vector<std::uint64_t> keys(r);  // distance, then row
    for (std::size_t q = task * kTask; q < std::min(m, (task + 1) * kTask); ++q) {
      const float* query = queries.data() + q * d;
      std::copy(query, query + d, values.begin());
      const std::int64_t* own = candidates.data() + q * r;
      std::size_t count = 0;
      for (std::size_t i = 0; i < r; ++i) {
        if (own[i] < 0) continue;
        const auto row = static_cast<std::size_t>(own[i]);
        if (row >= n) throw std::invalid_argument("a candidate is out of range");
        keys[count] = row;
        rows[count++] = exact.data() + row * d;
      }
      for (std::size_t i = 0; i < std::min(count, rerank_kernels::kAhead); ++i)
        rerank_kernels::ask_for(rows[i], d);
      distances({from.data(), of_step.data(), values.data(), d, padded}, rows.data(), count,
                squared.data());
      for (std::size_t i = 0; i < count; ++i) {
        std::uint32_t bits;
        std::memcpy(&bits, &squared[i], sizeof(bits));  // not negative: bits rise with it
        keys[i] |= static_cast<std::uint64_t>(bits) << 32;
      }
      const std::size_t kept = std::min(k, count);
      const auto end = keys.begin() + static_cast<std::ptrdiff_t>(count);
      const auto middle = keys.begin() + static_cast<std::ptrdiff_t>(kept);
      if (kept < count) std::nth_element(keys.begin(), middle, end);
      std::sort(keys.begin(), middle);
      for (std::size_t i = 0; i < kept; ++i) {
        const auto bits = static_cast<std::uint32_t>(keys[i] >> 32);
        std::memcpy(&found.squared_distances[q * k + i], &bits, sizeof(bits));
        found.rows[q * k + i] = static_cast<std::int64_t>(keys[i] & 0xffffffffu);
      }
    }
  });
  return found;
}

}  // namespace delfsearch

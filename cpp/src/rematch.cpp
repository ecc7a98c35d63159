#include "delfsearch/rematch.hpp"

#include <algorithm>
#include <numeric>
#include <stdexcept>

#include "delfsearch/centroids.hpp"
#include "delfsearch/parallel.hpp"

namespace delfsearch {

Rematched rematch(const Quantizer& quantizer, Span<const std::uint8_t> codes,
                  Span<const float> queries, Span<const std::int32_t> query_of,
                  Span<const std::int64_t> begin, Span<const std::int64_t> end, int n_threads) {
  const std::size_t d = quantizer.dimension(), p = query_of.size();
  if (d == 0 || codes.size() % d != 0 || queries.size() % d != 0 || begin.size() != p ||
      end.size() != p)
    throw std::invalid_argument("codes and queries must have d columns, pairs a query and rows");
  const auto n = static_cast<std::int64_t>(codes.size() / d);
  const auto m = static_cast<std::int64_t>(queries.size() / d);
  std::vector<std::size_t> firsts;  // pair that each photo begins with
  for (std::size_t i = 0; i < p; ++i) {
    if (query_of[i] < 0 || query_of[i] >= m || begin[i] < 0 || end[i] <= begin[i] || end[i] > n)
      throw std::invalid_argument("a pair is out of range");
    if (i == 0 || begin[i] != begin[i - 1]) firsts.push_back(i);
  }
  firsts.push_back(p);
  Rematched found{std::vector<std::int64_t>(p), std::vector<float>(p)};
  parallel_for(firsts.size() - 1, n_threads, [&](std::size_t photo, int) {
    const auto row = static_cast<std::size_t>(begin[firsts[photo]]);
    const auto size = static_cast<std::size_t>(end[firsts[photo]]) - row;
    const std::vector<float> rows =
        decode(quantizer, Span<const std::uint8_t>(codes.data() + row * d, size * d));
    const CentroidSet features(rows, d);
    std::vector<float> distances(features.padded_size());
    std::vector<std::uint32_t> order(size);
    for (std::size_t i = firsts[photo]; i < firsts[photo + 1];) {
      std::size_t next = i;
      while (next < firsts[photo + 1] && query_of[next] == query_of[i]) ++next;
      features.squared_distances(queries.data() + static_cast<std::size_t>(query_of[i]) * d,
                                 distances.data());
      std::iota(order.begin(), order.end(), 0u);
      const auto wanted = static_cast<std::ptrdiff_t>(std::min(next - i, size));
      std::partial_sort(order.begin(), order.begin() + wanted, order.end(),
                        [&](std::uint32_t a, std::uint32_t b) {
                          return distances[a] != distances[b] ? distances[a] < distances[b] : a < b;
                        });
      for (std::size_t t = 0; i < next; ++i, ++t) {
        // No photo is found more often than it has features, but in a damaged file.
        const std::uint32_t at = order[std::min(t, size - 1)];
        found.rows[i] = static_cast<std::int64_t>(row + at);
        found.squared_distances[i] = distances[at];
      }
    }
  });
  return found;
}

}  // namespace delfsearch

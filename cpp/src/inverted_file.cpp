#include "delfsearch/inverted_file.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <numeric>
#include <stdexcept>

#include "delfsearch/parallel.hpp"
#include "list_scan.hpp"

namespace delfsearch {

void InvertedFileView::check() const {
  quantizer.check();
  const std::size_t n = n_lists();
  if (n != quantizer.n_lists() || first_block.size() != n + 1 || first_block[0] != 0)
    throw std::invalid_argument("lists must be as many as coarse centroids");
  for (std::size_t list = 0; list < n; ++list)
    if (first_block[list + 1] < first_block[list] ||
        first_block[list + 1] - first_block[list] != quantizer.code.n_blocks(sizes[list]))
      throw std::invalid_argument("a list has another number of blocks than its size says");
  if (blocks.size() != first_block[n] * quantizer.code.block_bytes())
    throw std::invalid_argument("blocks have another size than the lists say");
  if (leaf_blocks == 0) return;
  const std::size_t words = (quantizer.code.n_centroids() + 31) / 32;
  if (first_leaf.size() != n + 1 || first_leaf[0] != 0 ||
      present.size() != first_leaf[n] * quantizer.code.n_parts * words)
    throw std::invalid_argument("leaves have another number than the lists say");
  for (std::size_t list = 0; list < n; ++list) {
    const std::uint64_t b = first_block[list + 1] - first_block[list];
    if (first_leaf[list + 1] - first_leaf[list] != (b + leaf_blocks - 1) / leaf_blocks)
      throw std::invalid_argument("leaves have another number than the lists say");
  }
}

namespace {

constexpr std::size_t kMostOfRun = 4096;  // queries that hold their nearest at a time

// Sorts pairs, a list above 32 lower bits that rise already where lists are equal.
void sort_by_list(std::vector<std::uint64_t>& pairs, std::size_t n_lists) {
  if (pairs.size() < n_lists / 16) {
    std::sort(pairs.begin(), pairs.end());
    return;
  }
  std::vector<std::uint32_t> at(n_lists + 1);
  for (const std::uint64_t pair : pairs) ++at[(pair >> 32) + 1];
  std::partial_sum(at.begin(), at.end(), at.begin());
  std::vector<std::uint64_t> sorted(pairs.size());
  for (const std::uint64_t pair : pairs) sorted[at[pair >> 32]++] = pair;
  pairs.swap(sorted);
}

}  // namespace

CodeNeighbours scan_lists(const InvertedFileView& file, Span<const float> queries,
                          Span<const std::uint32_t> probes, const ScanOptions& options) {
  const std::size_t d = file.quantizer.d;
  if (d == 0 || queries.size() % d != 0) throw std::invalid_argument("queries must be (m, d)");
  const std::size_t m = queries.size() / d, k = options.k;
  if (k < 1) throw std::invalid_argument("k must be at least 1");
  if (!(options.eps >= 0.0) || std::isinf(options.eps))
    throw std::invalid_argument("eps must be finite and at least 0");
  CodeNeighbours found{std::vector<float>(m * k, std::numeric_limits<float>::infinity()),
                       std::vector<std::int64_t>(m * k, -1)};
  if (m == 0) return found;
  if (probes.size() % m != 0) throw std::invalid_argument("probes must be (m, n_probe)");
  const std::size_t n_probe = probes.size() / m;
  for (const std::uint32_t list : probes)
    if (list >= file.n_lists()) throw std::invalid_argument("a probe is out of range");
  const std::uint64_t n_blocks = file.first_block[file.n_lists()];
  if (n_blocks > (std::uint64_t{1} << 32) / kCodeBlock)
    throw std::invalid_argument("lists must hold at most 2^32 codes, filled up to blocks");
  if (!options.allowed.empty() && options.allowed.size() != n_blocks)
    throw std::invalid_argument("allowed must have a bit for each place");

  // Threads take runs of queries, of those that begin in the same lists next to each other.
  const std::size_t threads = static_cast<std::size_t>(resolve_threads(options.n_threads));
  std::vector<std::uint32_t> by_list(m);
  std::iota(by_list.begin(), by_list.end(), 0u);
  std::stable_sort(by_list.begin(), by_list.end(), [&](std::uint32_t a, std::uint32_t b) {
    return probes[a * n_probe] < probes[b * n_probe];
  });
  const std::size_t n_runs =
      std::max(std::min(m, threads == 1 ? 1 : 4 * threads), (m + kMostOfRun - 1) / kMostOfRun);
  parallel_for(n_runs, options.n_threads, [&](std::size_t run, int) {
    const std::size_t begin = run * m / n_runs, end = (run + 1) * m / n_runs, n = end - begin;
    const std::size_t room = NearestCodes::room(k);
    const std::unique_ptr<float[]> values(new float[n * room]);
    const std::unique_ptr<std::uint32_t[]> places(new std::uint32_t[n * room]);
    std::vector<NearestCodes> nearest(n);
    for (std::size_t i = 0; i < n; ++i)
      nearest[i].reset(k, values.get() + i * room, places.get() + i * room);
    ListScan scan(file, options);
    std::vector<std::uint64_t> pairs;
    // First everyone's nearest list, then some more, for limits that keep the rest short. What eps
    // leaves out depends on this order of a query's lists.
    for (std::size_t first = 0, last = 1; first < n_probe;
         first = last, last = std::min(n_probe, 8 * last)) {
      pairs.clear();
      for (std::size_t i = 0; i < n; ++i)
        for (std::size_t p = first; p < last; ++p)
          pairs.push_back(
              static_cast<std::uint64_t>(probes[by_list[begin + i] * n_probe + p]) << 32 | i);
      sort_by_list(pairs, file.n_lists());
      for (std::size_t at = 0; at < pairs.size();) {
        const float* rows[scan::kTogether];
        NearestCodes* state[scan::kTogether];
        std::size_t together = 0;
        const auto list = static_cast<std::size_t>(pairs[at] >> 32);
        for (; at < pairs.size() && pairs[at] >> 32 == list && together < scan::kTogether;
             ++at, ++together) {
          const auto i = static_cast<std::size_t>(pairs[at] & 0xffffffffu);
          rows[together] = queries.data() + by_list[begin + i] * d;
          state[together] = &nearest[i];
        }
        if (at < pairs.size()) scan.ask_for(static_cast<std::size_t>(pairs[at] >> 32));
        if (file.sizes[list] > 0) scan.list(list, rows, state, together);
      }
    }
    for (std::size_t i = 0; i < n; ++i)
      nearest[i].write(scan::kernels(), found.squared_distances.data() + by_list[begin + i] * k,
                       found.places.data() + by_list[begin + i] * k);
  });
  return found;
}

}  // namespace delfsearch

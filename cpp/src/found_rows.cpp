#include "delfsearch/found_rows.hpp"

#include <algorithm>
#include <stdexcept>

#include "delfsearch/parallel.hpp"

namespace delfsearch {
namespace {

constexpr std::size_t kTask = 64;  // queries

struct Probed {
  std::uint64_t first_block, first_sequence;
};

}  // namespace

std::vector<std::int64_t> rows_of_places(const InvertedFileView& file, const ListIdsView& ids,
                                         Span<const std::uint32_t> probes, std::size_t m,
                                         Span<const float> squared_distances,
                                         Span<const std::int64_t> places, int n_threads) {
  std::vector<std::int64_t> rows(places.size(), -1);
  if (m == 0) return rows;
  if (places.size() % m != 0 || probes.size() % m != 0 || squared_distances.size() != places.size())
    throw std::invalid_argument("places and distances must be (m, k), probes (m, n_probe)");
  const std::size_t n_sequences = ids.firsts.empty() ? 0 : ids.firsts.size() - 1;
  if (n_sequences != (file.leaf_blocks == 0 ? file.n_lists() : file.first_leaf[file.n_lists()]))
    throw std::invalid_argument("ids must have a sequence for each leaf");
  const std::size_t k = places.size() / m, n_probe = probes.size() / m;
  const std::uint64_t sequence_codes = file.leaf_blocks * kCodeBlock;
  parallel_for((m + kTask - 1) / kTask, n_threads, [&](std::size_t task, int) {
    std::vector<Probed> probed(n_probe);
    for (std::size_t q = task * kTask; q < std::min(m, (task + 1) * kTask); ++q) {
      for (std::size_t p = 0; p < n_probe; ++p) {
        const std::uint32_t list = probes[q * n_probe + p];
        if (list >= file.n_lists()) throw std::invalid_argument("a probe is out of range");
        probed[p] = {file.first_block[list], file.leaf_blocks == 0 ? list : file.first_leaf[list]};
      }
      // An empty list begins where the next one does, which has the later sequence.
      std::sort(probed.begin(), probed.end(), [](const Probed& a, const Probed& b) {
        return a.first_block != b.first_block ? a.first_block < b.first_block
                                              : a.first_sequence < b.first_sequence;
      });
      const float* squared = squared_distances.data() + q * k;
      std::int64_t* found = rows.data() + q * k;
      for (std::size_t i = 0; i < k && places[q * k + i] >= 0; ++i) {
        const auto place = static_cast<std::uint64_t>(places[q * k + i]);
        // The last list that begins at or before the place's block.
        std::size_t at = 0;
        for (std::size_t left = n_probe; left > 1;) {
          const std::size_t half = left / 2;
          at += probed[at + half].first_block <= place / kCodeBlock ? half : 0;
          left -= half;
        }
        std::uint64_t within = place - probed[at].first_block * kCodeBlock;
        std::uint64_t sequence = probed[at].first_sequence;
        if (file.leaf_blocks != 0) {
          sequence += within / sequence_codes;
          within %= sequence_codes;
        }
        const std::uint64_t n =
            sequence < n_sequences ? ids.firsts[sequence + 1] - ids.firsts[sequence] : 0;
        if (within >= n) throw std::invalid_argument("a place is not in the lists probed");
        found[i] = ids.ids.get(static_cast<std::size_t>(sequence), static_cast<std::size_t>(n),
                               static_cast<std::size_t>(within));
      }
      for (std::size_t i = 0; i < k && found[i] >= 0;) {
        std::size_t end = i + 1;
        while (end < k && found[end] >= 0 && squared[end] == squared[i]) ++end;
        if (end > i + 1) std::sort(found + i, found + end);
        i = end;
      }
    }
  });
  return rows;
}

}  // namespace delfsearch

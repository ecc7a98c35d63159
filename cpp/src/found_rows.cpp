#include "delfsearch/found_rows.hpp"

#include <algorithm>
#include <stdexcept>

#include "delfsearch/parallel.hpp"
#include "simd/ids_kernels.hpp"
#include "simd/scan_kernels.hpp"

namespace delfsearch {
namespace {

constexpr std::size_t kTask = 64;  // queries

constexpr std::size_t kMostAsked = 1024;  // bytes of a list

struct Probed {
  std::uint64_t first_block, first_sequence, size;
};

// Places of one sequence, begin to end in order.
struct Piece {
  std::size_t sequence, size, begin, end;
};

// One query's: the ids of places, sequence after sequence.
class Reader {
 public:
  Reader(const InvertedFileView& file, const ListIdsView& ids)
      : file_(file),
        ids_(ids),
        n_sequences_(ids.firsts.size() - 1),
        leaf_codes_(file.leaf_blocks * kCodeBlock) {}

  void probe(const std::uint32_t* lists, std::size_t n) {
    probed_.resize(n);
    for (std::size_t p = 0; p < n; ++p) {
      if (lists[p] >= file_.n_lists()) throw std::invalid_argument("a probe is out of range");
      probed_[p] = {file_.first_block[lists[p]],
                    file_.leaf_blocks == 0 ? lists[p] : file_.first_leaf[lists[p]],
                    file_.sizes[lists[p]]};
    }
    // An empty list begins where the next one does, which has the later sequence.
    std::sort(probed_.begin(), probed_.end(), [](const Probed& a, const Probed& b) {
      return a.first_block != b.first_block ? a.first_block < b.first_block
                                            : a.first_sequence < b.first_sequence;
    });
  }

  // That the ids of short lists be in the cache when they are read.
  void ask_for(const std::uint32_t* lists, std::size_t n) const {
    if (n > ids::kShortLists) return;
    for (std::size_t p = 0; p < n; ++p) {
      if (lists[p] >= file_.n_lists() || file_.sizes[lists[p]] == 0) continue;
      const std::uint64_t sequence = file_.leaf_blocks == 0 ? lists[p] : file_.first_leaf[lists[p]];
      const std::uint64_t begin = ids_.ids.starts[sequence], end = ids_.ids.starts[sequence + 1];
      scan::ask_for(ids_.ids.words.data() + begin,
                    std::min<std::size_t>(kMostAsked, 8 * static_cast<std::size_t>(end - begin)));
    }
  }

  void read(const std::int64_t* places, std::size_t n, std::int64_t* rows) {
    if (!open_short())
      read_in_order(places, n, rows);
    else if (!ids::kernels().get_each(short_, places, n, rows))
      throw std::invalid_argument("a place is not in the lists probed");
  }

 private:
  // Lists of one sequence each, all of them short.
  bool open_short() {
    if (probed_.size() > ids::kShortLists) return false;
    std::size_t n = 0;
    for (const Probed& probed : probed_) {
      const auto sequence = static_cast<std::size_t>(probed.first_sequence);
      const auto size = static_cast<std::size_t>(probed.size);
      if (size == 0) continue;
      if ((leaf_codes_ != 0 && size > leaf_codes_) ||
          !ids_.ids.open_short(sequence, size, short_.sequences[n]))
        return false;
      short_.starts[n] = static_cast<std::uint32_t>(probed.first_block * kCodeBlock);
      short_.sizes[n++] = static_cast<std::uint32_t>(size);
    }
    std::fill(short_.starts + n, short_.starts + ids::kShortLists, 0xffffffffu);
    std::fill(short_.sizes + n, short_.sizes + ids::kShortLists, 0u);
    return true;
  }

  void read_in_order(const std::int64_t* places, std::size_t n, std::int64_t* rows) {
    sort(places, n);
    at_.resize(n);
    found_.resize(n);
    pieces_.clear();
    std::size_t list = 0;
    for (std::size_t i = 0; i < n;) {
      // The last list that begins at or before the place's block.
      const std::uint64_t place = order_[i] >> 32;
      while (list + 1 < probed_.size() && probed_[list + 1].first_block <= place / kCodeBlock)
        ++list;
      std::uint64_t first = probed_[list].first_block * kCodeBlock;
      std::uint64_t sequence = probed_[list].first_sequence;
      if (leaf_codes_ != 0) {
        const std::uint64_t leaf = (place - first) / leaf_codes_;
        first += leaf * leaf_codes_;
        sequence += leaf;
      }
      const std::uint64_t size =
          sequence < n_sequences_ ? ids_.firsts[sequence + 1] - ids_.firsts[sequence] : 0;
      std::size_t end = i;
      for (; end < n && (order_[end] >> 32) - first < size; ++end)
        at_[end] = static_cast<std::uint32_t>((order_[end] >> 32) - first);
      if (end == i) throw std::invalid_argument("a place is not in the lists probed");
      pieces_.push_back(
          {static_cast<std::size_t>(sequence), static_cast<std::size_t>(size), i, end});
      ids_.ids.ask_for(pieces_.back().sequence, pieces_.back().size, at_.data() + i, end - i);
      i = end;
    }
    for (const Piece& piece : pieces_)
      ids_.ids.get_some(piece.sequence, piece.size, at_.data() + piece.begin,
                        piece.end - piece.begin, found_.data() + piece.begin);
    for (std::size_t i = 0; i < n; ++i) rows[order_[i] & 0xffffffffu] = found_[i];
  }

  // order_: place, then where it was given.
  void sort(const std::int64_t* places, std::size_t n) {
    order_.resize(n);
    if (n > scan::kMostRanked || file_.first_block[file_.n_lists()] > (1u << 31) / kCodeBlock) {
      for (std::size_t i = 0; i < n; ++i)
        order_[i] = static_cast<std::uint64_t>(places[i]) << 32 | i;
      std::sort(order_.begin(), order_.end());
      return;
    }
    std::uint32_t keys[scan::kMostRanked + scan::kRoom], ranks[scan::kMostRanked + scan::kRoom];
    for (std::size_t i = 0; i < n; ++i) keys[i] = static_cast<std::uint32_t>(places[i]);
    std::fill(keys + n, keys + n + scan::kRoom, 0u);
    kernels_.ranks(keys, n, ranks);
    for (std::size_t i = 0; i < n; ++i)
      order_[ranks[i]] = static_cast<std::uint64_t>(keys[i]) << 32 | i;
  }

  const scan::Kernels& kernels_ = scan::kernels();
  const InvertedFileView& file_;
  const ListIdsView& ids_;
  std::size_t n_sequences_;
  std::uint64_t leaf_codes_;
  std::vector<Probed> probed_;
  std::vector<std::uint64_t> order_;
  std::vector<Piece> pieces_;
  std::vector<std::uint32_t> at_, found_;
  ids::ShortLists short_;
};

void order_ties(const float* squared, std::int64_t* rows, std::size_t n) {
  for (std::size_t i = 0; i < n;) {
    std::size_t end = i + 1;
    while (end < n && squared[end] == squared[i]) ++end;
    if (end > i + 1) std::sort(rows + i, rows + end);
    i = end;
  }
}

}  // namespace

std::vector<std::int64_t> rows_of_places(const InvertedFileView& file, const ListIdsView& ids,
                                         Span<const std::uint32_t> probes, std::size_t m,
                                         Span<const float> squared_distances,
                                         Span<const std::int64_t> places, int n_threads) {
  std::vector<std::int64_t> rows(places.size(), -1);
  if (m == 0) return rows;
  if (places.size() % m != 0 || probes.size() % m != 0 || squared_distances.size() != places.size())
    throw std::invalid_argument("places and distances must be (m, k), probes (m, n_probe)");
  const std::size_t n_sequences = file.leaf_blocks == 0
                                      ? file.n_lists()
                                      : static_cast<std::size_t>(file.first_leaf[file.n_lists()]);
  if (ids.firsts.size() != n_sequences + 1)
    throw std::invalid_argument("ids must have a sequence for each leaf");
  const std::size_t k = places.size() / m, n_probe = probes.size() / m;
  parallel_for((m + kTask - 1) / kTask, n_threads, [&](std::size_t task, int) {
    Reader reader(file, ids);
    for (std::size_t q = task * kTask; q < std::min(m, (task + 1) * kTask); ++q) {
      const std::int64_t* own = places.data() + q * k;
      std::size_t n = 0;
      for (; n < k && own[n] >= 0; ++n)
        if (own[n] >> 32 != 0) throw std::invalid_argument("a place is not in the lists probed");
      if (q + 1 < m) reader.ask_for(probes.data() + (q + 1) * n_probe, n_probe);
      reader.probe(probes.data() + q * n_probe, n_probe);
      reader.read(own, n, rows.data() + q * k);
      order_ties(squared_distances.data() + q * k, rows.data() + q * k, n);
    }
  });
  return rows;
}

}  // namespace delfsearch

#include "delfsearch/inverted_file.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <stdexcept>

#include "bits.hpp"
#include "delfsearch/parallel.hpp"
#include "simd/scan_kernels.hpp"

namespace delfsearch {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr std::size_t kChunkBlocks =
    32;  // between two looks at the limit; they fit the first cache

struct Candidate {
  float distance;
  std::uint64_t place;
  bool operator<(const Candidate& other) const {
    return distance != other.distance ? distance < other.distance : place < other.place;
  }
};

// The k best so far, and some more.
class Best {
 public:
  void reset(std::size_t k) {
    k_ = k;
    limit_ = kInfinity;
    found_.clear();
    found_.reserve(2 * k + kCodeBlock);
    scanned = 0;
  }
  float limit() const { return limit_; }
  void add(float distance, std::uint64_t place) { found_.push_back({distance, place}); }
  // To be called after at most 64 additions.
  void trim() {
    if (found_.size() < 2 * k_ && !(limit_ == kInfinity && found_.size() >= k_)) return;
    cut();
  }
  void cut() {
    if (found_.size() < k_) return;
    std::nth_element(found_.begin(), found_.begin() + static_cast<std::ptrdiff_t>(k_ - 1),
                     found_.end());
    found_.resize(k_);
    limit_ = found_[k_ - 1].distance;
  }
  void write(float* distances, std::int64_t* places) {
    cut();
    std::sort(found_.begin(), found_.end());
    for (std::size_t i = 0; i < k_; ++i) {
      distances[i] = i < found_.size() ? found_[i].distance : kInfinity;
      places[i] = i < found_.size() ? static_cast<std::int64_t>(found_[i].place) : -1;
    }
  }
  std::size_t scanned = 0;  // codes

 private:
  std::size_t k_ = 0;
  float limit_ = kInfinity;
  std::vector<Candidate> found_;
};

// One query at one list.
struct Visit {
  Best* best = nullptr;
  std::vector<float> table;          // (n_parts, n_centroids)
  std::vector<std::uint8_t> bytes;   // the same, rounded down, of `unit`
  std::vector<float> least;          // of each part
  double base = 0.0;                 // sum of them
  double unit = 0.0;                 // 0: bytes are not made
  float limit_of_bytes = kInfinity;  // the limit that they were made for

  // The largest sum of bytes that a code within the limit can have.
  unsigned byte_limit() const {
    // A float sum of up to 4,096 entries is off by less than 1e-3 of itself.
    const double room = static_cast<double>(best->limit()) * (1.0 + slack()) - base;
    return room < 0.0 ? 0u : static_cast<unsigned>(std::min(room / unit, 254.0));
  }
  double slack() const { return 1.2e-7 * static_cast<double>(least.size() + 2); }

  void make_bytes(std::size_t n_centroids) {
    const double room = static_cast<double>(best->limit()) * (1.0 + slack()) - base;
    unit = std::max({room, static_cast<double>(best->limit()) * 1e-6, 1e-30}) / 253.0;
    const float scale = static_cast<float>((1.0 - 1e-6) / unit);
    limit_of_bytes = best->limit();
    for (std::size_t part = 0; part < least.size(); ++part) {
      const float* from = table.data() + part * n_centroids;
      std::uint8_t* to = bytes.data() + part * n_centroids;
      for (std::size_t c = 0; c < n_centroids; ++c) {
        const float value = (from[c] - least[part]) * scale;
        to[c] = static_cast<std::uint8_t>(value < 255.0f ? value : 255.0f);
      }
    }
  }
};

class Scan {
 public:
  Scan(const InvertedFileView& file, const ScanOptions& options)
      : file_(file),
        options_(options),
        kernels_(scan::kernels()),
        code_(file.quantizer.code),
        residual_(padded_outputs(file.quantizer.d)),
        visits_(scan::kTogether),
        passed_(kChunkBlocks * scan::kTogether) {
    for (Visit& visit : visits_) {
      visit.table.resize(file.quantizer.table_size());
      visit.bytes.resize(file.quantizer.table_size());
      visit.least.resize(code_.n_parts);
    }
  }

  // Scans a list for up to kTogether queries.
  void list(std::size_t list, const float* const* queries, Best* const* best, std::size_t n) {
    if (!any_allowed(file_.first_block[list], file_.first_block[list + 1])) return;
    std::size_t n_visits = 0;
    for (std::size_t q = 0; q < n; ++q) {
      Visit& visit = visits_[n_visits];
      visit.best = best[q];
      distance_table(file_.quantizer, queries[q], list, residual_.data(), visit.table.data());
      visit.base = 0.0;
      for (std::size_t part = 0; part < code_.n_parts; ++part) {
        const float* entries = visit.table.data() + part * code_.n_centroids();
        visit.least[part] = *std::min_element(entries, entries + code_.n_centroids());
        visit.base += static_cast<double>(visit.least[part]);
      }
      visit.unit = 0.0;
      if (visit.base <= static_cast<double>(visit.best->limit()) * (1.0 + visit.slack()))
        ++n_visits;
    }
    if (n_visits == 0) return;
    const std::size_t begin = file_.first_block[list], end = file_.first_block[list + 1];
    last_block_ = end - 1;
    const std::size_t tail = file_.sizes[list] % kCodeBlock;
    tail_ = tail == 0 ? ~std::uint64_t{0} : (std::uint64_t{1} << tail) - 1;
    if (file_.leaf_blocks == 0) {
      Visit* all[scan::kTogether];
      for (std::size_t v = 0; v < n_visits; ++v) all[v] = &visits_[v];
      blocks(begin, end, all, n_visits);
    } else {
      leaves(list, begin, end, n_visits);
    }
  }

 private:
  const InvertedFileView& file_;
  const ScanOptions& options_;
  const scan::Kernels& kernels_;
  const ProductCode code_;
  std::vector<float> residual_;
  std::vector<Visit> visits_;
  std::vector<scan::Passed> passed_;
  std::size_t last_block_ = 0;
  std::uint64_t tail_ = 0;  // codes of the last block
  std::vector<float> bounds_;
  std::vector<char> open_;  // leaves with anything allowed
  std::vector<std::uint32_t> order_;
  float distances_[kCodeBlock];

  const std::uint8_t* block(std::size_t number) const {
    return file_.blocks.data() + number * code_.block_bytes();
  }

  bool any_allowed(std::size_t begin, std::size_t end) const {
    if (options_.allowed.empty()) return true;
    std::uint64_t any = 0;
    for (std::size_t b = begin; b < end; ++b) any |= options_.allowed[b];
    return any != 0;
  }

  // codes: those that matter, one bit each.
  void exact(std::size_t number, Visit& visit, std::uint64_t codes = ~std::uint64_t{0}) {
    if (!options_.allowed.empty() && (options_.allowed[number] & codes) == 0) return;
    std::uint64_t within = kernels_.distances(code_, block(number), visit.table.data(),
                                              visit.best->limit(), distances_);
    if (number == last_block_) within &= tail_;
    if (!options_.allowed.empty()) within &= options_.allowed[number];
    if (within == 0) return;
    for (; within != 0; within &= within - 1) {
      const auto place = static_cast<std::size_t>(lowest_bit(within));
      visit.best->add(distances_[place], number * kCodeBlock + place);
    }
    visit.best->trim();
  }

  void blocks(std::size_t begin, std::size_t end, Visit* const* visits, std::size_t n) {
    for (std::size_t from = begin; from < end; from += kChunkBlocks) {
      const std::size_t to = std::min(end, from + kChunkBlocks);
      scan::ByteTable tables[scan::kTogether];
      Visit* filtered[scan::kTogether];
      std::size_t n_filtered = 0;
      for (std::size_t v = 0; v < n; ++v) {
        Visit& visit = *visits[v];
        // Where most blocks would pass, the filter is for nothing.
        const std::size_t useful = 2 * kCodeBlock * options_.k;
        visit.best->scanned += (to - from) * kCodeBlock;
        if (visit.best->limit() == kInfinity || visit.best->scanned < useful) {
          for (std::size_t b = from; b < to; ++b) exact(b, visit);
          continue;
        }
        // Finer bytes once the limit has come down to half of their range.
        if (visit.unit == 0.0 || visit.byte_limit() < 127) visit.make_bytes(code_.n_centroids());
        tables[n_filtered] = {visit.bytes.data(), static_cast<std::uint8_t>(visit.byte_limit())};
        filtered[n_filtered++] = &visit;
      }
      if (n_filtered == 0) continue;
      const std::size_t n_passed =
          kernels_.may_pass(code_, block(from), to - from, tables, n_filtered, passed_.data());
      for (std::size_t i = 0; i < n_passed; ++i)
        exact(from + passed_[i].block, *filtered[passed_[i].query], passed_[i].codes);
    }
  }

  // No code of the leaf is nearer.
  float bound(std::size_t leaf, const Visit& visit) const {
    const std::size_t words = (code_.n_centroids() + 31) / 32;
    const std::uint32_t* present = file_.present.data() + leaf * code_.n_parts * words;
    float sum = 0.0f;
    for (std::size_t part = 0; part < code_.n_parts; ++part) {
      float least = kInfinity;
      const float* entries = visit.table.data() + part * code_.n_centroids();
      for (std::size_t c = 0; c < code_.n_centroids(); ++c) {
        const bool here = present[part * words + c / 32] >> c % 32 & 1u;
        least = std::min(least, here ? entries[c] : kInfinity);
      }
      sum = sum + least;
    }
    return sum;
  }

  void leaves(std::size_t list, std::size_t begin, std::size_t end, std::size_t n_visits) {
    const std::size_t first = file_.first_leaf[list], n = file_.first_leaf[list + 1] - first;
    const std::size_t most = options_.max_leaves == 0 ? n : std::min(n, options_.max_leaves);
    bounds_.resize(n_visits * n);
    open_.resize(n);
    for (std::size_t leaf = 0; leaf < n; ++leaf) {
      const std::size_t from = begin + leaf * file_.leaf_blocks;
      open_[leaf] = any_allowed(from, std::min(end, from + file_.leaf_blocks));
    }
    std::vector<float> limits(n_visits), by_leaf(n, kInfinity);
    for (std::size_t v = 0; v < n_visits; ++v) {
      float* bounds = bounds_.data() + v * n;
      for (std::size_t leaf = 0; leaf < n; ++leaf)
        bounds[leaf] = open_[leaf] ? bound(first + leaf, visits_[v]) : kInfinity;
      // The bound of the last leaf that this query may visit; ties are visited too.
      std::vector<float> sorted(bounds, bounds + n);
      std::nth_element(sorted.begin(), sorted.begin() + static_cast<std::ptrdiff_t>(most - 1),
                       sorted.end());
      limits[v] = sorted[most - 1];
      for (std::size_t leaf = 0; leaf < n; ++leaf)
        if (bounds[leaf] <= limits[v]) by_leaf[leaf] = std::min(by_leaf[leaf], bounds[leaf]);
    }
    order_.resize(n);
    std::iota(order_.begin(), order_.end(), 0u);
    std::sort(order_.begin(), order_.end(), [&](std::uint32_t a, std::uint32_t b) {
      return by_leaf[a] != by_leaf[b] ? by_leaf[a] < by_leaf[b] : a < b;
    });
    for (const std::uint32_t leaf : order_) {
      if (by_leaf[leaf] == kInfinity) break;
      Visit* wanted[scan::kTogether];
      std::size_t n_wanted = 0;
      for (std::size_t v = 0; v < n_visits; ++v) {
        const float b = bounds_[v * n + leaf];
        if (b <= limits[v] && b <= visits_[v].best->limit()) wanted[n_wanted++] = &visits_[v];
      }
      if (n_wanted == 0) continue;
      const std::size_t from = begin + leaf * file_.leaf_blocks;
      blocks(from, std::min(end, from + file_.leaf_blocks), wanted, n_wanted);
    }
  }
};

}  // namespace

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

CodeNeighbours scan_lists(const InvertedFileView& file, Span<const float> queries,
                          Span<const std::uint32_t> probes, const ScanOptions& options) {
  const std::size_t d = file.quantizer.d;
  if (d == 0 || queries.size() % d != 0) throw std::invalid_argument("queries must be (m, d)");
  const std::size_t m = queries.size() / d, k = options.k;
  if (k < 1) throw std::invalid_argument("k must be at least 1");
  CodeNeighbours found{std::vector<float>(m * k, kInfinity), std::vector<std::int64_t>(m * k, -1)};
  if (m == 0) return found;
  if (probes.size() % m != 0) throw std::invalid_argument("probes must be (m, n_probe)");
  const std::size_t n_probe = probes.size() / m;
  for (const std::uint32_t list : probes)
    if (list >= file.n_lists()) throw std::invalid_argument("a probe is out of range");
  if (!options.allowed.empty() && options.allowed.size() != file.first_block[file.n_lists()])
    throw std::invalid_argument("allowed must have a bit for each place");

  // Threads take runs of queries, of those that begin in the same lists next to each other.
  const std::size_t threads = static_cast<std::size_t>(resolve_threads(options.n_threads));
  std::vector<std::uint32_t> by_list(m);
  std::iota(by_list.begin(), by_list.end(), 0u);
  std::stable_sort(by_list.begin(), by_list.end(), [&](std::uint32_t a, std::uint32_t b) {
    return probes[a * n_probe] < probes[b * n_probe];
  });
  const std::size_t n_runs = std::min(m, threads == 1 ? 1 : 4 * threads);
  parallel_for(n_runs, options.n_threads, [&](std::size_t run, int) {
    const std::size_t begin = run * m / n_runs, end = (run + 1) * m / n_runs;
    std::vector<Best> best(end - begin);
    for (Best& one : best) one.reset(k);
    Scan scan(file, options);
    struct Pair {
      std::uint32_t list, query;  // place in the run
    };
    std::vector<Pair> pairs;
    // First everyone's nearest list, for limits that keep the rest short; then the others.
    for (int pass = 0; pass < 2; ++pass) {
      pairs.clear();
      for (std::size_t i = begin; i < end; ++i)
        for (std::size_t p = pass == 0 ? 0 : 1;
             p < (pass == 0 ? std::min<std::size_t>(1, n_probe) : n_probe); ++p)
          pairs.push_back(
              {probes[by_list[i] * n_probe + p], static_cast<std::uint32_t>(i - begin)});
      std::stable_sort(pairs.begin(), pairs.end(),
                       [](const Pair& a, const Pair& b) { return a.list < b.list; });
      for (std::size_t at = 0; at < pairs.size();) {
        const float* rows[scan::kTogether];
        Best* state[scan::kTogether];
        std::size_t n = 0;
        const std::uint32_t list = pairs[at].list;
        for (; at < pairs.size() && pairs[at].list == list && n < scan::kTogether; ++at, ++n) {
          rows[n] = queries.data() + by_list[begin + pairs[at].query] * d;
          state[n] = &best[pairs[at].query];
        }
        if (file.sizes[list] > 0) scan.list(list, rows, state, n);
      }
    }
    for (std::size_t i = begin; i < end; ++i)
      best[i - begin].write(found.squared_distances.data() + by_list[i] * k,
                            found.places.data() + by_list[i] * k);
  });
  return found;
}

}  // namespace delfsearch

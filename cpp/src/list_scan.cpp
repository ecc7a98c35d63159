#include "list_scan.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace delfsearch {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
// Between two looks at the limit; they fit the first cache.
constexpr std::size_t kChunkBlocks = 32;
// Of the next list: longer ones are read leaf by leaf.
constexpr std::size_t kMostAsked = 4096;

}  // namespace

unsigned Visit::byte_limit() const {
  const double left = room();
  return left < 0.0 ? 0u : static_cast<unsigned>(std::min(left / unit, 254.0));
}

void Visit::make_bytes(const ProductCode& code, const scan::Kernels& kernels) {
  unit = std::max({room(), static_cast<double>(nearest->limit()) * 1e-6, 1e-30}) / 253.0;
  kernels.round_down(code, table, least, static_cast<float>((1.0 - 1e-6) / unit), bytes.data());
}

ListScan::ListScan(const InvertedFileView& file, const ScanOptions& options)
    : file_(file),
      options_(options),
      kernels_(scan::kernels()),
      code_(file.quantizer.code),
      axes_(file.quantizer),
      scratch_(table_scratch(file.quantizer, scan::kTogether)),
      tables_(scan::kTogether * file.quantizer.table_size()),
      least_(scan::kTogether * code_.n_parts),
      values_(kChunkBlocks * kCodeBlock + scan::kRoom),
      visits_(scan::kTogether),
      passed_(kChunkBlocks * scan::kTogether),
      places_(kChunkBlocks * kCodeBlock + scan::kRoom) {
  for (std::size_t v = 0; v < scan::kTogether; ++v) {
    visits_[v].table = tables_.data() + v * file.quantizer.table_size();
    visits_[v].least = least_.data() + v * code_.n_parts;
    visits_[v].n_parts = code_.n_parts;
    visits_[v].bytes.resize(file.quantizer.table_size());
  }
}

void ListScan::list(std::size_t list, const float* const* queries, NearestCodes* const* nearest,
                    std::size_t n) {
  const std::size_t begin = file_.first_block[list], end = file_.first_block[list + 1];
  if (!any_allowed(begin, end)) return;
  axes_.open(list);
  distance_tables(file_.quantizer, axes_, queries, n, scratch_.data(), tables_.data(),
                  least_.data());
  Visit* wanted[scan::kTogether];
  std::size_t n_wanted = 0;
  for (std::size_t v = 0; v < n; ++v) {
    Visit& visit = visits_[v];
    visit.nearest = nearest[v];
    visit.unit = visit.base = 0.0;
    for (std::size_t part = 0; part < code_.n_parts; ++part)
      visit.base += static_cast<double>(visit.least[part]);
    if (visit.room() >= 0.0) wanted[n_wanted++] = &visit;
  }
  if (n_wanted == 0) return;
  last_block_ = end - 1;
  const std::size_t tail = file_.sizes[list] % kCodeBlock;
  tail_ = tail == 0 ? ~std::uint64_t{0} : (std::uint64_t{1} << tail) - 1;
  // A single leaf has nothing to be ordered, and little to be left out.
  if (file_.leaf_blocks == 0 || end - begin <= file_.leaf_blocks)
    blocks(begin, end, nullptr, wanted, n_wanted);
  else
    leaves(list, begin, end, wanted, n_wanted);
}

void ListScan::ask_for(std::size_t list) const {
  axes_.ask_for(list);
  const std::size_t bytes =
      (file_.first_block[list + 1] - file_.first_block[list]) * code_.block_bytes();
  scan::ask_for(file_.blocks.data() + file_.first_block[list] * code_.block_bytes(),
                std::min(bytes, kMostAsked));
}

bool ListScan::any_allowed(std::size_t begin, std::size_t end) const {
  if (options_.allowed.empty()) return true;
  std::uint64_t any = 0;
  for (std::size_t b = begin; b < end; ++b) any |= options_.allowed[b];
  return any != 0;
}

// Leaves out what fills up the last block and what is not allowed.
std::size_t ListScan::only_allowed(std::size_t from, scan::Passed* passed, std::size_t n) const {
  if (n == 0) return 0;
  if (passed[n - 1].block + from == last_block_) passed[n - 1].codes &= tail_;
  if (options_.allowed.empty()) return n;
  std::size_t kept = 0;
  for (std::size_t i = 0; i < n; ++i) {
    passed[kept] = passed[i];
    passed[kept].codes &= options_.allowed[from + passed[i].block];
    kept += passed[kept].codes != 0;
  }
  return kept;
}

void ListScan::blocks(std::size_t begin, std::size_t end, const std::uint8_t* after,
                      Visit* const* visits, std::size_t n) {
  const std::size_t n_chunks = (end - begin + kChunkBlocks - 1) / kChunkBlocks;
  for (std::size_t c = 0; c < n_chunks; ++c) {
    const std::size_t from = begin + c * (end - begin) / n_chunks;
    const std::size_t count = begin + (c + 1) * (end - begin) / n_chunks - from;
    const std::uint8_t* chunk = file_.blocks.data() + from * code_.block_bytes();
    const std::uint8_t* next = c + 1 < n_chunks ? chunk + count * code_.block_bytes() : after;
    scan::ByteTable tables[scan::kTogether];
    scan::Passed* out[scan::kTogether];
    std::size_t counts[scan::kTogether] = {};
    std::size_t slot_of[scan::kTogether];
    std::size_t n_filtered = 0;
    for (std::size_t v = 0; v < n; ++v) {
      Visit& visit = *visits[v];
      // Where most blocks would pass, the filter is for nothing.
      const std::size_t useful = kernels_.filter_after * options_.k;
      visit.nearest->scanned += count * kCodeBlock;
      slot_of[v] = scan::kTogether;
      if (visit.nearest->limit() == kInfinity || visit.nearest->scanned < useful) continue;
      // Finer bytes once the limit has come down to half of their range.
      if (visit.unit == 0.0 || visit.byte_limit() < 127) visit.make_bytes(code_, kernels_);
      tables[n_filtered] = {visit.bytes.data(), static_cast<std::uint8_t>(visit.byte_limit())};
      out[n_filtered] = passed_.data() + v * kChunkBlocks;
      slot_of[v] = n_filtered++;
    }
    if (n_filtered > 0)
      kernels_.may_pass(code_, chunk, count, next, tables, n_filtered, out, counts);
    for (std::size_t v = 0; v < n; ++v) {
      NearestCodes& nearest = *visits[v]->nearest;
      scan::Passed* passed = passed_.data() + v * kChunkBlocks;
      std::size_t n_passed = count;
      if (slot_of[v] < scan::kTogether)
        n_passed = counts[slot_of[v]];
      else
        for (std::size_t b = 0; b < count; ++b)
          passed[b] = {~std::uint64_t{0}, static_cast<std::uint32_t>(b)};
      n_passed = only_allowed(from, passed, n_passed);
      if (n_passed == 0) continue;
      const std::size_t found = kernels_.distances(
          code_, chunk, passed, n_passed, visits[v]->table, nearest.limit(),
          static_cast<std::uint32_t>(from * kCodeBlock), values_.data(), places_.data());
      nearest.take(kernels_, values_.data(), places_.data(), found);
    }
  }
}

void ListScan::leaves(std::size_t list, std::size_t begin, std::size_t end, Visit* const* visits,
                      std::size_t n_visits) {
  const std::size_t words = (code_.n_centroids() + 31) / 32;
  const std::size_t first = file_.first_leaf[list], n = file_.first_leaf[list + 1] - first;
  const std::size_t most = options_.max_leaves == 0 ? n : std::min(n, options_.max_leaves);
  const auto block_of = [&](std::size_t leaf) {
    return std::min(end, begin + leaf * file_.leaf_blocks);
  };
  float limits[scan::kTogether];
  bounds_.resize(n_visits * n);
  by_leaf_.assign(n, kInfinity);
  for (std::size_t v = 0; v < n_visits; ++v) {
    float* bounds = bounds_.data() + v * n;
    kernels_.leaf_bounds(code_, file_.present.data() + first * code_.n_parts * words, n,
                         visits[v]->table, bounds);
    if (!options_.allowed.empty())
      for (std::size_t leaf = 0; leaf < n; ++leaf)
        if (!any_allowed(block_of(leaf), block_of(leaf + 1))) bounds[leaf] = kInfinity;
    limits[v] = kInfinity;
    if (most < n) {
      // The bound of the last leaf that this query may visit; ties are visited too.
      sorted_.assign(bounds, bounds + n);
      const auto last = sorted_.begin() + static_cast<std::ptrdiff_t>(most - 1);
      std::nth_element(sorted_.begin(), last, sorted_.end());
      limits[v] = *last;
    }
    const float kth = options_.eps > 0.0 ? visits[v]->nearest->kth(sorted_) : kInfinity;
    if (kth < kInfinity) {
      const double reach = static_cast<double>(kth) / (1.0 + options_.eps) / (1.0 + options_.eps);
      limits[v] = std::min(limits[v], static_cast<float>(reach));
    }
    for (std::size_t leaf = 0; leaf < n; ++leaf)
      if (bounds[leaf] <= limits[v]) by_leaf_[leaf] = std::min(by_leaf_[leaf], bounds[leaf]);
  }
  order_.resize(n);
  std::iota(order_.begin(), order_.end(), 0u);
  std::sort(order_.begin(), order_.end(), [&](std::uint32_t a, std::uint32_t b) {
    return by_leaf_[a] != by_leaf_[b] ? by_leaf_[a] < by_leaf_[b] : a < b;
  });
  for (std::size_t i = 0; i < n; ++i) {
    const std::uint32_t leaf = order_[i];
    if (by_leaf_[leaf] == kInfinity) break;
    Visit* wanted[scan::kTogether];
    std::size_t n_wanted = 0;
    for (std::size_t v = 0; v < n_visits; ++v) {
      const float bound = bounds_[v * n + leaf];
      if (bound <= limits[v] && bound <= visits[v]->nearest->limit())
        wanted[n_wanted++] = visits[v];
    }
    const std::uint8_t* after =
        i + 1 < n ? file_.blocks.data() + block_of(order_[i + 1]) * code_.block_bytes() : nullptr;
    if (n_wanted > 0) blocks(block_of(leaf), block_of(leaf + 1), after, wanted, n_wanted);
  }
}

}  // namespace delfsearch

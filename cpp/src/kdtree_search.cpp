// The batch search: rank leaves, group (leaf, query) pairs by leaf, scan, select. See kdtree.hpp
// for what is computed; here is only the order in which it is done, which the result does not
// depend on.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "delfsearch/kdtree.hpp"
#include "delfsearch/parallel.hpp"
#include "kdtree_encode.hpp"
#include "kdtree_plan.hpp"
#include "simd/kdtree_kernels.hpp"

namespace delfsearch {
namespace {

using kdtree::FilterHead;
using kdtree::Group;
using kdtree::kernels;
using kdtree::kGroupRows;
using kdtree::Plan;
using kdtree::prefetch;
using kdtree::Query;
using kdtree::Scratch;
using kdtree::Slack;
using kdtree::Survivor;
using kdtree::Workspace;

constexpr std::size_t kRankTogether = 16;  // queries whose leaf scores fit the cache together
constexpr std::size_t kMaxBatch = 1024;    // queries that share one pass over the leaves
constexpr std::size_t kMaxScores = std::size_t{1} << 22;
constexpr std::size_t kMaxPending = std::size_t{1} << 25;  // rows kept by all queries of a batch
constexpr std::size_t kMaxPairs = std::size_t{1} << 21;
constexpr std::size_t kCacheLine = 64;
constexpr float kUnlimited = std::numeric_limits<float>::max();

// (D, id) as one integer: D >= 0, so its bits order like its value.
std::uint64_t neighbour_key(float squared_distance, std::uint32_t id) {
  std::uint32_t bits;
  std::memcpy(&bits, &squared_distance, 4);
  return static_cast<std::uint64_t>(bits) << 32 | id;
}

// The state of one group of queries; memory is reused from group to group of a thread.
class Batch {
 public:
  Batch(const Plan& plan, std::size_t max_queries, Workspace& w)
      : plan_(plan),
        padded_(plan.d4 * 4),
        pending_stride_(plan.capacity + kKdTreeBlock),
        record_stride_((sizeof(FilterHead) + padded_ + kCacheLine - 1) / kCacheLine * kCacheLine),
        queries_(w.queries),
        base_(w.base),
        slack_(w.slack),
        bytes_(w.bytes),
        fine_(w.fine),
        pending_(w.pending),
        pending_row_(w.pending_row),
        record_bytes_(w.record_bytes),
        survivors_(w.survivors),
        v_(w.v),
        scores_(w.scores),
        values_(w.values),
        leaves_(w.leaves),
        wanted_(w.wanted),
        members_(w.members),
        starts_(w.starts) {
    queries_.resize(max_queries);
    base_.resize(max_queries);
    slack_.resize(max_queries);
    bytes_.resize(max_queries * padded_ * 2);
    fine_.resize(max_queries * padded_);
    pending_.resize(max_queries * pending_stride_);
    pending_row_.resize(max_queries * pending_stride_);
    survivors_.resize(max_queries);
    v_.resize(plan.d);
    record_bytes_.resize(max_queries * record_stride_ + kCacheLine);
    const auto address = reinterpret_cast<std::uintptr_t>(record_bytes_.data());
    records_ = record_bytes_.data() + (kCacheLine - address % kCacheLine) % kCacheLine;
  }

  void run(const float* rows, std::size_t n_queries, float* squared_distances, std::int64_t* ids,
           std::size_t k_out) {
    n_queries_ = n_queries;
    for (std::size_t q = 0; q < n_queries; ++q) prepare(q, rows + q * plan_.d);
    rank_leaves();
    if (plan_.exhaustive)
      scan_everything();
    else
      scan_wanted_leaves();
    // The ids of one query's rows are fetched while the one before is finished.
    narrow(0);
    for (std::size_t q = 0; q < n_queries; ++q) {
      if (q + 1 < n_queries) narrow(q + 1);
      finish(q, squared_distances + q * k_out, ids + q * k_out, k_out);
    }
  }

 private:
  FilterHead* head(std::size_t q) {
    return reinterpret_cast<FilterHead*>(records_ + q * record_stride_);
  }

  void prepare(std::size_t q, const float* row) {
    double norm = 0, largest = 0, total = 0;
    for (std::size_t i = 0; i < plan_.d; ++i) {
      const double r = static_cast<double>(row[i]) - plan_.middle[i];
      norm += r * r;
      v_[i] = r * static_cast<double>(plan_.tree.step[i]);
      largest = std::max(largest, std::fabs(v_[i]));
      total += std::fabs(v_[i]);
    }
    const double unit = kdtree::unit_of(largest, total);
    std::int8_t* high = bytes_.data() + q * padded_ * 2;
    std::int8_t* low = high + padded_;
    std::int8_t* coarse = reinterpret_cast<std::int8_t*>(head(q) + 1);
    std::int16_t* fine = fine_.data() + q * padded_;
    const int coarse_step = kernels().coarse_step;
    std::int32_t high_sum = 0, fine_sum = 0, coarse_sum = 0;
    double rest_norm = 0, rest_total = 0;
    for (std::size_t i = 0; i < plan_.d; ++i) {
      const int v = kdtree::fine_part(v_[i], unit);
      const int h = kdtree::high_part(v);
      const int c = coarse_step == 256 ? h : (v + 256) >> 9;
      const int rest = v - coarse_step * c;
      fine[i] = static_cast<std::int16_t>(v);
      high[i] = static_cast<std::int8_t>(h);
      low[i] = static_cast<std::int8_t>(v - 256 * h);
      coarse[i] = static_cast<std::int8_t>(c);
      fine_sum += v;
      high_sum += h;
      coarse_sum += c;
      const double weighted = static_cast<double>(rest) * plan_.inverse_step[i];
      rest_norm += weighted * weighted;
      rest_total += std::abs(rest);
    }
    // Codes of padding are 0 to some kernels and -128 to others: the words decide.
    for (std::size_t i = plan_.d; i < padded_; ++i) {
      fine[i] = 0;
      high[i] = low[i] = coarse[i] = 0;
    }
    Query& query = queries_[q];
    query.high = high;
    query.low = low;
    query.fine = fine;
    query.high_offset = 128 * high_sum;
    query.fine_offset = 128 * fine_sum;
    head(q)->offset = 128 * coarse_sum;
    query.scale = static_cast<float>(2 * unit);
    query.rank_scale = 256 * query.scale;
    query.count = 0;
    query.pending = pending_.data() + q * pending_stride_;
    query.pending_row = pending_row_.data() + q * pending_stride_;
    base_[q] = static_cast<float>(norm);
    bound_rest(q, std::sqrt(rest_norm), rest_total, coarse_step);
    set_limit(q, kUnlimited);
  }

  // The filter sees C = norm - scale * coarse_step * sum coarse (c - 128); P differs from it by
  // scale * |sum rest (c - 128)|, which is at most (a) scale * 128 * sum |rest|, and by Cauchy and
  // Schwarz at most (b) scale * |rest / step| * sqrt(norm), where sqrt(norm) <= (norm / m + m) / 2
  // for any m > 0. So P <= limit implies, for (b) with e = scale * |rest / step| / 2,
  //   norm (1 - e / m) - scale * coarse_step * sum <= limit + e m.
  void bound_rest(std::size_t q, double rest_norm, double rest_total, int coarse_step) {
    Query& query = queries_[q];
    const double scale = static_cast<double>(query.scale);
    const double m = std::sqrt(plan_.typical_norm);
    const double e = scale * rest_norm / 2;
    const double by_total = scale * 128 * rest_total;
    Slack& slack = slack_[q];
    // Float rounding, of P and of the filter's own arithmetic.
    slack.rounding = 4e-6 * (static_cast<double>(base_[q]) + plan_.largest_norm);
    if (m > 0 && e < 0.5 * m && 2 * e * m < by_total) {
      slack.divisor = 1 - e / m;
      slack.added = e * m;
    } else {
      slack.divisor = 1;
      slack.added = by_total;
    }
    head(q)->scale = static_cast<float>(scale * coarse_step / slack.divisor);
  }

  void set_limit(std::size_t q, float limit) {
    Query& query = queries_[q];
    query.limit = limit;
    const Slack& slack = slack_[q];
    if (limit == kUnlimited)
      head(q)->limit = kUnlimited;
    else
      head(q)->limit = static_cast<float>(
          (static_cast<double>(limit) + slack.added + slack.rounding) / slack.divisor);
  }

  // Scores all leaves for a few queries at a time and keeps each query's best leaves in wanted_.
  // Its first few are scanned at once, which gives the query a limit, but one query later: by then
  // their codes have been fetched.
  void rank_leaves() {
    const std::size_t stride = plan_.leaf_blocks * kKdTreeBlock;
    const std::size_t together =
        std::max<std::size_t>(1, std::min(kRankTogether, kMaxScores / stride));
    scores_.resize(together * stride);
    values_.resize(stride + kKdTreeBlock);
    leaves_.resize(stride + kKdTreeBlock);
    wanted_.resize(n_queries_ * plan_.leaves_ranked);
    for (std::size_t begin = 0; begin < n_queries_; begin += together) {
      const std::size_t n = std::min(together, n_queries_ - begin);
      kernels().rank(plan_.tree.leaf_codes.data(), plan_.tree.leaf_norms.data(), plan_.leaf_blocks,
                     plan_.d4, queries_.data() + begin, n, scores_.data(), stride);
      for (std::size_t i = 0; i < n; ++i) {
        keep_wanted(begin + i, best_leaves(scores_.data() + i * stride));
        if (begin + i > 0) look_at_first_leaves(begin + i - 1);
      }
    }
    look_at_first_leaves(n_queries_ - 1);
  }

  // From leaves_ and values_ to wanted_, the first_leaves best ones in front.
  void keep_wanted(std::size_t q, std::size_t count) {
    const float near =
        kernels().kth_smallest(values_.data(), count, plan_.first_leaves, plan_.first_leaves / 4);
    std::uint32_t* wanted = wanted_.data() + q * plan_.leaves_ranked;
    std::size_t front = 0, back = plan_.first_leaves;
    for (std::size_t j = 0; j < count; ++j) {
      const bool first = values_[j] <= near && front < plan_.first_leaves;
      wanted[first ? front : back] = leaves_[j];
      front += first ? 1 : 0;
      back += first ? 0 : 1;
    }
    for (std::size_t j = 0; j < plan_.first_leaves; ++j)
      prefetch_rows(wanted[j] * plan_.tree.leaf_size);
  }

  void look_at_first_leaves(std::size_t q) {
    for (std::size_t j = 0; j < plan_.first_leaves; ++j)
      scan_leaf_for(wanted_[q * plan_.leaves_ranked + j], q);
    if (queries_[q].count >= plan_.k) tighten(q);
    if (plan_.exhaustive) queries_[q].count = 0;  // it meets these rows again
  }

  // Puts the leaves_ranked leaves of smallest (score, leaf) into leaves_, with their scores in
  // values_.
  std::size_t best_leaves(const float* scores) {
    const std::size_t wanted = plan_.leaves_ranked;
    const std::size_t n = plan_.n_leaves;
    // A sample says where to cut: a little too high, so that few leaves remain to choose from.
    constexpr std::size_t kSample = 256;
    float cut = kUnlimited;
    if (n >= 4 * kSample && wanted * 2 <= n) {
      const std::size_t stride = n / kSample;
      for (std::size_t j = 0; j < kSample; ++j) values_[j] = scores[j * stride];
      const double expected = static_cast<double>(wanted * kSample) / static_cast<double>(n);
      const auto rank = static_cast<std::size_t>(expected + 2 * std::sqrt(expected) + 2);
      cut = kernels().kth_smallest(values_.data(), kSample, std::min(rank, kSample), rank / 4);
    }
    std::size_t count = kernels().keep(scores, nullptr, n, cut, values_.data(), leaves_.data());
    if (count < wanted)
      count = kernels().keep(scores, nullptr, n, kUnlimited, values_.data(), leaves_.data());
    if (count <= wanted) return count;
    const float last = kernels().kth_smallest(values_.data(), count, wanted, 0);
    count =
        kernels().keep(values_.data(), leaves_.data(), count, last, values_.data(), leaves_.data());
    // Of leaves that tie for the last place the lower ones win; keep preserves order.
    while (count > wanted) {
      std::size_t j = count;
      while (values_[j - 1] != last) --j;
      std::copy(values_.data() + j, values_.data() + count, values_.data() + j - 1);
      std::copy(leaves_.data() + j, leaves_.data() + count, leaves_.data() + j - 1);
      --count;
    }
    return count;
  }

  // Without a limit there is nothing to filter.
  void scan_leaf_for(std::size_t leaf, std::size_t q) {
    const std::size_t begin = leaf * plan_.tree.leaf_size;
    const std::size_t end = std::min(begin + plan_.tree.leaf_size, plan_.tree.n);
    for (std::size_t first = begin / kKdTreeBlock * kKdTreeBlock; first < end;
         first += kGroupRows) {
      const Group group = rows_together(first, begin, end);
      refine(group, group.valid, q);
    }
  }

  // Up to kGroupRows of the rows [begin, end), from the block at `first` on.
  Group rows_together(std::size_t first, std::size_t begin, std::size_t end) const {
    const std::size_t last = std::min(first + kGroupRows, end);
    Group group;
    group.codes = plan_.tree.codes.data() + first * padded_;
    group.norms = plan_.tree.norms.data() + first;
    group.first_row = static_cast<std::uint32_t>(first);
    group.n_blocks = static_cast<std::uint32_t>(padded_rows(last - first) / kKdTreeBlock);
    group.valid = ~std::uint64_t{0} >> (kGroupRows - (last - first));
    if (begin > first) group.valid &= ~std::uint64_t{0} << (begin - first);
    return group;
  }

  void refine(const Group& group, std::uint64_t rows, std::size_t q) {
    if (queries_[q].count + kGroupRows > plan_.capacity) tighten(q);
    kernels().refine(group, plan_.d4, rows, queries_[q]);
  }

  void scan_everything() {
    members_.resize(n_queries_);
    for (std::size_t q = 0; q < n_queries_; ++q) members_[q] = static_cast<std::uint32_t>(q);
    scan_rows(0, plan_.tree.n, members_.data(), n_queries_);
  }

  // Counting sort of the (leaf, query) pairs by leaf, then one scan per leaf.
  void scan_wanted_leaves() {
    const std::size_t T = plan_.max_leaves;
    starts_.resize(plan_.n_leaves + 1);
    std::fill(starts_.data(), starts_.data() + plan_.n_leaves + 1, 0u);
    for (std::size_t q = 0; q < n_queries_; ++q)
      for (std::size_t j = plan_.first_leaves; j < T; ++j) ++starts_[wanted_[q * T + j] + 1];
    for (std::size_t leaf = 0; leaf < plan_.n_leaves; ++leaf) starts_[leaf + 1] += starts_[leaf];
    members_.resize(starts_[plan_.n_leaves]);
    for (std::size_t q = 0; q < n_queries_; ++q)
      for (std::size_t j = plan_.first_leaves; j < T; ++j)
        members_[starts_[wanted_[q * T + j]]++] = static_cast<std::uint32_t>(q);
    std::size_t begin = 0;
    for (std::size_t leaf = 0; leaf < plan_.n_leaves; ++leaf) {
      const std::size_t end = starts_[leaf];
      if (end > begin) {
        const std::size_t row = leaf * plan_.tree.leaf_size;
        prefetch_rows(row + plan_.tree.leaf_size);
        scan_rows(row, std::min(row + plan_.tree.leaf_size, plan_.tree.n), members_.data() + begin,
                  end - begin);
      }
      begin = end;
    }
  }

  void scan_rows(std::size_t begin, std::size_t end, const std::uint32_t* members,
                 std::size_t n_members) {
    for (std::size_t first = begin / kKdTreeBlock * kKdTreeBlock; first < end;
         first += kGroupRows) {
      const Group group = rows_together(first, begin, end);
      const std::size_t n = kernels().filter(group, plan_.d4, records_, record_stride_, members,
                                             n_members, survivors_.data());
      // Survivors are scattered over the batch: what they need is asked for ahead.
      for (std::size_t i = 0; i < n; ++i) {
        if (i + 4 < n) prefetch_query(survivors_[i + 4].query);
        if (i + 2 < n) prefetch_pending(survivors_[i + 2].query);
        refine(group, survivors_[i].rows, survivors_[i].query);
      }
    }
  }

  // The codes of the leaf after, while this one is being scanned.
  void prefetch_rows(std::size_t row) {
    const std::size_t end =
        std::min(row + std::min(plan_.tree.leaf_size, 2 * kGroupRows), plan_.tree.n);
    for (std::size_t at = row * padded_; at < end * padded_; at += kCacheLine)
      prefetch(plan_.tree.codes.data() + at);
    for (std::size_t at = row; at < end; at += kKdTreeBlock) prefetch(plan_.tree.norms.data() + at);
  }

  void prefetch_query(std::size_t q) {
    prefetch(&queries_[q]);
    prefetch(bytes_.data() + q * padded_ * 2);
    prefetch(bytes_.data() + q * padded_ * 2 + padded_);
  }

  void prefetch_pending(std::size_t q) {
    prefetch(queries_[q].pending + queries_[q].count);
    prefetch(queries_[q].pending_row + queries_[q].count);
  }

  // Drops what cannot be among the k nearest and lowers the limit. Needs k rows pending.
  void tighten(std::size_t q) {
    Query& query = queries_[q];
    const float limit = limit_for(q);
    query.count = static_cast<std::uint32_t>(kernels().keep(
        query.pending, query.pending_row, query.count, limit, query.pending, query.pending_row));
    if (query.count + kGroupRows > plan_.capacity) keep_exactly_k(q);
    set_limit(q, limit);
  }

  // A limit on P, close to the least one, that loses none of the k nearest by (D, id): rounding to
  // D = P + base can make equal what differs by an ulp, and all P <= -base make D = 0.
  float limit_for(std::size_t q) {
    const Query& query = queries_[q];
    const float base = base_[q];
    const float kth = std::max(
        kernels().kth_smallest(query.pending, query.count, plan_.k, kdtree::kSpare), -base);
    return kth + 2.5e-7f * (std::fabs(kth) + base);
  }

  // For masses of rows at one distance: decides ties by id now rather than at the end.
  void keep_exactly_k(std::size_t q) {
    Query& query = queries_[q];
    order_.resize(query.count);
    const std::size_t bytes = id_bytes(plan_.tree.n);
    for (std::uint32_t i = 0; i < query.count; ++i)
      order_[i] = {neighbour_key(distance(q, query.pending[i]),
                                 read_id(plan_.tree, bytes, query.pending_row[i])),
                   query.pending[i], query.pending_row[i]};
    std::nth_element(order_.begin(), order_.begin() + static_cast<std::ptrdiff_t>(plan_.k - 1),
                     order_.end(),
                     [](const Ordered& a, const Ordered& b) { return a.key < b.key; });
    for (std::size_t i = 0; i < plan_.k; ++i) {
      query.pending[i] = order_[i].p;
      query.pending_row[i] = order_[i].row;
    }
    query.count = static_cast<std::uint32_t>(plan_.k);
  }

  float distance(std::size_t q, float p) const {
    const float sum = p + base_[q];
    return sum > 0 ? sum : 0.0f;
  }

  // Leaves little more than the k nearest pending.
  void narrow(std::size_t q) {
    Query& query = queries_[q];
    if (query.count > plan_.k)
      query.count = static_cast<std::uint32_t>(kernels().keep(query.pending, query.pending_row,
                                                              query.count, limit_for(q),
                                                              query.pending, query.pending_row));
    const std::size_t bytes = id_bytes(plan_.tree.n);
    for (std::uint32_t i = 0; i < query.count; ++i)
      prefetch(plan_.tree.ids.data() + query.pending_row[i] * bytes);
  }

  void finish(std::size_t q, float* squared_distances, std::int64_t* ids, std::size_t k_out) {
    const Query& query = queries_[q];
    keys_.resize(query.count);
    const std::size_t bytes = id_bytes(plan_.tree.n);
    for (std::uint32_t i = 0; i < query.count; ++i)
      keys_[i] = neighbour_key(distance(q, query.pending[i]),
                               read_id(plan_.tree, bytes, query.pending_row[i]));
    kernels().sort_keys(keys_.data(), keys_.size());
    const std::size_t found = std::min<std::size_t>(keys_.size(), plan_.k);
    for (std::size_t i = 0; i < found; ++i) {
      const auto bits = static_cast<std::uint32_t>(keys_[i] >> 32);
      std::memcpy(squared_distances + i, &bits, 4);
      ids[i] = static_cast<std::int64_t>(keys_[i] & 0xffffffffu);
    }
    for (std::size_t i = found; i < k_out; ++i) {
      squared_distances[i] = std::numeric_limits<float>::infinity();
      ids[i] = -1;
    }
  }

  struct Ordered {
    std::uint64_t key;
    float p;
    std::uint32_t row;
  };

  const Plan& plan_;
  std::size_t padded_, pending_stride_, record_stride_;
  std::size_t n_queries_ = 0;
  std::uint8_t* records_ = nullptr;  // within record_bytes_, at a cache line
  Scratch<Query>& queries_;
  Scratch<float>& base_;
  Scratch<Slack>& slack_;
  Scratch<std::int8_t>& bytes_;
  Scratch<std::int16_t>& fine_;
  Scratch<float>& pending_;
  Scratch<std::uint32_t>& pending_row_;
  Scratch<std::uint8_t>& record_bytes_;
  Scratch<Survivor>& survivors_;
  Scratch<double>& v_;
  Scratch<float>&scores_, &values_;
  Scratch<std::uint32_t>&leaves_, &wanted_, &members_, &starts_;
  std::vector<std::uint64_t> keys_;
  std::vector<Ordered> order_;
};

}  // namespace

Neighbours search_kdtree(const KdTreeView& tree, Span<const float> queries, std::size_t k,
                         std::size_t max_leaves, int n_threads) {
  const std::size_t d = tree.dimension();
  if (d == 0 || queries.size() % d != 0)
    throw std::invalid_argument("the number of query values must be a multiple of the dimension");
  if (k == 0 || max_leaves == 0) throw std::invalid_argument("k and max_leaves must be positive");
  // m * k must not wrap round.
  if (k > kMaxRows) throw std::invalid_argument("k must be at most 2^31 - 64");
  const std::size_t m = queries.size() / d;
  Neighbours result;
  result.squared_distances.resize(m * k);
  result.ids.resize(m * k);
  if (m == 0) return result;

  const Plan plan(tree, k, max_leaves);
  if (plan.max_leaves == 0) {  // no leaf holds anything that may be found
    std::fill(result.squared_distances.begin(), result.squared_distances.end(),
              std::numeric_limits<float>::infinity());
    std::fill(result.ids.begin(), result.ids.end(), -1);
    return result;
  }
  const auto threads = static_cast<std::size_t>(resolve_threads(n_threads));
  std::size_t batch = std::min(kMaxBatch, (m + threads - 1) / threads);
  if (!plan.exhaustive) {
    // Pairs of a query and a leaf are counted in 32 bits.
    const std::size_t most = std::numeric_limits<std::uint32_t>::max() / plan.max_leaves;
    batch = std::min({batch, most, std::max(kRankTogether, kMaxPairs / plan.max_leaves)});
  }
  batch = std::max<std::size_t>(1, std::min(batch, kMaxPending / plan.capacity));
  const std::size_t n_batches = (m + batch - 1) / batch;
  parallel_for(n_batches, n_threads, [&](std::size_t task, int) {
    static thread_local Workspace workspace;
    const std::size_t begin = task * batch;
    Batch(plan, batch, workspace)
        .run(queries.data() + begin * d, std::min(batch, m - begin),
             result.squared_distances.data() + begin * k, result.ids.data() + begin * k, k);
    workspace.drop_if_large();
  });
  return result;
}

}  // namespace delfsearch

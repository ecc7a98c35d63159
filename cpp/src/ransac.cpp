#include "delfsearch/ransac.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>

#include "delfsearch/cpu.hpp"
#include "delfsearch/parallel.hpp"
#include "ransac_kernels.hpp"
#include "ransac_problem.hpp"

namespace delfsearch {
namespace ransac {
namespace {

const Kernels& kernels() {
#ifdef DELFSEARCH_X86
  switch (simd()) {
    case Simd::kAvx512:
      return kernels_avx512();
    case Simd::kAvx2:
      return kernels_avx2();
    default:
      break;
  }
#endif
  return kernels_scalar();
}

int lowest_bit(std::uint64_t word) {
#if defined(__GNUC__) || defined(__clang__)
  return __builtin_ctzll(word);
#else
  int bit = 0;
  while (!(word >> bit & 1)) ++bit;
  return bit;
#endif
}

std::uint64_t mix64(std::uint64_t z) {
  // The finaliser of splitmix64 (S. Vigna, public domain).
  z += 0x9e3779b97f4a7c15ULL;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
  return z ^ (z >> 31);
}

struct Inlier {
  double residual2;
  std::uint32_t match;
};

// Of the triples drawn from inliers only, the share that is spread well enough to find the others.
constexpr double kUsefulSamples = 0.25;

// Local optimisation: how many times max_error the first refits reach, and when it ends at last.
constexpr int kWideRefits = 3;
constexpr float kReach[kWideRefits] = {3.0f, 2.0f, 1.5f};
constexpr int kMaxRefits = 12;
constexpr int kMaxTies = 16;

// How well a map does: more inliers, then closer ones.
struct Support {
  int n = 0;
  double residual2 = 0;

  bool better_than(const Support& other) const {
    return n != other.n ? n > other.n : residual2 < other.residual2;
  }
};

struct Outcome {
  Affine map;  // in pixels of the photos
  std::vector<std::uint32_t> rows;
  int n_iterations = 0;
};

// One thread's solver: the scratch memory, and the search for one candidate at a time.
class Solver {
 public:
  Solver(const RansacOptions& options, const Kernels& table) : options_(options), kernels_(table) {
    const AffineLimits& limits = options.limits;
    const auto f = [](double value) { return static_cast<float>(value); };
    draw_limits_.min_baseline2 = f(4 * options.max_error * options.max_error);
    draw_limits_.min_det = f(limits.min_scale * limits.min_scale);
    draw_limits_.max_det = f(limits.max_scale * limits.max_scale);
    draw_limits_.max_norm2_over_det = f((limits.max_stretch + 1 / limits.max_stretch) * (1 + 1e-5));
    draw_limits_.any_rotation = limits.max_rotation_deg >= 180;
    draw_limits_.min_cosine = f(std::cos(limits.max_rotation_deg * 0.017453292519943295));
    max_error2_ = f(options.max_error * options.max_error);
    hypotheses_.t2 = max_error2_;
  }

  void solve(const float* query_xy, const float* database_xy, const float* squared_distances,
             std::size_t n_rows, std::uint64_t key, Outcome& out) {
    out.rows.clear();
    out.map = Affine();
    out.n_iterations = 0;
    if (!problem_.prepare(query_xy, database_xy, squared_distances, n_rows,
                          static_cast<float>(options_.min_separation), kernels_))
      return;
    points_ = problem_.points();
    mask_.resize(points_.n_words);
    query_used_.assign(problem_.n_query, 0);
    database_used_.assign(problem_.n_database, 0);
    stamp_ = 0;
    best_ = Support();
    search(key, out);
    if (best_.n >= 3) finish(query_xy, database_xy, out);
  }

 private:
  void search(std::uint64_t key, Outcome& out) {
    const Pool pool = problem_.pool();
    const double log_miss = std::log1p(-options_.confidence);
    double log_missed = 0;
    // The most one-to-one inliers of a map as drawn. As many are worth a refit too, a few times: in
    // noise, a sample of the true map begins no better than chance.
    int most_drawn = 3;
    int n_ties = 0;
    for (int drawn = 0; drawn < options_.max_iterations; drawn += kBatch) {
      const int count =
          kernels_.draw(pool, key, static_cast<std::uint32_t>(drawn), draw_limits_, hypotheses_);
      for (int i = 0; i < count; ++i) {
        i = kernels_.next_better(points_, hypotheses_, i, count, most_drawn - 1, mask_.data());
        if (i == count) break;
        if (count_database_keypoints() < most_drawn) continue;
        list_inliers(hypotheses_, i);
        const Support support = choose_one_to_one();
        if (support.n < most_drawn || (support.n == most_drawn && n_ties == kMaxTies)) continue;
        n_ties += support.n == most_drawn;
        most_drawn = support.n;
        optimise(i, support);
      }
      out.n_iterations += kBatch;
      const double share =
          std::min(1.0, static_cast<double>(std::max(best_.n, options_.min_support)) /
                            static_cast<double>(problem_.n));
      log_missed += (kBatch - kSimilarities) * std::log1p(-kUsefulSamples * share * share * share);
      if (log_missed <= log_miss) break;
    }
  }

  int count_database_keypoints() {
    next_stamp();
    int count = 0;
    for (std::size_t w = 0; w < points_.n_words; ++w) {
      for (std::uint64_t bits = mask_[w]; bits; bits &= bits - 1) {
        const std::size_t match = w * kWord + static_cast<std::size_t>(lowest_bit(bits));
        std::uint32_t& used = database_used_[problem_.database_keypoint[match]];
        count += used != stamp_;
        used = stamp_;
      }
    }
    return count;
  }

  // inliers_ = the matches of mask_ with their residuals under hypothesis i.
  void list_inliers(const Hypotheses& h, int i) {
    inliers_.clear();
    for (std::size_t w = 0; w < points_.n_words; ++w) {
      for (std::uint64_t bits = mask_[w]; bits; bits &= bits - 1) {
        const std::size_t m = w * kWord + static_cast<std::size_t>(lowest_bit(bits));
        const float ru = (h.a[i] * points_.x[m] + h.b[i] * points_.y[m]) + (h.c[i] - points_.u[m]);
        const float rv = (h.d[i] * points_.x[m] + h.e[i] * points_.y[m]) + (h.f[i] - points_.v[m]);
        inliers_.push_back({ru * ru + rv * rv, static_cast<std::uint32_t>(m)});
      }
    }
  }

  // Cuts inliers_ down to a one-to-one set, closest first.
  Support choose_one_to_one() {
    std::sort(inliers_.begin(), inliers_.end(), [](const Inlier& p, const Inlier& q) {
      return p.residual2 != q.residual2 ? p.residual2 < q.residual2 : p.match < q.match;
    });
    next_stamp();
    Support support;
    for (const Inlier& inlier : inliers_) {
      std::uint32_t& q = query_used_[problem_.query_keypoint[inlier.match]];
      std::uint32_t& d = database_used_[problem_.database_keypoint[inlier.match]];
      if (q == stamp_ || d == stamp_) continue;
      q = d = stamp_;
      inliers_[static_cast<std::size_t>(support.n++)] = inlier;
      support.residual2 += inlier.residual2;
    }
    inliers_.resize(static_cast<std::size_t>(support.n));
    return support;
  }

  // Refits on the one-to-one inliers, at first those within a multiple of max_error: a map through
  // two or three noisy points misses many of its own. Goes on while that finds more; keeps the best
  // map seen.
  void optimise(int i, Support support) {
    Hypotheses& h = local_;
    set(h, get(hypotheses_, i));
    if (support.better_than(best_)) keep(h, support);
    for (int step = 0; step < kMaxRefits; ++step) {
      const float reach = step < kWideRefits ? kReach[step] : 1.0f;
      h.t2 = reach * reach * max_error2_;
      support = select(h);
      if (step >= kWideRefits) {
        if (support.better_than(best_)) {
          keep(h, support);
        } else if (step > kWideRefits) {
          return;
        }
      }
      const auto map = refit();
      if (!map) return;
      set(h, *map);
    }
  }

  Support select(const Hypotheses& h) {
    kernels_.next_better(points_, h, 0, 1, -1, mask_.data());
    list_inliers(h, 0);
    return choose_one_to_one();
  }

  // The plausible least-squares map of inliers_ in centred coordinates: affine, or else similarity.
  std::optional<Affine> refit() {
    pairs_.clear();
    for (const Inlier& inlier : inliers_) {
      const std::uint32_t m = inlier.match;
      pairs_.push_back({points_.x[m], points_.y[m], points_.u[m], points_.v[m]});
    }
    return plausible_fit();
  }

  std::optional<Affine> plausible_fit() const {
    auto map = fit_affine(pairs_);
    if (map && within_limits(*map, options_.limits)) return map;
    map = fit_similarity(pairs_);
    if (map && within_limits(*map, options_.limits)) return map;
    return std::nullopt;
  }

  void keep(const Hypotheses& h, const Support& support) {
    best_ = support;
    best_map_ = get(h, 0);
  }

  static Affine get(const Hypotheses& h, int i) {
    return {h.a[i], h.b[i], h.c[i], h.d[i], h.e[i], h.f[i]};
  }

  static void set(Hypotheses& h, const Affine& map) {
    h.a[0] = static_cast<float>(map.a);
    h.b[0] = static_cast<float>(map.b);
    h.c[0] = static_cast<float>(map.c);
    h.d[0] = static_cast<float>(map.d);
    h.e[0] = static_cast<float>(map.e);
    h.f[0] = static_cast<float>(map.f);
  }

  // In double precision and the photos' own pixels: least squares on the inliers of the best map,
  // as long as that loses none, and the inliers of what is returned counted anew.
  void finish(const float* query_xy, const float* database_xy, Outcome& out) {
    Affine map = best_map_;
    map.c += problem_.u0 - (map.a * problem_.x0 + map.b * problem_.y0);
    map.f += problem_.v0 - (map.d * problem_.x0 + map.e * problem_.y0);
    Support support;
    if (within_limits(map, options_.limits)) {
      support = select_exact(query_xy, database_xy, map);
      chosen_ = inliers_;
      out.map = map;
    }
    for (int step = 0; step < 8 && !inliers_.empty(); ++step) {
      pairs_.clear();
      for (const Inlier& inlier : inliers_) {
        const std::size_t row = problem_.rows[inlier.match];
        pairs_.push_back({query_xy[2 * row], query_xy[2 * row + 1], database_xy[2 * row],
                          database_xy[2 * row + 1]});
      }
      const auto fitted = plausible_fit();
      if (!fitted) break;
      const Support refined = select_exact(query_xy, database_xy, *fitted);
      if (refined.n < support.n || (step > 0 && !refined.better_than(support))) break;
      support = refined;
      chosen_ = inliers_;
      out.map = *fitted;
    }
    if (support.n < 3) {
      out.map = Affine();
      return;
    }
    for (const Inlier& inlier : chosen_) out.rows.push_back(problem_.rows[inlier.match]);
    std::sort(out.rows.begin(), out.rows.end());
  }

  Support select_exact(const float* query_xy, const float* database_xy, const Affine& map) {
    const double limit2 = options_.max_error * options_.max_error;
    inliers_.clear();
    for (std::size_t m = 0; m < problem_.n; ++m) {
      const std::size_t row = problem_.rows[m];
      const double x = query_xy[2 * row], y = query_xy[2 * row + 1];
      const double ru = map.a * x + map.b * y + map.c - database_xy[2 * row];
      const double rv = map.d * x + map.e * y + map.f - database_xy[2 * row + 1];
      const double residual2 = ru * ru + rv * rv;
      if (residual2 <= limit2) inliers_.push_back({residual2, static_cast<std::uint32_t>(m)});
    }
    return choose_one_to_one();
  }

  void next_stamp() {
    if (++stamp_ != 0) return;
    std::fill(query_used_.begin(), query_used_.end(), 0);
    std::fill(database_used_.begin(), database_used_.end(), 0);
    stamp_ = 1;
  }

  const RansacOptions& options_;
  const Kernels& kernels_;
  DrawLimits draw_limits_{};
  float max_error2_ = 0;
  Problem problem_;
  Points points_{};
  Hypotheses hypotheses_{}, local_{};
  std::vector<std::uint64_t> mask_;
  std::vector<std::uint32_t> query_used_, database_used_;
  std::uint32_t stamp_ = 0;
  std::vector<Inlier> inliers_, chosen_;
  std::vector<PointPair> pairs_;
  Support best_;
  Affine best_map_;
};

void check(const RansacMatches& matches, const RansacOptions& options) {
  const auto refuse = [](const char* message) { throw std::invalid_argument(message); };
  const std::size_t rows = matches.squared_distances.size();
  if (matches.query_xy.size() != 2 * rows || matches.database_xy.size() != 2 * rows)
    refuse("query_xy and database_xy must have one (x, y) per squared distance");
  if (rows > std::numeric_limits<std::uint32_t>::max() / 4) refuse("too many matches for one call");
  if (matches.offsets.size() != matches.ids.size() + 1)
    refuse("offsets must have one element more than there are candidates");
  if (matches.offsets[0] != 0 ||
      matches.offsets[matches.offsets.size() - 1] != static_cast<std::int64_t>(rows))
    refuse("offsets must begin at 0 and end at the number of matches");
  for (std::size_t i = 0; i + 1 < matches.offsets.size(); ++i)
    if (matches.offsets[i] > matches.offsets[i + 1]) refuse("offsets must not fall");
  // Written so that NaN is refused as well.
  if (!(options.max_error > 0 && options.max_error <= 1e9)) refuse("max_error must be in (0, 1e9]");
  if (!(options.min_separation >= 0 && options.min_separation <= 1e9))
    refuse("min_separation must be in [0, 1e9]");
  if (!(options.confidence > 0 && options.confidence < 1)) refuse("confidence must be in (0, 1)");
  if (options.max_iterations < 1 || options.max_iterations > (1 << 30))
    refuse("max_iterations must be in [1, 2^30]");
  if (options.min_support < 3) refuse("min_support must be at least 3");
  const AffineLimits& limits = options.limits;
  if (!(limits.min_scale > 0 && limits.min_scale <= limits.max_scale && limits.max_scale <= 1e6))
    refuse("scales must satisfy 0 < min_scale <= max_scale <= 1e6");
  if (!(limits.max_stretch >= 1 && limits.max_stretch <= 1e6))
    refuse("max_stretch must be in [1, 1e6]");
  if (!(limits.max_rotation_deg >= 0)) refuse("max_rotation_deg must not be negative");
}

}  // namespace
}  // namespace ransac

RansacResults ransac_affine(const RansacMatches& matches, const RansacOptions& options,
                            int n_threads) {
  ransac::check(matches, options);
  const std::size_t n = matches.ids.size();
  const ransac::Kernels& table = ransac::kernels();
  // A task is a run of candidates: one alone takes microseconds, less than handing it out wisely.
  constexpr std::size_t kRun = 8;
  const std::size_t n_tasks = (n + kRun - 1) / kRun;
  std::vector<std::unique_ptr<ransac::Solver>> solvers(std::max<std::size_t>(
      1, std::min<std::size_t>(n_tasks, static_cast<std::size_t>(resolve_threads(n_threads)))));
  std::vector<ransac::Outcome> outcomes(n);
  parallel_for(n_tasks, n_threads, [&](std::size_t task, int thread) {
    auto& solver = solvers[static_cast<std::size_t>(thread)];
    if (!solver) solver = std::make_unique<ransac::Solver>(options, table);
    for (std::size_t i = task * kRun; i < std::min(n, (task + 1) * kRun); ++i) {
      const auto first = static_cast<std::size_t>(matches.offsets[i]);
      const auto n_rows = static_cast<std::size_t>(matches.offsets[i + 1]) - first;
      const std::uint64_t key =
          ransac::mix64(options.seed ^ ransac::mix64(static_cast<std::uint64_t>(matches.ids[i])));
      solver->solve(matches.query_xy.data() + 2 * first, matches.database_xy.data() + 2 * first,
                    matches.squared_distances.data() + first, n_rows, key, outcomes[i]);
    }
  });

  RansacResults results;
  results.n_inliers.reserve(n);
  results.n_iterations.reserve(n);
  results.affines.reserve(6 * n);
  results.inlier_offsets.reserve(n + 1);
  results.inlier_offsets.push_back(0);
  for (std::size_t i = 0; i < n; ++i) {
    const ransac::Outcome& outcome = outcomes[i];
    const Affine& m = outcome.map;
    results.n_inliers.push_back(static_cast<std::int32_t>(outcome.rows.size()));
    results.n_iterations.push_back(outcome.n_iterations);
    results.affines.insert(results.affines.end(), {m.a, m.b, m.c, m.d, m.e, m.f});
    for (const std::uint32_t row : outcome.rows)
      results.inlier_rows.push_back(matches.offsets[i] + row);
    results.inlier_offsets.push_back(static_cast<std::int64_t>(results.inlier_rows.size()));
  }
  return results;
}

}  // namespace delfsearch

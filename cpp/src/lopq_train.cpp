// Learning of rotations and codebooks.
#include <Eigen/Dense>
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <stdexcept>

#include "delfsearch/kmeans.hpp"
#include "delfsearch/lopq.hpp"
#include "delfsearch/parallel.hpp"
#include "random.hpp"
#include "simd/centroid_kernels.hpp"

namespace delfsearch {
namespace {

// k-means iterations between two turns of the rotation.
constexpr std::size_t kRoundIterations = 4;

using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

// At most `most` of the numbers, at equal spacing.
std::vector<std::size_t> thin(std::vector<std::size_t> rows, std::size_t most) {
  if (rows.size() <= most) return rows;
  std::vector<std::size_t> kept(most);
  for (std::size_t i = 0; i < most; ++i) kept[i] = rows[i * rows.size() / most];
  return kept;
}

// The mean of r r^T: residuals are compared with the list's centroid, whatever their own mean.
Matrix second_moment(const std::vector<float>& residuals, std::size_t d) {
  Matrix sums = Matrix::Zero(static_cast<Eigen::Index>(d), static_cast<Eigen::Index>(d));
  const std::size_t n = residuals.size() / d;
  for (std::size_t i = 0; i < n; ++i) {
    const float* r = residuals.data() + i * d;
    for (std::size_t a = 0; a < d; ++a) {
      const double value = static_cast<double>(r[a]);
      double* row = sums.data() + a * d;
      for (std::size_t b = 0; b <= a; ++b) row[b] += value * static_cast<double>(r[b]);
    }
  }
  for (Eigen::Index a = 0; a < sums.rows(); ++a)
    for (Eigen::Index b = 0; b < a; ++b) sums(b, a) = sums(a, b);
  return sums / static_cast<double>(std::max<std::size_t>(n, 1));
}

// Principal axes dealt to the parts so that their variances have about equal products (Ge et al.
// 2013, eigenvalue allocation): the next largest goes to the part of the smallest product that has
// room. Returns (d, padded d), column o the o-th axis.
std::vector<float> balanced_axes(const Matrix& moment, std::size_t n_parts) {
  const auto d = static_cast<std::size_t>(moment.rows());
  const Eigen::SelfAdjointEigenSolver<Matrix> solver(moment);
  const std::size_t room = d / n_parts, width = padded_outputs(d);
  std::vector<double> product(n_parts, 0.0);  // of logarithms
  std::vector<std::size_t> used(n_parts, 0);
  std::vector<float> rotation(d * width);
  // Constant dimensions have eigenvalue 0, or less by rounding.
  const double least =
      std::max(solver.eigenvalues()(static_cast<Eigen::Index>(d) - 1), 0.0) * 1e-9 + 1e-300;
  const double smallest = std::max(solver.eigenvalues()(0), least);
  for (std::size_t k = 0; k < d; ++k) {
    const auto axis = static_cast<Eigen::Index>(d - 1 - k);  // rising order in Eigen
    std::size_t part = n_parts;
    for (std::size_t p = 0; p < n_parts; ++p)
      if (used[p] < room && (part == n_parts || product[p] < product[part])) part = p;
    // The sign of an axis is free: its largest entry is made positive.
    Eigen::Index largest = 0;
    for (Eigen::Index i = 1; i < moment.rows(); ++i)
      if (std::abs(solver.eigenvectors()(i, axis)) > std::abs(solver.eigenvectors()(largest, axis)))
        largest = i;
    const double sign = solver.eigenvectors()(largest, axis) < 0.0 ? -1.0 : 1.0;
    for (std::size_t i = 0; i < d; ++i)
      rotation[i * width + part * room + used[part]] =
          static_cast<float>(sign * solver.eigenvectors()(static_cast<Eigen::Index>(i), axis));
    ++used[part];
    // Counted from the smallest, so that no factor is below 1: a part never gets lighter.
    product[part] += std::log(std::max(solver.eigenvalues()(axis), least) / smallest);
  }
  return rotation;
}

// Matrices of n_rows rows of `width` floats, of which n count, in 8 bits; the values become what
// these stand for.
Matrices round(std::vector<float>& values, std::size_t n_rows, std::size_t n, std::size_t width) {
  const std::size_t size = n_rows * width, n_matrices = values.size() / size;
  Matrices made;
  made.whole.resize(n_matrices * n_rows * n);
  made.steps.resize(n_matrices);
  for (std::size_t m = 0; m < n_matrices; ++m) {
    float* matrix = values.data() + m * size;
    std::int8_t* whole = made.whole.data() + m * n_rows * n;
    float greatest = 0.0f;
    for (std::size_t i = 0; i < n_rows; ++i)
      for (std::size_t j = 0; j < n; ++j)
        greatest = std::max(greatest, std::abs(matrix[i * width + j]));
    const float step = std::max(greatest / 127.0f, std::numeric_limits<float>::min());
    for (std::size_t i = 0; i < n_rows; ++i)
      for (std::size_t j = 0; j < n; ++j)
        whole[i * n + j] = static_cast<std::int8_t>(
            std::clamp(std::nearbyint(matrix[i * width + j] / step), -127.0f, 127.0f));
    centroids::kernels().widen(whole, n_rows, n, step, width, matrix);
    made.steps[m] = step;
  }
  return made;
}

struct Learned {
  std::vector<float> codebook;   // (n_parts, d / n_parts, n_centroids)
  std::size_t n_iterations = 0;  // most of a part
};

// From rows of rotated residuals (n, d). `start` is a codebook to begin with, or empty.
Learned learn_codebook(const std::vector<float>& rotated, std::size_t d, const LopqOptions& options,
                       std::size_t max_iterations, const std::vector<float>& start,
                       std::uint64_t seed, int n_threads) {
  const std::size_t n = rotated.size() / d, m = options.code.n_parts, part = d / m;
  const std::size_t k = options.code.n_centroids();
  Learned learned{std::vector<float>(d * k)};
  std::vector<std::size_t> n_iterations(m);
  parallel_for(m, n_threads, [&](std::size_t p, int) {
    std::vector<float> columns(n * part);
    for (std::size_t i = 0; i < n; ++i)
      for (std::size_t j = 0; j < part; ++j) columns[i * part + j] = rotated[i * d + p * part + j];
    KMeansOptions kmeans_options;
    kmeans_options.k = k;
    kmeans_options.max_iterations = max_iterations;
    kmeans_options.batch_size = options.batch_size;
    kmeans_options.seed = mix64(seed * 4099 + p);
    std::vector<float> first(start.empty() ? 0 : k * part);
    if (!start.empty())
      for (std::size_t c = 0; c < k; ++c)
        for (std::size_t j = 0; j < part; ++j) first[c * part + j] = start[(p * part + j) * k + c];
    kmeans_options.start = first;
    const KMeans found = kmeans(columns, part, kmeans_options);
    for (std::size_t c = 0; c < k; ++c)
      for (std::size_t j = 0; j < part; ++j)
        learned.codebook[(p * part + j) * k + c] = found.centroids[c * part + j];
    n_iterations[p] = found.n_iterations;
  });
  learned.n_iterations = *std::max_element(n_iterations.begin(), n_iterations.end());
  return learned;
}

std::vector<float> rotate(const std::vector<float>& rows, std::size_t d,
                          const std::vector<float>& rotation) {
  const std::size_t width = padded_outputs(d), n = rows.size() / d;
  std::vector<float> out(n * d), one(width);
  for (std::size_t i = 0; i < n; ++i) {
    centroids::kernels().product(rotation.data(), d, width, rows.data() + i * d, 1, one.data());
    std::copy_n(one.data(), d, out.data() + i * d);
  }
  return out;
}

// Alternates codebooks and the rotation that brings the residuals nearest to what their codes stand
// for (orthogonal Procrustes). k-means goes on from the codebook there is, so that no round loses.
void alternate(const std::vector<float>& residuals, std::size_t d, const LopqOptions& options,
               std::vector<float>& rotation, std::vector<float>& codebook) {
  const std::size_t n = residuals.size() / d, width = padded_outputs(d);
  const std::size_t k = options.code.n_centroids(), part = d / options.code.n_parts;
  std::vector<std::uint8_t> numbers(options.code.n_parts);
  std::vector<double> decoded(d);
  for (int round = 0; round < options.rounds; ++round) {
    const auto size = static_cast<Eigen::Index>(d);
    Matrix cross = Matrix::Zero(size, size);
    const std::vector<float> rotated = rotate(residuals, d, rotation);
    for (std::size_t i = 0; i < n; ++i) {
      centroids::kernels().part_nearest({codebook.data(), options.code.n_parts, part, k},
                                        rotated.data() + i * d, numbers.data());
      for (std::size_t j = 0; j < d; ++j)
        decoded[j] = static_cast<double>(codebook[j * k + numbers[j / part]]);
      for (std::size_t a = 0; a < d; ++a) {
        const double value = static_cast<double>(residuals[i * d + a]);
        double* row = cross.data() + a * d;
        for (std::size_t b = 0; b < d; ++b) row[b] += value * decoded[b];
      }
    }
    const Eigen::JacobiSVD<Matrix> svd(cross, Eigen::ComputeFullU | Eigen::ComputeFullV);
    const Matrix best = svd.matrixU() * svd.matrixV().transpose();
    for (std::size_t a = 0; a < d; ++a)
      for (std::size_t b = 0; b < d; ++b)
        rotation[a * width + b] =
            static_cast<float>(best(static_cast<Eigen::Index>(a), static_cast<Eigen::Index>(b)));
    codebook = learn_codebook(rotate(residuals, d, rotation), d, options,
                              std::min(kRoundIterations, options.max_iterations), codebook, 0,
                              options.n_threads)
                   .codebook;
  }
}

}  // namespace

LopqArrays train_lopq(Span<const float> X, Span<const std::uint32_t> lists,
                      Span<const float> coarse, std::size_t d, const LopqOptions& options) {
  options.code.check();
  const std::size_t m = options.code.n_parts, n = lists.size();
  if (d == 0 || d % m != 0) throw std::invalid_argument("n_parts must divide the dimension");
  if (X.size() != n * d || coarse.empty() || coarse.size() % d != 0)
    throw std::invalid_argument("X must be (n, d), lists (n), coarse (n_lists, d)");
  const std::size_t n_lists = coarse.size() / d, width = padded_outputs(d);
  const std::size_t k = options.code.n_centroids();
  if (n < k)
    throw std::invalid_argument("X must have at least as many rows as there are centroids");
  std::vector<std::vector<std::size_t>> members(n_lists);
  for (std::size_t i = 0; i < n; ++i) {
    if (lists[i] >= n_lists) throw std::invalid_argument("a list is out of range");
    members[lists[i]].push_back(i);
  }
  const auto residuals_of = [&](const std::vector<std::size_t>& rows) {
    std::vector<float> residuals(rows.size() * d);
    for (std::size_t i = 0; i < rows.size(); ++i)
      for (std::size_t j = 0; j < d; ++j)
        residuals[i * d + j] = X[rows[i] * d + j] - coarse[lists[rows[i]] * d + j];
    return residuals;
  };

  using Rotation = LopqOptions::Rotation;
  LopqArrays made;
  made.code = options.code;
  made.d = d;
  made.coarse.assign(coarse.begin(), coarse.end());
  made.rotation_of.assign(n_lists, options.rotation == Rotation::kNone ? -1 : 0);
  made.codebook_of.assign(n_lists, 0);

  // What lists share comes first: number 0.
  std::vector<std::size_t> everything(n);
  std::iota(everything.begin(), everything.end(), std::size_t{0});
  const std::vector<std::size_t> sample = thin(std::move(everything), options.max_shared_rows);
  const std::vector<float> pooled = residuals_of(sample);
  std::vector<float> rotations, codebooks;
  if (options.rotation != Rotation::kNone) rotations = balanced_axes(second_moment(pooled, d), m);
  std::vector<std::int32_t> own_rotation;  // lists that have one
  if (options.rotation == Rotation::kLocal) {
    for (std::size_t list = 0; list < n_lists; ++list)
      if (members[list].size() >= std::max(options.min_rotation_rows, d)) {
        own_rotation.push_back(static_cast<std::int32_t>(list));
        made.rotation_of[list] = static_cast<std::int32_t>(own_rotation.size());
      }
    rotations.resize((own_rotation.size() + 1) * d * width);
    parallel_for(own_rotation.size(), options.n_threads, [&](std::size_t i, int) {
      const auto list = static_cast<std::size_t>(own_rotation[i]);
      const auto rotation = balanced_axes(
          second_moment(residuals_of(thin(members[list], options.max_rows_per_list)), d), m);
      std::copy(rotation.begin(), rotation.end(),
                rotations.begin() + static_cast<std::ptrdiff_t>((i + 1) * d * width));
    });
  }
  if (options.rounded && !rotations.empty()) made.rotations = round(rotations, d, d, width);
  const auto rotation_at = [&](std::int32_t number) {
    const auto begin = rotations.begin() +
                       static_cast<std::ptrdiff_t>(number) * static_cast<std::ptrdiff_t>(d * width);
    return std::vector<float>(begin, begin + static_cast<std::ptrdiff_t>(d * width));
  };

  // The shared codebook is of residuals as each list turns its own.
  std::vector<float> turned(pooled.size()), one(width);
  for (std::size_t i = 0; i < sample.size(); ++i) {
    const std::int32_t number = made.rotation_of[lists[sample[i]]];
    if (number < 0) {
      std::copy_n(pooled.data() + i * d, d, turned.data() + i * d);
      continue;
    }
    centroids::kernels().product(rotations.data() + static_cast<std::size_t>(number) * d * width, d,
                                 width, pooled.data() + i * d, 1, one.data());
    std::copy_n(one.data(), d, turned.data() + i * d);
  }
  Learned shared = learn_codebook(turned, d, options, options.max_iterations, {},
                                  mix64(options.seed), options.n_threads);
  codebooks = std::move(shared.codebook);
  made.n_iterations = shared.n_iterations;
  if (options.rotation == Rotation::kShared && options.rounds > 0 && !options.rounded)
    alternate(pooled, d, options, rotations, codebooks);

  if (options.min_codebook_rows > 0 && options.rotation == Rotation::kLocal) {
    std::vector<std::size_t> own;
    for (std::size_t list = 0; list < n_lists; ++list)
      if (members[list].size() >= std::max(options.min_codebook_rows, k)) {
        own.push_back(list);
        made.codebook_of[list] = static_cast<std::int32_t>(own.size());
      }
    codebooks.resize((own.size() + 1) * d * k);
    std::vector<std::size_t> n_iterations(own.size());
    parallel_for(own.size(), options.n_threads, [&](std::size_t i, int) {
      const std::size_t list = own[i];
      std::vector<float> rows = residuals_of(thin(members[list], options.max_rows_per_list));
      if (made.rotation_of[list] >= 0) rows = rotate(rows, d, rotation_at(made.rotation_of[list]));
      const Learned learned = learn_codebook(rows, d, options, options.max_iterations, {},
                                             mix64(options.seed + list + 1), 1);
      n_iterations[i] = learned.n_iterations;
      std::copy(learned.codebook.begin(), learned.codebook.end(),
                codebooks.begin() + static_cast<std::ptrdiff_t>((i + 1) * d * k));
    });
    for (const std::size_t count : n_iterations)
      made.n_iterations = std::max(made.n_iterations, count);
  }
  if (options.rounded) {
    made.codebooks = round(codebooks, d, k, k);
  } else {
    made.rotations.values = std::move(rotations);
    made.codebooks.values = std::move(codebooks);
  }
  return made;
}

}  // namespace delfsearch

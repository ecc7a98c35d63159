#include "delfsearch/lopq.hpp"

#include <algorithm>
#include <numeric>
#include <stdexcept>

#include "delfsearch/parallel.hpp"
#include "simd/centroid_kernels.hpp"

namespace delfsearch {
namespace {

const float* rotation_of(const LopqView& q, std::size_t list) {
  const std::int32_t number = q.rotation_of[list];
  if (number < 0) return nullptr;
  return q.rotations.data() + static_cast<std::size_t>(number) * q.d * padded_outputs(q.d);
}

centroids::Codebook codebook_of(const LopqView& q, std::size_t list) {
  const auto number = static_cast<std::size_t>(q.codebook_of[list]);
  return {q.codebooks.data() + number * q.d * q.code.n_centroids(), q.code.n_parts,
          q.part_dimension(), q.code.n_centroids()};
}

void check_codes(const LopqView& q, Span<const std::uint8_t> numbers,
                 Span<const std::uint32_t> lists) {
  if (numbers.size() != lists.size() * q.code.n_parts)
    throw std::invalid_argument("numbers must be (n, n_parts), lists (n)");
  for (const std::uint32_t list : lists)
    if (list >= q.n_lists()) throw std::invalid_argument("a list is out of range");
  for (const std::uint8_t number : numbers)
    if (number >= q.code.n_centroids()) throw std::invalid_argument("a number is out of range");
}

}  // namespace

void LopqView::check() const {
  code.check();
  if (d == 0 || d % code.n_parts != 0)
    throw std::invalid_argument("n_parts must divide the dimension");
  const std::size_t n = n_lists();
  if (n == 0 || coarse.size() % d != 0 || rotation_of.size() != n || codebook_of.size() != n)
    throw std::invalid_argument("coarse centroids, rotations and codebooks must be of one number");
  const std::size_t rotation = d * padded_outputs(d), book = d * code.n_centroids();
  if (rotations.size() % rotation != 0 || codebooks.size() % book != 0)
    throw std::invalid_argument("rotations or codebooks have an odd size");
  const auto n_rotations = static_cast<std::int64_t>(rotations.size() / rotation);
  const auto n_codebooks = static_cast<std::int64_t>(codebooks.size() / book);
  for (std::size_t list = 0; list < n; ++list)
    if (rotation_of[list] < -1 || rotation_of[list] >= n_rotations || codebook_of[list] < 0 ||
        codebook_of[list] >= n_codebooks)
      throw std::invalid_argument("a list names a rotation or codebook that is not there");
}

void residual_in_list(const LopqView& q, const float* x, std::size_t list, float* out) {
  const float* centroid = q.coarse.data() + list * q.d;
  const float* rotation = rotation_of(q, list);
  if (!rotation) {
    for (std::size_t i = 0; i < q.d; ++i) out[i] = x[i] - centroid[i];
    return;
  }
  thread_local std::vector<float> residual;
  residual.resize(q.d);
  for (std::size_t i = 0; i < q.d; ++i) residual[i] = x[i] - centroid[i];
  centroids::kernels().product(rotation, q.d, padded_outputs(q.d), residual.data(), out);
}

void distance_table(const LopqView& q, const float* x, std::size_t list, float* residual,
                    float* table) {
  residual_in_list(q, x, list, residual);
  centroids::kernels().part_tables(codebook_of(q, list), residual, table);
}

std::vector<std::uint8_t> encode(const LopqView& q, Span<const float> X,
                                 Span<const std::uint32_t> lists, int n_threads) {
  if (X.size() != lists.size() * q.d) throw std::invalid_argument("X must be (n, d), lists (n)");
  const std::size_t n = lists.size(), m = q.code.n_parts;
  for (const std::uint32_t list : lists)
    if (list >= q.n_lists()) throw std::invalid_argument("a list is out of range");
  std::vector<std::uint8_t> numbers(n * m);
  // By list, so that its rotation and codebook are fetched once.
  std::vector<std::size_t> at(q.n_lists() + 1), order(n);
  for (const std::uint32_t list : lists) ++at[list + 1];
  std::partial_sum(at.begin(), at.end(), at.begin());
  for (std::size_t i = 0; i < n; ++i) order[at[lists[i]]++] = i;
  constexpr std::size_t kTask = 4096;
  parallel_for((n + kTask - 1) / kTask, n_threads, [&](std::size_t task, int) {
    std::vector<float> residual(padded_outputs(q.d));
    for (std::size_t o = task * kTask; o < std::min(n, (task + 1) * kTask); ++o) {
      const std::size_t i = order[o];
      residual_in_list(q, X.data() + i * q.d, lists[i], residual.data());
      centroids::kernels().part_nearest(codebook_of(q, lists[i]), residual.data(),
                                        numbers.data() + i * m);
    }
  });
  return numbers;
}

std::vector<float> decode(const LopqView& q, Span<const std::uint8_t> numbers,
                          Span<const std::uint32_t> lists) {
  const std::size_t n = lists.size(), m = q.code.n_parts, part = q.part_dimension();
  check_codes(q, numbers, lists);
  std::vector<float> X(n * q.d), y(q.d);
  for (std::size_t i = 0; i < n; ++i) {
    const centroids::Codebook book = codebook_of(q, lists[i]);
    for (std::size_t p = 0; p < m; ++p) {
      const std::size_t number = numbers[i * m + p];
      for (std::size_t j = 0; j < part; ++j)
        y[p * part + j] = book.values[(p * part + j) * book.n_centroids + number];
    }
    // The rotation's inverse is its transpose: output o of it belongs to column o.
    const float* rotation = rotation_of(q, lists[i]);
    const std::size_t width = padded_outputs(q.d);
    for (std::size_t j = 0; j < q.d; ++j) {
      double sum = 0.0;
      if (rotation)
        for (std::size_t o = 0; o < q.d; ++o)
          sum += static_cast<double>(rotation[j * width + o]) * static_cast<double>(y[o]);
      else
        sum = static_cast<double>(y[j]);
      X[i * q.d + j] = static_cast<float>(sum + static_cast<double>(q.coarse[lists[i] * q.d + j]));
    }
  }
  return X;
}

std::vector<float> code_distances(const LopqView& q, Span<const float> queries,
                                  Span<const std::uint8_t> numbers, Span<const std::uint32_t> lists,
                                  int n_threads) {
  const std::size_t n = lists.size(), m = q.code.n_parts, k = q.code.n_centroids();
  if (queries.size() % q.d != 0) throw std::invalid_argument("queries must be (m, d)");
  check_codes(q, numbers, lists);
  // By list, so that a query needs one table at a time.
  std::vector<std::size_t> order(n);
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return lists[a] < lists[b]; });
  const std::size_t n_queries = queries.size() / q.d;
  std::vector<float> distances(n_queries * n);
  parallel_for(n_queries, n_threads, [&](std::size_t query, int) {
    std::vector<float> residual(padded_outputs(q.d)), table(q.table_size());
    float* out = distances.data() + query * n;
    for (std::size_t i = 0; i < n; ++i) {
      const std::size_t row = order[i];
      if (i == 0 || lists[row] != lists[order[i - 1]])
        distance_table(q, queries.data() + query * q.d, lists[row], residual.data(), table.data());
      float sum = 0.0f;
      for (std::size_t p = 0; p < m; ++p) sum = sum + table[p * k + numbers[row * m + p]];
      out[row] = sum;
    }
  });
  return distances;
}

}  // namespace delfsearch

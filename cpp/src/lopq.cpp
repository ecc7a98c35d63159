#include "delfsearch/lopq.hpp"

#include <algorithm>
#include <numeric>
#include <stdexcept>

#include "delfsearch/parallel.hpp"
#include "simd/centroid_kernels.hpp"
#include "simd/scan_kernels.hpp"

namespace delfsearch {
namespace {

// Floats of a rotation or a codebook as they are kept.
std::size_t rotation_size(const LopqView& q) {
  return q.d * (q.rotations.whole.empty() ? padded_outputs(q.d) : q.d);
}
std::size_t codebook_size(const LopqView& q) { return q.d * q.code.n_centroids(); }

// How many matrices of a size there are; throws where the arrays disagree.
std::int64_t count_of(const MatricesView& matrices, std::size_t size) {
  const bool whole = !matrices.whole.empty();
  const std::size_t total = whole ? matrices.whole.size() : matrices.values.size();
  if (total % size != 0 || (whole && !matrices.values.empty()) ||
      matrices.steps.size() != (whole ? total / size : 0))
    throw std::invalid_argument("rotations or codebooks have an odd size");
  return static_cast<std::int64_t>(total / size);
}

centroids::Codebook book_of(const LopqView& q, const ListAxes& axes) {
  return {axes.codebook(), q.code.n_parts, q.part_dimension(), q.code.n_centroids()};
}

// x less the list's centroid, in its axes: in residual (d) or in turned (padded d).
const float* turn(const LopqView& q, const ListAxes& axes, const float* x, float* residual,
                  float* turned) {
  const float* centroid = q.coarse.data() + axes.list() * q.d;
  for (std::size_t i = 0; i < q.d; ++i) residual[i] = x[i] - centroid[i];
  if (!axes.rotation()) return residual;
  centroids::kernels().product(axes.rotation(), q.d, padded_outputs(q.d), residual, 1, turned);
  return turned;
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
  const std::int64_t n_rotations = count_of(rotations, rotation_size(*this));
  const std::int64_t n_codebooks = count_of(codebooks, codebook_size(*this));
  for (std::size_t list = 0; list < n; ++list)
    if (rotation_of[list] < -1 || rotation_of[list] >= n_rotations || codebook_of[list] < 0 ||
        codebook_of[list] >= n_codebooks)
      throw std::invalid_argument("a list names a rotation or codebook that is not there");
}

ListAxes::ListAxes(const LopqView& quantizer) : quantizer_(quantizer), list_(quantizer.n_lists()) {
  if (!quantizer.rotations.whole.empty())
    own_rotation_.resize(quantizer.d * padded_outputs(quantizer.d));
  if (!quantizer.codebooks.whole.empty()) own_codebook_.resize(codebook_size(quantizer));
}

void ListAxes::open(std::size_t list) {
  if (list == list_) return;
  list_ = list;
  const LopqView& q = quantizer_;
  const std::int32_t rotation = q.rotation_of[list], codebook = q.codebook_of[list];
  if (rotation < 0) {
    rotation_ = nullptr;
  } else if (rotation != rotation_number_) {
    const auto number = static_cast<std::size_t>(rotation);
    const std::size_t width = padded_outputs(q.d);
    rotation_ = q.rotations.values.data() + number * rotation_size(q);
    if (!own_rotation_.empty()) {
      centroids::kernels().widen(q.rotations.whole.data() + number * rotation_size(q), q.d, q.d,
                                 q.rotations.steps[number], width, own_rotation_.data());
      rotation_ = own_rotation_.data();
    }
  }
  if (codebook != codebook_number_) {
    const auto number = static_cast<std::size_t>(codebook);
    codebook_ = q.codebooks.values.data() + number * codebook_size(q);
    if (!own_codebook_.empty()) {
      const std::size_t k = q.code.n_centroids();
      centroids::kernels().widen(q.codebooks.whole.data() + number * codebook_size(q), q.d, k,
                                 q.codebooks.steps[number], k, own_codebook_.data());
      codebook_ = own_codebook_.data();
    }
  }
  rotation_number_ = rotation;
  codebook_number_ = codebook;
}

void ListAxes::ask_for(std::size_t list) const {
  const LopqView& q = quantizer_;
  const auto ask = [](const MatricesView& matrices, std::int32_t number, std::size_t size) {
    const std::size_t begin = static_cast<std::size_t>(number) * size;
    if (number < 0) return;
    if (matrices.whole.empty())
      scan::ask_for(matrices.values.data() + begin, size * sizeof(float));
    else
      scan::ask_for(matrices.whole.data() + begin, size);
  };
  if (q.rotation_of[list] != rotation_number_)
    ask(q.rotations, q.rotation_of[list], rotation_size(q));
  if (q.codebook_of[list] != codebook_number_)
    ask(q.codebooks, q.codebook_of[list], codebook_size(q));
  scan::ask_for(q.coarse.data() + list * q.d, q.d * sizeof(float));
}

void distance_tables(const LopqView& q, const ListAxes& axes, const float* const* rows,
                     std::size_t n, float* scratch, float* tables, float* least) {
  const std::size_t width = padded_outputs(q.d);
  const float* centroid = q.coarse.data() + axes.list() * q.d;
  const float* turned = scratch;
  std::size_t stride = q.d;
  for (std::size_t r = 0; r < n; ++r)
    for (std::size_t i = 0; i < q.d; ++i) scratch[r * q.d + i] = rows[r][i] - centroid[i];
  if (axes.rotation()) {
    centroids::kernels().product(axes.rotation(), q.d, width, scratch, n, scratch + n * q.d);
    turned = scratch + n * q.d;
    stride = width;
  }
  const centroids::Codebook book = book_of(q, axes);
  for (std::size_t r = 0; r < n; ++r)
    centroids::kernels().part_tables(book, turned + r * stride, tables + r * q.table_size(),
                                     least + r * q.code.n_parts);
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
    ListAxes axes(q);
    std::vector<float> residual(q.d), turned(padded_outputs(q.d));
    for (std::size_t o = task * kTask; o < std::min(n, (task + 1) * kTask); ++o) {
      const std::size_t i = order[o];
      axes.open(lists[i]);
      const float* row = turn(q, axes, X.data() + i * q.d, residual.data(), turned.data());
      centroids::kernels().part_nearest(book_of(q, axes), row, numbers.data() + i * m);
    }
  });
  return numbers;
}

std::vector<float> decode(const LopqView& q, Span<const std::uint8_t> numbers,
                          Span<const std::uint32_t> lists) {
  const std::size_t n = lists.size(), m = q.code.n_parts, part = q.part_dimension();
  check_codes(q, numbers, lists);
  std::vector<float> X(n * q.d), y(q.d);
  ListAxes axes(q);
  for (std::size_t i = 0; i < n; ++i) {
    axes.open(lists[i]);
    const centroids::Codebook book = book_of(q, axes);
    for (std::size_t p = 0; p < m; ++p) {
      const std::size_t number = numbers[i * m + p];
      for (std::size_t j = 0; j < part; ++j)
        y[p * part + j] = book.values[(p * part + j) * book.n_centroids + number];
    }
    // The rotation's inverse is its transpose: output o of it belongs to column o.
    const float* rotation = axes.rotation();
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
    ListAxes axes(q);
    std::vector<float> scratch(table_scratch(q, 1)), table(q.table_size()), least(m);
    const float* row_of_query = queries.data() + query * q.d;
    float* out = distances.data() + query * n;
    for (std::size_t i = 0; i < n; ++i) {
      const std::size_t row = order[i];
      if (lists[row] != axes.list()) {
        axes.open(lists[row]);
        distance_tables(q, axes, &row_of_query, 1, scratch.data(), table.data(), least.data());
      }
      float sum = 0.0f;
      for (std::size_t p = 0; p < m; ++p) sum = sum + table[p * k + numbers[row * m + p]];
      out[row] = sum;
    }
  });
  return distances;
}

}  // namespace delfsearch

#include "ransac_problem.hpp"

#include <algorithm>
#include <cstring>
#include <limits>

namespace delfsearch::ransac {
namespace {

constexpr std::uint32_t kNone = 0xffffffffU;
constexpr std::size_t kBuckets = 128;

std::uint64_t position_key(float x, float y) {
  // Adding 0 makes -0 and 0 the same position.
  x += 0.0f;
  y += 0.0f;
  std::uint32_t xb, yb;
  std::memcpy(&xb, &x, 4);
  std::memcpy(&yb, &y, 4);
  return static_cast<std::uint64_t>(xb) << 32 | yb;
}

std::size_t round_up(std::size_t n, std::size_t to) { return (n + to - 1) / to * to; }

}  // namespace

void AlignedFloats::reserve(std::size_t n) {
  if (n <= capacity_) return;
  capacity_ = std::max(n, 2 * capacity_);
  memory_ = std::make_unique<float[]>(capacity_ + 16);
  const auto address = reinterpret_cast<std::uintptr_t>(memory_.get());
  data_ = memory_.get() + (64 - address % 64) % 64 / sizeof(float);
}

std::uint32_t Keypoints::number(const float* xy, std::size_t n, float radius,
                                const Kernels& kernels, std::uint32_t* out) {
  std::size_t size = 64;
  while (size < 2 * n) size *= 2;
  keys_.resize(std::max(keys_.size(), size));
  numbers_.resize(keys_.size());
  std::fill_n(numbers_.begin(), size, kNone);
  x_.reserve(round_up(n, 16));
  y_.reserve(round_up(n, 16));
  std::uint32_t count = 0;
  for (std::size_t i = 0; i < n; ++i) {
    const float x = xy[2 * i], y = xy[2 * i + 1];
    const std::uint64_t key = position_key(x, y);
    std::size_t slot = static_cast<std::size_t>((key * 0x9e3779b97f4a7c15ULL) >> 32) & (size - 1);
    while (numbers_[slot] != kNone && keys_[slot] != key) slot = (slot + 1) & (size - 1);
    if (numbers_[slot] == kNone) {
      std::uint32_t number = count;
      if (radius > 0)
        number = kernels.first_near(x_.data(), y_.data(), count, x, y, radius * radius);
      if (number == count) {
        if (count % 16 == 0) {
          // Far padding for first_near; infinity is near nothing.
          const float far = std::numeric_limits<float>::infinity();
          std::fill_n(x_.data() + count, 16, far);
          std::fill_n(y_.data() + count, 16, far);
        }
        x_[count] = x;
        y_[count] = y;
        ++count;
      }
      keys_[slot] = key;
      numbers_[slot] = number;
    }
    out[i] = numbers_[slot];
  }
  return count;
}

void Problem::order_by_distance(const float* squared_distances, std::size_t n_rows) {
  // A counting sort by rough distance: sampling needs no finer order, and ties keep the row order.
  float low = squared_distances[0], high = low;
  for (std::size_t i = 1; i < n_rows; ++i) {
    low = std::min(low, squared_distances[i]);
    high = std::max(high, squared_distances[i]);
  }
  const float range = high - low;
  const float step = range > 0 ? static_cast<float>(kBuckets - 1) / range : 0.0f;
  std::uint32_t starts[kBuckets + 1] = {};
  const auto bucket = [&](std::size_t i) {
    const float position = (squared_distances[i] - low) * step;
    // Written so that NaN (infinite distances) falls in the last bucket.
    return position < static_cast<float>(kBuckets - 1) ? static_cast<std::size_t>(position)
                                                       : kBuckets - 1;
  };
  for (std::size_t i = 0; i < n_rows; ++i) ++starts[bucket(i) + 1];
  for (std::size_t b = 0; b < kBuckets; ++b) starts[b + 1] += starts[b];
  order_.resize(n_rows);
  for (std::size_t i = 0; i < n_rows; ++i)
    order_[starts[bucket(i)]++] = static_cast<std::uint32_t>(i);
}

bool Problem::prepare(const float* query_xy, const float* database_xy,
                      const float* squared_distances, std::size_t n_rows, float min_separation,
                      const Kernels& kernels) {
  n = 0;
  if (n_rows < 3) return false;
  row_query_.resize(n_rows);
  row_database_.resize(n_rows);
  n_query = numbering_.number(query_xy, n_rows, min_separation, kernels, row_query_.data());
  n_database =
      numbering_.number(database_xy, n_rows, min_separation, kernels, row_database_.data());
  if (n_query < 3 || n_database < 3) return false;
  order_by_distance(squared_distances, n_rows);

  x0 = query_xy[0];
  y0 = query_xy[1];
  u0 = database_xy[0];
  v0 = database_xy[1];

  // By query keypoint, nearest descriptor first.
  starts_.assign(n_query + 1, 0);
  for (std::size_t i = 0; i < n_rows; ++i) ++starts_[row_query_[i] + 1];
  for (std::size_t q = 0; q < n_query; ++q) starts_[q + 1] += starts_[q];
  rows.resize(n_rows);
  for (const std::uint32_t row : order_) rows[starts_[row_query_[row]]++] = row;

  // Of matches between the same two keypoints only the nearest stays; row_query_ marks the rest.
  query_keypoint.resize(n_rows);
  database_keypoint.resize(n_rows);
  last_seen_.assign(n_database, kNone);
  for (std::size_t i = 0; i < n_rows; ++i) {
    const std::uint32_t row = rows[i];
    const std::uint32_t q = row_query_[row], d = row_database_[row];
    if (last_seen_[d] == q) {
      row_query_[row] = kNone;
      continue;
    }
    last_seen_[d] = q;
    rows[n] = row;
    query_keypoint[n] = q;
    database_keypoint[n] = d;
    ++n;
  }

  const std::size_t padded = round_up(n, kWord);
  for (AlignedFloats* array : {&x, &y, &u, &v, &pool_x_, &pool_y_, &pool_u_, &pool_v_})
    array->reserve(padded);
  for (std::size_t i = 0; i < n; ++i) {
    const std::size_t row = rows[i];
    x[i] = query_xy[2 * row] - x0;
    y[i] = query_xy[2 * row + 1] - y0;
    u[i] = database_xy[2 * row] - u0;
    v[i] = database_xy[2 * row + 1] - v0;
  }
  std::fill(x.data() + n, x.data() + padded, 0.0f);
  std::fill(y.data() + n, y.data() + padded, 0.0f);
  std::fill(u.data() + n, u.data() + padded, std::numeric_limits<float>::infinity());
  std::fill(v.data() + n, v.data() + padded, std::numeric_limits<float>::infinity());

  std::size_t at = 0;
  for (const std::uint32_t row : order_) {
    if (row_query_[row] == kNone) continue;
    pool_x_[at] = query_xy[2 * row] - x0;
    pool_y_[at] = query_xy[2 * row + 1] - y0;
    pool_u_[at] = database_xy[2 * row] - u0;
    pool_v_[at] = database_xy[2 * row + 1] - v0;
    ++at;
  }

  const std::size_t n_words = padded / kWord;
  ends_.assign(n_words, 1ULL << 63);
  for (std::size_t i = 0; i < n; ++i) {
    if (i + 1 == n || query_keypoint[i] != query_keypoint[i + 1])
      ends_[i / kWord] |= 1ULL << (i % kWord);
  }
  groups_after_.resize(n_words);
  for (std::size_t w = n_words; w-- > 0;) {
    // First to last keypoint of the later words; numbers rise by one from group to group.
    const std::size_t next = (w + 1) * kWord;
    // A keypoint whose matches cross into the next word counts in both, here as in the kernels.
    groups_after_[w] =
        next < n ? n_query - query_keypoint[next] + static_cast<std::uint32_t>(n_words - 2 - w) : 0;
  }
  return true;
}

Points Problem::points() const {
  const std::size_t n_words = ends_.size();
  return {x.data(),     y.data(),
          u.data(),     v.data(),
          ends_.data(), groups_after_.data(),
          n_words,      round_up(n - (n_words - 1) * kWord, 16)};
}

Pool Problem::pool() const {
  return {pool_x_.data(), pool_y_.data(), pool_u_.data(), pool_v_.data(),
          static_cast<std::uint32_t>(n)};
}

}  // namespace delfsearch::ransac

// The loops themselves, in terms of F (kLanes floats), U (their numbers) and the operations that
// the including file defines.

constexpr int kVectors = static_cast<int>(kBlock) / kLanes;  // a block's
// Rows at a time: their sums of one block stay in registers.
constexpr int kRows = 4;
constexpr int kTile = kVectors < kMostVectors ? kVectors : kMostVectors;  // vectors at a time

struct Least {
  float value;
  std::uint32_t number;
};

// The least lane, ties to the lower number.
DELFSEARCH_INLINE Least least_lane(F best, U at) {
  alignas(64) float value[kLanes];
  alignas(64) std::uint32_t number[kLanes];
  store(value, best);
  store(number, at);
  Least least{value[0], number[0]};
  for (int j = 1; j < kLanes; ++j) {
    const bool nearer =
        value[j] < least.value || (value[j] == least.value && number[j] < least.number);
    least.value = nearer ? value[j] : least.value;
    least.number = nearer ? number[j] : least.number;
  }
  return least;
}

template <int kN>
DELFSEARCH_TARGET void nearest_rows(const Packed& to, const float* x, std::size_t stride,
                                    std::uint32_t* numbers, float* values) {
  F best[kN];
  U at[kN];
  for (int r = 0; r < kN; ++r) {
    best[r] = broadcast(std::numeric_limits<float>::infinity());
    at[r] = broadcast_u(0);
  }
  const std::size_t d = to.d;
  for (std::size_t block = 0; block < to.n_blocks; ++block) {
    for (int first = 0; first < kVectors; first += kTile) {
      const std::size_t lane = static_cast<std::size_t>(first) * kLanes;
      const float* c = to.values + block * d * kBlock + lane;
      F sum[kN][kTile];
      for (int r = 0; r < kN; ++r)
        for (int v = 0; v < kTile; ++v) sum[r][v] = broadcast(0.0f);
      for (std::size_t i = 0; i < d; ++i, c += kBlock) {
        F column[kTile];
        for (int v = 0; v < kTile; ++v) column[v] = load(c + v * kLanes);
        for (int r = 0; r < kN; ++r) {
          const F value = broadcast(x[static_cast<std::size_t>(r) * stride + i]);
          for (int v = 0; v < kTile; ++v) sum[r][v] = sum[r][v] + value * column[v];
        }
      }
      for (int v = 0; v < kTile; ++v) {
        const std::size_t number = block * kBlock + lane + static_cast<std::size_t>(v) * kLanes;
        const F half = load(to.half_norms + number);
        const U these = count_from(static_cast<std::uint32_t>(number));
        for (int r = 0; r < kN; ++r) {
          const F value = half - sum[r][v];
          const auto nearer = below(value, best[r]);  // a tie keeps the lower number
          best[r] = choose(nearer, value, best[r]);
          at[r] = choose(nearer, these, at[r]);
        }
      }
    }
  }
  for (int r = 0; r < kN; ++r) {
    const Least least = least_lane(best[r], at[r]);
    numbers[r] = least.number;
    values[r] = least.value;
  }
}

DELFSEARCH_TARGET void nearest(const Packed& to, const float* x, std::size_t stride, std::size_t n,
                               std::uint32_t* numbers, float* values) {
  std::size_t i = 0;
  for (; i + kRows <= n; i += kRows)
    nearest_rows<kRows>(to, x + i * stride, stride, numbers + i, values + i);
  for (; i < n; ++i) nearest_rows<1>(to, x + i * stride, stride, numbers + i, values + i);
}

DELFSEARCH_TARGET void squared_distances(const Packed& to, const float* x, float* out) {
  for (std::size_t block = 0; block < to.n_blocks; ++block) {
    for (int v = 0; v < kVectors; ++v) {
      const float* c = to.values + block * to.d * kBlock + v * kLanes;
      F sum = broadcast(0.0f);
      for (std::size_t i = 0; i < to.d; ++i, c += kBlock) {
        const F difference = broadcast(x[i]) - load(c);
        sum = sum + difference * difference;
      }
      store(out + block * kBlock + v * kLanes, sum);
    }
  }
}

// kN rows times kWide vectors of A's columns.
template <int kN, int kWide>
DELFSEARCH_INLINE void product_tile(const float* a, std::size_t d, std::size_t width,
                                    const float* x, float* out) {
  F sum[kN][kWide];
  for (int r = 0; r < kN; ++r)
    for (int v = 0; v < kWide; ++v) sum[r][v] = broadcast(0.0f);
  for (std::size_t i = 0; i < d; ++i) {
    F column[kWide];
    for (int v = 0; v < kWide; ++v)
      column[v] = load(a + i * width + static_cast<std::size_t>(v) * kLanes);
    for (int r = 0; r < kN; ++r) {
      const F value = broadcast(x[static_cast<std::size_t>(r) * d + i]);
      for (int v = 0; v < kWide; ++v) sum[r][v] = sum[r][v] + value * column[v];
    }
  }
  for (int r = 0; r < kN; ++r)
    for (int v = 0; v < kWide; ++v)
      store(out + static_cast<std::size_t>(r) * width + static_cast<std::size_t>(v) * kLanes,
            sum[r][v]);
}

template <int kN>
DELFSEARCH_TARGET void product_rows(const float* a, std::size_t d, std::size_t width,
                                    const float* x, float* out) {
  // Sums of one row wait for each other: several vectors go side by side.
  constexpr int kWide = 3 * kMostVectors / 2;
  std::size_t first = 0;
  for (; first + kWide * kLanes <= width; first += kWide * kLanes)
    product_tile<kN, kWide>(a + first, d, width, x, out + first);
  for (; first < width; first += kLanes) product_tile<kN, 1>(a + first, d, width, x, out + first);
}

DELFSEARCH_TARGET void product(const float* a, std::size_t d, std::size_t width, const float* x,
                               std::size_t n, float* out) {
  std::size_t i = 0;
  for (; i + 2 <= n; i += 2) product_rows<2>(a, d, width, x + i * d, out + i * width);
  if (i < n) product_rows<1>(a, d, width, x + i * d, out + i * width);
}

// sum_i (x_i - c_i)^2 of the 16 centroids from `first` on of a part.
constexpr int kSixteen = 16 / kLanes;
DELFSEARCH_INLINE void part_distances(const float* part, std::size_t d, std::size_t n,
                                      std::size_t first, const float* x, F (&sum)[kSixteen]) {
  for (int v = 0; v < kSixteen; ++v) sum[v] = broadcast(0.0f);
  for (std::size_t i = 0; i < d; ++i) {
    const F value = broadcast(x[i]);
    for (int v = 0; v < kSixteen; ++v) {
      const F difference =
          value - load(part + i * n + first + static_cast<std::size_t>(v) * kLanes);
      sum[v] = sum[v] + difference * difference;
    }
  }
}

DELFSEARCH_TARGET void part_tables(const Codebook& codebook, const float* x, float* out,
                                   float* least) {
  const std::size_t d = codebook.part_dimension, n = codebook.n_centroids;
  for (std::size_t p = 0; p < codebook.n_parts; ++p) {
    F lowest = broadcast(std::numeric_limits<float>::infinity());
    for (std::size_t first = 0; first < n; first += 16) {
      F sum[kSixteen];
      part_distances(codebook.values + p * d * n, d, n, first, x + p * d, sum);
      for (int v = 0; v < kSixteen; ++v) {
        store(out + p * n + first + static_cast<std::size_t>(v) * kLanes, sum[v]);
        lowest = lower(lowest, sum[v]);
      }
    }
    least[p] = lowest_lane(lowest);
  }
}

DELFSEARCH_TARGET void part_nearest(const Codebook& codebook, const float* x,
                                    std::uint8_t* numbers) {
  const std::size_t d = codebook.part_dimension, n = codebook.n_centroids;
  for (std::size_t p = 0; p < codebook.n_parts; ++p) {
    F best = broadcast(std::numeric_limits<float>::infinity());
    U at = broadcast_u(0);
    for (std::size_t first = 0; first < n; first += 16) {
      F sum[kSixteen];
      part_distances(codebook.values + p * d * n, d, n, first, x + p * d, sum);
      for (int v = 0; v < kSixteen; ++v) {
        const auto nearer = below(sum[v], best);
        best = choose(nearer, sum[v], best);
        at = choose(
            nearer,
            count_from(static_cast<std::uint32_t>(first) + static_cast<std::uint32_t>(v) * kLanes),
            at);
      }
    }
    numbers[p] = static_cast<std::uint8_t>(least_lane(best, at).number);
  }
}

DELFSEARCH_TARGET void widen(const std::int8_t* whole, std::size_t n_rows, std::size_t n,
                             float step, std::size_t width, float* out) {
  const F steps = broadcast(step);
  for (std::size_t i = 0; i < n_rows; ++i, whole += n, out += width) {
    std::size_t j = 0;
    // The rows behind may be read, but not what is behind the last one.
    const std::size_t left = (n_rows - i) * n;
    for (; j < n && j + kLanes <= left; j += kLanes) store(out + j, whole_lanes(whole + j) * steps);
    for (; j < n; ++j) out[j] = static_cast<float>(whole[j]) * step;
  }
}

DELFSEARCH_TARGET void least_of_lanes(const float* values, std::size_t n_groups,
                                      std::size_t group_size, float* least) {
  for (std::size_t group = 0; group < n_groups; ++group, values += 16 * group_size, least += 16) {
    F low[kSixteen];
    for (int v = 0; v < kSixteen; ++v) low[v] = load(values + v * kLanes);
    for (std::size_t i = 1; i < group_size; ++i)
      for (int v = 0; v < kSixteen; ++v) {
        const F value = load(values + 16 * i + static_cast<std::size_t>(v) * kLanes);
        low[v] = choose(below(value, low[v]), value, low[v]);
      }
    for (int v = 0; v < kSixteen; ++v) store(least + v * kLanes, low[v]);
  }
}

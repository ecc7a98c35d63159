// The loops themselves, in terms of F (kLanes floats), U (their numbers) and the operations that
// the including file defines.

constexpr int kVectors = static_cast<int>(kBlock) / kLanes;  // a block's
// Rows at a time: their sums of one block stay in registers.
constexpr int kRows = 4;
constexpr int kTile = kVectors < kMostVectors ? kVectors : kMostVectors;  // vectors at a time

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
    alignas(64) float lane_best[kLanes];
    alignas(64) std::uint32_t lane_at[kLanes];
    store(lane_best, best[r]);
    store(lane_at, at[r]);
    float least = lane_best[0];
    std::uint32_t number = lane_at[0];
    for (int j = 1; j < kLanes; ++j) {
      const bool nearer =
          lane_best[j] < least || (lane_best[j] == least && lane_at[j] < number);
      least = nearer ? lane_best[j] : least;
      number = nearer ? lane_at[j] : number;
    }
    numbers[r] = number;
    values[r] = least;
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

DELFSEARCH_TARGET void product(const float* a, std::size_t d, std::size_t width, const float* x,
                               float* out) {
  for (std::size_t first = 0; first < width; first += 16) {
    F sum[16 / kLanes];
    for (int v = 0; v < 16 / kLanes; ++v) sum[v] = broadcast(0.0f);
    for (std::size_t i = 0; i < d; ++i) {
      const F value = broadcast(x[i]);
      for (int v = 0; v < 16 / kLanes; ++v)
        sum[v] = sum[v] + value * load(a + i * width + first + static_cast<std::size_t>(v) * kLanes);
    }
    for (int v = 0; v < 16 / kLanes; ++v)
      store(out + first + static_cast<std::size_t>(v) * kLanes, sum[v]);
  }
}

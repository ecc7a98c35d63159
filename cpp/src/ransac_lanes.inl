// Included once per instruction set, after the types F (floats), U (32-bit integers) and Bits of
// that set, kLanes wide, and with DELFSEARCH_TARGET naming the set for the compiler. Every lane is
// one hypothesis and its counter alone decides it, so the width changes nothing. Not a header.

// "lowbias32" of C. Wellons (public domain).
DELFSEARCH_INLINE U hash32(U h) {
  h = h ^ shift_right<16>(h);
  h = h * broadcast_u(0x7feb352dU);
  h = h ^ shift_right<15>(h);
  h = h * broadcast_u(0x846ca68bU);
  return h ^ shift_right<16>(h);
}

// The match that lane counters draw as their point number `point`: rank = n r^2 for r uniform in
// [0, 1), so that near descriptors come up more often (density proportional to 1 / sqrt(rank)).
DELFSEARCH_INLINE U pick(U hashed, std::uint32_t point, F n, U last) {
  const F r = to_float(shift_right<8>(hash32(hashed + broadcast_u(point * 0x9e3779b9U)))) *
              broadcast(1.0f / 16777216.0f);
  return minimum(to_integer(r * r * n), last);
}

struct Match {
  F x, y, u, v;
};

DELFSEARCH_INLINE Match look_up(const Pool& pool, U index) {
  return {gather(pool.x, index), gather(pool.y, index), gather(pool.u, index),
          gather(pool.v, index)};
}

DELFSEARCH_TARGET int draw(const Pool& pool, std::uint64_t key, std::uint32_t first,
                           const DrawLimits& limits, Hypotheses& out) {
  const F n = broadcast(static_cast<float>(pool.n));
  const U last = broadcast_u(pool.n - 1);
  const F baseline2 = broadcast(limits.min_baseline2), zero = broadcast(0.0f);
  int kept = 0;
  for (int block = 0; block < kBatch; block += kLanes) {
    const U counter = count_from(first + static_cast<std::uint32_t>(block));
    const U hashed =
        hash32(counter * broadcast_u(0x9e3779b9U) + broadcast_u(static_cast<std::uint32_t>(key))) ^
        broadcast_u(static_cast<std::uint32_t>(key >> 32));
    const Match p = look_up(pool, pick(hashed, 0, n, last));
    const Match q = look_up(pool, pick(hashed, 1, n, last));
    const F dx = q.x - p.x, dy = q.y - p.y, du = q.u - p.u, dv = q.v - p.v;
    F a, b, d, e;
    Bits good;
    if (block < kSimilarities) {
      const F length2 = dx * dx + dy * dy;
      const F image2 = du * du + dv * dv;
      good = at_most(baseline2, length2) & at_most(baseline2, image2);
      const F inverse = broadcast(1.0f) / length2;
      a = (dx * du + dy * dv) * inverse;
      d = (dx * dv - dy * du) * inverse;
      b = zero - d;
      e = a;
    } else {
      const Match r = look_up(pool, pick(hashed, 2, n, last));
      const F ex = r.x - p.x, ey = r.y - p.y, eu = r.u - p.u, ev = r.v - p.v;
      const F area = dx * ey - ex * dy;
      const F image = du * ev - eu * dv;
      // The two areas have the same sign where the map keeps orientation.
      good = at_most(baseline2 * baseline2, area * area) &
             at_most(baseline2 * baseline2, image * image);
      const F inverse = broadcast(1.0f) / area;
      a = (du * ey - eu * dy) * inverse;
      b = (eu * dx - du * ex) * inverse;
      d = (dv * ey - ev * dy) * inverse;
      e = (ev * dx - dv * ex) * inverse;
    }
    const F det = a * e - b * d;
    const F norm2 = (a * a + b * b) + (d * d + e * e);
    good = good & at_most(broadcast(limits.min_det), det) &
           at_most(det, broadcast(limits.max_det)) &
           at_most(norm2, det * broadcast(limits.max_norm2_over_det));
    if (limits.any_rotation == 0) {
      const F cosine = a + e, sine = d - b;
      good = good &
             at_most(broadcast(limits.min_cosine) * root(cosine * cosine + sine * sine), cosine);
    }
    const std::uint32_t bits = to_bits(good);
    if (!bits) continue;
    const F c = p.u - (a * p.x + b * p.y);
    const F f = p.v - (d * p.x + e * p.y);
    store_chosen(out.a + kept, a, bits);
    store_chosen(out.b + kept, b, bits);
    store_chosen(out.c + kept, c, bits);
    store_chosen(out.d + kept, d, bits);
    store_chosen(out.e + kept, e, bits);
    kept += store_chosen(out.f + kept, f, bits);
  }
  return kept;
}

DELFSEARCH_TARGET std::uint32_t first_near(const float* xs, const float* ys, std::uint32_t n,
                                           float x, float y, float radius2) {
  const F px = broadcast(x), py = broadcast(y), limit = broadcast(radius2);
  for (std::uint32_t i = 0; i < n; i += kLanes) {
    const F dx = load(xs + i) - px, dy = load(ys + i) - py;
    const std::uint32_t bits = to_bits(at_most(dx * dx + dy * dy, limit));
    if (bits) {
      std::uint32_t lane = 0;
      while (!(bits >> lane & 1)) ++lane;
      return i + lane < n ? i + lane : n;
    }
  }
  return n;
}

struct Map {
  F a, b, c, d, e, f;
};

// Bit j: match at + j is an inlier.
DELFSEARCH_INLINE std::uint64_t verdicts(const Points& points, std::size_t at, const Map& m, F t2) {
  const F x = load(points.x + at), y = load(points.y + at);
  const F ru = (m.a * x + m.b * y) + (m.c - load(points.u + at));
  const F rv = (m.d * x + m.e * y) + (m.f - load(points.v + at));
  return to_bits(at_most(ru * ru + rv * rv, t2));
}

DELFSEARCH_TARGET int next_better(const Points& points, const Hypotheses& h, int start, int count,
                                  int floor, std::uint64_t* mask) {
  const F t2 = broadcast(h.t2);
  for (int i = start; i < count; ++i) {
    const Map m{broadcast(h.a[i]), broadcast(h.b[i]), broadcast(h.c[i]),
                broadcast(h.d[i]), broadcast(h.e[i]), broadcast(h.f[i])};
    int bound = 0;
    std::size_t word = 0;
    for (; word < points.n_words; ++word) {
      const std::size_t base = word * kWord;
      std::uint64_t bits = 0;
      // Twice the same loop: of constant length, the compiler unrolls it.
      if (word + 1 < points.n_words) {
        for (std::size_t k = 0; k < kWord; k += kLanes)
          bits |= verdicts(points, base + k, m, t2) << k;
      } else {
        for (std::size_t k = 0; k < points.tail; k += kLanes)
          bits |= verdicts(points, base + k, m, t2) << k;
      }
      mask[word] = bits;
      bound += count_bits(runs_hit(bits, points.ends[word]));
      if (bound + static_cast<int>(points.groups_after[word]) <= floor) break;
    }
    if (word == points.n_words && bound > floor) return i;
  }
  return count;
}

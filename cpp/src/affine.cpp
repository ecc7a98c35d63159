#include "delfsearch/affine.hpp"

#include <cmath>

namespace delfsearch {
namespace {

// First and second moments of the pairs about their means.
struct Moments {
  double mx = 0, my = 0, mu = 0, mv = 0;
  double xx = 0, xy = 0, yy = 0;
  double ux = 0, uy = 0, vx = 0, vy = 0;
};

Moments moments(Span<const PointPair> pairs) {
  Moments m;
  for (const PointPair& p : pairs) {
    m.mx += p.x;
    m.my += p.y;
    m.mu += p.u;
    m.mv += p.v;
  }
  const double inverse = 1.0 / static_cast<double>(pairs.size());
  m.mx *= inverse;
  m.my *= inverse;
  m.mu *= inverse;
  m.mv *= inverse;
  for (const PointPair& p : pairs) {
    const double x = p.x - m.mx, y = p.y - m.my, u = p.u - m.mu, v = p.v - m.mv;
    m.xx += x * x;
    m.xy += x * y;
    m.yy += y * y;
    m.ux += u * x;
    m.uy += u * y;
    m.vx += v * x;
    m.vy += v * y;
  }
  return m;
}

void set_translation(Affine& map, const Moments& m) {
  map.c = m.mu - (map.a * m.mx + map.b * m.my);
  map.f = m.mv - (map.d * m.mx + map.e * m.my);
}

}  // namespace

bool within_limits(const Affine& map, const AffineLimits& limits) {
  const double det = map.det();
  const double norm2 = map.a * map.a + map.b * map.b + map.d * map.d + map.e * map.e;
  if (!std::isfinite(norm2) || !std::isfinite(map.c) || !std::isfinite(map.f)) return false;
  if (!(det > 0)) return false;
  if (det < limits.min_scale * limits.min_scale || det > limits.max_scale * limits.max_scale)
    return false;
  if (norm2 > det * (limits.max_stretch + 1.0 / limits.max_stretch) * (1.0 + 1e-9)) return false;
  if (limits.max_rotation_deg >= 180.0) return true;
  const double cosine = map.a + map.e, sine = map.d - map.b;
  const double limit = std::cos(limits.max_rotation_deg * 0.017453292519943295);
  return cosine >= limit * std::sqrt(cosine * cosine + sine * sine);
}

std::optional<Affine> fit_affine(Span<const PointPair> pairs) {
  if (pairs.size() < 3) return std::nullopt;
  const Moments m = moments(pairs);
  const double det = m.xx * m.yy - m.xy * m.xy;
  const double trace = m.xx + m.yy;
  // det / trace^2 is about (short axis / long axis)^2 of the points.
  if (!(det > 1e-12 * trace * trace)) return std::nullopt;
  Affine map;
  map.a = (m.ux * m.yy - m.uy * m.xy) / det;
  map.b = (m.uy * m.xx - m.ux * m.xy) / det;
  map.d = (m.vx * m.yy - m.vy * m.xy) / det;
  map.e = (m.vy * m.xx - m.vx * m.xy) / det;
  set_translation(map, m);
  return map;
}

std::optional<Affine> fit_similarity(Span<const PointPair> pairs) {
  if (pairs.size() < 2) return std::nullopt;
  const Moments m = moments(pairs);
  const double trace = m.xx + m.yy;
  if (!(trace > 0)) return std::nullopt;
  Affine map;
  map.a = (m.ux + m.vy) / trace;
  map.d = (m.vx - m.uy) / trace;
  map.b = -map.d;
  map.e = map.a;
  set_translation(map, m);
  return map;
}

}  // namespace delfsearch

// How a product's tiles are cut into strips and shared among threads.
#pragma once
#include "kernels.h"
#include "threads/shares.h"

namespace edged {

// The number of strips into which a product cuts its matrix, of which threads share n items: 1 where several
// would leave a thread too few items to balance the load.
inline int strip_count(const Matrix& w, int rows, int n, int threads, const Kernels& kernels) {
  return rows <= kFewRows && !is_float(w.kind) && n >= 4 * threads * kernels.strips ? kernels.strips : 1;
}

// A product's strips and how their tiles are shared: a product of few rows streams weights, one of many rows
// computes long with each pair of tiles.
struct Tiling {
  int strips, tiles_per_strip;
  SharePolicy policy;
  Tiling(const Matrix& w, int rows, int threads, const Kernels& kernels) {
    strips = strip_count(w, rows, w.tiles, threads, kernels);
    tiles_per_strip = (w.tiles + strips - 1) / strips;
    policy = rows > kFewRows ? SharePolicy{4} : SharePolicy{1, kKeptSixteenths};
  }
  Strips strips_of(const WorkRange& r) const {
    return {r.begin,   r.end - r.begin, strips, tiles_per_strip, (size_t)tiles_per_strip * kTileRows,
            r.reserve, r.units,         1};
  }
};

}  // namespace edged

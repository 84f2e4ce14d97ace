// Who computes what in a phase: each thread starts with an equal, contiguous part and takes it in pieces, half of what is left at a time;
// who is done early takes pieces of the others' parts. A contiguous part keeps the memory streams long; the taking keeps a delayed thread
// from delaying all, and small pieces at the end keep the wait at the barrier short.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

#include "table.h"

namespace edged {

struct Share {
  int begin, end;
};

// Thread's equal part of n things.
inline Share share(int n, int thread, int threads) {
  return {(int)((int64_t)n * thread / threads), (int)((int64_t)n * (thread + 1) / threads)};
}

// Into how many strips a product cuts its matrix, of which threads share out n things: one where several would leave a thread with too few
// to even out with the others.
inline int strips_of(const Matrix& w, int rows, int n, int threads, const Kernels& kernels) {
  return rows <= kFewRows && !is_float(w.kind) && n >= 4 * threads * kernels.strips ? kernels.strips : 1;
}

// The most and the fewest things that are taken at once (fewer only where no more are left).
struct Sizes {
  int most = 1, least = 1;
};

// A product's strips, and how many tiles of each a thread takes at once: few rows stream weights, so at most 256 KB; many rows are at work
// for long with each pair.
struct Cut {
  int strips, tiles;
  Sizes sizes;
  Cut(const Matrix& w, int rows, int threads, const Kernels& kernels) {
    strips = strips_of(w, rows, w.tiles, threads, kernels);
    tiles = (w.tiles + strips - 1) / strips;
    sizes = rows > kFewRows ? Sizes{4, 4} : Sizes{std::max(1, (int)(262144 / w.tile_bytes) / strips), 1};
  }
  Strips of(const Share& taken) const { return {taken.begin, taken.end - taken.begin, strips, tiles, (size_t)tiles * kTileRows}; }
};

class Shares {
 public:
  Shares(int phases, int threads) : threads_(threads), taken_((size_t)phases * threads) {}

  // Before a step: nothing is taken.
  void reset() {
    for (auto& one : taken_) one.count.store(0, std::memory_order_relaxed);
  }

  // The next of the n things of a phase: half of what is left of a part, within `sizes`; false when all are taken.
  bool take(int phase, int thread, int n, Sizes sizes, Share& out) {
    for (int i = 0; i < threads_; i++) {
      const int owner = (thread + i) % threads_;
      const Share part = share(n, owner, threads_);
      std::atomic<int>& count = taken_[(size_t)phase * threads_ + owner].count;
      int taken = count.load(std::memory_order_relaxed);
      for (int left = part.end - part.begin - taken; left > 0; left = part.end - part.begin - taken) {
        const int size = std::min(left, std::clamp(left / 2, sizes.least, sizes.most));
        if (!count.compare_exchange_weak(taken, taken + size, std::memory_order_relaxed)) continue;
        out = {part.begin + taken, part.begin + taken + size};
        return true;
      }
    }
    return false;
  }

 private:
  struct alignas(64) Taken {
    std::atomic<int> count{0};
  };
  const int threads_;
  std::vector<Taken> taken_;
};

}  // namespace edged

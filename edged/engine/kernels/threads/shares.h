// Who computes what in a phase. Each thread has an equal, contiguous part, so that the memory streams are long. Where few rows stream weights, or
// keys and values, it keeps most of that to itself and does it at one go: a piece more costs about half a microsecond, which is much of a
// product of 10 to 100. The end, its reserve, evens out: who is done early takes units of the others' reserves.
#pragma once
#include <algorithm>
#include <climits>
#include <cstdint>
#include <vector>

#include "kernels.h"

namespace edged {

struct Share {
  int begin, end;
};

// Thread's equal part of n things.
inline Share share(int n, int thread, int threads) {
  return {(int)((int64_t)n * thread / threads), (int)((int64_t)n * (thread + 1) / threads)};
}

// What a thread does next: things [begin, end); where `reserve` is set, then those of its `units` that are still there.
struct Taken {
  int begin, end;
  Reserve* reserve = nullptr;
  int units = 0;
};

// How parts are handed out: a unit of a reserve is `unit` things; `keep` in 16 are kept out of the reserve, and done at most `most` at once.
struct Portions {
  int unit = 1, keep = 0, most = INT_MAX;
};
constexpr int kKept = 12;  // sixteenths, where things cost the same; 12 to 15 measured within 0.5 %

// Into how many strips a product cuts its matrix, of which threads share out n things: one where several would leave a thread with too few
// to even out with the others.
inline int strips_of(const Matrix& w, int rows, int n, int threads, const Kernels& kernels) {
  return rows <= kFewRows && !is_float(w.kind) && n >= 4 * threads * kernels.strips ? kernels.strips : 1;
}

// A product's strips and how their tiles are handed out: few rows stream weights, many rows are at work for long with each pair.
struct Cut {
  int strips, tiles;
  Portions portions;
  Cut(const Matrix& w, int rows, int threads, const Kernels& kernels) {
    strips = strips_of(w, rows, w.tiles, threads, kernels);
    tiles = (w.tiles + strips - 1) / strips;
    portions = rows > kFewRows ? Portions{4} : Portions{1, kKept};
  }
  Strips of(const Taken& t) const { return {t.begin, t.end - t.begin, strips, tiles, (size_t)tiles * kTileRows, t.reserve, t.units, 1}; }
};

// What is left of the parts of a layer's phases. Two layers' take turns, so that there are few lines to keep in a cache that weights stream
// through.
class Shares {
 public:
  Shares(int phases, int threads) : phases_(phases), threads_(threads), parts_((size_t)2 * phases * threads) {}

  // Before a step: nothing is taken.
  void reset() {
    for (Part& one : parts_) one.clear();
  }

  // Nothing of the thread's parts of a layer is taken. Called when all have left the layer two before.
  void begin(int layer, int thread) {
    for (int phase = 0; phase < phases_; phase++) part(layer, phase, thread).clear();
  }

  // The thread's next piece of the n things of a layer's phase; false when all are taken.
  bool take(int layer, int phase, int thread, int n, Portions how, Taken& out) {
    for (int i = 0; i < threads_; i++) {
      const int owner = (thread + i) % threads_;
      const Share all = share(n, owner, threads_);
      const int size = all.end - all.begin, kept = size * how.keep / 16, units = (size - kept + how.unit - 1) / how.unit;
      Part& from = part(layer, phase, owner);
      if (!i && from.done < kept) {
        const int count = std::min(kept - from.done, how.most);
        out = {all.begin + from.done, all.begin + from.done + count};
        from.done += count;
        if (from.done == kept && count + units * how.unit <= how.most) out.reserve = &from.reserve, out.units = units;
        return true;
      }
      if (from.reserve.claimed.load(std::memory_order_relaxed) >= units || from.reserve.claimed.fetch_add(1, std::memory_order_relaxed) >= units) continue;
      const int unit = i ? units - 1 - from.reserve.others.fetch_add(1, std::memory_order_relaxed) : from.reserve.own++;
      const int begin = all.begin + kept + unit * how.unit;
      out = {begin, std::min(begin + how.unit, all.end)};
      return true;
    }
    return false;
  }

 private:
  struct alignas(64) Part {
    Reserve reserve;
    int done = 0;  // of what is kept, which is its owner's alone
    void clear() {
      reserve.claimed.store(0, std::memory_order_relaxed);
      reserve.others.store(0, std::memory_order_relaxed);
      reserve.own = done = 0;
    }
  };
  Part& part(int layer, int phase, int thread) { return parts_[((size_t)(layer & 1) * phases_ + phase) * threads_ + thread]; }

  const int phases_, threads_;
  std::vector<Part> parts_;
};

}  // namespace edged

// Which thread computes what in a phase. Each thread has an equal, contiguous part, so that the memory
// streams are long. Where few rows stream weights, or keys and values, it keeps most of that to itself and
// computes it in one call: each further call costs about half a microsecond, which is much of a product of 10
// to 100. The end of the part, its reserve, balances the load: a thread that is done early claims units of
// the others' reserves.
#pragma once
#include <algorithm>
#include <climits>
#include <cstdint>
#include <vector>

#include "threads/reserve.h"

namespace edged {

struct Share {
  int begin, end;
};

// The equal part of n items that is `thread`'s.
inline Share share(int n, int thread, int threads) {
  return {(int)((int64_t)n * thread / threads), (int)((int64_t)n * (thread + 1) / threads)};
}

// What a thread computes next: items [begin, end); where `reserve` is set, then those of its `units` that
// nobody has claimed.
struct WorkRange {
  int begin, end;
  Reserve* reserve = nullptr;
  int units = 0;
};

// How parts are shared: a unit of a reserve is `unit` items; `keep` sixteenths of a part stay out of its
// reserve, and at most `most` items are computed in one call.
struct SharePolicy {
  int unit = 1, keep = 0, most = INT_MAX;
};
constexpr int kKeptSixteenths = 12;  // where items cost the same; 12 to 15 measured within 0.5 %

// What is left of the parts of a layer's phases. Even and odd layers have one set each, so that there are few
// cache lines to keep while weights stream through the cache.
class Shares {
 public:
  Shares(int phases, int threads)
      : phases_(phases), threads_(threads), parts_((size_t)2 * phases * threads) {}

  // Before a step: all parts are whole.
  void reset() {
    for (Part& one : parts_) one.clear();
  }

  // Makes the thread's parts of a layer whole again. Called when all threads have left the layer two before.
  void start_layer(int layer, int thread) {
    for (int phase = 0; phase < phases_; phase++) part(layer, phase, thread).clear();
  }

  // The thread's next range of the n items of a layer's phase; false when none is left.
  bool next(int layer, int phase, int thread, int n, SharePolicy how, WorkRange& out) {
    for (int i = 0; i < threads_; i++) {
      const int owner = (thread + i) % threads_;
      const Share all = share(n, owner, threads_);
      const int size = all.end - all.begin, kept = size * how.keep / 16;
      const int units = (size - kept + how.unit - 1) / how.unit;
      Part& from = part(layer, phase, owner);
      if (!i && from.done < kept) {
        const int count = std::min(kept - from.done, how.most);
        out = {all.begin + from.done, all.begin + from.done + count};
        from.done += count;
        if (from.done == kept && count + units * how.unit <= how.most)
          out.reserve = &from.reserve, out.units = units;
        return true;
      }
      Reserve& reserve = from.reserve;
      constexpr auto relaxed = std::memory_order_relaxed;
      if (reserve.claimed.load(relaxed) >= units || reserve.claimed.fetch_add(1, relaxed) >= units) continue;
      const int unit = i ? units - 1 - reserve.others.fetch_add(1, relaxed) : reserve.own++;
      const int begin = all.begin + kept + unit * how.unit;
      out = {begin, std::min(begin + how.unit, all.end)};
      return true;
    }
    return false;
  }

 private:
  struct alignas(64) Part {
    Reserve reserve;
    int done = 0;  // items computed of those outside the reserve; only its owner reads it
    void clear() {
      reserve.claimed.store(0, std::memory_order_relaxed);
      reserve.others.store(0, std::memory_order_relaxed);
      reserve.own = done = 0;
    }
  };
  Part& part(int layer, int phase, int thread) {
    return parts_[((size_t)(layer & 1) * phases_ + phase) * threads_ + thread];
  }

  const int phases_, threads_;
  std::vector<Part> parts_;
};

}  // namespace edged

// Threads share products and each tile is computed once, whichever thread claims it: many small products in a
// row, with the library's plain C++ kernels, by 1 to 4 threads that meet after each. Run by test_shares.py;
// exits 1 at the first difference.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <vector>

#include "kernels.h"
#include "ops/tiling.h"
#include "threads/threads.h"

using namespace edged;

namespace {

std::mt19937 random_bits(7);

// A matrix of random 4-bit codes, and rows of random activations.
struct Given {
  std::vector<uint8_t> bytes;
  std::vector<int8_t> codes;
  std::vector<float> scale, sum;
  std::vector<int32_t> offset8;
  Matrix w;
  Activations x;
  Given(int tiles, int m) {
    w.kind = kQ4;
    w.rows = tiles * kTileRows;
    w.cols = w.group = 32;
    w.groups = 1;
    w.tiles = tiles;
    w.block_bytes = w.tile_bytes = header_bytes(kQ4) + 128;
    bytes.resize(w.tile_bytes * (size_t)tiles + 256);
    for (auto& b : bytes) b = (uint8_t)(random_bits() & 63);
    w.data = bytes.data();
    codes.resize((size_t)m * 32);
    for (auto& c : codes) c = (int8_t)random_bits();
    scale.assign((size_t)m, 0.5f);
    sum.assign((size_t)m, 0.f);
    offset8.assign((size_t)m, 3);
    x.codes = codes.data();
    x.scale = scale.data();
    x.sum = sum.data();
    x.offset8 = offset8.data();
    x.m = m;
    x.stride = 32;
  }
};

struct Work {
  const Kernels& kernels;
  const Given& given;
  const Tiling& tiling;
  Shares& shares;
  std::vector<std::unique_ptr<Scratch>>& scratch;
  std::vector<float>& y;
  int layer;
};

void multiply(void* context, int thread) {
  const auto& [kernels, given, tiling, shares, scratch, y, layer] = *static_cast<Work*>(context);
  shares.start_layer(layer + 1, thread);
  WorkRange range;
  while (shares.next(layer, 0, thread, tiling.tiles_per_strip, tiling.policy, range))
    kernels.matmul(given.w, given.x, tiling.strips_of(range), y.data() + (size_t)range.begin * kTileRows,
                   (size_t)given.w.rows, true, *scratch[(size_t)thread]);
}

}  // namespace

int main() {
  const Kernels& plain = *choose_kernels("portable");
  Kernels four = plain;
  four.strips = 4;
  for (int threads = 1; threads <= 4; threads++) {
    Threads pool(threads);
    std::vector<std::unique_ptr<Scratch>> scratch;
    for (int t = 0; t < threads; t++) scratch.push_back(std::make_unique<Scratch>());
    for (int tiles : {1, 5, 31, 100, 403})
      for (int m : {1, 3, 16, 17}) {
        const Given given(tiles, m);
        const Tiling tiling(given.w, m, threads, four);
        Shares shares(1, threads);
        std::vector<float> one((size_t)m * given.w.rows), expected(one.size()), y(one.size());
        plain.matmul(given.w, given.x, {0, tiles}, one.data(), (size_t)given.w.rows, false, *scratch[0]);
        for (int layer = 0; layer < 40; layer++) {
          Work work{plain, given, tiling, shares, scratch, y, layer};
          pool.run(multiply, &work);
          for (size_t i = 0; i < y.size(); i++) expected[i] += one[i];
        }
        for (size_t i = 0; i < y.size(); i++)
          if (y[i] != expected[i]) {
            printf("%d threads, %d tiles, %d rows: result %zu is %g, not %g\n", threads, tiles, m, i,
                   (double)y[i], (double)expected[i]);
            return 1;
          }
      }
  }
  printf("each tile once\n");
  return 0;
}

#include "benchmark.h"

#include <algorithm>
#include <chrono>
#include <stdexcept>

#include "engine.h"
#include "ops/tiling.h"

namespace edged {
namespace {

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

constexpr int kStreams = 4;

struct Product {
  Matrix w;
  Activations x;
  float* y;
  int threads;
  const Kernels* kernels;
};

struct Reading {
  const uint64_t* data;
  int64_t words;
  int threads;
  std::atomic<uint64_t> sum;
};

}  // namespace

void time_matmul(const EdgedTensor& w, const float* x, int m, float* y, int threads, int repeats, int copies,
                 int64_t copy_stride, double* seconds, const Kernels& kernels) {
  if (m < 1 || m > 8192 || threads < 1 || threads > 256 || repeats < 1 || copies < 1)
    throw std::invalid_argument("m, threads, repeats or copies out of range");
  const Matrix matrix = read_matrix(w, "given", w.rows, w.cols);
  ActivationBuffer input(m, matrix.cols);
  for (int i = 0; i < m; i++) {
    const float* row = x + (size_t)i * matrix.cols;
    std::copy(row, row + matrix.cols, input.values.as<float>() + (size_t)i * input.stride);
    kernels.quantize(row, matrix.cols, input.stride, input.coded_row(i));
  }
  Threads pool(threads);
  std::vector<std::unique_ptr<Scratch>> scratch;
  for (int t = 0; t < threads; t++) scratch.push_back(std::make_unique<Scratch>());
  for (int r = 0; r < repeats; r++) {
    struct Work {
      Product product;
      std::vector<std::unique_ptr<Scratch>>* scratch;
    } work{{matrix, input.view(m), y, threads, &kernels}, &scratch};
    work.product.w.data += (size_t)(r % copies) * (size_t)copy_stride;
    const double start = now();
    pool.run(
        [](void* context, int thread) {
          auto& [p, scratches] = *static_cast<Work*>(context);
          const Tiling tiling(p.w, p.x.m, p.threads, *p.kernels);
          const Share mine = share(tiling.tiles_per_strip, thread, p.threads);
          if (mine.begin < mine.end)
            p.kernels->matmul(p.w, p.x, tiling.strips_of({mine.begin, mine.end}),
                              p.y + (size_t)mine.begin * kTileRows, (size_t)p.w.tiles * kTileRows, false,
                              *(*scratches)[thread]);
        },
        &work);
    if (seconds) seconds[r] = now() - start;
  }
}

// Each thread reads its part in four streams, as products of few rows do: no other plain loop that was tried
// is faster.
double read_bandwidth(const void* data, int64_t bytes, int threads, int repeats) {
  if (bytes < 64 || threads < 1 || threads > 256 || repeats < 1) return 0;
  Reading reading{(const uint64_t*)data, bytes / 8, threads, {0}};
  Threads pool(threads);
  std::vector<double> seconds;
  for (int r = 0; r < repeats; r++) {
    const double start = now();
    pool.run(
        [](void* context, int thread) {
          auto& r = *static_cast<Reading*>(context);
          const int64_t begin = r.words * thread / r.threads, end = r.words * (thread + 1) / r.threads;
          const int64_t stride = (end - begin) / kStreams / 8 * 8;
          uint64_t sums[8] = {};
          for (int64_t i = begin; i < begin + stride; i += 8)
            for (int s = 0; s < kStreams; s++)
              for (int j = 0; j < 8; j++) sums[j] += r.data[i + s * stride + j];
          for (int64_t i = begin + kStreams * stride; i < end; i++) sums[0] += r.data[i];
          for (uint64_t s : sums) r.sum += s;
        },
        &reading);
    seconds.push_back(now() - start);
  }
  std::nth_element(seconds.begin(), seconds.begin() + seconds.size() / 2, seconds.end());
  return (double)bytes / seconds[seconds.size() / 2];
}

}  // namespace edged

#include "api.h"

#include <algorithm>
#include <cstdio>
#include <exception>
#include <stdexcept>

#include "benchmark.h"
#include "engine.h"
#include "ops/bpe.h"
#include "ops/choose.h"

struct EdgedEngine {
  edged::Engine engine;
};

namespace {

// Runs f; a C++ exception becomes a sentence.
template <class F>
int32_t guarded(char* error, F f) {
  try {
    f();
    return 0;
  } catch (const std::bad_alloc&) {
    snprintf(error, kErrorBytes, "there is not enough memory for this");
  } catch (const std::exception& e) {
    snprintf(error, kErrorBytes, "%s", e.what());
  }
  return 1;
}

const edged::Kernels& kernels_named(const char* name) {
  const edged::Kernels* table = edged::choose_kernels(name);
  if (!table)
    throw std::invalid_argument(std::string("this processor or build has no kernels named ") + name);
  return *table;
}

}  // namespace

int32_t edged_api_version() { return kApiVersion; }

const char* edged_kernels(const char* name) {
  const edged::Kernels* table = edged::choose_kernels(name);
  return table ? table->name : nullptr;
}

EdgedEngine* edged_open(const EdgedConfig* config, const EdgedTensor* tensors, int32_t count,
                        const char* kernels, char* error) {
  EdgedEngine* opened = nullptr;
  guarded(error, [&] {
    opened = new EdgedEngine{{edged::read_model(*config, tensors, count), kernels_named(kernels)}};
  });
  return opened;
}

int32_t edged_step(EdgedEngine* engine, const EdgedStep* step, char* error) {
  return guarded(error, [&] { engine->engine.step(*step); });
}

int32_t edged_decode(EdgedEngine* engine, const EdgedDecoding* sequences, int32_t count,
                     const int32_t* blocks, int32_t block_count, const int32_t* stops, int32_t stop_count,
                     int32_t steps, const int32_t* interrupt, int32_t* done, char* error) {
  return guarded(error, [&] {
    *done =
        engine->engine.decode({sequences, count, blocks, block_count, stops, stop_count, steps, interrupt});
  });
}

int32_t edged_copy_block(EdgedEngine* engine, int32_t windowed, int32_t from, int32_t to, char* error) {
  return guarded(error, [&] { engine->engine.copy_block(windowed != 0, from, to); });
}

int64_t edged_memory(const EdgedEngine* engine, int32_t what) {
  return (int64_t)(what == 0 ? engine->engine.cache_bytes() : engine->engine.buffer_bytes());
}

void edged_close(EdgedEngine* engine) { delete engine; }

int32_t edged_bpe_encode(const EdgedMerges* tables, const uint8_t* text, const int32_t* lengths,
                         int32_t pieces, int32_t* ids, int64_t* count, char* error) {
  return guarded(error, [&] { *count = edged::bpe_encode(*tables, text, lengths, pieces, ids); });
}

int32_t edged_bpe_merge(const EdgedMerges* tables, const int32_t* symbols, const int32_t* lengths,
                        int32_t pieces, int32_t* ids, int64_t* count, char* error) {
  return guarded(error, [&] { *count = edged::bpe_merge(*tables, symbols, lengths, pieces, ids); });
}

int32_t edged_choose(const float* logits, int32_t count, const EdgedSampling* how, const char* kernels,
                     int32_t* token, char* error) {
  return guarded(error, [&] { *token = edged::choose_token(logits, count, *how, kernels_named(kernels)); });
}

int32_t edged_matmul(const EdgedTensor* w, const float* x, int32_t m, float* y, int32_t threads,
                     int32_t repeats, int32_t copies, int64_t copy_stride, double* seconds,
                     const char* kernels, char* error) {
  return guarded(error, [&] {
    edged::time_matmul(*w, x, m, y, threads, repeats, copies, copy_stride, seconds, kernels_named(kernels));
  });
}

int32_t edged_dequantize(const EdgedTensor* w, int32_t row, float* out, char* error) {
  return guarded(error, [&] {
    const edged::Matrix matrix = edged::read_matrix(*w, "given", w->rows, w->cols);
    if (row < 0 || row >= matrix.rows) throw std::invalid_argument("the matrix has no such row");
    edged::dequantize_row(matrix, row, out);
  });
}

double edged_read_bandwidth(const void* data, int64_t bytes, int32_t threads, int32_t repeats) {
  char error[kErrorBytes];
  double speed = 0;
  guarded(error, [&] { speed = edged::read_bandwidth(data, bytes, threads, repeats); });
  return speed;
}

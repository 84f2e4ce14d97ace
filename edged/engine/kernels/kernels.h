// The interface between kernels and forward pass: the table of functions that each instruction set fills in,
// and their arguments.
#pragma once
#include <cstddef>
#include <cstdint>

#include "ops/matrix.h"
#include "threads/reserve.h"

namespace edged {

constexpr int kBlockTokens = 32;  // tokens in one block of the key/value cache
constexpr int kChunkBlocks = 4;   // in one chunk of attention, whatever else is in the batch
constexpr int kChunkTokens = kBlockTokens * kChunkBlocks;
constexpr int kRowBlock = 128;  // rows of activations that a product of many rows computes at once

constexpr double kLog2e = 1.4426950408889634;

// Tiles that one call of a product computes: `tiles` of them from `begin` on in each of `count` strips, into
// which the matrix is cut. A strip begins `tiles_per_strip` tiles after the one before; tiles beyond the
// matrix's last are left out. Several strips are several streams from memory; only products of few rows of
// codes have them.
struct Strips {
  int begin = 0, tiles = 0, count = 1, tiles_per_strip = 0;
  size_t y_strip_stride = 0;  // floats from one strip's results to the next one's
  // Where set, this is the last range of the reserve's owner: `unit` more tiles of each strip follow for each
  // unit that it can still claim.
  Reserve* reserve = nullptr;
  int units = 0, unit = 1;
};

// A thread's memory for unpacked weights and for sums between blocks of k.
struct Scratch {
  alignas(64) uint8_t codes[2][32 * 256];                          // 2 tiles × 32 groups × (8 rows × 32 k)
  alignas(64) float scale[2][2 * 32 * 8], minimum[2][2 * 32 * 8];  // of 16 or 32 k each
  alignas(64) float sums[2][kRowBlock][8];                         // 2 tiles × rows of activations
};

// The first chunk of which the token at `position` sees anything.
inline int first_chunk(int position, int window) {
  return window && position >= window ? (position + 1 - window) / kChunkTokens : 0;
}

// Attention of query rows over one sequence's cache, for one key/value head.
struct AttentionTask {
  const float* query =
      nullptr;  // row r, head h: query + r * query_stride + h * dim; already scaled by log2(e)/√dim
  size_t query_stride = 0;
  int rows = 0, heads = 0, dim = 0;  // heads: query heads that share this key/value head
  int position = 0;                  // of the first row; row r sees tokens … position + r
  int window = 0;                    // so many tokens, or 0: all
  float cap = 0;                     // of scores in units of log(2), see soft_cap; 0: none
  const uint16_t* cache =
      nullptr;  // this layer's and head's first block: keys [dim, 32], then values [32, dim], fp16
  size_t block_stride = 0;             // from one block to the next, in halves
  const int32_t* blocks = nullptr;     // the sequence's block table
  int chunk_begin = 0, chunk_end = 0;  // chunks of 128 tokens to visit
  float* out =
      nullptr;  // merged result, row r, head h: out + r * out_stride + h * dim (when `partial` is null)
  size_t out_stride = 0;
  // One row only: a record [dim + 8] for each chunk and head, [chunks, heads, dim + 8]: sums [dim], maximum,
  // total, number of chunks. The record of the first chunk that the row sees also holds the chunks that
  // follow it in the same call.
  float* partial = nullptr;
};

constexpr int kFewRows = 16;   // rows up to which a product streams its weights from memory once
constexpr int kMaxLanes = 48;  // query rows × heads in one piece of attention

// A thread's memory for attention: parts of one allocation, which is faster when it is aligned to a cache
// line.
struct AttentionScratch {
  float* widened = nullptr;  // a block's keys or values as float32
  float* scores = nullptr;   // [lanes, 128]
  float *sums = nullptr, *totals = nullptr,
        *maxima = nullptr;  // of the chunk: [lanes, dim], [lanes], [lanes]; and merged
  float *merged = nullptr, *merged_total = nullptr, *merged_maximum = nullptr;

  static size_t floats(size_t dim) { return dim * kBlockTokens + kMaxLanes * (kChunkTokens + 2 * dim + 4); }
  AttentionScratch() = default;
  AttentionScratch(float* memory, size_t dim) {
    const auto allocate = [&memory](size_t n) {
      float* part = memory;
      memory += n;
      return part;
    };
    widened = allocate(dim * kBlockTokens);
    scores = allocate(kMaxLanes * kChunkTokens);
    sums = allocate(kMaxLanes * dim);
    merged = allocate(kMaxLanes * dim);
    totals = allocate(kMaxLanes);
    maxima = allocate(kMaxLanes);
    merged_total = allocate(kMaxLanes);
    merged_maximum = allocate(kMaxLanes);
  }
};

constexpr int kDeltaColumns = 32;  // of a value head's matrix, computed together; the last may be fewer

// The gated delta rule (Yang et al. 2024, "Gated Delta Networks") for some columns of one value head's matrix
// S (key_dim, columns), token by token:
//   S = decay · S; S += key ⊗ beta · (value − keyᵀ S); out = queryᵀ S
struct DeltaTask {
  const float *query = nullptr, *key = nullptr, *value = nullptr;  // of the first token
  size_t stride = 0;                                               // from one token to the next
  const float *decay = nullptr, *beta = nullptr;                   // (tokens,)
  int tokens = 0, key_dim = 0, columns = 0;
  float* state = nullptr;  // (key_dim, kDeltaColumns), changed
  float* out = nullptr;    // of the first token, (columns,)
  size_t out_stride = 0;
};

struct Kernels {
  const char* name;
  // One row: x (n,), weight (n,) -> out (n,) = x / rms(x) * weight.
  void (*rms_norm)(const float* x, const float* weight, int n, float epsilon, float* out);
  // One row: x (n,), weight (n,), bias (n,) or null -> out (n,) = (x − mean) / deviation * weight + bias.
  void (*layer_norm)(const float* x, const float* weight, const float* bias, int n, float epsilon,
                     float* out);
  // One row: x (k,) -> codes (stride,) int8, zero beyond k, with their scales and sums.
  void (*quantize)(const float* x, int k, int stride, const CodedRow& out);
  // W (n,k) @ x (m,k) -> y (m,n) for the tiles of the strips: y[i, strip·y_strip_stride + (tile − begin)·8 …]
  // = or += x[i] · w[strip·tiles_per_strip + tile]ᵀ. Returns the number of tiles computed in each strip, with
  // those from the reserve.
  int (*matmul)(const Matrix& w, const Activations& x, const Strips& strips, float* y, size_t y_stride,
                bool accumulate, Scratch& scratch);
  int strips;  // best number of strips for a product of few rows
  // RoPE of one head x (2 * half,), in place: rotates (x[i], x[i + half]) by the angles of cosine, sine
  // (half,).
  void (*apply_rope)(float* x, const float* cosine, const float* sine, int half);
  // gate (n,), up (n,) -> out (n,) = silu(gate) * up.
  void (*swiglu)(const float* gate, const float* up, int n, float* out);
  // The same with gelu, in its tanh form.
  void (*geglu)(const float* gate, const float* up, int n, float* out);
  void (*add)(float* x, const float* y, int n);
  void (*scale)(float* x, float factor, int n);
  // x (n,) = cap · tanh(x / cap), in place; n is a multiple of 8.
  void (*soft_cap)(float* x, float cap, int n);
  // One token's key (dim,) and value (dim,) of one head into slot `slot` of a cache block.
  void (*write_kv)(const float* key, const float* value, int dim, uint16_t* block, int slot);
  void (*attend)(const AttentionTask& work, AttentionScratch& scratch);
  // Merges the partial results of one head, chunk by chunk, into out (dim,); the records begin at
  // partial[chunk * stride].
  void (*merge_partials)(const float* partial, size_t stride, int chunks, int dim, float* out);
  // x (n,) · y (n,), in place.
  void (*multiply)(float* x, const float* y, int n);
  // rows (taps; n each), weight (taps,n), its rows `stride` apart -> out (n,) = Σ weight · row, the first row
  // first; null rows are left out.
  void (*convolve)(const float* const* rows, const float* weight, size_t stride, int taps, int n, float* out);
  // silu(x) (n,), in place; n is a multiple of 8.
  void (*silu)(float* x, int n);
  // x (n,) · sigmoid(gate (n,)) -> out (n,); n is a multiple of 8.
  void (*gate)(const float* x, const float* gate, int n, float* out);
  void (*delta_rule)(const DeltaTask& work);
  // Whether all n values are finite.
  bool (*all_finite)(const float* x, int n);
  // The largest of n values; NaN where one of them is NaN or +infinity.
  float (*max_logit)(const float* x, int n);
  // Softmax without its division: x (n,) ≤ best -> out (n,) = 2^((x − best) · factor). Returns the sum of
  // out.
  float (*softmax_weights)(const float* x, int n, float best, float factor, float* out);
};

// The tables that this build has; null where the processor's family is another.
const Kernels* portable_kernels();
const Kernels* avx2_kernels();
const Kernels* vnni_kernels();
const Kernels* neon_kernels();
const Kernels* dotprod_kernels();

// The best table that this processor runs, or the one of that name (null: not here). Visible outside of the
// library, for the tests that compare its tables with plain C++.
__attribute__((visibility("default"))) const Kernels* choose_kernels(const char* name);

}  // namespace edged

// The words that kernels and forward pass share: matrices as packed on disk, activations, and the table of functions that each
// instruction set fills in.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>

namespace edged {

constexpr int kTileRows = 8;         // rows interleaved in one tile
constexpr int kActivationGroup = 32; // activations share a scale over this many k
constexpr int kBlockTokens = 32;     // tokens in one block of the key/value cache
constexpr int kChunkBlocks = 4;      // attention goes on in chunks of 4 blocks (128 tokens), alone or in company
constexpr int kChunkTokens = kBlockTokens * kChunkBlocks;

// How a matrix's weights are stored. The numbers are part of the packed format.
enum Kind : int32_t { kF32 = 0, kF16 = 1, kBF16 = 2, kQ4 = 3, kQ4Min = 4, kQ8 = 5, kQ8Min = 6, kQ4Byte = 7, kQ4ByteMin = 8 };
constexpr int kKinds = 9;

constexpr bool is_float(Kind kind) { return kind <= kBF16; }
constexpr bool is_q4(Kind kind) { return kind == kQ4 || kind == kQ4Min || kind == kQ4Byte || kind == kQ4ByteMin; }
constexpr bool has_minimum(Kind kind) { return kind == kQ4Min || kind == kQ8Min || kind == kQ4ByteMin; }
// Whether scales and minima are int8 and each row has a factor.
constexpr bool has_factor(Kind kind) { return kind == kQ4Byte || kind == kQ4ByteMin; }
// Whether 4-bit codes 0…15 stand for −8…7.
constexpr bool is_centred(Kind kind) { return kind == kQ4 || kind == kQ4Byte; }

// Bytes of 8 rows' factors, which begin a tile, and of a group's scales and minima, which begin its block.
constexpr int factor_bytes(Kind kind) { return has_factor(kind) ? kTileRows * 2 : 0; }
constexpr int scale_bytes(Kind kind) { return kTileRows * (has_factor(kind) ? 1 : 2); }
constexpr int header_bytes(Kind kind) { return scale_bytes(kind) * (has_minimum(kind) ? 2 : 1); }

constexpr float kShare = 1.f / 128;  // of a row's factor: the unit of its scales
constexpr int kMinimumStep = 8;      // shares in the unit of its minima

// A matrix w [rows, cols], cut into tiles of 8 rows. A tile holds 8 fp16 factors where the kind has them; then for each group of k: 8 fp16
// (or int8) scales, 8 minima of the same type where the kind has them, then the codes: 32 bytes for 8 k (4 bits: byte r*4+j is row r, k+j
// in the low nibble, k+4+j in the high one) or 4 k (8 bits). A weight is scale · code + minimum, or, with a factor, factor · kShare ·
// (scale · code + kMinimumStep · minimum). Float tiles hold 8 rows' weights side by side for each k. Rows beyond the last and k beyond the
// last are packed as zeros.
struct Matrix {
  Kind kind = kF32;
  int rows = 0, cols = 0, group = 0;
  const uint8_t* data = nullptr;
  int tiles = 0, groups = 0;            // groups: of `group` k in a row
  size_t block_bytes = 0, tile_bytes = 0;  // of one group, of one tile
};

// The end of a thread's part of a phase, which goes to whoever claims it first, unit by unit: to the thread itself from the front, to others
// from the back.
struct Reserve {
  std::atomic<int> claimed{0};  // units; as many as there are or more once all are gone
  std::atomic<int> others{0};   // of these, those that others got
  int own = 0;                  // and those that the thread itself got, who alone looks at this
};

// Tiles that are computed together: `tiles` of them from `begin` on, and as many from each of `count` − 1 places further on, `apart` tiles
// from one to the next (those beyond the matrix's last are left out). Several places are several streams from memory: for few rows of
// codes alone.
struct Strips {
  int begin = 0, tiles = 0, count = 1, apart = 0;
  size_t y_apart = 0;  // floats from the results of one place to those of the next
  // Where set, `unit` more tiles of each place follow for each unit of the reserve that is still there: this is its owner's last piece.
  Reserve* reserve = nullptr;
  int units = 0, unit = 1;
};

// m rows of activations [m, k], as floats and as int8 in groups of 32; either may be missing where no matrix asks for it.
struct Activations {
  const float* values = nullptr;    // [m, stride]
  const int8_t* codes = nullptr;    // [m, stride]
  const float* scale = nullptr;     // [m, stride / 32]
  const int32_t* offset8 = nullptr;  // [m, stride / 32]: −8 × the sum of a group's codes
  const float* sum = nullptr;       // [m, stride / 32]: scale × the sum of a group's codes
  int m = 0, stride = 0;            // stride in elements, a multiple of 128, zero beyond k
};

// A thread's room for unpacked weights and for sums between blocks of k.
struct Scratch {
  alignas(64) uint8_t codes[2][32 * 256];    // 2 tiles × 32 groups × (8 rows × 32 k)
  alignas(64) float scale[2][32 * 8], minimum[2][32 * 8];
  alignas(64) float sums[2][128][8];         // 2 tiles × 128 rows of activations
};

// Attention of query rows over one sequence's cache, for one key/value head.
struct Attend {
  const float* query = nullptr;       // row r, head h: query + r * query_stride + h * dim; already scaled by log2(e)/√dim
  size_t query_stride = 0;
  int rows = 0, heads = 0, dim = 0;   // heads: query heads that share this key/value head
  int position = 0;                   // of the first row; row r sees tokens 0 … position + r
  const uint16_t* cache = nullptr;    // this layer's and head's first block: keys [dim, 32], then values [32, dim], fp16
  size_t block_stride = 0;            // from one block to the next, in halves
  const int32_t* blocks = nullptr;    // the sequence's block table
  int chunk_begin = 0, chunk_end = 0; // chunks of 128 tokens to visit
  float* out = nullptr;               // merged result, row r, head h: out + r * out_stride + h * dim (when `partial` is null)
  size_t out_stride = 0;
  // One row only: a record for each chunk and head, [chunks, heads, dim + 8], of sums [dim], maximum, total and how many chunks that is. All of
  // chunk 0 and of those that follow in the same call is in chunk 0's.
  float* partial = nullptr;
};

constexpr int kFewRows = 16;   // rows up to which a product streams its weights from memory once
constexpr int kMaxLanes = 48;  // query rows × heads in one piece of attention

// A thread's room for attention: parts of one piece of memory, which is faster where it begins with a cache line.
struct AttendScratch {
  float* widened = nullptr;  // a block's keys or values as float32
  float* scores = nullptr;   // [lanes, 128]
  float *sums = nullptr, *totals = nullptr, *maxima = nullptr;  // of the chunk: [lanes, dim], [lanes], [lanes]; and merged
  float *merged = nullptr, *merged_total = nullptr, *merged_maximum = nullptr;

  static size_t floats(size_t dim) { return dim * kBlockTokens + kMaxLanes * (kChunkTokens + 2 * dim + 4); }
  AttendScratch() = default;
  AttendScratch(float* room, size_t dim) {
    const auto take = [&room](size_t n) {
      float* here = room;
      room += n;
      return here;
    };
    widened = take(dim * kBlockTokens);
    scores = take(kMaxLanes * kChunkTokens);
    sums = take(kMaxLanes * dim);
    merged = take(kMaxLanes * dim);
    totals = take(kMaxLanes);
    maxima = take(kMaxLanes);
    merged_total = take(kMaxLanes);
    merged_maximum = take(kMaxLanes);
  }
};

struct Kernels {
  const char* name;
  // One row: out = x / rms(x) * weight.
  void (*rms_norm)(const float* x, const float* weight, int n, float epsilon, float* out);
  // One row of k values (zeros up to stride) to int8 groups.
  void (*quantize)(const float* x, int k, int stride, int8_t* codes, float* scale, int32_t* offset8, float* sum);
  // y[i, strip·y_apart + (tile − begin)·8 …] = or += x[i] · w[strip·apart + tile]ᵀ for all tiles of the strips. Returns how many tiles of a
  // strip that were, with those from the reserve.
  int (*matmul)(const Matrix& w, const Activations& x, const Strips& strips, float* y, size_t y_stride, bool accumulate, Scratch& scratch);
  int strips;  // into which a product of few rows is best cut
  // One head x[2*half]: rotates (x[i], x[i+half]).
  void (*rotate)(float* x, const float* cosine, const float* sine, int half);
  // out = silu(gate) * up.
  void (*swiglu)(const float* gate, const float* up, int n, float* out);
  void (*add)(float* x, const float* y, int n);
  void (*scale)(float* x, float factor, int n);
  // One token's key and value of one head into slot `slot` of a block.
  void (*store_kv)(const float* key, const float* value, int dim, uint16_t* block, int slot);
  void (*attend)(const Attend& work, AttendScratch& scratch);
  // Merges the partial results of one head, chunk by chunk: its records begin at partial[chunk * stride].
  void (*merge)(const float* partial, size_t stride, int chunks, int dim, float* out);
  // Whether all n values are finite.
  bool (*finite)(const float* x, int n);
  // The largest of n values, of which none is NaN or +infinity, else NaN.
  float (*largest)(const float* x, int n);
  // out = 2^((x − best) · factor) for n values ≤ best; their sum.
  float (*weigh)(const float* x, int n, float best, float factor, float* out);
};

// The tables that this build has; null where the processor's family is another.
const Kernels* portable_kernels();
const Kernels* avx2_kernels();
const Kernels* vnni_kernels();
const Kernels* neon_kernels();
const Kernels* dotprod_kernels();

// The best table that this processor runs, or the one of that name (null: not here).
const Kernels* choose_kernels(const char* name);

}  // namespace edged

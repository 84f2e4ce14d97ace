// Compares every instruction set that this processor runs with plain C++: linked with the library, or with
// the sources as a static program, cross-compiled for Arm and run under qemu-user by test_arm.py. Prints one
// line a table and exits 1 at the first difference.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "isa/half.h"
#include "kernels.h"
#include "model.h"
#include "ops/tiling.h"

using namespace edged;

namespace {

std::mt19937 random_bits(7);
float uniform() { return (float)(random_bits() % 20001) / 10000.f - 1.f; }

void expect(bool holds, const char* table, const std::string& what) {
  if (holds) return;
  printf("%s: %s differs\n", table, what.c_str());
  exit(1);
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && !memcmp(a.data(), b.data(), a.size() * sizeof(float));
}

std::vector<float> values(size_t n, float size = 1) {
  std::vector<float> v(n);
  for (auto& x : v) x = uniform() * size;
  return v;
}

// Small scales as float16, or as bfloat16.
void fill_scales(uint8_t* at, size_t count, bool brain) {
  for (size_t i = 0; i < count; i++) {
    const float x = uniform() * 0.1f;
    uint32_t bits;
    memcpy(&bits, &x, 4);
    ((uint16_t*)at)[i] = brain ? (uint16_t)(bits >> 16) : float_to_half(x);
  }
}

// A packed matrix of random codes with small scales.
struct Packed {
  std::vector<uint8_t> memory;
  Matrix matrix;
  Packed(Kind kind, int rows, int cols, int group) {
    const size_t header = header_bytes(kind), factors = factor_bytes(kind);
    const size_t tiles = (rows + 7) / 8, groups = is_float(kind) ? 0 : (cols + group - 1) / group,
                 block = header + (size_t)group / 32 * part_bytes(kind);
    const size_t tile_bytes =
        is_float(kind) ? (size_t)8 * cols * (kind == kF32 ? 4 : 2) : factors + groups * block;
    const size_t bytes = tiles * tile_bytes;
    memory.resize(bytes + 64);
    uint8_t* data = memory.data() + (64 - (uintptr_t)memory.data() % 64) % 64;
    for (size_t i = 0; i < bytes; i++) data[i] = (uint8_t)random_bits();
    for (size_t t = 0; t < tiles; t++) {
      uint8_t* tile = data + t * tile_bytes;
      if (kind == kF32)
        for (int i = 0; i < 8 * cols; i++) ((float*)tile)[i] = uniform();
      if (kind == kF16 || kind == kBF16) fill_scales(tile, (size_t)8 * cols, kind == kBF16);
      if (has_row_factor(kind)) fill_scales(tile, 8, false);
      for (size_t g = 0; g < groups && !has_row_factor(kind); g++)
        fill_scales(tile + g * block, header / 2, traits(kind).scales == Scales::kBrain);
    }
    matrix = read_matrix({kind, rows, cols, group, data, bytes}, "random", rows, cols);
  }
};

struct Rows {
  std::vector<float> floats, scale, sum, half_sum;
  std::vector<int8_t> codes;
  std::vector<int32_t> offset8, half_offset8;
  int m, stride;
  Rows(const Kernels& k, const std::vector<float>& x, int m_, int cols) : m(m_), stride(round_up(cols, 128)) {
    const size_t all = (size_t)m * stride;
    floats.resize(all);
    codes.resize(all);
    scale.resize(all / 32);
    sum.resize(all / 32);
    offset8.resize(all / 32);
    half_sum.resize(all / 16);
    half_offset8.resize(all / 16);
    for (int i = 0; i < m; i++) {
      const size_t at = (size_t)i * stride;
      memcpy(&floats[at], &x[(size_t)i * cols], (size_t)cols * 4);
      k.quantize(&x[(size_t)i * cols], cols, stride,
                 {&codes[at], &scale[at / 32], &offset8[at / 32], &sum[at / 32], &half_offset8[at / 16],
                  &half_sum[at / 16]});
    }
  }
  Activations view(int rows) const {
    return {floats.data(),       codes.data(),    scale.data(), offset8.data(), sum.data(),
            half_offset8.data(), half_sum.data(), rows,         stride};
  }
};

std::vector<float> times(const Kernels& k, const Packed& w, const Rows& x, int m) {
  const size_t width = (size_t)w.matrix.tiles * 8;
  std::vector<float> y(width * m);
  auto scratch = std::make_unique<Scratch>();
  const Tiling tiling(w.matrix, m, 1, k);
  k.matmul(w.matrix, x.view(m), tiling.strips_of({0, tiling.tiles_per_strip}), y.data(), width, false,
           *scratch);
  return y;
}

bool near(const std::vector<float>& a, const std::vector<float>& b, float tolerance) {
  float most = 1e-6f, off = 0;
  for (size_t i = 0; i < a.size(); i++) {
    most = std::max(most, std::fabs(b[i]));
    off = std::max(off, std::fabs(a[i] - b[i]));
  }
  return off <= tolerance * most;
}

void check_products(const Kernels& k, const Kernels& plain) {
  for (int kind = kF32; kind < kKinds; kind++)
    for (auto [rows, cols, group] : {std::tuple{5, 32, 32},
                                     {24, 576, 32},
                                     {17, 1100, 32},
                                     {16, 300, 64},
                                     {9, 512, 128},
                                     {5, 256, 256},
                                     {24, 1280, 256}}) {
      if (!is_float((Kind)kind) && !has_group((Kind)kind, group)) continue;
      const Packed w((Kind)kind, rows, cols, group);
      const auto x = values((size_t)40 * cols);
      const Rows mine(k, x, 40, cols), theirs(plain, x, 40, cols);
      expect(mine.codes == theirs.codes && mine.offset8 == theirs.offset8, k.name, "quantize");
      const std::string what = "product of kind " + std::to_string(kind) + ", " + std::to_string(rows) +
                               " x " + std::to_string(cols);
      const auto all = times(k, w, mine, 40);
      expect(near(all, times(plain, w, theirs, 40), 2e-5f), k.name, what);
      for (int m : {1, 2, 3, 4, 7, 17}) {
        const auto some = times(k, w, mine, m);
        expect(!memcmp(some.data(), all.data(), some.size() * 4), k.name, what + " among other rows");
      }
    }
}

void check_elementwise(const Kernels& k, const Kernels& plain) {
  const auto x = values(200, 5), y = values(200, 5);
  std::vector<float> a(200), b(200);
  k.rms_norm(x.data(), y.data(), 197, 1e-5f, a.data());
  plain.rms_norm(x.data(), y.data(), 197, 1e-5f, b.data());
  expect(near(a, b, 1e-5f), k.name, "rms_norm");
  k.swiglu(x.data(), y.data(), 200, a.data());
  plain.swiglu(x.data(), y.data(), 200, b.data());
  expect(near(a, b, 1e-5f), k.name, "swiglu");
  k.geglu(x.data(), y.data(), 200, a.data());
  for (int i = 0; i < 200; i++)
    b[i] = 0.5f * x[i] * (1 + std::tanh(0.79788456f * (x[i] + 0.044715f * x[i] * x[i] * x[i]))) * y[i];
  expect(near(a, b, 1e-5f), k.name, "geglu");
  a = x;
  k.soft_cap(a.data(), 3, 200);
  for (int i = 0; i < 200; i++) b[i] = 3 * std::tanh(x[i] / 3);
  expect(near(a, b, 1e-5f), k.name, "soft_cap");
  for (const float* bias : {(const float*)nullptr, y.data()}) {
    k.layer_norm(x.data(), y.data(), bias, 197, 1e-5f, a.data());
    double mean = 0, squares = 0;
    for (int i = 0; i < 197; i++) mean += x[i] / 197.;
    for (int i = 0; i < 197; i++) squares += (x[i] - mean) * (x[i] - mean) / 197;
    for (int i = 0; i < 197; i++)
      b[i] = (float)((x[i] - mean) / std::sqrt(squares + 1e-5) * y[i] + (bias ? bias[i] : 0));
    expect(near(a, b, 1e-5f), k.name, "layer_norm");
  }
  a = b = x;
  k.apply_rope(a.data(), y.data(), y.data() + 90, 90);
  plain.apply_rope(b.data(), y.data(), y.data() + 90, 90);
  expect(near(a, b, 1e-5f), k.name, "apply_rope");
  std::vector<float> bad = x;
  expect(k.all_finite(bad.data(), 200), k.name, "all_finite");
  bad[77] = NAN;
  expect(!k.all_finite(bad.data(), 200), k.name, "all_finite");
}

void check_sampling(const Kernels& k, const Kernels& plain) {
  auto x = values(203, 30);
  x[5] = x[201] = -INFINITY;
  for (int n : {1, 7, 8, 200, 203}) {
    std::vector<float> a(220, 9.f), b(220, 9.f);
    const float best = plain.max_logit(x.data(), n);
    expect(best == *std::max_element(x.begin(), x.begin() + n) && k.max_logit(x.data(), n) == best, k.name,
           "max_logit");
    const float sum = k.softmax_weights(x.data(), n, best, 1.5f, a.data()),
                plain_sum = plain.softmax_weights(x.data(), n, best, 1.5f, b.data());
    expect(near(a, b, 1e-5f) && std::fabs(sum - plain_sum) < 1e-5f * plain_sum, k.name, "softmax_weights");
    expect((n <= 5 || a[5] == 0) && (n <= 201 || a[201] == 0), k.name, "zeros of softmax_weights");
    expect(std::all_of(a.begin() + n, a.end(), [](float untouched) { return untouched == 9.f; }), k.name,
           "the end of softmax_weights");
  }
  for (float bad : {NAN, INFINITY})
    for (int at : {0, 100, 202}) {
      auto y = x;
      y[(size_t)at] = bad;
      expect(std::isnan(k.max_logit(y.data(), 203)), k.name, "max_logit of values that are not finite");
    }
}

struct AttentionMemory {
  std::vector<float> floats;
  AttentionScratch scratch;
  explicit AttentionMemory(int dim)
      : floats(AttentionScratch::floats((size_t)dim)), scratch(floats.data(), (size_t)dim) {}
};

// softmax(query · keys) · values of one head in float64, with keys and values rounded as the cache holds
// them.
std::vector<float> plain_attention(const float* query, const std::vector<float>& keys,
                                   const std::vector<float>& all_values, int tokens, int dim, int window,
                                   float cap) {
  std::vector<double> sums(dim);
  double total = 0;
  for (int t = window ? std::max(0, tokens - window) : 0; t < tokens; t++) {
    double score = 0;
    for (int d = 0; d < dim; d++)
      score += (double)query[d] * half_to_float(float_to_half(keys[(size_t)t * dim + d]));
    const double weight = std::exp2(cap ? cap * std::tanh(score / cap) : score);
    total += weight;
    for (int d = 0; d < dim; d++)
      sums[d] += weight * half_to_float(float_to_half(all_values[(size_t)t * dim + d]));
  }
  std::vector<float> out(dim);
  for (int d = 0; d < dim; d++) out[d] = (float)(sums[d] / total);
  return out;
}

// Keys and values of one head in a cache, in blocks that lie in another order than their tokens.
struct Past {
  int dim;
  std::vector<float> keys, values;
  std::vector<uint16_t> cache;
  std::vector<int32_t> table;

  int window = 0;
  float cap = 0;
  Past(const Kernels& k, int dim, int tokens)
      : dim(dim), keys(::values((size_t)tokens * dim)), values(::values((size_t)tokens * dim)) {
    const int blocks = (tokens + 31) / 32;
    cache.resize((size_t)blocks * dim * 64);
    for (int b = 0; b < blocks; b++) table.push_back(blocks - 1 - b);
    for (int t = 0; t < tokens; t++)
      k.write_kv(&keys[(size_t)t * dim], &values[(size_t)t * dim], dim,
                 &cache[(size_t)table[t / 32] * dim * 64], t % 32);
  }
  // Of rows of queries from `position` on, with all that they see.
  AttentionTask attend(const std::vector<float>& query, int rows, int heads, int position,
                       std::vector<float>& out) const {
    AttentionTask work;
    work.query = query.data();
    work.query_stride = work.out_stride = (size_t)heads * dim;
    work.rows = rows;
    work.heads = heads;
    work.dim = dim;
    work.position = position;
    work.cache = cache.data();
    work.block_stride = (size_t)dim * 64;
    work.blocks = table.data();
    work.window = window;
    work.cap = cap;
    work.chunk_begin = first_chunk(position, window);
    work.chunk_end = (position + rows - 1) / kChunkTokens + 1;
    work.out = out.data();
    return work;
  }
};

// One row's attention, computed at once and in runs of chunks in any order: right, and the same to the bit;
// NaN where a query is.
void check_attention(const Kernels& k, int heads, int dim, int tokens, int window = 0, float cap = 0) {
  Past past(k, dim, tokens);
  past.window = window;
  past.cap = cap;
  auto query = values((size_t)heads * dim);
  std::vector<float> expected, out((size_t)heads * dim), merged = out;
  for (int h = 0; h < heads; h++)
    for (float x : plain_attention(&query[(size_t)h * dim], past.keys, past.values, tokens, dim, window, cap))
      expected.push_back(x);
  AttentionMemory memory(dim);
  AttentionTask work = past.attend(query, 1, heads, tokens - 1, out);
  k.attend(work, memory.scratch);
  const std::string what = "attention over " + std::to_string(tokens) + " tokens, " + std::to_string(heads) +
                           " heads of " + std::to_string(dim) + ", window " + std::to_string(window);
  expect(near(out, expected, 1e-4f), k.name, what);
  const int first = work.chunk_begin, chunks = work.chunk_end - first;
  const size_t record = (size_t)dim + 8;
  const auto merge_runs = [&](int run) {
    std::vector<float> partial(record * heads * chunks, NAN);
    for (int c = (chunks - 1) / run * run; c >= 0; c -= run) {
      work.chunk_begin = first + c;
      work.chunk_end = first + std::min(c + run, chunks);
      work.partial = &partial[record * heads * c];
      k.attend(work, memory.scratch);
    }
    for (int h = 0; h < heads; h++)
      k.merge_partials(&partial[record * h], record * heads, chunks, dim, &merged[(size_t)h * dim]);
  };
  for (int run = 1; run < chunks + 2; run += 2) {
    merge_runs(run);
    expect(same_bits(out, merged), k.name, what + ", " + std::to_string(run) + " chunks at a time");
  }
  if (cap) return;  // a cap makes a number of NaN
  query[0] = NAN;
  for (int run : {1, chunks}) {
    merge_runs(run);
    expect(std::isnan(merged[0]), k.name, what + ", a query that is not a number");
  }
}

// Several rows together have the bits that each has alone.
void check_attention_of_rows(const Kernels& k, int rows, int heads, int dim, int position, int window = 0) {
  Past past(k, dim, position + rows);
  past.window = window;
  const auto query = values((size_t)rows * heads * dim);
  std::vector<float> together(query.size()), out((size_t)heads * dim), alone;
  AttentionMemory memory(dim);
  k.attend(past.attend(query, rows, heads, position, together), memory.scratch);
  for (int r = 0; r < rows; r++) {
    const std::vector<float> own(query.begin() + (ptrdiff_t)r * heads * dim,
                                 query.begin() + (ptrdiff_t)(r + 1) * heads * dim);
    k.attend(past.attend(own, 1, heads, position + r, out), memory.scratch);
    alone.insert(alone.end(), out.begin(), out.end());
  }
  expect(same_bits(together, alone), k.name,
         "attention of " + std::to_string(rows) + " rows behind " + std::to_string(position) + " tokens, " +
             std::to_string(heads) + " heads of " + std::to_string(dim));
}

// What layers with a recurrent state compute beside products, against the formulas in double.
void check_recurrent(const Kernels& k) {
  const auto x = values(200, 3), y = values(200, 3);
  std::vector<float> a(200), b(200);
  for (int i = 0; i < 200; i++) b[i] = x[i] / (1 + std::exp(-x[i]));
  a = x;
  k.silu(a.data(), 200);
  expect(near(a, b, 1e-5f), k.name, "silu");
  for (int i = 0; i < 200; i++) b[i] = x[i] / (1 + std::exp(-y[i]));
  k.gate(x.data(), y.data(), 200, a.data());
  expect(near(a, b, 1e-5f), k.name, "gate");
  for (int i = 0; i < 200; i++) b[i] = x[i] * y[i];
  a = x;
  k.multiply(a.data(), y.data(), 200);
  expect(same_bits(a, b), k.name, "multiply");
  const float* rows[] = {nullptr, x.data(), y.data()};
  const auto weights = values(3 * 210);
  for (int i = 0; i < 200; i++) b[i] = weights[210 + i] * x[i] + weights[420 + i] * y[i];
  k.convolve(rows, weights.data(), 210, 3, 200, a.data());
  expect(near(a, b, 1e-5f), k.name, "convolve");
}

void check_delta_rule(const Kernels& k, int tokens, int dim, int columns) {
  const size_t stride = 2 * (size_t)dim + 40;
  const auto inputs = values(tokens * stride), gates = values(2 * (size_t)tokens, 0.9f);
  auto state = values((size_t)dim * kDeltaColumns);
  std::vector<float> out((size_t)tokens * 40), expected(out.size());
  std::vector<double> plain(state.begin(), state.end());
  DeltaTask work{inputs.data(), inputs.data() + dim, inputs.data() + 2 * dim, stride, gates.data(),
                 gates.data() + tokens, tokens, dim, columns, state.data(), out.data(), 40};
  for (int t = 0; t < tokens; t++)
    for (int i = 0; i < columns; i++) {
      const float *query = inputs.data() + t * stride, *key = query + dim, *value = key + dim;
      double read = 0, sum = 0;
      for (int d = 0; d < dim; d++) read += gates[t] * plain[d * kDeltaColumns + i] * key[d];
      for (int d = 0; d < dim; d++) {
        double& s = plain[d * kDeltaColumns + i];
        s = gates[t] * s + key[d] * gates[tokens + t] * (value[i] - read);
        sum += query[d] * s;
      }
      expected[(size_t)t * 40 + i] = (float)sum;
    }
  k.delta_rule(work);
  expect(near(out, expected, 1e-4f), k.name, "delta_rule");
}

}  // namespace

int main() {
  const Kernels& plain = *choose_kernels("portable");
  for (const char* name : {"portable", "neon", "dotprod", "avx2", "vnni"}) {
    const Kernels* table = choose_kernels(name);
    if (!table) continue;
    check_products(*table, plain);
    check_elementwise(*table, plain);
    check_sampling(*table, plain);
    check_recurrent(*table);
    for (int columns : {8, 32}) check_delta_rule(*table, 5, 16, columns);
    for (int dim : {8, 64, 80, 256})
      for (int tokens : {1, 31, 300, 1024, 2500}) check_attention(*table, 7, dim, tokens);
    for (int heads = 1; heads < 9; heads++)
      for (int dim : {24, 40, 64, 80, 96}) check_attention(*table, heads, dim, 157);
    for (int heads : {1, 3, 7})
      for (int position : {0, 120, 250})
        for (int dim : {8, 64, 72})
          for (int window : {0, 1, 5, 33, 128, 200})
            check_attention_of_rows(*table, kMaxLanes / heads, heads, dim, position, window);
    for (int tokens : {1, 31, 300, 1024})
      for (int window : {1, 5, 32, 33, 127, 128, 129, 512, 2000})
        check_attention(*table, 3, 64, tokens, window);
    check_attention(*table, 4, 64, 700, 0, 2.f);
    check_attention(*table, 4, 64, 700, 200, 2.f);
    printf("%s: as plain C++\n", name);
  }
  return 0;
}

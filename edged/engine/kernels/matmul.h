// Matrix products y[m, n] = x[m, k] · w[n, k]ᵀ over the packed tiles. Included once by each instruction set's file.
//
// The sum over k runs group by group in one float accumulator a row and output, for every m: a product gives the same bits alone, in a
// batch, and on any thread. Products of codes are exact integers, so their grouping may differ between the two paths below:
//   few rows (m ≤ 16): codes are unpacked in registers, 4 rows at a time, while the weights stream from memory once;
//   many rows: a pair of tiles is unpacked into the first-level cache and visited by all rows, a few at a time.
#pragma once
#include "table.h"

namespace {
using namespace edged;

constexpr bool is_q4(Kind kind) { return kind == kQ4 || kind == kQ4Min; }
constexpr bool has_minimum(Kind kind) { return kind == kQ4Min || kind == kQ8Min; }
constexpr int header_bytes(Kind kind) { return has_minimum(kind) ? 32 : 16; }
constexpr int group32_bytes(Kind kind) { return is_q4(kind) ? 128 : 256; }
constexpr int kStreamRows = 16;
// Prefetch distance in bytes when each weight is used once or a few times: a page, so that the walk to the next one is early, too
// (mapped files have small pages; 4096 decoded 1 to 6 % faster than 1536).
constexpr int kAhead = 4096;

// acc + scale·x_scale·(codes · x_codes) + minimum·x_sum for one group of 32 k and 8 rows. The codes' 8 of kQ4 is off already: sums of
// 4-bit codes run from start4(−8 · Σ x_codes) to rows4 of the same; whichever of the two is cheaper takes it off.
template <Kind kind>
inline F8 add_group(F8 acc, I8 dot, F8 scale, F8 minimum, const Activations& x, size_t at) {
  if (!is_q4(kind) && kBias8) dot = add(dot, splat_int(x.offset8[at] * (kBias8 / 8)));
  acc = fma(mul(scale, splat(x.scale[at])), to_float(dot), acc);
  if (has_minimum(kind)) acc = fma(minimum, splat(x.sum[at]), acc);
  return acc;
}

// One tile × M rows of activations, weights read once.
template <Kind kind, int M>
inline void stream_tile(const Matrix& w, const uint8_t* tile, const Activations& x, int row, F8* acc) {
  const int parts = w.group / kActivationGroup, x_groups = x.stride / kActivationGroup;
  for (int m = 0; m < M; m++) acc[m] = zero();
  const int8_t* codes = x.codes + (size_t)row * x.stride;
  size_t at = (size_t)row * x_groups;
  for (int g = 0; g < w.groups; g++) {
    const F8 scale = load_f16((const uint16_t*)tile);
    const F8 minimum = has_minimum(kind) ? load_f16((const uint16_t*)(tile + 16)) : scale;
    tile += header_bytes(kind);
    for (int p = 0; p < parts; p++, at++, codes += kActivationGroup) {
      if (is_q4(kind)) {
        Sum4 sum[M];
        for (int m = 0; m < M; m++) sum[m] = start4(kind == kQ4 ? x.offset8[at + (size_t)m * x_groups] : 0);
#pragma GCC unroll 4
        for (int l = 0; l < 4; l++, tile += 32) {
          const W32 both = load_w(tile), low = low_nibbles(both), high = high_nibbles(both);
          for (int m = 0; m < M; m++) {
            const int8_t* a = codes + (size_t)m * x.stride;
            sum[m] = dot4(dot4(sum[m], low, load_a(a, l * 8)), high, load_a(a, l * 8 + 4));
          }
        }
        for (int line = 0; line < 3; line++) prefetch(tile + kAhead + line * 64);
        for (int m = 0; m < M; m++) {
          const size_t here = at + (size_t)m * x_groups;
          acc[m] = add_group<kind>(acc[m], rows4(sum[m], kind == kQ4 ? x.offset8[here] : 0), scale, minimum, x, here);
        }
      } else {
        Sum8 sum[M];
        for (int m = 0; m < M; m++) sum[m] = no_sum8();
#pragma GCC unroll 8
        for (int l = 0; l < 8; l++, tile += 32) {
          const W32 code = prepare8(load_w(tile));
          for (int m = 0; m < M; m++) sum[m] = dot8(sum[m], code, load_a(codes + (size_t)m * x.stride, l * 4));
        }
        for (int line = 0; line < 4; line++) prefetch(tile + kAhead + line * 64);
        for (int m = 0; m < M; m++) acc[m] = add_group<kind>(acc[m], rows8(sum[m]), scale, minimum, x, at + (size_t)m * x_groups);
      }
    }
  }
}

inline void put(float* y, F8 acc, bool accumulate) { store(y, accumulate ? add(load(y), acc) : acc); }

template <Kind kind, int M>
inline void stream_rows(const Matrix& w, int tile, const Activations& x, int row, float* y, size_t y_stride, bool accumulate) {
  F8 acc[M];
  stream_tile<kind, M>(w, w.data + (size_t)tile * w.tile_bytes, x, row, acc);
  for (int m = 0; m < M; m++) put(y + (size_t)(row + m) * y_stride, acc[m], accumulate);
}

// Groups of 32 [begin, end) of one tile into scratch: codes a byte each, scales as float32.
template <Kind kind>
void unpack(const Matrix& w, int tile, int begin, int end, Scratch& s, int t) {
  const int parts = w.group / kActivationGroup;
  uint8_t* out = s.codes[t];
  for (int g = begin; g < end; g++) {
    const uint8_t* block = w.data + (size_t)tile * w.tile_bytes + (size_t)(g / parts) * w.block_bytes;
    store(s.scale[t] + (g - begin) * 8, load_f16((const uint16_t*)block));
    if (has_minimum(kind)) store(s.minimum[t] + (g - begin) * 8, load_f16((const uint16_t*)(block + 16)));
    const uint8_t* code = block + header_bytes(kind) + g % parts * group32_bytes(kind);
    for (int l = 0; l < group32_bytes(kind) / 32; l++, code += 32) {
      const W32 both = load_w(code);
      if (is_q4(kind)) {
        store_w(out, low_nibbles(both));
        store_w(out + 32, high_nibbles(both));
        out += 64;
      } else {
        store_w(out, prepare8(both));
        out += 32;
      }
    }
  }
}

// T unpacked tiles × M rows over `count` groups of 32 starting at group `first`; sums carried in scratch between blocks of k.
template <Kind kind, int T, int M>
inline void block_tile(const Activations& x, int row, int first, int count, Scratch& s, int sum_row, bool carried) {
  const int x_groups = x.stride / kActivationGroup;
  F8 acc[T][M];
  for (int t = 0; t < T; t++)
    for (int m = 0; m < M; m++) acc[t][m] = carried ? load(s.sums[t][sum_row + m]) : zero();
  const int8_t* codes = x.codes + (size_t)row * x.stride + first * kActivationGroup;
  size_t at = (size_t)row * x_groups + first;
  for (int g = 0; g < count; g++, at++, codes += kActivationGroup) {
    const size_t offset = (size_t)g * 256;
    I8 dot[T][M];
    if (is_q4(kind)) {
      Sum4 sum[T][M];
      for (auto& tile : sum)
        for (int m = 0; m < M; m++) tile[m] = start4(kind == kQ4 ? x.offset8[at + (size_t)m * x_groups] : 0);
#pragma GCC unroll 8
      for (int l = 0; l < 8; l++) {
        W32 code[T];
        for (int t = 0; t < T; t++) code[t] = load_w(s.codes[t] + offset + l * 32);
        for (int m = 0; m < M; m++) {
          const A4 a = load_a(codes + (size_t)m * x.stride, l * 4);
          for (int t = 0; t < T; t++) sum[t][m] = dot4(sum[t][m], code[t], a);
        }
      }
      for (int t = 0; t < T; t++)
        for (int m = 0; m < M; m++) dot[t][m] = rows4(sum[t][m], kind == kQ4 ? x.offset8[at + (size_t)m * x_groups] : 0);
    } else {
      Sum8 sum[T][M];
      for (auto& tile : sum)
        for (auto& one : tile) one = no_sum8();
#pragma GCC unroll 8
      for (int l = 0; l < 8; l++) {
        W32 code[T];
        for (int t = 0; t < T; t++) code[t] = load_w(s.codes[t] + offset + l * 32);
        for (int m = 0; m < M; m++) {
          const A4 a = load_a(codes + (size_t)m * x.stride, l * 4);
          for (int t = 0; t < T; t++) sum[t][m] = dot8(sum[t][m], code[t], a);
        }
      }
      for (int t = 0; t < T; t++)
        for (int m = 0; m < M; m++) dot[t][m] = rows8(sum[t][m]);
    }
    for (int t = 0; t < T; t++) {
      const F8 scale = load(s.scale[t] + g * 8), minimum = has_minimum(kind) ? load(s.minimum[t] + g * 8) : scale;
      for (int m = 0; m < M; m++) acc[t][m] = add_group<kind>(acc[t][m], dot[t][m], scale, minimum, x, at + (size_t)m * x_groups);
    }
  }
  for (int t = 0; t < T; t++)
    for (int m = 0; m < M; m++) store(s.sums[t][sum_row + m], acc[t][m]);
}

// T tiles × rows [row, row + rows), rows ≤ 128; y points at the first tile's column.
template <Kind kind, int T>
void block_rows(const Matrix& w, int tile, const Activations& x, int row, int rows, float* y, size_t y_stride, bool accumulate, Scratch& s) {
  const int all = w.groups * (w.group / kActivationGroup);
  for (int first = 0; first < all; first += 32) {
    const int count = all - first < 32 ? all - first : 32;
    for (int t = 0; t < T; t++) unpack<kind>(w, tile + t, first, first + count, s, t);
    int m = 0;
    for (; m + kBlockRows <= rows; m += kBlockRows) block_tile<kind, T, kBlockRows>(x, row + m, first, count, s, m, first > 0);
    for (; m < rows; m++) block_tile<kind, T, 1>(x, row + m, first, count, s, m, first > 0);
  }
  for (int m = 0; m < rows; m++)
    for (int t = 0; t < T; t++) put(y + (size_t)(row + m) * y_stride + t * kTileRows, load(s.sums[t][m]), accumulate);
}

template <Kind kind>
void matmul_codes(const Matrix& w, const Activations& x, int begin, int end, float* y, size_t y_stride, bool accumulate, Scratch& s) {
  if (x.m <= kStreamRows) {
    for (int tile = begin; tile < end; tile++, y += kTileRows) {
      int row = 0;
      for (; row + 4 <= x.m; row += 4) stream_rows<kind, 4>(w, tile, x, row, y, y_stride, accumulate);
      if (x.m - row == 3) stream_rows<kind, 3>(w, tile, x, row, y, y_stride, accumulate);
      if (x.m - row == 2) stream_rows<kind, 2>(w, tile, x, row, y, y_stride, accumulate);
      if (x.m - row == 1) stream_rows<kind, 1>(w, tile, x, row, y, y_stride, accumulate);
    }
    return;
  }
  for (int row = 0; row < x.m; row += 128) {
    const int rows = x.m - row < 128 ? x.m - row : 128;
    int tile = begin;
    for (; tile + 2 <= end; tile += 2) block_rows<kind, 2>(w, tile, x, row, rows, y + (size_t)(tile - begin) * kTileRows, y_stride, accumulate, s);
    if (tile < end) block_rows<kind, 1>(w, tile, x, row, rows, y + (size_t)(tile - begin) * kTileRows, y_stride, accumulate, s);
  }
}

// Unquantized weights: plain float products, one k after another.
template <Kind kind>
inline F8 load_weights(const uint8_t* p, int k) {
  if (kind == kF32) return load((const float*)p + (size_t)k * 8);
  if (kind == kF16) return load_f16((const uint16_t*)p + (size_t)k * 8);
  return load_bf16((const uint16_t*)p + (size_t)k * 8);
}

template <Kind kind, int M>
inline void float_rows(const Matrix& w, int tile, const Activations& x, int row, float* y, size_t y_stride, bool accumulate) {
  F8 acc[M];
  for (auto& a : acc) a = zero();
  const uint8_t* p = w.data + (size_t)tile * w.tile_bytes;
  const float* values = x.values + (size_t)row * x.stride;
  for (int k = 0; k < w.cols; k++) {
    const F8 weights = load_weights<kind>(p, k);
    for (int m = 0; m < M; m++) acc[m] = fma(weights, splat(values[(size_t)m * x.stride + k]), acc[m]);
  }
  for (int m = 0; m < M; m++) put(y + (size_t)(row + m) * y_stride, acc[m], accumulate);
}

template <Kind kind>
void matmul_floats(const Matrix& w, const Activations& x, int begin, int end, float* y, size_t y_stride, bool accumulate) {
  for (int tile = begin; tile < end; tile++, y += kTileRows) {
    int row = 0;
    for (; row + 8 <= x.m; row += 8) float_rows<kind, 8>(w, tile, x, row, y, y_stride, accumulate);
    for (; row < x.m; row++) float_rows<kind, 1>(w, tile, x, row, y, y_stride, accumulate);
  }
}

void matmul(const Matrix& w, const Activations& x, int begin, int end, float* y, size_t y_stride, bool accumulate, Scratch& s) {
  switch (w.kind) {
    case kF32: return matmul_floats<kF32>(w, x, begin, end, y, y_stride, accumulate);
    case kF16: return matmul_floats<kF16>(w, x, begin, end, y, y_stride, accumulate);
    case kBF16: return matmul_floats<kBF16>(w, x, begin, end, y, y_stride, accumulate);
    case kQ4: return matmul_codes<kQ4>(w, x, begin, end, y, y_stride, accumulate, s);
    case kQ4Min: return matmul_codes<kQ4Min>(w, x, begin, end, y, y_stride, accumulate, s);
    case kQ8: return matmul_codes<kQ8>(w, x, begin, end, y, y_stride, accumulate, s);
    case kQ8Min: return matmul_codes<kQ8Min>(w, x, begin, end, y, y_stride, accumulate, s);
  }
}

}  // namespace

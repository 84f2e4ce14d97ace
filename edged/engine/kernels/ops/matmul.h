// Matrix products y[m, n] = x[m, k] · w[n, k]ᵀ over the packed tiles. Included once by each instruction set's
// file.
//
// The sum over k runs group by group in one float accumulator a row and output, for every m: a product gives
// the same bits alone, in a batch, and on any thread. Products of codes are exact integers, so their grouping
// may differ between the two paths below:
// - few rows (m ≤ kFewRows): codes are unpacked in registers, 4 rows at a time, while the weights stream from
//   memory once, in several streams where that is faster (kStrips);
// - many rows: a pair of tiles is unpacked into the first-level cache and visited by all rows, a few at a
// time.
#pragma once
#include "kernels.h"

namespace {
using namespace edged;

constexpr int group32_bytes(Kind kind) { return is_q4(kind) ? 128 : 256; }
// Prefetch distance in bytes of one or two streams: a page, so that the walk to the next one is early, too
// (4096 decoded 1 to 6 % faster than 1536). Several streams are left to the processor's own prefetchers,
// which fetch more at a time. Asking for their next lines past the outer caches (prefetchnta) gained 2 to 5 %
// on AMD and halved the decode on Intel, so it waits until the engine can measure where it runs.
constexpr int kPrefetchBytes = 4096;

// 8 rows' factors, by which a tile's sums are multiplied.
template <Kind kind>
inline F8 factors(const uint8_t* tile) {
  return has_factor(kind) ? mul(load_f16((const uint16_t*)tile), splat(kScaleUnit)) : splat(1);
}

// 8 rows' scales of a group, and their minima; in kScaleUnits of the factor where the kind has factors.
template <Kind kind>
inline F8 scales(const uint8_t* header) {
  return has_factor(kind) ? load_int8(header) : load_f16((const uint16_t*)header);
}
template <Kind kind>
inline F8 minima(const uint8_t* header) {
  const uint8_t* p = header + scale_bytes(kind);
  return has_factor(kind) ? mul(load_int8(p), splat(kMinimumUnit)) : load_f16((const uint16_t*)p);
}

// acc + scale·x_scale·(codes · x_codes) + minimum·x_sum for one group of 32 k and 8 rows. The 8 of centred
// codes is already subtracted: start4 and rows4 both get −8 · Σ x_codes, and the one in which it is cheaper
// adds it.
template <Kind kind>
inline F8 add_group(F8 acc, I8 dot, F8 scale, F8 minimum, const Activations& x, size_t at) {
  if (!is_q4(kind) && kBias8) dot = add(dot, splat_int(x.offset8[at] * (kBias8 / 8)));
  acc = fma(mul(scale, splat(x.scale[at])), to_float(dot), acc);
  if (has_minimum(kind)) acc = fma(minimum, splat(x.sum[at]), acc);
  return acc;
}

// T tiles, `stride` bytes from one to the next, × M rows of activations, weights read once. `group`: 32, or 0
// for w.group.
template <Kind kind, int M, int T, int group>
inline void stream_tiles(const Matrix& w, const uint8_t* tile, size_t stride, const Activations& x, int row,
                         F8 (&acc)[T][M]) {
  const int parts = (group ? group : w.group) / kActivationGroup, x_groups = x.stride / kActivationGroup;
  for (int t = 0; t < T; t++)
    for (int m = 0; m < M; m++) acc[t][m] = zero();
  const int8_t* codes = x.codes + (size_t)row * x.stride;
  size_t at = (size_t)row * x_groups;
  const uint8_t* first = tile;
  tile += factor_bytes(kind);
  for (int g = 0; g < w.groups; g++) {
    const uint8_t* header = tile;
    tile += header_bytes(kind);
    for (int p = 0; p < parts; p++, at++, codes += kActivationGroup, tile += group32_bytes(kind)) {
      I8 dot[T][M];
      if (is_q4(kind)) {
        Sum4 sum[T][M];
        for (auto& one : sum)
          for (int m = 0; m < M; m++)
            one[m] = start4(is_centred(kind) ? x.offset8[at + (size_t)m * x_groups] : 0);
#pragma GCC unroll 4
        for (int l = 0; l < 4; l++) {
          for (int t = 0; t < T; t++) {
            const W32 both = load_w(tile + t * stride + l * 32);
            const W32 low = low_nibbles(both), high = high_nibbles(both);
            for (int m = 0; m < M; m++) {
              const int8_t* a = codes + (size_t)m * x.stride;
              sum[t][m] = dot4(dot4(sum[t][m], low, load_a(a, l * 8)), high, load_a(a, l * 8 + 4));
            }
          }
        }
        for (int t = 0; t < T; t++)
          for (int m = 0; m < M; m++)
            dot[t][m] = rows4(sum[t][m], is_centred(kind) ? x.offset8[at + (size_t)m * x_groups] : 0);
      } else {
        Sum8 sum[T][M];
        for (auto& one : sum)
          for (int m = 0; m < M; m++) one[m] = no_sum8();
#pragma GCC unroll 8
        for (int l = 0; l < 8; l++) {
          for (int t = 0; t < T; t++) {
            const W32 code = prepare8(load_w(tile + t * stride + l * 32));
            for (int m = 0; m < M; m++)
              sum[t][m] = dot8(sum[t][m], code, load_a(codes + (size_t)m * x.stride, l * 4));
          }
        }
        for (int t = 0; t < T; t++)
          for (int m = 0; m < M; m++) dot[t][m] = rows8(sum[t][m]);
      }
      if (T == 1 || T < kStrips)
        for (int t = 0; t < T; t++)
          for (int line = 0; line < (is_q4(kind) ? 192 : 256); line += 64)
            prefetch(tile + t * stride + group32_bytes(kind) + kPrefetchBytes + line);
      for (int t = 0; t < T; t++) {
        const F8 scale = scales<kind>(header + t * stride),
                 minimum = has_minimum(kind) ? minima<kind>(header + t * stride) : scale;
        for (int m = 0; m < M; m++)
          acc[t][m] = add_group<kind>(acc[t][m], dot[t][m], scale, minimum, x, at + (size_t)m * x_groups);
      }
    }
  }
  if (has_factor(kind))
    for (int t = 0; t < T; t++)
      for (int m = 0; m < M; m++) acc[t][m] = mul(acc[t][m], factors<kind>(first + t * stride));
}

inline void store_result(float* y, F8 acc, bool accumulate) {
  store(y, accumulate ? add(load(y), acc) : acc);
}

// The arguments of a product of few rows.
struct FewRows {
  const Matrix& w;
  const Activations& x;
  const Strips& strips;
  float* y;
  size_t y_stride;
  bool accumulate;
};

// Tile i of T strips × M rows.
template <Kind kind, int M, int T>
inline void stream_rows(const FewRows& p, int strip, int i, int row) {
  const uint8_t* tile =
      p.w.data + ((size_t)strip * p.strips.tiles_per_strip + p.strips.begin + i) * p.w.tile_bytes;
  F8 acc[T][M];
  const size_t stride = p.strips.tiles_per_strip * p.w.tile_bytes;
  if (p.w.group == kActivationGroup)
    stream_tiles<kind, M, T, kActivationGroup>(p.w, tile, stride, p.x, row, acc);
  else
    stream_tiles<kind, M, T, 0>(p.w, tile, stride, p.x, row, acc);
  for (int t = 0; t < T; t++)
    for (int m = 0; m < M; m++)
      store_result(p.y + (size_t)(row + m) * p.y_stride + (strip + t) * p.strips.y_strip_stride +
                       (size_t)i * kTileRows,
                   acc[t][m], p.accumulate);
}

// Tile i of `count` strips × M rows, as many strips at once as the registers hold.
template <Kind kind, int M>
inline void stream_strips(const FewRows& p, int i, int count, int row) {
  constexpr int T = M <= 2 ? kStrips : (kStrips + 1) / 2;
  int strip = 0;
  for (; strip + T <= count; strip += T) stream_rows<kind, M, T>(p, strip, i, row);
  for (; strip < count; strip++) stream_rows<kind, M, 1>(p, strip, i, row);
}

// Claims another unit of the reserve; returns the number of tiles that it adds to each strip, 0 where none is
// left.
inline int claim_unit(const Strips& s) {
  constexpr auto relaxed = std::memory_order_relaxed;
  if (!s.reserve || s.reserve->claimed.load(relaxed) >= s.units ||
      s.reserve->claimed.fetch_add(1, relaxed) >= s.units)
    return 0;
  s.reserve->own++;
  return s.unit;
}

template <Kind kind>
int few_rows(const FewRows& p) {
  int tiles = p.strips.tiles;
  for (int i = 0; i < tiles || (tiles += claim_unit(p.strips)) > i; i++) {
    int count = 0, row = 0;
    while (count < p.strips.count && p.strips.begin + count * p.strips.tiles_per_strip + i < p.w.tiles)
      count++;
    for (; row + 4 <= p.x.m; row += 4) stream_strips<kind, 4>(p, i, count, row);
    if (p.x.m - row == 3) stream_strips<kind, 3>(p, i, count, row);
    if (p.x.m - row == 2) stream_strips<kind, 2>(p, i, count, row);
    if (p.x.m - row == 1) stream_strips<kind, 1>(p, i, count, row);
  }
  return tiles;
}

// Groups of 32 [begin, end) of one tile into scratch: codes a byte each, scales as float32.
template <Kind kind>
void unpack(const Matrix& w, int tile, int begin, int end, Scratch& s, int t) {
  const int parts = w.group / kActivationGroup;
  uint8_t* out = s.codes[t];
  for (int g = begin; g < end; g++) {
    const uint8_t* block =
        w.data + (size_t)tile * w.tile_bytes + factor_bytes(kind) + (size_t)(g / parts) * w.block_bytes;
    store(s.scale[t] + (g - begin) * 8, scales<kind>(block));
    if (has_minimum(kind)) store(s.minimum[t] + (g - begin) * 8, minima<kind>(block));
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

// T unpacked tiles × M rows over `count` groups of 32 starting at group `first`; sums carried in scratch
// between blocks of k.
template <Kind kind, int T, int M>
inline void block_tile(const Activations& x, int row, int first, int count, Scratch& s, int sum_row,
                       bool carried) {
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
        for (int m = 0; m < M; m++)
          tile[m] = start4(is_centred(kind) ? x.offset8[at + (size_t)m * x_groups] : 0);
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
        for (int m = 0; m < M; m++)
          dot[t][m] = rows4(sum[t][m], is_centred(kind) ? x.offset8[at + (size_t)m * x_groups] : 0);
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
      const F8 scale = load(s.scale[t] + g * 8),
               minimum = has_minimum(kind) ? load(s.minimum[t] + g * 8) : scale;
      for (int m = 0; m < M; m++)
        acc[t][m] = add_group<kind>(acc[t][m], dot[t][m], scale, minimum, x, at + (size_t)m * x_groups);
    }
  }
  for (int t = 0; t < T; t++)
    for (int m = 0; m < M; m++) store(s.sums[t][sum_row + m], acc[t][m]);
}

// T tiles × rows [row, row + rows), rows ≤ kRowBlock; y points at the first tile's column.
template <Kind kind, int T>
void block_rows(const Matrix& w, int tile, const Activations& x, int row, int rows, float* y, size_t y_stride,
                bool accumulate, Scratch& s) {
  const int all = w.groups * (w.group / kActivationGroup);
  for (int first = 0; first < all; first += 32) {
    const int count = all - first < 32 ? all - first : 32;
    for (int t = 0; t < T; t++) unpack<kind>(w, tile + t, first, first + count, s, t);
    int m = 0;
    for (; m + kRegisterRows <= rows; m += kRegisterRows)
      block_tile<kind, T, kRegisterRows>(x, row + m, first, count, s, m, first > 0);
    for (; m < rows; m++) block_tile<kind, T, 1>(x, row + m, first, count, s, m, first > 0);
  }
  for (int t = 0; t < T; t++) {
    const F8 factor = factors<kind>(w.data + (size_t)(tile + t) * w.tile_bytes);
    for (int m = 0; m < rows; m++) {
      const F8 sum = load(s.sums[t][m]);
      store_result(y + (size_t)(row + m) * y_stride + t * kTileRows,
                   has_factor(kind) ? mul(sum, factor) : sum, accumulate);
    }
  }
}

template <Kind kind>
void many_rows(const Matrix& w, const Activations& x, int begin, int end, float* y, size_t y_stride,
               bool accumulate, Scratch& s) {
  for (int row = 0; row < x.m; row += kRowBlock) {
    const int rows = x.m - row < kRowBlock ? x.m - row : kRowBlock;
    int tile = begin;
    for (; tile + 2 <= end; tile += 2)
      block_rows<kind, 2>(w, tile, x, row, rows, y + (size_t)(tile - begin) * kTileRows, y_stride, accumulate,
                          s);
    if (tile < end)
      block_rows<kind, 1>(w, tile, x, row, rows, y + (size_t)(tile - begin) * kTileRows, y_stride, accumulate,
                          s);
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
inline void float_rows(const Matrix& w, int tile, const Activations& x, int row, float* y, size_t y_stride,
                       bool accumulate) {
  F8 acc[M];
  for (auto& a : acc) a = zero();
  const uint8_t* p = w.data + (size_t)tile * w.tile_bytes;
  const float* values = x.values + (size_t)row * x.stride;
  for (int k = 0; k < w.cols; k++) {
    const F8 weights = load_weights<kind>(p, k);
    for (int m = 0; m < M; m++) acc[m] = fma(weights, splat(values[(size_t)m * x.stride + k]), acc[m]);
  }
  for (int m = 0; m < M; m++) store_result(y + (size_t)(row + m) * y_stride, acc[m], accumulate);
}

template <Kind kind>
void float_tiles(const Matrix& w, const Activations& x, int begin, int end, float* y, size_t y_stride,
                 bool accumulate) {
  for (int tile = begin; tile < end; tile++, y += kTileRows) {
    int row = 0;
    for (; row + 8 <= x.m; row += 8) float_rows<kind, 8>(w, tile, x, row, y, y_stride, accumulate);
    for (; row < x.m; row++) float_rows<kind, 1>(w, tile, x, row, y, y_stride, accumulate);
  }
}

template <Kind kind>
int product(const Matrix& w, const Activations& x, const Strips& strips, float* y, size_t y_stride,
            bool accumulate, Scratch& s) {
  const int begin = strips.begin, end = strips.begin + strips.tiles;
  if constexpr (kind <= kBF16)
    float_tiles<kind>(w, x, begin, end, y, y_stride, accumulate);
  else if (x.m <= kFewRows)
    return few_rows<kind>({w, x, strips, y, y_stride, accumulate});
  else
    many_rows<kind>(w, x, begin, end, y, y_stride, accumulate, s);
  return strips.tiles;
}

int matmul(const Matrix& w, const Activations& x, const Strips& strips, float* y, size_t y_stride,
           bool accumulate, Scratch& s) {
  switch (w.kind) {
    case kF32: return product<kF32>(w, x, strips, y, y_stride, accumulate, s);
    case kF16: return product<kF16>(w, x, strips, y, y_stride, accumulate, s);
    case kBF16: return product<kBF16>(w, x, strips, y, y_stride, accumulate, s);
    case kQ4: return product<kQ4>(w, x, strips, y, y_stride, accumulate, s);
    case kQ4Min: return product<kQ4Min>(w, x, strips, y, y_stride, accumulate, s);
    case kQ8: return product<kQ8>(w, x, strips, y, y_stride, accumulate, s);
    case kQ8Min: return product<kQ8Min>(w, x, strips, y, y_stride, accumulate, s);
    case kQ4Byte: return product<kQ4Byte>(w, x, strips, y, y_stride, accumulate, s);
    case kQ4ByteMin: return product<kQ4ByteMin>(w, x, strips, y, y_stride, accumulate, s);
  }
  return 0;
}

}  // namespace

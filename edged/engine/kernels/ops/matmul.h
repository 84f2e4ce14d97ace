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
#include <utility>

#include "kernels.h"

namespace {
using namespace edged;

// Prefetch distance in bytes of one or two streams: a page, so that the walk to the next one is early, too
// (4096 decoded 1 to 6 % faster than 1536). Several streams are left to the processor's own prefetchers,
// which fetch more at a time. Asking for their next lines past the outer caches (prefetchnta) gained 2 to 5 %
// on AMD and halved the decode on Intel, so it waits until the engine can measure where it runs.
constexpr int kPrefetchBytes = 4096;

template <class F, int... i>
inline void unroll(const F& f, std::integer_sequence<int, i...>) {
  (f(std::integral_constant<int, i>()), ...);
}
// f(0), f(1), … f(n − 1) with constants.
template <int n, class F>
inline void unroll(const F& f) {
  unroll(f, std::make_integer_sequence<int, n>());
}
#define EDGED_INLINE __attribute__((always_inline))

// 8 rows' factors, by which a tile's sums are multiplied.
template <Kind kind>
inline F8 factors(const uint8_t* tile) {
  return has_row_factor(kind) ? mul(load_f16((const uint16_t*)tile), splat(kScaleUnit)) : splat(1);
}

// 8 rows' scales of 32 k or of half of them, from the block's header and that of the 32 k; and their minima.
// In kScaleUnits of the factor where the kind has rows' factors.
template <Kind kind, int half>
inline F8 scales(const uint8_t* header, const uint8_t* sub_header) {
  const auto* halves = (const uint16_t*)header;
  const uint8_t* bytes = sub_header + half * kTileRows;
  switch (traits(kind).scales) {
    case Scales::kHalf: return load_f16(halves);
    case Scales::kBrain: return load_bf16(halves);
    case Scales::kRowBytes: return load_int8(header);
    case Scales::kBlockBytes: return mul(load_f16(halves), load_int8(bytes));
    case Scales::kBlockNibbles: return mul(load_f16(halves), load_low_nibbles(bytes));
  }
}
template <Kind kind, int half>
inline F8 minima(const uint8_t* header, const uint8_t* sub_header) {
  const auto* halves = (const uint16_t*)header + kTileRows;
  const uint8_t* bytes = sub_header + half * kTileRows;
  switch (traits(kind).scales) {
    case Scales::kHalf: return load_f16(halves);
    case Scales::kBrain: return load_bf16(halves);
    case Scales::kRowBytes: return mul(load_int8(header + kTileRows), splat(kMinimumUnit));
    case Scales::kBlockBytes: return mul(load_f16(halves), load_int8(bytes + scales_in_32(kind) * kTileRows));
    case Scales::kBlockNibbles: return mul(load_f16(halves), load_high_nibbles(bytes));
  }
}

// A table's values as they are multiplied.
struct Table {
  int8_t values[16];
};
constexpr Table table(Kind kind) {
  Table t = {};
  for (int i = 0; i < 16; i++)
    t.values[i] = traits(kind).levels == Levels::kIq4 ? (int8_t)(kIq4Levels[i] ^ (kBias8 ? -128 : 0))
                                                      : (int8_t)(kMxfp4Levels[i] + traits(kind).centre);
  return t;
}
template <Kind kind>
inline constexpr Table kTable = table(kind);

// 4 k each of 8 rows, as they are multiplied.
struct Pair {
  W32 first, second;
};
// Pair `index` (0 … 3) of the codes of 32 k.
template <Kind kind, int index>
inline Pair load_codes(const uint8_t* codes) {
  constexpr Traits is = traits(kind);
  if constexpr (is.low == 8) {
    return {prepare8(load_w(codes + index * 64)), prepare8(load_w(codes + index * 64 + 32))};
  } else {
    constexpr int per_unit = 4 / is.low, low_bit = index % per_unit * 2 * is.low;
    const W32 low = load_w(codes + index / per_unit * 32);
    Pair pair = {field<low_bit, is.low, 0>(low), field<low_bit + is.low, is.low, 0>(low)};
    if constexpr (is.high > 0) {
      constexpr int per_high_unit = 4 / is.high, high_bit = index % per_high_unit * 2 * is.high;
      const W32 high = load_w(codes + is.low * 32 + index / per_high_unit * 32);
      pair = {combine(pair.first, field<high_bit, is.high, is.low>(high)),
              combine(pair.second, field<high_bit + is.high, is.high, is.low>(high))};
    }
    if constexpr (is.levels != Levels::kLinear)
      pair = {look_up(kTable<kind>.values, pair.first), look_up(kTable<kind>.values, pair.second)};
    return pair;
  }
}

// Exact sums of products of codes from 0 on.
struct SmallCodes {
  using Sum = Sum4;
  static Sum start(int32_t offset) { return start4(offset); }
  static Sum dot(Sum s, W32 w, A4 a) { return dot4(s, w, a); }
  static I8 rows(Sum s, int32_t offset) { return rows4(s, offset); }
};
// The same of int8 codes.
struct WideCodes {
  using Sum = Sum8;
  static Sum start(int32_t) { return no_sum8(); }
  static Sum dot(Sum s, W32 w, A4 a) { return dot8(s, w, a); }
  static I8 rows(Sum s, int32_t offset) { return kBias8 ? add(rows8(s), splat_int(offset)) : rows8(s); }
};
template <Kind kind>
using Products = std::conditional_t<is_wide(kind), WideCodes, SmallCodes>;

// Pairs of the codes that share a scale; and as many of them as one sum can hold.
template <Kind kind>
inline constexpr int kPairs = 4 / scales_in_32(kind);
constexpr int pairs_in_sum(Kind kind) {
  const int most = is_wide(kind) ? 4 : kLargestSum4 / (2 * largest_code(kind)), all = 4 / scales_in_32(kind);
  return most >= 4 && all == 4 ? 4 : most >= 2 ? 2 : 1;
}

// −(what was added to codes) · Σ x_codes, over the k that share a scale.
template <Kind kind, int half>
inline int32_t offset(const Activations& x, size_t at) {
  constexpr int added = is_wide(kind) ? kBias8 : traits(kind).centre;
  if (!added) return 0;
  return (scales_in_32(kind) == 2 ? x.half_offset8[2 * at + half] : x.offset8[at]) * added / 8;
}

// acc + scale·x_scale·(codes · x_codes) + minimum·x_sum for 8 rows and the k that share a scale.
template <Kind kind, int half>
inline F8 add_group(F8 acc, I8 dot, F8 scale, F8 minimum, const Activations& x, size_t at) {
  acc = fma(mul(scale, splat(x.scale[at])), to_float(dot), acc);
  if (has_minimum(kind))
    acc = fma(minimum, splat(scales_in_32(kind) == 2 ? x.half_sum[2 * at + half] : x.sum[at]), acc);
  return acc;
}

// T tiles, `stride` bytes from one to the next, × M rows of activations, weights read once. `group`: w.group,
// or 0 where it is known only at run time.
template <Kind kind, int M, int T, int group>
inline void stream_tiles(const Matrix& w, const uint8_t* tile, size_t stride, const Activations& x, int row,
                         F8 (&acc)[T][M]) {
  using P = Products<kind>;
  constexpr int pairs = pairs_in_sum(kind), bytes = code_bytes(kind);
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
    for (int p = 0; p < parts; p++, at++, codes += kActivationGroup, tile += bytes) {
      const uint8_t* sub_header = tile;
      tile += sub_header_bytes(kind);
      unroll<scales_in_32(kind)>([&](auto half) EDGED_INLINE {
        I8 dot[T][M];
        unroll<kPairs<kind> / pairs>([&](auto part) EDGED_INLINE {
          typename P::Sum sum[T][M];
          const auto start = [&](int m) {
            return part ? 0 : offset<kind, half>(x, at + (size_t)m * x_groups);
          };
          for (auto& one : sum)
            for (int m = 0; m < M; m++) one[m] = P::start(start(m));
          unroll<pairs>([&](auto l) EDGED_INLINE {
            constexpr int pair = half * kPairs<kind> + part * pairs + l;
            for (int t = 0; t < T; t++) {
              const Pair code = load_codes<kind, pair>(tile + t * stride);
              for (int m = 0; m < M; m++) {
                const int8_t* a = codes + (size_t)m * x.stride;
                sum[t][m] = P::dot(P::dot(sum[t][m], code.first, load_a(a, pair * 8)), code.second,
                                   load_a(a, pair * 8 + 4));
              }
            }
          });
          for (int t = 0; t < T; t++)
            for (int m = 0; m < M; m++) {
              const I8 rows = P::rows(sum[t][m], start(m));
              dot[t][m] = part ? add(dot[t][m], rows) : rows;
            }
        });
        for (int t = 0; t < T; t++) {
          const uint8_t *its_header = header + t * stride, *its_sub_header = sub_header + t * stride;
          const F8 scale = scales<kind, half>(its_header, its_sub_header),
                   minimum = has_minimum(kind) ? minima<kind, half>(its_header, its_sub_header) : scale;
          for (int m = 0; m < M; m++)
            acc[t][m] =
                add_group<kind, half>(acc[t][m], dot[t][m], scale, minimum, x, at + (size_t)m * x_groups);
        }
      });
      if (T == 1 || T < kStrips)
        for (int t = 0; t < T; t++)
          for (int line = 0; line < bytes + 64 && line < 256; line += 64)
            prefetch(tile + t * stride + bytes + kPrefetchBytes + line);
    }
  }
  if (has_row_factor(kind))
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
  if constexpr (has_fixed_group(kind))
    stream_tiles<kind, M, T, has_blocks(kind) ? kBlockGroup : 32>(p.w, tile, stride, p.x, row, acc);
  else if (p.w.group == 32)  // a loop over the parts of a group of one part costs 10 % in caches
    stream_tiles<kind, M, T, 32>(p.w, tile, stride, p.x, row, acc);
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
  float *scale = s.scale[t], *minimum = s.minimum[t];
  for (int g = begin; g < end; g++) {
    const uint8_t* header =
        w.data + (size_t)tile * w.tile_bytes + factor_bytes(kind) + (size_t)(g / parts) * w.block_bytes;
    const uint8_t* sub_header = header + header_bytes(kind) + g % parts * part_bytes(kind);
    unroll<scales_in_32(kind)>([&](auto half) EDGED_INLINE {
      store(scale, scales<kind, half>(header, sub_header));
      if (has_minimum(kind)) store(minimum, minima<kind, half>(header, sub_header));
      scale += kTileRows;
      minimum += kTileRows;
    });
    unroll<4>([&](auto l) EDGED_INLINE {
      const Pair pair = load_codes<kind, l>(sub_header + sub_header_bytes(kind));
      store_w(out, pair.first);
      store_w(out + 32, pair.second);
      out += 64;
    });
  }
}

// T unpacked tiles × M rows over `count` groups of 32 starting at group `first`; sums carried in scratch
// between blocks of k.
template <Kind kind, int T, int M>
inline void block_tile(const Activations& x, int row, int first, int count, Scratch& s, int sum_row,
                       bool carried) {
  using P = Products<kind>;
  constexpr int halves = scales_in_32(kind), units = 2 * pairs_in_sum(kind);
  const int x_groups = x.stride / kActivationGroup;
  F8 acc[T][M];
  for (int t = 0; t < T; t++)
    for (int m = 0; m < M; m++) acc[t][m] = carried ? load(s.sums[t][sum_row + m]) : zero();
  const int8_t* codes = x.codes + (size_t)row * x.stride + first * kActivationGroup;
  size_t at = (size_t)row * x_groups + first;
  for (int g = 0; g < count; g++, at++, codes += kActivationGroup) {
    const size_t group = (size_t)g * 256;
    unroll<halves>([&](auto half) EDGED_INLINE {
      I8 dot[T][M];
      unroll<2 * kPairs<kind> / units>([&](auto part) EDGED_INLINE {
        typename P::Sum sum[T][M];
        const auto start = [&](int m) { return part ? 0 : offset<kind, half>(x, at + (size_t)m * x_groups); };
        for (auto& tile : sum)
          for (int m = 0; m < M; m++) tile[m] = P::start(start(m));
#pragma GCC unroll 8
        for (int l = 0; l < units; l++) {
          const int unit = half * 2 * kPairs<kind> + part * units + l;
          W32 code[T];
          for (int t = 0; t < T; t++) code[t] = load_w(s.codes[t] + group + unit * 32);
          for (int m = 0; m < M; m++) {
            const A4 a = load_a(codes + (size_t)m * x.stride, unit * 4);
            for (int t = 0; t < T; t++) sum[t][m] = P::dot(sum[t][m], code[t], a);
          }
        }
        for (int t = 0; t < T; t++)
          for (int m = 0; m < M; m++) {
            const I8 rows = P::rows(sum[t][m], start(m));
            dot[t][m] = part ? add(dot[t][m], rows) : rows;
          }
      });
      for (int t = 0; t < T; t++) {
        const size_t header = ((size_t)g * halves + half) * kTileRows;
        const F8 scale = load(s.scale[t] + header),
                 minimum = has_minimum(kind) ? load(s.minimum[t] + header) : scale;
        for (int m = 0; m < M; m++)
          acc[t][m] =
              add_group<kind, half>(acc[t][m], dot[t][m], scale, minimum, x, at + (size_t)m * x_groups);
      }
    });
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
                   has_row_factor(kind) ? mul(sum, factor) : sum, accumulate);
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

using Product = int (*)(const Matrix&, const Activations&, const Strips&, float*, size_t, bool, Scratch&);

template <int... kinds>
Product product_of(Kind kind, std::integer_sequence<int, kinds...>) {
  static constexpr Product products[] = {product<(Kind)kinds>...};
  return products[kind];
}

int matmul(const Matrix& w, const Activations& x, const Strips& strips, float* y, size_t y_stride,
           bool accumulate, Scratch& s) {
  return product_of(w.kind, std::make_integer_sequence<int, kKinds>())(w, x, strips, y, y_stride, accumulate,
                                                                       s);
}

}  // namespace

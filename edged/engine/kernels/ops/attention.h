// Attention over the blocked key/value cache, chunk by chunk with a running maximum (online softmax, in
// powers of two). Included once by each instruction set's file.
//
// A lane is one query row of one head. For every lane the same arithmetic runs in the same order, however the
// work is shared: a chunk's scores, their weights, then the weighted sum of its values block by block, then
// chunk merged into chunk. Keys lie [dim, token], so that scores of 32 tokens grow in registers without sums
// over lanes; values lie [token, dim].
#pragma once
#include <type_traits>

#include "kernels.h"

namespace {
using namespace edged;

// The score of a token that does not count: finite, so that differences stay numbers.
constexpr float kMasked = -1e30f;

inline F8 load_any(const float* p) { return load(p); }
inline F8 load_any(const uint16_t* p) { return load_f16(p); }

// query (L,dim) @ keys (dim,8·J) -> scores (L,8·J). Of queries and key vectors the fewer stay in registers
// beside the sums, the others are loaded as needed: 3 lanes × 4 vectors (of values also 4 × 3) take 16
// registers, which is what AVX2 has, and are enough sums to keep its multipliers busy. `next` (or null): keys
// of the next block, prefetched a cache line a step.
template <int L, int J, class T>
inline void score(const float* const* query, const T* keys, int dim, float* scores, const uint16_t* next) {
  F8 acc[L][J];
  for (auto& lane : acc)
    for (auto& a : lane) a = zero();
  for (int d = 0; d < dim; d++, keys += kBlockTokens) {
    if (next) prefetch_next(next + d * kBlockTokens);
    if constexpr (L < J) {
      F8 q[L];
      for (int l = 0; l < L; l++) q[l] = splat(query[l][d]);
      for (int j = 0; j < J; j++) {
        const F8 key = load_any(keys + j * 8);
        for (int l = 0; l < L; l++) acc[l][j] = fma(q[l], key, acc[l][j]);
      }
    } else {
      F8 key[J];
      for (int j = 0; j < J; j++) key[j] = load_any(keys + j * 8);
      for (int l = 0; l < L; l++) {
        const F8 q = splat(query[l][d]);
        for (int j = 0; j < J; j++) acc[l][j] = fma(q, key[j], acc[l][j]);
      }
    }
  }
  for (int l = 0; l < L; l++)
    for (int j = 0; j < J; j++) store(scores + l * kChunkTokens + j * 8, acc[l][j]);
}

// sums (L,8·J) += weights (L,count) @ values (count,8·J), registers as above. `next` (or null): values of the
// next block.
template <int L, int J, class T>
inline void weighted_sum(const float* weights, const T* values, int count, int dim, float* sums,
                         const uint16_t* next) {
  F8 acc[L][J];
  for (int l = 0; l < L; l++)
    for (int j = 0; j < J; j++) acc[l][j] = load(sums + (size_t)l * dim + j * 8);
  for (int t = 0; t < count; t++, values += dim) {
    if (next)
      for (int j = 0; j < J; j += 4) prefetch_next(next + t * dim + j * 8);
    if constexpr (L < J) {
      F8 p[L];
      for (int l = 0; l < L; l++) p[l] = splat(weights[l * kChunkTokens + t]);
      for (int j = 0; j < J; j++) {
        const F8 value = load_any(values + j * 8);
        for (int l = 0; l < L; l++) acc[l][j] = fma(p[l], value, acc[l][j]);
      }
    } else {
      F8 value[J];
      for (int j = 0; j < J; j++) value[j] = load_any(values + j * 8);
      for (int l = 0; l < L; l++) {
        const F8 p = splat(weights[l * kChunkTokens + t]);
        for (int j = 0; j < J; j++) acc[l][j] = fma(p, value[j], acc[l][j]);
      }
    }
  }
  for (int l = 0; l < L; l++)
    for (int j = 0; j < J; j++) store(sums + (size_t)l * dim + j * 8, acc[l][j]);
}

// L lanes and all 32 tokens of a block.
template <int L, class T>
inline void score_block(const float* const* query, const T* keys, int dim, float* scores,
                        const uint16_t* next) {
  constexpr int J = L == 4 ? 2 : 4;
  for (int j = 0; j < kBlockTokens; j += J * 8)
    score<L, J>(query, keys + j, dim, scores + j, j ? nullptr : next);
}

// L lanes and all of dim, a multiple of 8.
template <int L, class T>
inline void weighted_sum_block(const float* weights, const T* values, int count, int dim, float* sums,
                               const uint16_t* next) {
  int at = 0;
  const auto columns = [&](auto width) {
    constexpr int J = decltype(width)::value;
    weighted_sum<L, J>(weights, values + at, count, dim, sums + at, next ? next + at : nullptr);
    at += J * 8;
  };
  if constexpr (L == 1 && kSingleLaneVectors > 4)
    while (dim - at >= kSingleLaneVectors * 8) columns(std::integral_constant<int, kSingleLaneVectors>());
  if constexpr (L == 4) {
    while (dim - at >= 24 && dim - at != 32) columns(std::integral_constant<int, 3>());
    while (dim - at >= 16) columns(std::integral_constant<int, 2>());
  }
  while (dim - at >= 32) columns(std::integral_constant<int, 4>());
  while (dim - at >= 8) columns(std::integral_constant<int, 1>());
}

// How many of the lanes that are left are computed together. A single lane is slow, because its few sums wait
// for each other, so 4 are not split into 3 + 1.
inline int lanes_at_once(int left) { return left == 4 || left < 3 ? left : 3; }

template <class T>
inline void score_lanes(const float* const* query, int lanes, const T* keys, int dim, float* scores,
                        const uint16_t* next) {
  for (int l = 0; l < lanes; l += lanes_at_once(lanes - l), next = nullptr) {
    float* out = scores + l * kChunkTokens;
    switch (lanes_at_once(lanes - l)) {
      case 1: score_block<1>(query + l, keys, dim, out, next); break;
      case 2: score_block<2>(query + l, keys, dim, out, next); break;
      case 3: score_block<3>(query + l, keys, dim, out, next); break;
      case 4: score_block<4>(query + l, keys, dim, out, next); break;
    }
  }
}

template <class T>
inline void weighted_sum_lanes(const float* weights, int lanes, const T* values, int count, int dim,
                               float* sums, const uint16_t* next) {
  for (int l = 0; l < lanes; l += lanes_at_once(lanes - l), next = nullptr) {
    const float* own = weights + l * kChunkTokens;
    float* out = sums + (size_t)l * dim;
    switch (lanes_at_once(lanes - l)) {
      case 1: weighted_sum_block<1>(own, values, count, dim, out, next); break;
      case 2: weighted_sum_block<2>(own, values, count, dim, out, next); break;
      case 3: weighted_sum_block<3>(own, values, count, dim, out, next); break;
      case 4: weighted_sum_block<4>(own, values, count, dim, out, next); break;
    }
  }
}

// scores (from … visible,) of one lane and chunk -> their maximum, ignoring NaN. Scores before and beyond, up
// to a multiple of 8, become kMasked.
inline float row_max(float* scores, int from, int visible) {
  if (visible <= from) return kMasked;
  for (int i = from & ~7; i < from; i++) scores[i] = kMasked;
  for (int i = visible; i < ((visible + 7) & ~7); i++) scores[i] = kMasked;
  F8 top = splat(kMasked);
  for (int i = from & ~7; i < visible; i += 8) top = max(load(scores + i), top);
  return max_lanes(top);
}

// scores (all,) of one lane -> weights (all,) = 2^(score − maximum) in place, zero outside the visible tokens
// from … visible; `all` is a multiple of 8. Returns their total, NaN where a score is NaN. The division by
// the total follows in `normalize`.
inline float softmax(float* scores, int from, int visible, int all, float maximum) {
  const F8 base = splat(maximum);
  F8 sum = zero();
  int i = 0;
  for (; i < (visible > from ? from & ~7 : 0); i += 8) store(scores + i, zero());
  if (visible <= from) visible = 0;
  for (; i < visible; i += 8) {
    const F8 weight = exp2_below(sub(load(scores + i), base));
    store(scores + i, weight);
    sum = add(sum, weight);
  }
  for (int t = from & ~7; t < from && t < i; t++) scores[t] = 0;
  for (int t = visible; t < i; t++) scores[t] = 0;
  for (; i < all; i += 8) store(scores + i, zero());
  return sum_lanes(sum);
}

// Adds a chunk's results of all lanes to the merged ones; a lane that sees none of its tokens has kMasked, 0
// and zeros.
inline void merge_chunk(AttentionScratch& s, int lanes, int dim) {
  float old_factors[kMaxLanes], new_factors[kMaxLanes];
  for (int l = 0; l < lanes; l += 8) {
    const F8 before = load(s.merged_maximum + l), own = load(s.maxima + l), after = max(before, own);
    const F8 old_factor = exp2_below(sub(before, after)), new_factor = exp2_below(sub(own, after));
    store(s.merged_maximum + l, after);
    store(s.merged_total + l,
          add(mul(load(s.merged_total + l), old_factor), mul(load(s.totals + l), new_factor)));
    store(old_factors + l, old_factor);
    store(new_factors + l, new_factor);
  }
  for (int l = 0; l < lanes; l++) {
    if (s.totals[l] == 0) continue;
    const F8 old_factor = splat(old_factors[l]), new_factor = splat(new_factors[l]);
    float* merged = s.merged + (size_t)l * dim;
    const float* sums = s.sums + (size_t)l * dim;
    for (int i = 0; i < dim; i += 8)
      store(merged + i, fma(load(sums + i), new_factor, mul(load(merged + i), old_factor)));
  }
}

inline void normalize(const float* merged, float total, int dim, float* out) {
  const F8 factor = splat(1.f / total);
  for (int i = 0; i < dim; i += 8) store(out + i, mul(load(merged + i), factor));
}

// A chunk of 128 tokens as the rows of a task see it.
struct Chunk {
  const AttentionTask& a;
  int first, tokens, blocks;  // its first token, how many there are for the last row, and their blocks
  int first_block;            // those before it no row sees

  Chunk(const AttentionTask& a, int number) : a(a), first(number * kChunkTokens) {
    const int left = a.position + a.rows - first;
    tokens = left < kChunkTokens ? left : kChunkTokens;
    blocks = (tokens + kBlockTokens - 1) / kBlockTokens;
    first_block = hidden(0) / kBlockTokens;
  }
  const uint16_t* keys(int block) const {
    return a.cache + (size_t)a.blocks[first / kBlockTokens + block] * a.block_stride;
  }
  const uint16_t* values(int block) const { return keys(block) + (size_t)a.dim * kBlockTokens; }
  // How many of its tokens that row sees; 0 or negative where the row lies before the chunk.
  int visible(int row) const {
    return a.position + row + 1 - first < tokens ? a.position + row + 1 - first : tokens;
  }
  // How many of its first tokens lie before what that row sees.
  int hidden(int row) const {
    const int before = a.window ? a.position + row + 1 - a.window - first : 0;
    return before < 0 ? 0 : before < tokens ? before : tokens;
  }
  // Whether another block, of this chunk or the next, follows.
  bool has_next(int block) const { return first + (block + 1) * kBlockTokens < a.position + a.rows; }
};

inline void score_chunk(const Chunk& chunk, const float* const* query, int lanes, AttentionScratch& s) {
  const int dim = chunk.a.dim;
  for (int b = chunk.first_block; b < chunk.blocks; b++) {
    const uint16_t *keys = chunk.keys(b), *next = chunk.has_next(b) ? chunk.keys(b + 1) : nullptr;
    float* scores = s.scores + b * kBlockTokens;
    if (lanes > kConvertOnLoadLanes) {  // then a block is converted once for all lanes
      for (int i = 0; i < dim * kBlockTokens; i += 8) store(s.widened + i, load_f16(keys + i));
      score_lanes(query, lanes, s.widened, dim, scores, next);
    } else {
      score_lanes(query, lanes, keys, dim, scores, next);
    }
    if (chunk.a.cap)
      for (int l = 0; l < lanes; l++) soft_cap(scores + l * kChunkTokens, chunk.a.cap, kBlockTokens);
  }
}

inline void weighted_sum_chunk(const Chunk& chunk, int lanes, AttentionScratch& s) {
  const int dim = chunk.a.dim;
  for (int i = 0; i < lanes * dim; i += 8) store(s.sums + i, zero());
  for (int b = chunk.first_block; b < chunk.blocks; b++) {
    const uint16_t *values = chunk.values(b), *next = chunk.has_next(b) ? chunk.values(b + 1) : nullptr;
    const int left = chunk.tokens - b * kBlockTokens, count = left < kBlockTokens ? left : kBlockTokens;
    const float* weights = s.scores + b * kBlockTokens;
    if (lanes > kConvertOnLoadLanes) {
      for (int i = 0; i < dim * count; i += 8) store(s.widened + i, load_f16(values + i));
      weighted_sum_lanes(weights, lanes, s.widened, count, dim, s.sums, next);
    } else {
      weighted_sum_lanes(weights, lanes, values, count, dim, s.sums, next);
    }
  }
}

// One lane's result of `chunks` chunks, to be merged later: out (dim + 8,) = [sums, maximum, total, chunks].
inline void write_partial(const float* sums, float maximum, float total, int chunks, int dim, float* out) {
  for (int i = 0; i < dim; i += 8) store(out + i, load(sums + i));
  out[dim] = maximum;
  out[dim + 1] = total;
  out[dim + 2] = (float)chunks;
}

inline void softmax_chunk(const Chunk& chunk, int lanes, AttentionScratch& s) {
  const int heads = chunk.a.heads;
  for (int l = 0; l < lanes; l += heads)
    for (int h = l; h < l + heads; h++)
      s.maxima[h] = row_max(s.scores + h * kChunkTokens, chunk.hidden(l / heads), chunk.visible(l / heads));
  for (int l = 0; l < lanes; l += heads)
    for (int h = l; h < l + heads; h++)
      s.totals[h] = softmax(s.scores + h * kChunkTokens, chunk.hidden(l / heads), chunk.visible(l / heads),
                            chunk.blocks * kBlockTokens, s.maxima[h]);
}

void attend(const AttentionTask& a, AttentionScratch& s) {
  const int lanes = a.rows * a.heads, dim = a.dim;
  const float* query[kMaxLanes];
  for (int l = 0; l < lanes; l++)
    query[l] = a.query + (size_t)(l / a.heads) * a.query_stride + (size_t)(l % a.heads) * dim;
  for (int l = 0; l < lanes; l += 8) {
    store(s.merged_maximum + l, splat(kMasked));
    store(s.maxima + l, splat(kMasked));
    store(s.merged_total + l, zero());
    store(s.totals + l, zero());
  }
  for (int i = 0; i < lanes * dim; i += 8) store(s.merged + i, zero());
  // A range that begins with the first chunk that the row sees is merged at once.
  const bool separate = a.partial && a.chunk_begin > first_chunk(a.position, a.window);
  const size_t record = (size_t)dim + 8;
  for (int number = a.chunk_begin; number < a.chunk_end; number++) {
    const Chunk chunk(a, number);
    score_chunk(chunk, query, lanes, s);
    softmax_chunk(chunk, lanes, s);
    weighted_sum_chunk(chunk, lanes, s);
    if (!separate) {
      merge_chunk(s, lanes, dim);
      continue;
    }
    float* out = a.partial + (size_t)(number - a.chunk_begin) * lanes * record;
    for (int l = 0; l < lanes; l++)
      write_partial(s.sums + (size_t)l * dim, s.maxima[l], s.totals[l], 1, dim, out + l * record);
  }
  if (separate) return;
  for (int l = 0; l < lanes; l++) {
    const float* merged = s.merged + (size_t)l * dim;
    if (a.partial)
      write_partial(merged, s.merged_maximum[l], s.merged_total[l], a.chunk_end - a.chunk_begin, dim,
                    a.partial + l * record);
    else
      normalize(merged, s.merged_total[l], dim,
                a.out + (size_t)(l / a.heads) * a.out_stride + (size_t)(l % a.heads) * dim);
  }
}

// The same bits as merge_chunk for chunk after chunk, faster: maxima and factors of eight chunks are computed
// together, sums stay in registers.
template <int J>
inline void merge_columns(const float* partial, size_t stride, int chunks, const float* old_factors,
                          const float* new_factors, float* merged) {
  F8 acc[J];
  for (int j = 0; j < J; j++) acc[j] = load(merged + j * 8);
  for (int c = 0; c < chunks; c++, partial += stride) {
    const F8 old_factor = splat(old_factors[c]), new_factor = splat(new_factors[c]);
    for (int j = 0; j < J; j++) acc[j] = fma(load(partial + j * 8), new_factor, mul(acc[j], old_factor));
  }
  for (int j = 0; j < J; j++) store(merged + j * 8, acc[j]);
}

void merge_partials(const float* partial, size_t stride, int chunks, int dim, float* out) {
  float merged[256], maximum = partial[dim], total = partial[dim + 1];
  for (int i = 0; i < dim; i += 8) store(merged + i, load(partial + i));
  const int first = (int)partial[dim + 2];
  partial += stride * first;
  for (chunks -= first; chunks > 0; chunks -= 8, partial += stride * 8) {
    const int count = chunks < 8 ? chunks : 8;
    float before[8] = {}, after[8] = {}, own[8] = {};
    for (int c = 0; c < count; c++) {
      own[c] = partial[c * stride + dim];
      before[c] = maximum;
      after[c] = maximum = own[c] > maximum ? own[c] : maximum;
    }
    store(before, exp2_below(sub(load(before), load(after))));
    store(own, exp2_below(sub(load(own), load(after))));
    for (int c = 0; c < count; c++) total = total * before[c] + partial[c * stride + dim + 1] * own[c];
    int at = 0;
    for (; at + 64 <= dim; at += 64) merge_columns<8>(partial + at, stride, count, before, own, merged + at);
    for (; at < dim; at += 8) merge_columns<1>(partial + at, stride, count, before, own, merged + at);
  }
  normalize(merged, total, dim, out);
}

}  // namespace

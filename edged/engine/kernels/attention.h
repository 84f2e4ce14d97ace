// Attention over the blocked key/value cache, chunk by chunk with a running maximum (online softmax, in powers of two). Included once
// by each instruction set's file.
//
// A lane is one query row of one head. For every lane the same arithmetic runs in the same order, whoever shares the work: a chunk's
// scores, their weights, then its values block by block, then chunk merged into chunk. Keys lie [dim, token], so that scores of 32
// tokens grow in registers without sums over lanes; values lie [token, dim].
#pragma once
#include "table.h"

namespace {
using namespace edged;

constexpr float kNone = -1e30f;  // "no token yet": finite, so that differences stay numbers

inline F8 load_any(const float* p) { return load(p); }
inline F8 load_any(const uint16_t* p) { return load_f16(p); }

// scores[lane, 32 of a chunk] = query[lane] · keys for L lanes. One key vector at a time: with 3 lanes, 12 sums, 3 queries and a key
// fill AVX2's 16 registers. `ahead` (or null): keys of the next block, fetched a line a step.
template <int L, class T>
inline void score(const float* const* query, const T* keys, int dim, float* scores, const uint16_t* ahead) {
  F8 acc[L][4];
  for (auto& lane : acc)
    for (auto& a : lane) a = zero();
  for (int d = 0; d < dim; d++, keys += kBlockTokens) {
    if (ahead) prefetch_next(ahead + d * kBlockTokens);
    F8 q[L];
    for (int l = 0; l < L; l++) q[l] = splat(query[l][d]);
    for (int j = 0; j < 4; j++) {
      const F8 key = load_any(keys + j * 8);
      for (int l = 0; l < L; l++) acc[l][j] = fma(q[l], key, acc[l][j]);
    }
  }
  for (int l = 0; l < L; l++)
    for (int j = 0; j < 4; j++) store(scores + l * kChunkTokens + j * 8, acc[l][j]);
}

// sums[lane, at … at + 8·J] += Σ_t weights[lane, t] · values[t] over `count` tokens. `ahead` (or null): values of the next block.
template <int L, int J, class T>
inline void weigh(const float* weights, const T* values, int count, int dim, float* sums, const uint16_t* ahead) {
  F8 acc[L][J];
  for (int l = 0; l < L; l++)
    for (int j = 0; j < J; j++) acc[l][j] = load(sums + (size_t)l * dim + j * 8);
  for (int t = 0; t < count; t++, values += dim) {
    if (ahead) prefetch_next(ahead + t * dim);
    F8 p[L];
    for (int l = 0; l < L; l++) p[l] = splat(weights[l * kChunkTokens + t]);
    for (int j = 0; j < J; j++) {
      const F8 value = load_any(values + j * 8);
      for (int l = 0; l < L; l++) acc[l][j] = fma(p[l], value, acc[l][j]);
    }
  }
  for (int l = 0; l < L; l++)
    for (int j = 0; j < J; j++) store(sums + (size_t)l * dim + j * 8, acc[l][j]);
}

template <int L, class T>
inline void weigh_all(const float* weights, const T* values, int count, int dim, float* sums, const uint16_t* ahead) {
  int at = 0;
  for (; at + 32 <= dim; at += 32) weigh<L, 4>(weights, values + at, count, dim, sums + at, ahead ? ahead + at : nullptr);
  for (; at + 8 <= dim; at += 8) weigh<L, 1>(weights, values + at, count, dim, sums + at, nullptr);
}

// Whether three of the lanes that are left are computed together. One lane beside others would be slow: its four sums wait for each other.
inline bool threes(int left) { return left >= 3 && left != 4; }

template <class T>
inline void score_lanes(const float* const* query, int lanes, const T* keys, int dim, float* scores, const uint16_t* ahead) {
  int l = 0;
  for (; threes(lanes - l); l += 3) score<3>(query + l, keys, dim, scores + l * kChunkTokens, l ? nullptr : ahead);
  for (; l + 2 <= lanes; l += 2) score<2>(query + l, keys, dim, scores + l * kChunkTokens, l ? nullptr : ahead);
  if (l < lanes) score<1>(query + l, keys, dim, scores + l * kChunkTokens, l ? nullptr : ahead);
}

template <class T>
inline void weigh_lanes(const float* weights, int lanes, const T* values, int count, int dim, float* sums, const uint16_t* ahead) {
  int l = 0;
  for (; threes(lanes - l); l += 3) weigh_all<3>(weights + l * kChunkTokens, values, count, dim, sums + (size_t)l * dim, l ? nullptr : ahead);
  for (; l + 2 <= lanes; l += 2) weigh_all<2>(weights + l * kChunkTokens, values, count, dim, sums + (size_t)l * dim, l ? nullptr : ahead);
  if (l < lanes) weigh_all<1>(weights + l * kChunkTokens, values, count, dim, sums + (size_t)l * dim, l ? nullptr : ahead);
}

// Scores of one lane's chunk become weights 2^(score − maximum), zero behind the `seen` tokens that count, up to `all`, a multiple of 8.
// Gives their maximum and total.
inline void soften(float* scores, int seen, int all, float* maximum, float* total) {
  *maximum = kNone;
  *total = 0;
  int t = seen > 0 ? (seen + 7) & ~7 : 0;
  for (int i = t; i < all; i += 8) store(scores + i, zero());
  if (!t) return;
  for (int i = seen; i < t; i++) scores[i] = kNone;
  F8 top = load(scores);
  for (int i = 8; i < t; i += 8) top = max(top, load(scores + i));
  *maximum = max_lanes(top);
  const F8 base = splat(*maximum);
  F8 sum = zero();
  for (int i = 0; i < t; i += 8) {
    const F8 weight = exp2(sub(load(scores + i), base));
    store(scores + i, weight);
    sum = add(sum, weight);
  }
  *total = sum_lanes(sum);
}

// Adds a chunk's result (sums, maximum, total) to the merged one.
inline void merge_one(float* merged, float* merged_maximum, float* merged_total, const float* sums, float maximum, float total, int dim) {
  const float top = maximum > *merged_maximum ? maximum : *merged_maximum;
  const F8 old_factor = exp2(splat(*merged_maximum - top)), new_factor = exp2(splat(maximum - top));
  for (int i = 0; i < dim; i += 8) store(merged + i, fma(load(sums + i), new_factor, mul(load(merged + i), old_factor)));
  float pair[16];
  store(pair, old_factor);
  store(pair + 8, new_factor);
  *merged_total = *merged_total * pair[0] + total * pair[8];
  *merged_maximum = top;
}

inline void finish(const float* merged, float total, int dim, float* out) {
  const F8 factor = splat(1.f / total);
  for (int i = 0; i < dim; i += 8) store(out + i, mul(load(merged + i), factor));
}

// A chunk of 128 tokens as the rows of a piece see it.
struct Chunk {
  const Attend& a;
  int first, tokens, blocks;  // its first token, how many the last row sees, and in how many blocks they lie

  Chunk(const Attend& a, int number) : a(a), first(number * kChunkTokens) {
    const int left = a.position + a.rows - first;
    tokens = left < kChunkTokens ? left : kChunkTokens;
    blocks = (tokens + kBlockTokens - 1) / kBlockTokens;
  }
  const uint16_t* keys(int block) const { return a.cache + (size_t)a.blocks[first / kBlockTokens + block] * a.block_stride; }
  const uint16_t* values(int block) const { return keys(block) + (size_t)a.dim * kBlockTokens; }
  // Whether another block, of this chunk or the next, follows.
  bool more(int block) const { return first + (block + 1) * kBlockTokens < a.position + a.rows; }
};

inline void score_chunk(const Chunk& chunk, const float* const* query, int lanes, AttendScratch& s) {
  const int dim = chunk.a.dim;
  for (int b = 0; b < chunk.blocks; b++) {
    const uint16_t *keys = chunk.keys(b), *ahead = chunk.more(b) ? chunk.keys(b + 1) : nullptr;
    float* scores = s.scores + b * kBlockTokens;
    if (lanes > kHalfLanes) {  // then a block is converted once for all lanes
      for (int i = 0; i < dim * kBlockTokens; i += 8) store(s.widened + i, load_f16(keys + i));
      score_lanes(query, lanes, s.widened, dim, scores, ahead);
    } else {
      score_lanes(query, lanes, keys, dim, scores, ahead);
    }
  }
}

inline void weigh_chunk(const Chunk& chunk, int lanes, AttendScratch& s) {
  const int dim = chunk.a.dim;
  for (int i = 0; i < lanes * dim; i += 8) store(s.sums + i, zero());
  for (int b = 0; b < chunk.blocks; b++) {
    const uint16_t *values = chunk.values(b), *ahead = chunk.more(b) ? chunk.values(b + 1) : nullptr;
    const int left = chunk.tokens - b * kBlockTokens, count = left < kBlockTokens ? left : kBlockTokens;
    const float* weights = s.scores + b * kBlockTokens;
    if (lanes > kHalfLanes) {
      for (int i = 0; i < dim * count; i += 8) store(s.widened + i, load_f16(values + i));
      weigh_lanes(weights, lanes, s.widened, count, dim, s.sums, ahead);
    } else {
      weigh_lanes(weights, lanes, values, count, dim, s.sums, ahead);
    }
  }
}

// One lane's result of a chunk goes to where it is merged later, by whoever comes last: [sums, maximum, total].
inline void leave(const float* sums, float maximum, float total, int dim, float* out) {
  for (int i = 0; i < dim; i += 8) store(out + i, load(sums + i));
  out[dim] = maximum;
  out[dim + 1] = total;
}

void attend(const Attend& a, AttendScratch& s) {
  const int lanes = a.rows * a.heads, dim = a.dim;
  const float* query[kMaxLanes];
  for (int l = 0; l < lanes; l++) {
    query[l] = a.query + (size_t)(l / a.heads) * a.query_stride + (size_t)(l % a.heads) * dim;
    s.merged_maximum[l] = kNone;
    s.merged_total[l] = 0;
  }
  for (int i = 0; i < lanes * dim; i += 8) store(s.merged + i, zero());
  for (int number = a.chunk_begin; number < a.chunk_end; number++) {
    const Chunk chunk(a, number);
    score_chunk(chunk, query, lanes, s);
    for (int l = 0; l < lanes; l++) {
      const int seen = a.position + l / a.heads + 1 - chunk.first;
      soften(s.scores + l * kChunkTokens, seen < chunk.tokens ? seen : chunk.tokens, chunk.blocks * kBlockTokens, s.maxima + l, s.totals + l);
    }
    weigh_chunk(chunk, lanes, s);
    for (int l = 0; l < lanes; l++) {
      const float* sums = s.sums + (size_t)l * dim;
      if (a.partial)
        leave(sums, s.maxima[l], s.totals[l], dim, a.partial + ((size_t)(number - a.chunk_begin) * lanes + l) * (dim + 8));
      else if (s.totals[l] > 0)
        merge_one(s.merged + (size_t)l * dim, s.merged_maximum + l, s.merged_total + l, sums, s.maxima[l], s.totals[l], dim);
    }
  }
  if (a.partial) return;
  for (int l = 0; l < lanes; l++)
    finish(s.merged + (size_t)l * dim, s.merged_total[l], dim, a.out + (size_t)(l / a.heads) * a.out_stride + (size_t)(l % a.heads) * dim);
}

// Like merge_one for chunk after chunk, to the bit: maxima and factors of eight chunks are found together, sums stay in registers.
template <int J>
inline void merge_columns(const float* partial, size_t stride, int chunks, const float* old_factors, const float* new_factors, float* merged) {
  F8 acc[J];
  for (int j = 0; j < J; j++) acc[j] = load(merged + j * 8);
  for (int c = 0; c < chunks; c++, partial += stride) {
    const F8 old_factor = splat(old_factors[c]), new_factor = splat(new_factors[c]);
    for (int j = 0; j < J; j++) acc[j] = fma(load(partial + j * 8), new_factor, mul(acc[j], old_factor));
  }
  for (int j = 0; j < J; j++) store(merged + j * 8, acc[j]);
}

void merge(const float* partial, size_t stride, int chunks, int dim, float* out) {
  float merged[256], maximum = kNone, total = 0;
  for (int i = 0; i < dim; i += 8) store(merged + i, zero());
  for (; chunks > 0; chunks -= 8, partial += stride * 8) {
    const int count = chunks < 8 ? chunks : 8;
    float before[8] = {}, after[8] = {}, own[8] = {};
    for (int c = 0; c < count; c++) {
      own[c] = partial[c * stride + dim];
      before[c] = maximum;
      after[c] = maximum = own[c] > maximum ? own[c] : maximum;
    }
    store(before, exp2(sub(load(before), load(after))));
    store(own, exp2(sub(load(own), load(after))));
    for (int c = 0; c < count; c++) total = total * before[c] + partial[c * stride + dim + 1] * own[c];
    int at = 0;
    for (; at + 64 <= dim; at += 64) merge_columns<8>(partial + at, stride, count, before, own, merged + at);
    for (; at < dim; at += 8) merge_columns<1>(partial + at, stride, count, before, own, merged + at);
  }
  finish(merged, total, dim, out);
}

}  // namespace

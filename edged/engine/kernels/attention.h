// Attention over the blocked key/value cache, with a running maximum (online softmax, in powers of two). Included once by each
// instruction set's file.
//
// A lane is one query row of one head. For every lane the same arithmetic runs in the same order, whoever shares the work: blocks of 32
// tokens one after another within a chunk of 128, then chunk merged into chunk. Keys lie [dim, token], so that scores of 32 tokens
// grow in registers without sums over lanes; values lie [token, dim].
#pragma once
#include "table.h"

namespace {
using namespace edged;

constexpr float kNone = -1e30f;  // "no token yet": finite, so that differences stay numbers

inline F8 load_any(const float* p) { return load(p); }
inline F8 load_any(const uint16_t* p) { return load_f16(p); }

// scores[lane, 32] = query[lane] · keys for L lanes. One key vector at a time: with 3 lanes, 12 sums, 3 queries and a key fill AVX2's 16
// registers. `ahead` (or null): keys of the next block, fetched a line a step.
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
    for (int j = 0; j < 4; j++) store(scores + l * kBlockTokens + j * 8, acc[l][j]);
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
    for (int l = 0; l < L; l++) p[l] = splat(weights[l * kBlockTokens + t]);
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
  for (; threes(lanes - l); l += 3) score<3>(query + l, keys, dim, scores + l * kBlockTokens, l ? nullptr : ahead);
  for (; l + 2 <= lanes; l += 2) score<2>(query + l, keys, dim, scores + l * kBlockTokens, l ? nullptr : ahead);
  if (l < lanes) score<1>(query + l, keys, dim, scores + l * kBlockTokens, l ? nullptr : ahead);
}

template <class T>
inline void weigh_lanes(const float* weights, int lanes, const T* values, int count, int dim, float* sums, const uint16_t* ahead) {
  int l = 0;
  for (; threes(lanes - l); l += 3) weigh_all<3>(weights + l * kBlockTokens, values, count, dim, sums + (size_t)l * dim, l ? nullptr : ahead);
  for (; l + 2 <= lanes; l += 2) weigh_all<2>(weights + l * kBlockTokens, values, count, dim, sums + (size_t)l * dim, l ? nullptr : ahead);
  if (l < lanes) weigh_all<1>(weights + l * kBlockTokens, values, count, dim, sums + (size_t)l * dim, l ? nullptr : ahead);
}

// Scores of one lane become weights 2^(score − maximum); what was summed so far is brought to the new maximum. `seen` tokens of this
// block count.
inline void soften(float* scores, int seen, float* maximum, float* total, float* sums, int dim) {
  if (seen <= 0) {
    for (int j = 0; j < 4; j++) store(scores + j * 8, zero());
    return;
  }
  for (int t = seen; t < kBlockTokens; t++) scores[t] = kNone;
  F8 s[4];
  for (int j = 0; j < 4; j++) s[j] = load(scores + j * 8);
  const float top = max_lanes(max(max(s[0], s[1]), max(s[2], s[3])));
  if (top > *maximum) {
    const F8 factor = exp2(splat(*maximum - top));
    for (int i = 0; i < dim; i += 8) store(sums + i, mul(load(sums + i), factor));
    store(total, mul(load(total), factor));
    *maximum = top;
  }
  const F8 base = splat(*maximum);
  F8 all = load(total);
  for (int j = 0; j < 4; j++) {
    s[j] = exp2(sub(s[j], base));
    store(scores + j * 8, s[j]);
    all = add(all, s[j]);
  }
  for (int t = seen; t < kBlockTokens; t++) scores[t] = 0.f;
  store(total, all);
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

void attend(const Attend& a, AttendScratch& s) {
  const int lanes = a.rows * a.heads, dim = a.dim;
  const float* query[kMaxLanes];
  for (int r = 0; r < a.rows; r++)
    for (int h = 0; h < a.heads; h++) query[r * a.heads + h] = a.query + (size_t)r * a.query_stride + (size_t)h * dim;
  for (int l = 0; l < lanes; l++) {
    s.merged_maximum[l] = kNone;
    s.merged_total[l] = 0;
  }
  for (int i = 0; i < lanes * dim; i += 8) store(s.merged + i, zero());
  const int tokens = a.position + a.rows;  // that the last row sees
  for (int chunk = a.chunk_begin; chunk < a.chunk_end; chunk++) {
    for (int i = 0; i < lanes * dim; i += 8) store(s.sums + i, zero());
    for (int l = 0; l < lanes; l++) {
      s.maxima[l] = kNone;
      store(s.totals + l * 8, zero());
    }
    for (int b = chunk * kChunkBlocks; b < (chunk + 1) * kChunkBlocks && b * kBlockTokens < tokens; b++) {
      const uint16_t* keys = a.cache + (size_t)a.blocks[b] * a.block_stride;
      const uint16_t* values = keys + (size_t)dim * kBlockTokens;
      const int here = tokens - b * kBlockTokens < kBlockTokens ? tokens - b * kBlockTokens : kBlockTokens;
      const bool more = (b + 1) * kBlockTokens < tokens;
      const uint16_t* next_keys = more ? a.cache + (size_t)a.blocks[b + 1] * a.block_stride : nullptr;
      const uint16_t* next_values = more ? next_keys + (size_t)dim * kBlockTokens : nullptr;
      const bool widen = lanes > kHalfLanes;  // then a block is converted once for all lanes
      if (widen) {
        for (int i = 0; i < dim * kBlockTokens; i += 8) store(s.keys + i, load_f16(keys + i));
        for (int i = 0; i < dim * here; i += 8) store(s.values + i, load_f16(values + i));
        score_lanes(query, lanes, s.keys, dim, s.scores, next_keys);
      } else {
        score_lanes(query, lanes, keys, dim, s.scores, next_keys);
      }
      for (int l = 0; l < lanes; l++) {
        const int seen = a.position + l / a.heads + 1 - b * kBlockTokens;
        soften(s.scores + l * kBlockTokens, seen < here ? seen : here, s.maxima + l, s.totals + l * 8, s.sums + (size_t)l * dim, dim);
      }
      if (widen)
        weigh_lanes(s.scores, lanes, s.values, here, dim, s.sums, next_values);
      else
        weigh_lanes(s.scores, lanes, values, here, dim, s.sums, next_values);
    }
    for (int l = 0; l < lanes; l++) {
      const float total = sum_lanes(load(s.totals + l * 8));
      const float* sums = s.sums + (size_t)l * dim;
      if (a.partial) {
        float* out = a.partial + (size_t)l * (dim + 8);
        for (int i = 0; i < dim; i += 8) store(out + i, load(sums + i));
        out[dim] = s.maxima[l];
        out[dim + 1] = total;
      } else if (total > 0) {
        merge_one(s.merged + (size_t)l * dim, s.merged_maximum + l, s.merged_total + l, sums, s.maxima[l], total, dim);
      }
    }
  }
  if (a.partial) return;
  for (int l = 0; l < lanes; l++)
    finish(s.merged + (size_t)l * dim, s.merged_total[l], dim, a.out + (size_t)(l / a.heads) * a.out_stride + (size_t)(l % a.heads) * dim);
}

void merge(const float* partial, size_t stride, int chunks, int dim, float* out) {
  float merged[256], maximum = kNone, total = 0;
  for (int i = 0; i < dim; i += 8) store(merged + i, zero());
  for (int c = 0; c < chunks; c++, partial += stride)
    if (partial[dim + 1] > 0) merge_one(merged, &maximum, &total, partial, partial[dim], partial[dim + 1], dim);
  finish(merged, total, dim, out);
}

}  // namespace

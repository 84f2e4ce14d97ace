#include "forward.h"

#include <algorithm>
#include <cmath>

namespace edged {

void Forward::run(int thread) {
  Threads& threads = engine.threads_;
  const Model& model = engine.model_;
  const Addition* pending = nullptr;
  embed(thread);
  threads.barrier(thread);
  for (int i = 0; i < model.config.layers; i++) {
    const Layer& layer = model.layers[i];
    engine.shares_.start_layer(i + 1, thread);
    normalize(layer.attention_norm, pending, layer.projections, thread);
    barrier_unless_single_row(thread);
    project(layer, i, thread);
    threads.barrier(thread);
    if (layer.attention.kind == kAttention) {
      mix_by_attention(layer, i, thread);
    } else if (layer.attention.kind == kConvolution) {
      convolve(layer, thread);
      threads.barrier(thread);
    } else {
      convolve_heads(layer, thread);
      threads.barrier(thread);
      apply_delta_rule(layer, thread);
      threads.barrier(thread);
    }
    quantize_mixed(layer, thread);
    barrier_unless_single_row(thread);
    add_product(layer.out, hidden_input((int)plan.rows.size(), thread), i, kAttentionOut, thread);
    threads.barrier(thread);
    if (!model.adds_products) pending = &layer.attention_addition;
    InputForms ffn_forms(layer.gate_up);
    if (model.config.experts) ffn_forms.add(layer.router);
    normalize(layer.ffn_norm, pending, ffn_forms, thread);
    barrier_unless_single_row(thread);
    if (model.config.experts) {
      mix_experts(layer, i, thread);
    } else {
      gate_up_product(layer, i, thread);
      threads.barrier(thread);
      add_product(layer.down, engine.ffn_input_, i, kFfnOut, thread);
    }
    threads.barrier(thread);
    if (!model.adds_products) pending = &layer.ffn_addition;
  }
  logits(pending, thread);
}

void Forward::embed(int thread) {
  const EdgedConfig& c = engine.model_.config;
  const int all = (int)plan.rows.size();
  const bool own_row = all == 1 && !engine.model_.adds_products;
  const Share rows = own_row ? Share{0, 1} : share(all, thread, c.threads);
  for (int i = rows.begin; i < rows.end; i++) {
    float* x = residual(i, thread);
    dequantize_row(engine.model_.embedding, plan.rows[i].token, x);
    if (c.embedding_scale != 1.f) engine.kernels_.scale(x, c.embedding_scale, c.width);
  }
  const Share angles = share(c.ropes * all, thread, c.threads);
  for (int u = angles.begin; u < angles.end; u++) find_angles(u);
}

// The cosines and sines (pairs,) of one row in one rotary embedding.
void Forward::find_angles(int unit) {
  const EdgedConfig& c = engine.model_.config;
  const int all = (int)plan.rows.size(), rope = unit / all, row = unit % all;
  const size_t at = ((size_t)rope * c.max_rows + row) * c.rope_pairs;
  const float scale = engine.model_.rope_scale[rope];
  for (int i = 0; i < c.rope_pairs; i++) {
    // The angle is in float32, as the models were trained.
    const float angle =
        (float)plan.rows[row].position * engine.model_.inverse_frequency[(size_t)rope * c.rope_pairs + i];
    engine.cosine_.as<float>()[at + i] = (float)std::cos((double)angle) * scale;
    engine.sine_.as<float>()[at + i] = (float)std::sin((double)angle) * scale;
  }
}

// row (n,) -> row `at` of a product's input, in the forms that its matrices read.
void Forward::write_input(const float* row, int n, InputForms forms, ActivationBuffer& input, int at) {
  if (forms.floats) std::copy(row, row + n, input.values.as<float>() + (size_t)at * input.stride);
  if (forms.codes) engine.kernels_.quantize(row, n, input.stride, input.coded_row(at));
}

// x (d,) -> out (d,); `x` and `out` may be the same. Without a weight the row stays as it is.
void Forward::norm_row(const Norm& norm, const float* x, float* out) const {
  const EdgedConfig& c = engine.model_.config;
  if (!norm.weight)
    std::copy(x, x + c.width, out);
  else if (engine.model_.has(kLayerNorm))
    engine.kernels_.layer_norm(x, norm.weight, norm.bias, c.width, c.epsilon, out);
  else
    engine.kernels_.rms_norm(x, norm.weight, c.width, c.epsilon, out);
}

// A row of the last product, with its changes -> x (d,), added.
void Forward::add_pending(const Addition& pending, int row, float* x, int thread) const {
  const EdgedConfig& c = engine.model_.config;
  const Kernels& k = engine.kernels_;
  const float* product = engine.added_.as<float>() + (size_t)row * c.width;
  float* added = engine.thread_buffers_[thread]->added.data();
  std::copy(product, product + c.width, added);
  if (pending.bias) k.add(added, pending.bias, c.width);
  if (pending.norm) k.rms_norm(added, pending.norm, c.width, c.epsilon, added);
  if (c.residual_scale != 1.f) k.scale(added, c.residual_scale, c.width);
  k.add(x, added, c.width);
}

void Forward::normalize(const Norm& norm, const Addition* pending, InputForms forms, int thread) {
  const EdgedConfig& c = engine.model_.config;
  float* row = engine.thread_buffers_[thread]->row.data();
  const int all = (int)plan.rows.size();
  const Share rows = input_rows(all, thread);
  for (int i = rows.begin; i < rows.end; i++) {
    float* x = residual(i, thread);
    if (pending) add_pending(*pending, i, x, thread);
    norm_row(norm, x, row);
    write_input(row, c.width, forms, hidden_input(all, thread), i);
  }
}

void Forward::add_product(const Matrix& w, const ActivationBuffer& input, int index, int phase, int thread) {
  const Activations x = input.view((int)plan.rows.size());
  const Tiling tiling = tiling_of(w, x.m);
  const bool adds = engine.model_.adds_products;
  float* y = (adds ? engine.x_ : engine.added_).as<float>();
  WorkRange range;
  while (engine.shares_.next(index, phase, thread, tiling.tiles_per_strip, tiling.policy, range))
    engine.kernels_.matmul(w, x, tiling.strips_of(range), y + (size_t)range.begin * kTileRows,
                           (size_t)engine.model_.config.width, adds, engine.thread_buffers_[thread]->scratch);
}

// 32 columns of gate and the same 32 of up are computed by one thread, which quantizes their product. In one
// matrix they are adjacent; of two matrices, columns of gate come first, then those of up.
void Forward::gate_up_product(const Layer& layer, int index, int thread) {
  ThreadBuffers& own = *engine.thread_buffers_[thread];
  const int all = (int)plan.rows.size(), at_once = std::min(kRowBlock, all);
  const bool separate = layer.gate_up.size() == 2;
  const Matrix& first = layer.gate_up[0];
  const int pair_tiles = separate ? 4 : 8;  // of a matrix, for 32 columns of gate and of up
  const int pairs = first.tiles / pair_tiles;
  int strips = engine.kernels_.strips;
  for (const Matrix& w : layer.gate_up)
    strips = std::min(strips, strip_count(w, all, pairs, engine.model_.config.threads, engine.kernels_));
  const int pairs_per_strip = (pairs + strips - 1) / strips;
  const int most = std::max(1, kGateUpFloats / (64 * strips * at_once));
  const SharePolicy policy{1, all > kFewRows ? 0 : kKeptSixteenths, most};
  WorkRange range;
  while (engine.shares_.next(index, kGate, thread, pairs_per_strip, policy, range)) {
    const int count = range.end - range.begin;
    const size_t strip_stride = (size_t)(count + range.units) * 64, stride = strips * strip_stride;
    const size_t gate_stride = separate ? 32 : 64, up_offset = separate ? strip_stride / 2 : 32;
    for (int from = 0; from < all; from += at_once) {
      const int rows = std::min(at_once, all - from);
      const Activations x = hidden_input(all, thread).view(rows, from);
      Strips tiles{range.begin * pair_tiles,
                   count * pair_tiles,
                   strips,
                   pairs_per_strip * pair_tiles,
                   strip_stride,
                   range.reserve,
                   range.units,
                   pair_tiles};
      tiles.tiles = engine.kernels_.matmul(first, x, tiles, own.gate_up, stride, false, own.scratch);
      if (separate) {
        tiles.reserve = nullptr;  // what it had is in tiles.tiles
        engine.kernels_.matmul(layer.gate_up[1], x, tiles, own.gate_up + up_offset, stride, false,
                               own.scratch);
      }
      for (int strip = 0; strip < strips; strip++)
        for (int i = 0; i < tiles.tiles / pair_tiles; i++)
          if (const int pair = strip * pairs_per_strip + range.begin + i; pair < pairs) {
            float* gate = own.gate_up + strip * strip_stride + i * gate_stride;
            swiglu(layer, gate, gate + up_offset, stride, rows, from, pair);
          }
    }
  }
}

// gate (rows,32), up (rows,32), which change -> silu(gate) · up or gelu(gate) · up (rows,32), the input
// of the down product, for rows from … from + rows of the step.
void Forward::swiglu(const Layer& layer, float* gate, float* up, size_t stride, int rows, int from,
                     int pair) {
  const Kernels& k = engine.kernels_;
  ActivationBuffer& out = engine.ffn_input_;
  const int width = std::min(32, engine.model_.config.ffn - pair * 32);
  for (int i = 0; i < rows; i++) {
    float *row = gate + i * stride, *other = up + i * stride;
    if (layer.gate_up_bias) {
      k.add(row, layer.gate_up_bias + (size_t)pair * 64, 32);
      k.add(other, layer.gate_up_bias + (size_t)pair * 64 + 32, 32);
    }
    (engine.model_.has(kGelu) ? k.geglu : k.swiglu)(row, other, 32, row);
    if (is_float(layer.down.kind))
      std::copy(row, row + width, out.values.as<float>() + (size_t)(from + i) * out.stride + pair * 32);
    else
      k.quantize(row, width, 32, out.coded_row(from + i, pair * 32));
  }
}

void Forward::logits(const Addition* pending, int thread) {
  const EdgedConfig& c = engine.model_.config;
  const int wanted = plan.step.wanted_count;
  if (!wanted) return;
  const Matrix& head = engine.model_.head;
  ThreadBuffers& own = *engine.thread_buffers_[thread];
  own.all_finite = true;
  float* row = own.row.data();
  const Share rows = input_rows(wanted, thread);
  for (int i = rows.begin; i < rows.end; i++) {
    const float* x = residual(plan.step.wanted[i], thread);
    std::copy(x, x + c.width, row);
    if (pending) add_pending(*pending, plan.step.wanted[i], row, thread);
    norm_row(engine.model_.final_norm, row, row);
    // A single row is computed by every thread.
    if (plan.step.hidden && (wanted > 1 || thread == 0))
      std::copy(row, row + c.width, plan.step.hidden + (size_t)i * c.width);
    if (plan.step.logits)
      write_input(row, c.width, head, hidden_input(wanted, thread), i);
    else
      own.all_finite = own.all_finite && engine.kernels_.all_finite(row, c.width);
  }
  if (!plan.step.logits) return;
  if (wanted > 1) engine.threads_.barrier(thread);
  const Tiling tiling = tiling_of(head, wanted);
  own.best.assign((size_t)wanted, {-INFINITY, c.vocabulary});
  WorkRange range;
  while (engine.shares_.next(c.layers, kHead, thread, tiling.tiles_per_strip, tiling.policy, range)) {
    Strips tiles = tiling.strips_of(range);
    tiles.tiles = engine.kernels_.matmul(head, hidden_input(wanted, thread).view(wanted), tiles,
                                         plan.step.logits + (size_t)range.begin * kTileRows,
                                         (size_t)plan.step.logits_stride, false, own.scratch);
    scan_logits(head, tiles, own);
  }
}

// While the logits are still in the cache: whether they are finite, and the best of each row.
void Forward::scan_logits(const Matrix& head, const Strips& computed, ThreadBuffers& own) const {
  const Kernels& k = engine.kernels_;
  for (int i = 0; i < plan.step.wanted_count; i++)
    for (int strip = 0; strip < computed.count; strip++) {
      const int first = (computed.begin + strip * computed.tiles_per_strip) * kTileRows,
                n = std::min(computed.tiles * kTileRows, head.rows - first);
      if (n <= 0) continue;
      float* logits = plan.step.logits + (size_t)i * plan.step.logits_stride + first;
      own.all_finite = own.all_finite && k.all_finite(logits, n);
      change_logits(logits, n);
      const Best best{k.max_logit(logits, n), first};
      if (best > own.best[(size_t)i])
        own.best[(size_t)i] = {best.value, first + (int)(std::find(logits, logits + n, best.value) - logits)};
    }
}

// logits (n,) in place: their scale, and their cap.
void Forward::change_logits(float* logits, int n) const {
  const EdgedConfig& c = engine.model_.config;
  if (c.logit_scale != 1.f) engine.kernels_.scale(logits, c.logit_scale, n);
  if (c.logit_cap > 0) engine.kernels_.soft_cap(logits, c.logit_cap, round_up(n, kTileRows));
}

}  // namespace edged

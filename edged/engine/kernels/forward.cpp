#include "forward.h"

#include <algorithm>
#include <cmath>

namespace edged {

void Forward::run(int thread) {
  Threads& threads = engine.threads_;
  const Model& model = engine.model_;
  embed(thread);
  threads.barrier(thread);
  for (int i = 0; i < model.config.layers; i++) {
    const Layer& layer = model.layers[i];
    engine.shares_.start_layer(i + 1, thread);
    normalize(layer.attention_norm, layer.qkv, thread);
    barrier_unless_single_row(thread);
    project(layer, i, thread);
    threads.barrier(thread);
    if (!plan.one_token_each) {
      write_kv(layer, i, thread);
      threads.barrier(thread);
    }
    attend(layer, i, thread);
    threads.barrier(thread);
    if (plan.partial_floats) {
      merge_partials(thread);
      threads.barrier(thread);
    }
    quantize_attention(layer, thread);
    barrier_unless_single_row(thread);
    add_product(layer.out, hidden_input((int)plan.rows.size(), thread), i, kAttentionOut, thread);
    threads.barrier(thread);
    normalize(layer.ffn_norm, layer.gate_up, thread);
    barrier_unless_single_row(thread);
    gate_up_product(layer, i, thread);
    threads.barrier(thread);
    add_product(layer.down, engine.ffn_input_, i, kFfnOut, thread);
    threads.barrier(thread);
  }
  logits(thread);
}

void Forward::embed(int thread) {
  const EdgedConfig& c = engine.model_.config;
  const Share rows = share((int)plan.rows.size(), thread, c.threads);
  for (int i = rows.begin; i < rows.end; i++) {
    float* x = engine.x_.as<float>() + (size_t)i * c.width;
    dequantize_row(engine.model_.embedding, plan.rows[i].token, x);
    if (c.embedding_scale != 1.f) engine.kernels_.scale(x, c.embedding_scale, c.width);
  }
}

// row (n,) -> row `at` of a product's input, in the forms that its matrices read.
void Forward::write_input(const float* row, int n, InputForms forms, ActivationBuffer& input, int at) {
  if (forms.floats) std::copy(row, row + n, input.values.as<float>() + (size_t)at * input.stride);
  if (forms.codes) engine.kernels_.quantize(row, n, input.stride, input.coded_row(at));
}

void Forward::normalize(const float* weight, InputForms forms, int thread) {
  const EdgedConfig& c = engine.model_.config;
  float* row = engine.thread_buffers_[thread]->row.data();
  const int all = (int)plan.rows.size();
  const Share rows = input_rows(all, thread);
  for (int i = rows.begin; i < rows.end; i++) {
    engine.kernels_.rms_norm(engine.x_.as<float>() + (size_t)i * c.width, weight, c.width, c.rms_epsilon,
                             row);
    write_input(row, c.width, forms, hidden_input(all, thread), i);
  }
}

void Forward::project(const Layer& layer, int index, int thread) {
  const Activations x = hidden_input((int)plan.rows.size(), thread).view((int)plan.rows.size());
  float* y = engine.projected_.as<float>();
  int phase = kProject;
  for (const Matrix& w : layer.qkv) {
    const Tiling tiling = tiling_of(w, x.m);
    WorkRange range;
    while (engine.shares_.next(index, phase, thread, tiling.tiles_per_strip, tiling.policy, range))
      engine.kernels_.matmul(w, x, tiling.strips_of(range), y + (size_t)range.begin * kTileRows,
                             (size_t)engine.projected_stride_, false,
                             engine.thread_buffers_[thread]->scratch);
    y += w.rows;
    phase++;
  }
}

void Forward::write_kv(const Layer& layer, int index, int thread) {
  const EdgedConfig& c = engine.model_.config;
  const int all = c.heads + c.kv_heads;
  const Share units = share((int)plan.rows.size() * all, thread, c.threads);
  for (int u = units.begin; u < units.end; u++) {
    const int i = u / all, head = u % all;
    if (head < c.heads)
      rope_query(layer, i, head, projected(i, head));
    else
      write_kv_head(layer, index, i, head - c.heads);
  }
}

// One head's query x (head_dim,) in place: bias, norm, RoPE, and the scale of attention, whose softmax uses
// powers of two.
void Forward::rope_query(const Layer& layer, int row, int head, float* x) {
  const EdgedConfig& c = engine.model_.config;
  apply_rope(layer.query_bias ? layer.query_bias + (size_t)head * c.head_dim : nullptr, layer.query_norm,
             plan.rows[row].position, x);
  engine.kernels_.scale(x, (float)kLog2e / std::sqrt((float)c.head_dim), c.head_dim);
}

void Forward::apply_rope(const float* bias, const float* norm, int position, float* x) {
  const EdgedConfig& c = engine.model_.config;
  const Kernels& k = engine.kernels_;
  const int half = c.head_dim / 2;
  if (bias) k.add(x, bias, c.head_dim);
  if (norm) k.rms_norm(x, norm, c.head_dim, c.rms_epsilon, x);
  k.apply_rope(x, engine.model_.cosine.data() + (size_t)position * half,
               engine.model_.sine.data() + (size_t)position * half, half);
}

// A row's key (head_dim,) and value (head_dim,) of one head -> cache.
void Forward::write_kv_head(const Layer& layer, int index, int i, int head) {
  const EdgedConfig& c = engine.model_.config;
  const Row& row = plan.rows[i];
  const size_t at = (size_t)head * c.head_dim;
  float *key = projected(i, c.heads + head), *value = projected(i, c.heads + c.kv_heads + head);
  apply_rope(layer.key_bias ? layer.key_bias + at : nullptr, layer.key_norm, row.position, key);
  if (layer.value_bias) engine.kernels_.add(value, layer.value_bias + at, c.head_dim);
  const EdgedSlice& slice = plan.step.slices[row.slice];
  const int block = plan.step.blocks[slice.first_block + row.position / kBlockTokens];
  uint16_t* place = engine.cache_.as<uint16_t>() + (size_t)index * engine.layer_stride_ +
                    (size_t)block * engine.block_stride_ + (size_t)head * engine.head_stride_;
  engine.kernels_.write_kv(key, value, c.head_dim, place, row.position % kBlockTokens);
}

// The queries (heads, head_dim) of a piece of one row -> the thread's own row: with one token in each
// sequence no phase before attention is needed.
void Forward::rope_queries(const Layer& layer, const Piece& piece, int thread) {
  const EdgedConfig& c = engine.model_.config;
  const int heads = c.heads / c.kv_heads, first = piece.kv_head * heads;
  float* queries = engine.thread_buffers_[thread]->row.data();
  std::copy_n(projected(piece.row, first), (size_t)heads * c.head_dim, queries);
  for (int h = 0; h < heads; h++) rope_query(layer, piece.row, first + h, queries + (size_t)h * c.head_dim);
}

void Forward::attend(const Layer& layer, int index, int thread) {
  const std::vector<Piece>& pieces = plan.pieces;
  const SharePolicy how{1, plan.equal_pieces ? kKeptSixteenths : 0};
  const Piece* roped = nullptr;  // the piece whose queries are in the thread's row; pieces of one row and
                                 // head have the same queries
  WorkRange range;
  while (engine.shares_.next(index, kAttend, thread, (int)pieces.size(), how, range))
    for (int i = range.begin; i < range.end;) {
      Piece piece = pieces[i];
      for (i++; i < range.end && pieces[i].follows(piece); i++) piece.chunk_end = pieces[i].chunk_end;
      if (plan.one_token_each) {
        if (!roped || roped->row != piece.row || roped->kv_head != piece.kv_head)
          rope_queries(layer, piece, thread);
        roped = &pieces[i - 1];
        // Key and value are written by the thread that attends to the chunk that they end.
        if (plan.rows[piece.row].position < piece.chunk_end * kChunkTokens)
          write_kv_head(layer, index, piece.row, piece.kv_head);
      }
      attend_piece(piece, index, thread);
    }
}

void Forward::attend_piece(const Piece& piece, int index, int thread) {
  const EdgedConfig& c = engine.model_.config;
  const int heads = c.heads / c.kv_heads;
  const Row& row = plan.rows[piece.row];
  const size_t stride = (size_t)c.heads * c.head_dim, column = (size_t)piece.kv_head * heads * c.head_dim;
  AttentionTask work;
  work.query = plan.one_token_each ? engine.thread_buffers_[thread]->row.data()
                                   : projected(piece.row, piece.kv_head * heads);
  work.query_stride = (size_t)engine.projected_stride_;
  work.rows = piece.rows;
  work.heads = heads;
  work.dim = c.head_dim;
  work.position = row.position;
  work.cache = engine.cache_.as<uint16_t>() + (size_t)index * engine.layer_stride_ +
               (size_t)piece.kv_head * engine.head_stride_;
  work.block_stride = engine.block_stride_;
  work.blocks = plan.step.blocks + plan.step.slices[row.slice].first_block;
  work.chunk_begin = piece.chunk_begin;
  work.chunk_end = piece.chunk_end;
  work.out = engine.attended_.as<float>() + piece.row * stride + column;
  work.out_stride = stride;
  work.partial = piece.partial < 0 ? nullptr : engine.partials_.as<float>() + piece.partial;
  engine.kernels_.attend(work, engine.thread_buffers_[thread]->attention);
}

// Heads are shared among threads as their pieces were, so most partial results are in this core's cache.
void Forward::merge_partials(int thread) {
  const EdgedConfig& c = engine.model_.config;
  const int heads = c.heads / c.kv_heads;
  const size_t lane = (size_t)c.head_dim + 8, one = (size_t)heads * lane;
  const Share units = share((int)plan.rows.size() * c.heads, thread, c.threads);
  for (int u = units.begin; u < units.end; u++) {
    const int i = u / c.heads, h = u % c.heads;
    if (plan.row_partial[i] < 0) continue;
    const int chunks = plan.rows[i].position / kChunkTokens + 1;
    const float* partial = engine.partials_.as<float>() + plan.row_partial[i] +
                           (size_t)(h / heads) * chunks * one + (size_t)(h % heads) * lane;
    engine.kernels_.merge_partials(partial, one, chunks, c.head_dim,
                                   engine.attended_.as<float>() + (size_t)u * c.head_dim);
  }
}

void Forward::quantize_attention(const Layer& layer, int thread) {
  const EdgedConfig& c = engine.model_.config;
  const int n = c.heads * c.head_dim, all = (int)plan.rows.size();
  const Share rows = input_rows(all, thread);
  for (int i = rows.begin; i < rows.end; i++)
    write_input(engine.attended_.as<float>() + (size_t)i * n, n, layer.out, hidden_input(all, thread), i);
}

void Forward::add_product(const Matrix& w, const ActivationBuffer& input, int index, int phase, int thread) {
  const Activations x = input.view((int)plan.rows.size());
  const Tiling tiling = tiling_of(w, x.m);
  WorkRange range;
  while (engine.shares_.next(index, phase, thread, tiling.tiles_per_strip, tiling.policy, range))
    engine.kernels_.matmul(w, x, tiling.strips_of(range),
                           engine.x_.as<float>() + (size_t)range.begin * kTileRows,
                           (size_t)engine.model_.config.width, true, engine.thread_buffers_[thread]->scratch);
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

// gate (rows,32), up (rows,32) -> silu(gate) · up (rows,32), the input of the down product, for rows from …
// from + rows of the step.
void Forward::swiglu(const Layer& layer, float* gate, const float* up, size_t stride, int rows, int from,
                     int pair) {
  const Kernels& k = engine.kernels_;
  ActivationBuffer& out = engine.ffn_input_;
  const int width = std::min(32, engine.model_.config.ffn - pair * 32);
  for (int i = 0; i < rows; i++) {
    float* row = gate + i * stride;
    k.swiglu(row, up + i * stride, 32, row);
    if (is_float(layer.down.kind))
      std::copy(row, row + width, out.values.as<float>() + (size_t)(from + i) * out.stride + pair * 32);
    else
      k.quantize(row, width, 32, out.coded_row(from + i, pair * 32));
  }
}

void Forward::logits(int thread) {
  const EdgedConfig& c = engine.model_.config;
  const int wanted = plan.step.wanted_count;
  if (!wanted) return;
  const Matrix& head = engine.model_.head;
  float* row = engine.thread_buffers_[thread]->row.data();
  const Share rows = input_rows(wanted, thread);
  for (int i = rows.begin; i < rows.end; i++) {
    engine.kernels_.rms_norm(engine.x_.as<float>() + (size_t)plan.step.wanted[i] * c.width,
                             engine.model_.final_norm, c.width, c.rms_epsilon, row);
    write_input(row, c.width, head, hidden_input(wanted, thread), i);
  }
  if (wanted > 1) engine.threads_.barrier(thread);
  const Tiling tiling = tiling_of(head, wanted);
  ThreadBuffers& own = *engine.thread_buffers_[thread];
  own.all_finite = true;
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
      const float* logits = plan.step.logits + (size_t)i * plan.step.logits_stride + first;
      own.all_finite = own.all_finite && k.all_finite(logits, n);
      const Best best{k.max_logit(logits, n), first};
      if (best > own.best[(size_t)i])
        own.best[(size_t)i] = {best.value, first + (int)(std::find(logits, logits + n, best.value) - logits)};
    }
}

}  // namespace edged

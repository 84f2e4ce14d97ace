// The part of the forward pass from the projections to attention's result.
#include <algorithm>
#include <cmath>

#include "forward.h"

namespace edged {

void Forward::project(const Layer& layer, int index, int thread) {
  const Activations x = hidden_input((int)plan.rows.size(), thread).view((int)plan.rows.size());
  float* y = engine.projected_.as<float>();
  int phase = kProject;
  for (const Matrix& w : layer.projections) {
    const Tiling tiling = tiling_of(w, x.m);
    WorkRange range;
    while (engine.shares_.next(index, phase, thread, tiling.tiles_per_strip, tiling.policy, range))
      engine.kernels_.matmul(w, x, tiling.strips_of(range), y + (size_t)range.begin * kTileRows,
                             (size_t)engine.projected_stride_, false,
                             engine.thread_buffers_[thread]->scratch);
    y += w.tiles * kTileRows;
    phase++;
  }
}

void Forward::mix_by_attention(const Layer& layer, int index, int thread) {
  Threads& threads = engine.threads_;
  const AttentionPlan& attention = plan.attention(layer.attention);
  if (engine.model_.has(kWideNorm)) {
    normalize_wide(layer, thread);
    threads.barrier(thread);
  }
  if (!plan.one_token_each) {
    write_kv(layer, thread);
    threads.barrier(thread);
  }
  attend(layer, index, thread);
  threads.barrier(thread);
  if (attention.partial_floats) {
    merge_partials(attention, thread);
    threads.barrier(thread);
  }
}

void Forward::write_kv(const Layer& layer, int thread) {
  const EdgedConfig& c = engine.model_.config;
  const int all = c.heads + c.kv_heads;
  const Share units = share((int)plan.rows.size() * all, thread, c.threads);
  for (int u = units.begin; u < units.end; u++) {
    const int i = u / all, head = u % all;
    if (head < c.heads)
      rope_query(layer, i, head, projected(i, head));
    else
      write_kv_head(layer, i, head - c.heads);
  }
}

void Forward::normalize_wide(const Layer& layer, int thread) {
  const EdgedConfig& c = engine.model_.config;
  const Kernels& k = engine.kernels_;
  const Share rows = share((int)plan.rows.size(), thread, c.threads);
  const auto normalize_heads = [&](float* x, int heads, const float* bias, const float* norm) {
    if (bias) k.add(x, bias, heads * c.head_dim);
    if (norm) k.rms_norm(x, norm, heads * c.head_dim, c.epsilon, x);
  };
  for (int i = rows.begin; i < rows.end; i++) {
    normalize_heads(projected(i, 0), c.heads, layer.query_bias, layer.query_norm);
    normalize_heads(projected(i, c.heads), c.kv_heads, layer.key_bias, layer.key_norm);
  }
}

// One head's query x (head_dim,) in place: bias, norm, RoPE, and the scale of attention, whose softmax uses
// powers of two.
void Forward::rope_query(const Layer& layer, int row, int head, float* x) {
  const EdgedConfig& c = engine.model_.config;
  apply_rope(layer, layer.query_bias ? layer.query_bias + (size_t)head * c.head_dim : nullptr,
             layer.query_norm, row, x);
  engine.kernels_.scale(x, query_scale(plan.rows[row].position), c.head_dim);
}

float Forward::query_scale(int position) const {
  const EdgedConfig& c = engine.model_.config;
  const float scale = c.attention_scale > 0 ? (float)kLog2e * c.attention_scale
                                            : (float)kLog2e / std::sqrt((float)c.head_dim);
  return c.growth > 0 ? scale * (1.f + c.growth * (float)std::log1p(position / c.growth_tokens)) : scale;
}

void Forward::apply_rope(const Layer& layer, const float* bias, const float* norm, int row, float* x) {
  const Model& model = engine.model_;
  const EdgedConfig& c = model.config;
  const Kernels& k = engine.kernels_;
  const bool whole = !model.has(kWideNorm);  // else bias and norm are done, see normalize_wide
  if (bias && whole) k.add(x, bias, c.head_dim);
  if (norm && whole && !model.has(kNormAfterRope)) k.rms_norm(x, norm, c.head_dim, c.epsilon, x);
  if (layer.attention.rope >= 0) {
    const size_t at = ((size_t)layer.attention.rope * c.max_rows + row) * c.rope_pairs;
    k.apply_rope(x, engine.cosine_.as<float>() + at, engine.sine_.as<float>() + at, c.rope_pairs);
  }
  if (norm && whole && model.has(kNormAfterRope)) k.rms_norm(x, norm, c.head_dim, c.epsilon, x);
}

// A row's key (head_dim,) and value (head_dim,) of one head -> cache.
void Forward::write_kv_head(const Layer& layer, int i, int head) {
  const EdgedConfig& c = engine.model_.config;
  const Row& row = plan.rows[i];
  const size_t at = (size_t)head * c.head_dim;
  float *key = projected(i, c.heads + head), *value = projected(i, c.heads + c.kv_heads + head);
  apply_rope(layer, layer.key_bias ? layer.key_bias + at : nullptr, layer.key_norm, i, key);
  if (layer.value_bias) engine.kernels_.add(value, layer.value_bias + at, c.head_dim);
  const int block = block_table(layer, row.slice)[row.position / kBlockTokens];
  uint16_t* place = first_block(layer, head) + (size_t)block * engine.cache_of(layer).block_stride;
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
  const AttentionPlan& attention = plan.attention(layer.attention);
  const std::vector<Piece>& pieces = attention.pieces;
  const SharePolicy how{1, attention.equal_pieces ? kKeptSixteenths : 0};
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
          write_kv_head(layer, piece.row, piece.kv_head);
      }
      attend_piece(layer, piece, thread);
    }
}

void Forward::attend_piece(const Layer& layer, const Piece& piece, int thread) {
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
  work.window = layer.attention.window;
  work.cap = c.attention_cap * (float)kLog2e;
  work.cache = first_block(layer, piece.kv_head);
  work.block_stride = engine.cache_of(layer).block_stride;
  work.blocks = block_table(layer, row.slice);
  work.chunk_begin = piece.chunk_begin;
  work.chunk_end = piece.chunk_end;
  work.out = engine.attended_.as<float>() + piece.row * stride + column;
  work.out_stride = stride;
  work.partial = piece.partial < 0 ? nullptr : engine.partials_.as<float>() + piece.partial;
  engine.kernels_.attend(work, engine.thread_buffers_[thread]->attention);
}

// Heads are shared among threads as their pieces were, so most partial results are in this core's cache.
void Forward::merge_partials(const AttentionPlan& attention, int thread) {
  const EdgedConfig& c = engine.model_.config;
  const int heads = c.heads / c.kv_heads;
  const size_t lane = (size_t)c.head_dim + 8, one = (size_t)heads * lane;
  const Share units = share((int)plan.rows.size() * c.heads, thread, c.threads);
  for (int u = units.begin; u < units.end; u++) {
    const int i = u / c.heads, h = u % c.heads;
    if (attention.row_partial[i] < 0) continue;
    const int position = plan.rows[i].position,
              chunks = position / kChunkTokens + 1 - first_chunk(position, attention.window);
    const float* partial = engine.partials_.as<float>() + attention.row_partial[i] +
                           (size_t)(h / heads) * chunks * one + (size_t)(h % heads) * lane;
    engine.kernels_.merge_partials(partial, one, chunks, c.head_dim,
                                   engine.attended_.as<float>() + (size_t)u * c.head_dim);
  }
}

void Forward::quantize_mixed(const Layer& layer, int thread) {
  const int n = layer.out.cols, all = (int)plan.rows.size();
  const Share rows = input_rows(all, thread);
  float* row = engine.thread_buffers_[thread]->row.data();
  for (int i = rows.begin; i < rows.end; i++)
    write_input(gated(layer, i, row), n, layer.out, hidden_input(all, thread), i);
}

// A row of attended_ with its gates, which is then in `out`: of attention where the model has such gates, and
// of a delta net, whose heads are normalized before.
const float* Forward::gated(const Layer& layer, int row, float* out) const {
  const Model& model = engine.model_;
  const EdgedConfig& c = model.config;
  const Kernels& k = engine.kernels_;
  const float* mixed = engine.attended_.as<float>() + (size_t)row * layer.out.cols;
  const float* projected = engine.projected_.as<float>() + (size_t)row * engine.projected_stride_;
  if (layer.attention.kind == kAttention && model.has(kGated)) {
    k.gate(mixed, projected + (c.heads + 2 * c.kv_heads) * c.head_dim, layer.out.cols, out);
    return out;
  }
  if (layer.attention.kind != kDeltaNet) return mixed;
  for (int at = 0; at < layer.out.cols; at += c.delta_value_dim)
    k.rms_norm(mixed + at, layer.delta_norm, c.delta_value_dim, c.epsilon, out + at);
  k.swiglu(projected + model.channels(), out, layer.out.cols, out);
  return out;
}

}  // namespace edged

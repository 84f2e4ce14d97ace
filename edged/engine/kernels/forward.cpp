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
    engine.shares_.begin(i + 1, thread);
    normalize(layer.attention_norm, layer.projections[0], thread);
    barrier_unless_alone(thread);
    project(layer, i, thread);
    threads.barrier(thread);
    if (!plan.apart) {
      remember(layer, i, thread);
      threads.barrier(thread);
    }
    attend(layer, i, thread);
    threads.barrier(thread);
    if (plan.partial_floats) {
      merge(thread);
      threads.barrier(thread);
    }
    gather(layer, thread);
    barrier_unless_alone(thread);
    add_product(layer.out, narrow((int)plan.rows.size(), thread), i, kAttentionOut, thread);
    threads.barrier(thread);
    normalize(layer.ffn_norm, layer.gate_up, thread);
    barrier_unless_alone(thread);
    gate(layer, i, thread);
    threads.barrier(thread);
    add_product(layer.down, engine.wide_, i, kFfnOut, thread);
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

// A row of n floats becomes row `at` of a product's input, in the form that `reader` wants.
void Forward::prepare_row(const float* row, int n, const Matrix& reader, ActivationRoom& room, int at) {
  const size_t offset = (size_t)at * room.stride, group = offset / kActivationGroup;
  if (is_float(reader.kind))
    std::copy(row, row + n, room.values.as<float>() + offset);
  else
    engine.kernels_.quantize(row, n, room.stride, room.codes.as<int8_t>() + offset, room.scale.as<float>() + group,
                             room.offset8.as<int32_t>() + group, room.sum.as<float>() + group);
}

void Forward::normalize(const float* weight, const Matrix& reader, int thread) {
  const EdgedConfig& c = engine.model_.config;
  float* row = engine.rooms_[thread]->row.data();
  const int all = (int)plan.rows.size();
  const Share rows = rows_of(all, thread);
  for (int i = rows.begin; i < rows.end; i++) {
    engine.kernels_.rms_norm(engine.x_.as<float>() + (size_t)i * c.width, weight, c.width, c.rms_epsilon, row);
    prepare_row(row, c.width, reader, narrow(all, thread), i);
  }
}

void Forward::project(const Layer& layer, int index, int thread) {
  const Activations x = narrow((int)plan.rows.size(), thread).view((int)plan.rows.size());
  float* y = engine.projected_.as<float>();
  int phase = kProject;
  for (const Matrix& w : layer.projections) {
    const Cut found = cut(w, x.m);
    Taken taken;
    while (engine.shares_.take(index, phase, thread, found.tiles, found.portions, taken))
      engine.kernels_.matmul(w, x, found.of(taken), y + (size_t)taken.begin * kTileRows, (size_t)engine.projected_stride_, false, engine.rooms_[thread]->scratch);
    y += w.rows;
    phase++;
  }
}

void Forward::remember(const Layer& layer, int index, int thread) {
  const EdgedConfig& c = engine.model_.config;
  const int all = c.heads + c.kv_heads;
  const Share units = share((int)plan.rows.size() * all, thread, c.threads);
  for (int u = units.begin; u < units.end; u++) {
    const int i = u / all, head = u % all;
    if (head < c.heads)
      turn_query(layer, i, head, projected(i, head));
    else
      store(layer, index, i, head - c.heads);
  }
}

// Bias, norm and rotation of one head's query, in place; also scaled for attention, which works in powers of two.
void Forward::turn_query(const Layer& layer, int row, int head, float* x) {
  const EdgedConfig& c = engine.model_.config;
  turn(layer.query_bias ? layer.query_bias + (size_t)head * c.head_dim : nullptr, layer.query_norm, plan.rows[row].position, x);
  engine.kernels_.scale(x, 1.4426950408889634f / std::sqrt((float)c.head_dim), c.head_dim);
}

void Forward::turn(const float* bias, const float* norm, int position, float* x) {
  const EdgedConfig& c = engine.model_.config;
  const Kernels& k = engine.kernels_;
  const int half = c.head_dim / 2;
  if (bias) k.add(x, bias, c.head_dim);
  if (norm) k.rms_norm(x, norm, c.head_dim, c.rms_epsilon, x);
  k.rotate(x, engine.model_.cosine.data() + (size_t)position * half, engine.model_.sine.data() + (size_t)position * half, half);
}

// A row's key and value of one head go into the cache.
void Forward::store(const Layer& layer, int index, int i, int head) {
  const EdgedConfig& c = engine.model_.config;
  const Row& row = plan.rows[i];
  const size_t at = (size_t)head * c.head_dim;
  float *key = projected(i, c.heads + head), *value = projected(i, c.heads + c.kv_heads + head);
  turn(layer.key_bias ? layer.key_bias + at : nullptr, layer.key_norm, row.position, key);
  if (layer.value_bias) engine.kernels_.add(value, layer.value_bias + at, c.head_dim);
  const EdgedSlice& slice = plan.step.slices[row.slice];
  const int block = plan.step.blocks[slice.first_block + row.position / kBlockTokens];
  uint16_t* place = engine.cache_.as<uint16_t>() + (size_t)index * engine.layer_stride_ + (size_t)block * engine.block_stride_ + (size_t)head * engine.head_stride_;
  engine.kernels_.store_kv(key, value, c.head_dim, place, row.position % kBlockTokens);
}

// What `remember` does for queries, where nobody else's tokens depend on them: everyone who needs them turns them in a room of their own.
void Forward::turn_queries(const Layer& layer, const Piece& piece, int thread) {
  const EdgedConfig& c = engine.model_.config;
  const int heads = c.heads / c.kv_heads, first = piece.kv_head * heads;
  float* queries = engine.rooms_[thread]->row.data();
  std::copy_n(projected(piece.row, first), (size_t)heads * c.head_dim, queries);
  for (int h = 0; h < heads; h++) turn_query(layer, piece.row, first + h, queries + (size_t)h * c.head_dim);
}

void Forward::attend(const Layer& layer, int index, int thread) {
  const std::vector<Piece>& pieces = plan.pieces;
  const Portions how{1, plan.alike ? kKept : 0};
  const Piece* turned = nullptr;  // whose queries, of which pieces of one past have the same, lie turned in this thread's room
  Taken taken;
  while (engine.shares_.take(index, kAttend, thread, (int)pieces.size(), how, taken))
    for (int i = taken.begin; i < taken.end;) {
      Piece piece = pieces[i];
      for (i++; i < taken.end && pieces[i].follows(piece); i++) piece.chunk_end = pieces[i].chunk_end;
      if (plan.apart) {
        if (!turned || turned->row != piece.row || turned->kv_head != piece.kv_head) turn_queries(layer, piece, thread);
        turned = &pieces[i - 1];
        // Key and value are stored by who attends to the chunk that they end.
        if (plan.rows[piece.row].position < piece.chunk_end * kChunkTokens) store(layer, index, piece.row, piece.kv_head);
      }
      attend_to(piece, index, thread);
    }
}

void Forward::attend_to(const Piece& piece, int index, int thread) {
  const EdgedConfig& c = engine.model_.config;
  const int heads = c.heads / c.kv_heads;
  const Row& row = plan.rows[piece.row];
  const size_t stride = (size_t)c.heads * c.head_dim, column = (size_t)piece.kv_head * heads * c.head_dim;
  Attend work;
  work.query = plan.apart ? engine.rooms_[thread]->row.data() : projected(piece.row, piece.kv_head * heads);
  work.query_stride = (size_t)engine.projected_stride_;
  work.rows = piece.rows;
  work.heads = heads;
  work.dim = c.head_dim;
  work.position = row.position;
  work.cache = engine.cache_.as<uint16_t>() + (size_t)index * engine.layer_stride_ + (size_t)piece.kv_head * engine.head_stride_;
  work.block_stride = engine.block_stride_;
  work.blocks = plan.step.blocks + plan.step.slices[row.slice].first_block;
  work.chunk_begin = piece.chunk_begin;
  work.chunk_end = piece.chunk_end;
  work.out = engine.attended_.as<float>() + piece.row * stride + column;
  work.out_stride = stride;
  work.partial = piece.partial < 0 ? nullptr : engine.partials_.as<float>() + piece.partial;
  engine.kernels_.attend(work, engine.rooms_[thread]->attend);
}

// The chunks of heads that lie apart become one. Heads are shared out like their pieces were, so most partial results are in this core's cache.
void Forward::merge(int thread) {
  const EdgedConfig& c = engine.model_.config;
  const int heads = c.heads / c.kv_heads;
  const size_t lane = (size_t)c.head_dim + 8, one = (size_t)heads * lane;
  const Share units = share((int)plan.rows.size() * c.heads, thread, c.threads);
  for (int u = units.begin; u < units.end; u++) {
    const int i = u / c.heads, h = u % c.heads;
    if (plan.row_partial[i] < 0) continue;
    const int chunks = plan.rows[i].position / kChunkTokens + 1;
    const float* partial = engine.partials_.as<float>() + plan.row_partial[i] + (size_t)(h / heads) * chunks * one + (size_t)(h % heads) * lane;
    engine.kernels_.merge(partial, one, chunks, c.head_dim, engine.attended_.as<float>() + (size_t)u * c.head_dim);
  }
}

void Forward::gather(const Layer& layer, int thread) {
  const EdgedConfig& c = engine.model_.config;
  const int n = c.heads * c.head_dim, all = (int)plan.rows.size();
  const Share rows = rows_of(all, thread);
  for (int i = rows.begin; i < rows.end; i++) prepare_row(engine.attended_.as<float>() + (size_t)i * n, n, layer.out, narrow(all, thread), i);
}

void Forward::add_product(const Matrix& w, const ActivationRoom& input, int index, int phase, int thread) {
  const Activations x = input.view((int)plan.rows.size());
  const Cut found = cut(w, x.m);
  Taken taken;
  while (engine.shares_.take(index, phase, thread, found.tiles, found.portions, taken))
    engine.kernels_.matmul(w, x, found.of(taken), engine.x_.as<float>() + (size_t)taken.begin * kTileRows, (size_t)engine.model_.config.width, true,
                           engine.rooms_[thread]->scratch);
}

// 32 columns of gate and the same of up lie together, so that their product is quantized where it was computed.
void Forward::gate(const Layer& layer, int index, int thread) {
  ThreadRoom& room = *engine.rooms_[thread];
  const int all = (int)plan.rows.size(), at_once = std::min(128, all);
  const int pairs = layer.gate_up.tiles / 8;  // of 32 columns of gate and of up
  const int strips = strips_of(layer.gate_up, all, pairs, engine.model_.config.threads, engine.kernels_), apart = (pairs + strips - 1) / strips;
  const int most = std::max(1, kGateRoom / (64 * strips * at_once));
  Taken taken;
  while (engine.shares_.take(index, kGate, thread, apart, {1, all > kFewRows ? 0 : kKept, most}, taken)) {
    const size_t y_apart = (size_t)(taken.end - taken.begin + taken.units) * 64, stride = strips * y_apart;
    for (int from = 0; from < all; from += at_once) {
      const int rows = std::min(at_once, all - from);
      const Strips tiles{taken.begin * 8, (taken.end - taken.begin) * 8, strips, apart * 8, y_apart, taken.reserve, taken.units, 8};
      const int found = engine.kernels_.matmul(layer.gate_up, narrow(all, thread).view(rows, from), tiles, room.gate_up, stride, false, room.scratch) / 8;
      for (int strip = 0; strip < strips; strip++)
        for (int i = 0; i < found; i++)
          if (const int pair = strip * apart + taken.begin + i; pair < pairs) activate(layer, room.gate_up + strip * y_apart + i * 64, stride, rows, from, pair);
    }
  }
}

// silu(gate) · up of one pair of 32 columns becomes input of the next product, rows from … from + rows.
void Forward::activate(const Layer& layer, float* columns, size_t stride, int rows, int from, int pair) {
  const Kernels& k = engine.kernels_;
  ActivationRoom& wide = engine.wide_;
  const int width = std::min(32, engine.model_.config.ffn - pair * 32);
  for (int i = 0; i < rows; i++) {
    float* row = columns + i * stride;
    k.swiglu(row, row + 32, 32, row);
    const size_t at = (size_t)(from + i) * wide.stride + (size_t)pair * 32, group = at / kActivationGroup;
    if (is_float(layer.down.kind))
      std::copy(row, row + width, wide.values.as<float>() + at);
    else
      k.quantize(row, width, 32, wide.codes.as<int8_t>() + at, wide.scale.as<float>() + group, wide.offset8.as<int32_t>() + group,
                 wide.sum.as<float>() + group);
  }
}

void Forward::logits(int thread) {
  const EdgedConfig& c = engine.model_.config;
  const int wanted = plan.step.wanted_count;
  if (!wanted) return;
  const Matrix& head = engine.model_.head;
  float* row = engine.rooms_[thread]->row.data();
  const Share rows = rows_of(wanted, thread);
  for (int i = rows.begin; i < rows.end; i++) {
    engine.kernels_.rms_norm(engine.x_.as<float>() + (size_t)plan.step.wanted[i] * c.width, engine.model_.final_norm, c.width, c.rms_epsilon, row);
    prepare_row(row, c.width, head, narrow(wanted, thread), i);
  }
  if (wanted > 1) engine.threads_.barrier(thread);
  const Cut found = cut(head, wanted);
  ThreadRoom& room = *engine.rooms_[thread];
  room.finite = true;
  room.best.assign((size_t)wanted, {-INFINITY, c.vocabulary});
  Taken taken;
  while (engine.shares_.take(c.layers, kHead, thread, found.tiles, found.portions, taken)) {
    Strips tiles = found.of(taken);
    tiles.tiles = engine.kernels_.matmul(head, narrow(wanted, thread).view(wanted), tiles, plan.step.logits + (size_t)taken.begin * kTileRows,
                                         (size_t)plan.step.logits_stride, false, room.scratch);
    look(head, tiles, room);
  }
}

// What can be told of the logits that one product gave, while they are near.
void Forward::look(const Matrix& head, const Strips& computed, ThreadRoom& room) const {
  const Kernels& k = engine.kernels_;
  for (int i = 0; i < plan.step.wanted_count; i++)
    for (int strip = 0; strip < computed.count; strip++) {
      const int first = (computed.begin + strip * computed.apart) * kTileRows, n = std::min(computed.tiles * kTileRows, head.rows - first);
      if (n <= 0) continue;
      const float* logits = plan.step.logits + (size_t)i * plan.step.logits_stride + first;
      room.finite = room.finite && k.finite(logits, n);
      const Best best{k.largest(logits, n), first};
      if (best > room.best[(size_t)i]) room.best[(size_t)i] = {best.value, first + (int)(std::find(logits, logits + n, best.value) - logits)};
    }
}

}  // namespace edged

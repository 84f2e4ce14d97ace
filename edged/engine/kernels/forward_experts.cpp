// A layer's mixture of experts, in place of its gate, up and down. Only chosen experts' weights are read; the
// rows that chose an expert are computed together. What a row gets does not depend on the others: each
// product gives the same bits in any company, and a row adds its experts' outputs in ascending order of the
// experts.
#include "experts.h"

#include <algorithm>
#include <bitset>
#include <cmath>

#include "forward.h"

namespace edged {

void choose_experts(const float* logits, int experts, int used, bool normalized, int32_t* chosen,
                    float* weights) {
  std::bitset<kMaxExperts> taken;
  for (int r = 0; r < used; r++) {
    int best = -1;
    for (int e = 0; e < experts; e++)
      if (!taken[e] && (best < 0 || logits[e] > logits[best])) best = e;
    taken[best] = true;
    chosen[r] = best;
  }
  const float most = logits[chosen[0]];
  float total = 0;
  for (int r = 0; r < used; r++) weights[r] = std::exp(logits[chosen[r]] - most);
  if (normalized)
    for (int r = 0; r < used; r++) total += weights[r];
  else
    for (int e = 0; e < experts; e++) total += std::exp(logits[e] - most);
  for (int r = 0; r < used; r++) weights[r] /= total;
}

void ExpertLists::sort(const int32_t* chosen, int count, int experts) {
  active.clear();
  begins.clear();
  choices.resize((size_t)count);
  next_.assign((size_t)experts, 0);
  for (int i = 0; i < count; i++) next_[chosen[i]]++;
  int begin = 0;
  for (int e = 0; e < experts; e++) {
    if (next_[e]) {
      active.push_back(e);
      begins.push_back(begin);
    }
    begin += next_[e];
    next_[e] = begin - next_[e];
  }
  begins.push_back(begin);
  for (int i = 0; i < count; i++) choices[next_[chosen[i]]++] = i;
}

void Forward::mix_experts(const Layer& layer, int index, int thread) {
  route(layer, index, thread);
  engine.threads_.barrier(thread);
  choose_rows_experts(thread);
  engine.threads_.barrier(thread);
  const EdgedConfig& c = engine.model_.config;
  engine.thread_buffers_[thread]->experts.sort(engine.chosen_.as<int32_t>(),
                                               (int)plan.rows.size() * c.experts_used, c.experts);
  gate_up_experts(layer, index, thread);
  engine.threads_.barrier(thread);
  down_experts(layer, index, thread);
}

void Forward::route(const Layer& layer, int index, int thread) {
  const int all = (int)plan.rows.size();
  const Activations x = hidden_input(all, thread).view(all);
  const Tiling tiling = tiling_of(layer.router, all);
  WorkRange range;
  while (engine.shares_.next(index, kRoute, thread, tiling.tiles_per_strip, tiling.policy, range))
    engine.kernels_.matmul(layer.router, x, tiling.strips_of(range),
                           engine.router_logits_.as<float>() + (size_t)range.begin * kTileRows,
                           (size_t)router_stride(), false, engine.thread_buffers_[thread]->scratch);
}

void Forward::choose_rows_experts(int thread) {
  const EdgedConfig& c = engine.model_.config;
  const Share rows = share((int)plan.rows.size(), thread, c.threads);
  for (int i = rows.begin; i < rows.end; i++) {
    const size_t at = (size_t)i * c.experts_used;
    choose_experts(engine.router_logits_.as<float>() + (size_t)i * router_stride(), c.experts, c.experts_used,
                   engine.model_.has(kNormalizeExperts), engine.chosen_.as<int32_t>() + at,
                   engine.expert_weights_.as<float>() + at);
  }
}

// Rows [from, from + rows) of those that chose the expert, as the input of its gate and up.
Activations Forward::expert_input(const Layer& layer, int slot, int from, int rows, int thread) {
  const EdgedConfig& c = engine.model_.config;
  const int all = (int)plan.rows.size();
  if (all == 1) return hidden_input(1, thread).view(1);
  ThreadBuffers& own = *engine.thread_buffers_[thread];
  if (own.gathered_slot == slot && own.gathered_from == from) return own.expert_input.view(rows);
  const InputForms forms(layer.gate_up);
  for (int i = 0; i < rows; i++) {
    const int row = own.experts.choices[own.experts.begins[slot] + from + i] / c.experts_used;
    own.expert_input.copy_row(i, engine.hidden_input_, row, forms.floats, forms.codes);
  }
  own.gathered_slot = slot;
  own.gathered_from = from;
  return own.expert_input.view(rows);
}

void Forward::gate_up_experts(const Layer& layer, int index, int thread) {
  ThreadBuffers& own = *engine.thread_buffers_[thread];
  own.gathered_slot = -1;
  const int pairs = engine.model_.config.ffn / 32, all = (int)own.experts.active.size() * pairs;
  const SharePolicy policy{1, few_rows_each(own.experts) ? kKeptSixteenths : 0};
  WorkRange range;
  while (engine.shares_.next(index, kGate, thread, all, policy, range))
    for (int item = range.begin; item < range.end;) {
      const int slot = item / pairs, pair = item % pairs, count = std::min(range.end - item, pairs - pair);
      gate_up_expert(layer, slot, pair, pair + count, thread);
      item += count;
    }
}

// Pairs [begin, end) of 32 columns of one expert's gate and up, for all of its rows -> ffn_input_.
void Forward::gate_up_expert(const Layer& layer, int slot, int begin, int end, int thread) {
  ThreadBuffers& own = *engine.thread_buffers_[thread];
  const ExpertLists& lists = own.experts;
  const bool separate = layer.gate_up.size() == 2;
  const int pair_tiles = separate ? 4 : 8;
  for (int from = 0; from < lists.rows(slot); from += kRowBlock) {
    const int rows = std::min(kRowBlock, lists.rows(slot) - from), most = kGateUpFloats / (64 * rows);
    const Activations x = expert_input(layer, slot, from, rows, thread);
    for (int first = begin; first < end; first += most) {
      const int count = std::min(most, end - first);
      const size_t stride = (size_t)count * 64, gate_stride = separate ? 32 : 64,
                   up_offset = separate ? stride / 2 : 32;
      const Strips tiles{first * pair_tiles, count * pair_tiles};
      for (size_t part = 0; part < layer.gate_up.size(); part++)
        engine.kernels_.matmul(
            expert_of(layer.gate_up[part], lists.active[slot], engine.model_.config.experts), x, tiles,
            own.gate_up + part * up_offset, stride, false, own.scratch);
      for (int i = 0; i < count; i++) {
        float* gate = own.gate_up + i * gate_stride;
        swiglu(layer, gate, gate + up_offset, stride, rows, lists.begins[slot] + from, first + i);
      }
    }
  }
}

// Each thread computes some columns of all experts' outputs, and adds them up.
void Forward::down_experts(const Layer& layer, int index, int thread) {
  const EdgedConfig& c = engine.model_.config;
  const ExpertLists& lists = engine.thread_buffers_[thread]->experts;
  int rows = 1;
  for (size_t slot = 0; slot < lists.active.size(); slot++) rows = std::max(rows, lists.rows((int)slot));
  const int most = kGateUpFloats / (kTileRows * std::min(kRowBlock, rows));
  const SharePolicy policy =
      few_rows_each(lists) ? SharePolicy{1, kKeptSixteenths, most} : SharePolicy{std::min(4, most), 0, most};
  WorkRange range;
  while (engine.shares_.next(index, kFfnOut, thread, c.width / kTileRows, policy, range)) {
    if (!engine.model_.adds_products)
      for (size_t i = 0; i < plan.rows.size(); i++)
        std::fill_n(engine.added_.as<float>() + i * c.width + (size_t)range.begin * kTileRows,
                    (size_t)(range.end - range.begin) * kTileRows, 0.f);
    for (size_t slot = 0; slot < lists.active.size(); slot++)
      down_expert(layer, (int)slot, range.begin, range.end, thread);
  }
}

// Tiles [begin, end) of one expert's output for all of its rows, weighted -> x_ or added_, added.
void Forward::down_expert(const Layer& layer, int slot, int begin, int end, int thread) {
  const EdgedConfig& c = engine.model_.config;
  ThreadBuffers& own = *engine.thread_buffers_[thread];
  const ExpertLists& lists = own.experts;
  const Matrix down = expert_of(layer.down, lists.active[slot], c.experts);
  const int columns = (end - begin) * kTileRows;
  float* y = (engine.model_.adds_products ? engine.x_ : engine.added_).as<float>() + begin * kTileRows;
  for (int at = lists.begins[slot]; at < lists.begins[slot + 1]; at += kRowBlock) {
    const int rows = std::min(kRowBlock, lists.begins[slot + 1] - at);
    engine.kernels_.matmul(down, engine.ffn_input_.view(rows, at), {begin, end - begin}, own.gate_up,
                           (size_t)columns, false, own.scratch);
    for (int i = 0; i < rows; i++) {
      const int choice = lists.choices[at + i];
      const float weight = engine.expert_weights_.as<float>()[choice];
      const float* product = own.gate_up + (size_t)i * columns;
      float* out = y + (size_t)(choice / c.experts_used) * c.width;
      for (int j = 0; j < columns; j++) out[j] += weight * product[j];
    }
  }
}

}  // namespace edged

// The forward pass. All threads run it together, phase by phase, with a barrier after each. In a step of one
// row each thread computes the row's norms and codes for itself: that is shorter than a barrier.
//
// Shapes: m rows (tokens of the step), d = width, q = heads · head_dim, kv = kv_heads · head_dim, v =
// vocabulary, w = wanted logits.
//   x_ (m,d)   projected_ (m,q+2kv)   attended_ (m,q)   ffn_input_ (m,ffn)   hidden_input (m,d) or (m,q),
//   quantized
//
// The residual stream is x_, to which products are added as they are computed. Where they are changed first
// (biases, norms, a scale), they go to added_ and are added in the phase that normalizes next: `pending` is
// what that phase does to them. In a step of one row, every thread then keeps the residual stream for itself
// and computes the same.
#pragma once
#include "engine.h"
#include "ops/tiling.h"

namespace edged {

// Phases whose work is shared by `Shares`: the products of a layer's projections, which may be one to four,
// and the others of a layer; and that of the head, as if in a layer of its own.
enum SharedPhase {
  kProject,
  kAttend = kProject + 4,
  kAttentionOut,
  kGate,
  kFfnOut,
  kHead,
  kRoute,
  kSharedPhases
};

// The forms of activations that matrices read: floats, int8 codes, or both.
struct InputForms {
  bool floats = false, codes = false;
  InputForms(const Matrix& reader) { add(reader); }
  InputForms(const std::vector<Matrix>& readers) {
    for (const Matrix& reader : readers) add(reader);
  }
  void add(const Matrix& reader) { (is_float(reader.kind) ? floats : codes) = true; }
};

struct Forward {
  Engine& engine;
  const Plan& plan;

  void run(int thread);

 private:
  // The phases of attention: queries, keys and values in projected_ -> attended_ (m,q).
  void mix_by_attention(const Layer& layer, int index, int thread);

  // The phases, in their order. All threads call each of them; `thread` selects the caller's share.

  // embedding (v,d)[tokens (m,)] -> x_ (m,d); the angles of RoPE -> cosine_, sine_ (ropes,m,pairs)
  void embed(int thread);
  // x_ (m,d) + pending, normalized -> hidden_input (m,d)
  void normalize(const Norm& norm, const Addition* pending, InputForms forms, int thread);
  // projections (q+2kv,d) @ hidden_input (m,d) -> projected_ (m,q+2kv); of another layer kind (3d,d)
  void project(const Layer& layer, int index, int thread);
  // Norms of queries (q,) and keys (kv,) over all heads, in projected_ in place.
  void normalize_wide(const Layer& layer, int thread);
  // RoPE of queries in projected_ (m,q) in place; RoPE of keys (m,kv), with values (m,kv) -> cache
  void write_kv(const Layer& layer, int thread);
  // softmax(queries (m,q) @ cached keysᵀ) @ cached values -> attended_ (m,q), or partials_ where chunks are
  // split
  void attend(const Layer& layer, int index, int thread);
  // partials_ [rows, kv_heads, chunks, heads / kv_heads, head_dim + 8] -> attended_ (m,q)
  void merge_partials(const AttentionPlan& attention, int thread);
  // B, C and x in projected_ (m,3d), with the states of the slices -> attended_ (m,d), and the next states
  void convolve(const Layer& layer, int thread);
  // Queries, keys and values of a delta net in projected_, convolved; queries and keys normalized ->
  // convolved_
  void convolve_heads(const Layer& layer, int thread);
  // convolved_, the gates in projected_, with the states of the slices -> attended_, and the next states
  void apply_delta_rule(const Layer& layer, int thread);
  // attended_ (m,q) or (m,d) with its gates -> hidden_input
  void quantize_mixed(const Layer& layer, int thread);
  // w (d,n) @ input (m,n) -> x_ (m,d), added, or -> added_ (m,d): the output of attention (n = q) or of the
  // ffn (n = ffn)
  void add_product(const Matrix& w, const ActivationBuffer& input, int index, int phase, int thread);
  // silu(gate (ffn,d) @ hidden_input (m,d)) · (up (ffn,d) @ hidden_input (m,d)) -> ffn_input_ (m,ffn); or
  // gelu
  void gate_up_product(const Layer& layer, int index, int thread);
  // router (e,d) @ hidden_input (m,d) -> the experts of each row; their gate, up and down as above, weighted
  // and added -> x_ (m,d) or added_ (m,d); see forward_experts.cpp
  void mix_experts(const Layer& layer, int index, int thread);
  // head (v,d) @ norm(x_ + pending)[wanted (w,)] (w,d) -> logits (w,v); the input of that product -> hidden
  // (w,d)
  void logits(const Addition* pending, int thread);

  // Parts of phases.
  void find_angles(int unit);
  void norm_row(const Norm& norm, const float* x, float* out) const;
  void add_pending(const Addition& pending, int row, float* x, int thread) const;
  void write_input(const float* row, int n, InputForms forms, ActivationBuffer& input, int at);
  void apply_rope(const Layer& layer, const float* bias, const float* norm, int row, float* x);
  float query_scale(int position) const;
  void rope_query(const Layer& layer, int row, int head, float* x);
  void rope_queries(const Layer& layer, const Piece& piece, int thread);
  void write_kv_head(const Layer& layer, int row, int head);
  float* state_of(const Layer& layer, int state) const;
  void convolve_slice(const Layer& layer, const EdgedSlice& slice, const float* inputs, int begin, int n,
                      float* out, size_t out_stride) const;
  void convolve_head(const Layer& layer, int head, float* out) const;
  void find_gates(const Layer& layer, int first, int count, int head, float* decay, float* beta) const;
  void delta_columns(const Layer& layer, int slice, int first, int head, int column, int thread);
  const float* gated(const Layer& layer, int row, float* out) const;
  void attend_piece(const Layer& layer, const Piece& piece, int thread);
  void swiglu(const Layer& layer, float* gate, float* up, size_t stride, int rows, int from, int pair);
  void route(const Layer& layer, int index, int thread);
  void choose_rows_experts(int thread);
  Activations expert_input(const Layer& layer, int slot, int from, int rows, int thread);
  void gate_up_experts(const Layer& layer, int index, int thread);
  void gate_up_expert(const Layer& layer, int slot, int begin, int end, int thread);
  void down_experts(const Layer& layer, int index, int thread);
  void down_expert(const Layer& layer, int slot, int begin, int end, int thread);
  void scan_logits(const Matrix& head, const Strips& computed, ThreadBuffers& own) const;
  void change_logits(float* logits, int n) const;

  // One head (head_dim,) of a row's projections; heads of queries come first, then those of keys, then those
  // of values.
  float* projected(int row, int head) const {
    return engine.projected_.as<float>() + (size_t)row * engine.projected_stride_ +
           (size_t)head * engine.model_.config.head_dim;
  }
  // Of a slice, the block table for this layer.
  const int32_t* block_table(const Layer& layer, int slice) const {
    const EdgedSlice& its = plan.step.slices[slice];
    return plan.step.blocks + (layer.attention.window ? its.first_window_block : its.first_block);
  }
  // The layer's keys and values of one head in the first block of its cache.
  uint16_t* first_block(const Layer& layer, int head) const {
    return engine.cache_of(layer).block(0) + (size_t)layer.cache_index * engine.layer_stride_ +
           (size_t)head * engine.head_stride_;
  }
  // One row's residual stream (d,).
  float* residual(int row, int thread) const {
    if (single_row() && !engine.model_.adds_products) return engine.thread_buffers_[thread]->residual.data();
    return engine.x_.as<float>() + (size_t)row * engine.model_.config.width;
  }
  int router_stride() const { return round_up(engine.model_.config.experts, kTileRows); }
  // Whether the experts' weights are streamed once, as of a product of few rows.
  static bool few_rows_each(const ExpertLists& lists) {
    return lists.choices.size() <= lists.active.size() * kFewRows;
  }
  bool single_row() const { return plan.rows.size() == 1; }
  // The input of products of `rows` rows: of a single row each thread has its own.
  ActivationBuffer& hidden_input(int rows, int thread) const {
    return rows == 1 ? engine.thread_buffers_[thread]->hidden_input : engine.hidden_input_;
  }
  // The thread's share of `rows` rows of such input: a single row is computed by every thread.
  Share input_rows(int rows, int thread) const {
    return rows == 1 ? Share{0, 1} : share(rows, thread, engine.model_.config.threads);
  }
  Tiling tiling_of(const Matrix& w, int rows) const {
    return {w, rows, engine.model_.config.threads, engine.kernels_};
  }
  void barrier_unless_single_row(int thread) const {
    if (!single_row()) engine.threads_.barrier(thread);
  }
};

}  // namespace edged

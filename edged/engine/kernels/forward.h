// The forward pass: every thread runs it together, phase by phase, with a barrier after each. A single row's norms and codes are computed
// by each thread for itself: that is shorter than a barrier.
#pragma once
#include "engine.h"

namespace edged {

// Phases whose work is shared out: products of query, key and value, which may be one or three, and the rest of a layer; and the head, as if
// in a layer of its own.
enum SharedPhase { kProject, kAttend = kProject + 3, kAttentionOut, kGate, kFfnOut, kHead, kSharedPhases };

struct Forward {
  Engine& engine;
  const Plan& plan;

  void run(int thread);

 private:
  // Each phase is computed by all threads; `thread` says which share is this one's.
  void embed(int thread);
  void normalize(const float* weight, const Matrix& reader, int thread);                     // x_ → narrow
  void project(const Layer& layer, int index, int thread);                                   // narrow → projected_
  void remember(const Layer& layer, int index, int thread);                                  // rotary; projected_ → cache
  void attend(const Layer& layer, int index, int thread);                                    // projected_, cache → attended_
  void attend_to(const Piece& piece, int index, int thread);
  void merge(int thread);                                                                    // partials_ → attended_
  void gather(const Layer& layer, int thread);                                               // attended_ → narrow
  void add_product(const Matrix& w, const ActivationRoom& input, int index, int phase, int thread);  // x_ += input · wᵀ
  void gate(const Layer& layer, int index, int thread);                                      // narrow → wide_
  void activate(const Layer& layer, float* columns, size_t stride, int rows, int from, int pair);
  void logits(int thread);
  void turn_query(const Layer& layer, int row, int head, float* x);
  void turn(const float* bias, const float* norm, int position, float* x);
  void store(const Layer& layer, int index, int row, int head);
  void turn_queries(const Layer& layer, const Piece& piece, int thread);
  void look(const Matrix& head, const Strips& computed, ThreadRoom& room) const;

  // One head of a row's query, key and value; heads of queries come first, then those of keys.
  float* projected(int row, int head) const {
    return engine.projected_.as<float>() + (size_t)row * engine.projected_stride_ + (size_t)head * engine.model_.config.head_dim;
  }
  bool alone() const { return plan.rows.size() == 1; }
  // Where the input of products of `rows` rows lies: with one row, the thread's own.
  ActivationRoom& narrow(int rows, int thread) const { return rows == 1 ? engine.rooms_[thread]->narrow : engine.narrow_; }
  // This thread's share of `rows` rows that become such input: the only row is everybody's.
  Share rows_of(int rows, int thread) const { return rows == 1 ? Share{0, 1} : share(rows, thread, engine.model_.config.threads); }
  Cut cut(const Matrix& w, int rows) const { return {w, rows, engine.model_.config.threads, engine.kernels_}; }
  void barrier_unless_alone(int thread) const {
    if (!alone()) engine.threads_.barrier(thread);
  }
  void prepare_row(const float* row, int n, const Matrix& reader, ActivationRoom& room, int at);
};

}  // namespace edged

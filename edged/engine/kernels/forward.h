// The forward pass: every thread runs it together, phase by phase, with a barrier after each.
#pragma once
#include "engine.h"

namespace edged {

// Phases of a layer whose work is taken piece by piece.
enum SharedPhase { kProject, kAttend, kAttentionOut, kGate, kFfnOut, kSharedPhases };

struct Forward {
  Engine& engine;
  const Plan& plan;

  void run(int thread);

 private:
  // Each phase is computed by all threads; `thread` says which share is this one's.
  void embed(int thread);
  void normalize(const float* weight, const Matrix& reader, int thread);                     // x_ → narrow_
  void project(const Layer& layer, int index, int thread);                                   // narrow_ → query_, key_, value_
  void remember(const Layer& layer, int index, int thread);                                  // rotary; key_, value_ → cache
  void attend(int index, int thread);                                                        // query_, cache → attended_
  void gather(const Layer& layer, int thread);                                               // attended_ → narrow_
  void add_product(const Matrix& w, const ActivationRoom& input, int phase, int thread);     // x_ += input · wᵀ
  void gate(const Layer& layer, int index, int thread);                                      // narrow_ → wide_
  void logits(int thread);

  void prepare_row(const float* row, int n, const Matrix& reader, ActivationRoom& room, int at);
};

}  // namespace edged

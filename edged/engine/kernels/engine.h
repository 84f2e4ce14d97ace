// A model with its cache, buffers and threads.
#pragma once
#include <memory>
#include <mutex>
#include <vector>

#include "buffers.h"
#include "experts.h"
#include "model.h"
#include "plan.h"
#include "threads/shares.h"
#include "threads/threads.h"

namespace edged {

// Memory for m rows of activations in the form that a matrix product reads.
struct ActivationBuffer {
  Buffer values, codes, scale, offset8, sum, half_offset8, half_sum;
  int stride = 0;
  ActivationBuffer() = default;
  ActivationBuffer(int rows, int width);
  Activations view(int m, int from = 0) const;
  // Where row `at` is written as int8 from its element `from` on, a multiple of 32.
  CodedRow coded_row(int at, int from = 0) const;
  // Copies a row of a buffer of the same width to row `at`, in these forms.
  void copy_row(int at, const ActivationBuffer& other, int row, bool floats, bool with_codes);
  size_t bytes() const {
    return values.bytes() + codes.bytes() + scale.bytes() + offset8.bytes() + sum.bytes() +
           half_offset8.bytes() + half_sum.bytes();
  }
};

// Decode steps that are computed one after another, see edged_decode.
struct DecodeCall {
  const EdgedDecoding* sequences;
  int count;
  const int32_t* blocks;
  int block_count;
  const int32_t* stops;
  int stop_count;
  int steps;
  const int32_t* interrupt;
};

// The largest logit, of equals that of the lowest token.
struct Best {
  float value;
  int32_t token;
  bool operator>(const Best& other) const {
    return value > other.value || (value == other.value && token < other.token);
  }
};

// A pair of 32 columns of gate and of up for kRowBlock rows, or more pairs for fewer rows.
constexpr int kGateUpFloats = kRowBlock * 64;

struct ThreadBuffers {
  Scratch scratch;
  std::vector<float> row;
  std::vector<float> added;     // a row of `added_` with its changes
  std::vector<float> residual;  // in a step of one row each thread has its own copy of it, see Forward
  Buffer attention_memory;
  AttentionScratch attention;
  std::vector<float> delta_state, delta_gates;  // of the columns that are computed; decay and beta of rows
  ActivationBuffer hidden_input;  // the input of a step of one row, which each thread computes for itself
  float gate_up[kGateUpFloats];
  ExpertLists experts;                        // of this layer
  ActivationBuffer expert_input;              // rows of hidden_input_ that chose an expert, kRowBlock at most
  int gathered_slot = -1, gathered_from = 0;  // what expert_input holds
  // Of the logits that the thread computed in this step: whether all are finite, and the best of each row.
  bool all_finite;
  std::vector<Best> best;
};

// Keys and values of the layers that see all tokens, or of those that see a window. Strides in halves.
struct Cache {
  Buffer memory;
  int blocks = 0, layers = 0;
  size_t block_stride = 0;
  uint16_t* block(int number) const { return memory.as<uint16_t>() + (size_t)number * block_stride; }
};

class Engine {
 public:
  Engine(Model model, const Kernels& kernels);
  // Throws std::invalid_argument for a step that cannot be run; then nothing was computed. One caller at a
  // time.
  void step(const EdgedStep& step);
  // Returns how many steps were computed; throws where not even the first was.
  int decode(const DecodeCall& call);
  // Copies a block of the layers with or without a window. Throws std::invalid_argument for one outside the
  // cache.
  void copy_block(bool windowed, int from, int to);
  size_t cache_bytes() const {
    return caches_[0].memory.bytes() + caches_[1].memory.bytes() + states_.bytes();
  }
  size_t buffer_bytes() const;

 private:
  friend struct Forward;
  void compute(const EdgedStep& step);
  Best best(int row) const;  // of the logits of the last step
  const Cache& cache_of(const Layer& layer) const { return caches_[layer.attention.window > 0]; }

  const Model model_;
  const Kernels& kernels_;
  Threads threads_;
  std::mutex mutex_;
  size_t head_stride_, layer_stride_;  // of the caches, in halves
  const int projected_stride_;         // of the projections of one row
  Cache caches_[2];                    // of layers without and with a window
  Buffer x_, projected_, attended_, partials_;
  Buffer states_;                             // [states, recurrent layers, floats of a layer's state]
  Buffer convolved_;                          // queries, keys and values of a delta net, [max_rows, channels]
  std::vector<float> unit_query_, unit_key_;  // weights of the norms of its queries and keys
  Buffer cosine_, sine_;                      // of the step's rows, [ropes, max_rows, rope_pairs]
  Buffer added_;                    // a product that is changed before it is added to x_, [max_rows, width]
  Buffer logits_;                   // of a decode, [sequences, vocabulary rounded up to 8]
  Buffer router_logits_;            // of a mixture of experts, [max_rows, experts rounded up to 8]
  Buffer chosen_, expert_weights_;  // of each row, [max_rows, experts_used]
  ActivationBuffer hidden_input_, ffn_input_;  // inputs of products: of width or heads·dim values; of ffn
  std::vector<std::unique_ptr<ThreadBuffers>> thread_buffers_;
  Shares shares_;
};

}  // namespace edged

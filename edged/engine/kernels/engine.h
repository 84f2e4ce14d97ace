// A model with its cache, buffers and threads, and the plan of one step.
#pragma once
#include <memory>
#include <mutex>
#include <vector>

#include "buffers.h"
#include "model.h"
#include "threads/shares.h"
#include "threads/threads.h"

namespace edged {

// Room for m rows of activations as a matrix product wants them.
struct ActivationRoom {
  Buffer values, codes, scale, offset8, sum;
  int stride = 0;
  ActivationRoom() = default;
  ActivationRoom(int rows, int width);
  Activations view(int m, int from = 0) const;
  size_t bytes() const { return values.bytes() + codes.bytes() + scale.bytes() + offset8.bytes() + sum.bytes(); }
};

// One token of a step.
struct Row {
  int token, position, slice;
};

// A piece of attention: rows of one slice, one key/value head, some chunks. `partial` ≥ 0: the result goes there, to be merged.
struct Piece {
  int row, rows, kv_head, chunk_begin, chunk_end;
  int64_t partial;
  // Whether it goes on where another ends, and its result lies behind that one's.
  bool follows(const Piece& other) const {
    return partial >= 0 && row == other.row && kv_head == other.kv_head && chunk_begin == other.chunk_end;
  }
};

// What the threads of one step share.
struct Plan {
  EdgedStep step;
  std::vector<Row> rows;
  std::vector<Piece> pieces;
  std::vector<int64_t> row_partial;  // of the row's first partial result; −1: none
  size_t partial_floats = 0;
  bool alike = false;  // all pieces are single chunks, which cost the same
  bool apart = false;  // each token is another sequence's: none attends to another of the same step
};

// Decode steps that are computed one after another, see edged_decode.
struct DecodeOrder {
  const EdgedDecoding* sequences;
  int count;
  const int32_t* blocks;
  int block_count;
  const int32_t* stops;
  int stop_count;
  int steps;
  const int32_t* hurry;
};

struct Best {
  float value;
  int32_t token;
  bool operator>(const Best& other) const { return value > other.value || (value == other.value && token < other.token); }
};

constexpr int kGateRoom = 128 * 64;  // floats: one pair of 32 columns of gate and of up for 128 rows, or more of both for fewer

struct ThreadRoom {
  Scratch scratch;
  std::vector<float> row;
  Buffer attention;
  AttendScratch attend;
  ActivationRoom narrow;  // one row, where each thread prepares it for itself
  float gate_up[kGateRoom];
  // Of the logits that the thread computed in this step: whether all are finite, and the best of each row (of equals the lowest token).
  bool finite;
  std::vector<Best> best;
};

class Engine {
 public:
  Engine(Model model, const Kernels& kernels);
  // Throws std::invalid_argument for a step that cannot be run; then nothing was computed. One caller at a time.
  void step(const EdgedStep& step);
  // Returns how many steps were computed; throws where not even the first was.
  int decode(const DecodeOrder& order);
  // Throws std::invalid_argument for a block outside the cache.
  void copy_block(int from, int to);
  size_t cache_bytes() const { return cache_.bytes(); }
  size_t buffer_bytes() const;

 private:
  friend struct Forward;
  Plan plan(const EdgedStep& step) const;
  void compute(const EdgedStep& step);
  Best best(int row) const;  // of the logits of the last step

  const Model model_;
  const Kernels& kernels_;
  Threads threads_;
  std::mutex mutex_;
  size_t head_stride_, block_stride_, layer_stride_;  // of the cache, in halves
  const int projected_stride_;    // of query, key and value of one row
  Buffer cache_, x_, projected_, attended_, partials_;
  Buffer logits_;                 // of a decode, [sequences, vocabulary rounded up to 8]
  ActivationRoom narrow_, wide_;  // inputs of width or heads·dim; of ffn
  std::vector<std::unique_ptr<ThreadRoom>> rooms_;
  Shares shares_;
};

}  // namespace edged

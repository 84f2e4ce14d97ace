// A step's rows and how its attention is divided into pieces of work.
#pragma once
#include <vector>

#include "api.h"
#include "kernels.h"

namespace edged {

// One token of a step.
struct Row {
  int token, position, slice;
};

// A piece of attention: rows of one slice, one key/value head, some chunks.
struct Piece {
  int row, rows, kv_head, chunk_begin, chunk_end;
  int64_t partial;  // where its partial result goes, to be merged, in floats; −1: its result is complete
  // Whether it continues `other`: its chunks and its partial result follow the other's.
  bool follows(const Piece& other) const {
    return partial >= 0 && row == other.row && kv_head == other.kv_head && chunk_begin == other.chunk_end;
  }
};

// The attention of a layer.
struct AttentionPlan {
  int window = 0;  // tokens that a token sees; 0: all
  std::vector<Piece> pieces;
  std::vector<int64_t> row_partial;  // of the row's first partial result; −1: none
  size_t partial_floats = 0;
  bool equal_pieces = false;  // all pieces are single chunks, which cost the same
};

// What the threads of one step share.
struct Plan {
  EdgedStep step;
  std::vector<Row> rows;
  bool one_token_each = false;   // each token is another sequence's: none attends to another of the same step
  AttentionPlan full, windowed;  // for layers that see all tokens, and for those that see some
  const AttentionPlan& attention(const EdgedAttention& layer) const { return layer.window ? windowed : full; }
};

// What a model's layers read and write: the cache of those without a window, that of those with this one (0:
// there are none), and so many recurrent states (0: it has none).
struct StepNeeds {
  bool full = true;
  int window = 0, states = 0;
};

// Throws std::invalid_argument with a sentence for a step that this shape cannot run. Reads only what the
// step says it has.
void check_step(const EdgedConfig& config, const StepNeeds& needs, const EdgedStep& step);

// The plan of a step that check_step accepts, for layers without a window and with this one (0: there are
// none).
Plan plan_step(const EdgedConfig& config, int window, const EdgedStep& step);

}  // namespace edged

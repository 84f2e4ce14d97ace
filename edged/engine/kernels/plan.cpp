#include "plan.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "model.h"

namespace edged {
namespace {

// A slice of at most as many rows is split by chunks of attention, a longer one by rows.
constexpr int kMaxRowsSplitByChunks = 4;

void require(bool holds, const char* sentence) {
  if (!holds) throw std::invalid_argument(sentence);
}

// One sentence with two numbers in it.
[[noreturn]] void fail(const char* before, int first, const char* between, int second,
                       const char* after = "") {
  throw std::invalid_argument(before + std::to_string(first) + between + std::to_string(second) + after);
}

int chunks_of(int tokens) { return (tokens + kChunkTokens - 1) / kChunkTokens; }

// The blocks of one table that the slice reads or writes: those from `begin` on.
void check_table(const EdgedStep& step, const EdgedSlice& slice, int first_block, int begin, int blocks) {
  require(first_block >= 0 && slice.block_count >= 0 && first_block <= step.block_count - slice.block_count,
          "a block table lies outside the tables");
  const int needed = (slice.position + slice.count + kBlockTokens - 1) / kBlockTokens;
  require(slice.block_count >= needed, "a block table is shorter than its sequence");
  for (int b = begin; b < needed; b++) {
    const int block = step.blocks[first_block + b];
    if (block < 0 || block >= blocks) fail("block ", block, " is outside the cache of ", blocks, " blocks");
  }
}

void check_slice(const EdgedConfig& c, const StepNeeds& needs, const EdgedStep& step, const EdgedSlice& slice,
                 int first) {
  require(slice.count >= 1 && slice.count <= step.token_count - first,
          "the slices' counts do not add up to the tokens");
  if (slice.position < 0 || slice.position > c.context - slice.count)
    throw std::invalid_argument("a slice reaches beyond the context of " + std::to_string(c.context) +
                                " tokens");
  if (needs.full) check_table(step, slice, slice.first_block, 0, c.blocks);
  if (needs.window) {
    const int seen = std::max(0, slice.position + 1 - needs.window);
    check_table(step, slice, slice.first_window_block, seen / kBlockTokens, c.window_blocks);
  }
  for (int i = first; i < first + slice.count; i++) {
    const int token = step.tokens[i];
    if (token < 0 || token >= c.vocabulary)
      fail("token ", token, " is outside the vocabulary of ", c.vocabulary);
  }
}

// Each slice writes a state of its own, which no slice reads.
void check_states(const EdgedStep& step, int states) {
  std::vector<uint8_t> written((size_t)states);
  for (int s = 0; s < step.slice_count; s++) {
    const EdgedSlice& slice = step.slices[s];
    require(slice.next_state >= 0 && slice.next_state < states && !written[slice.next_state],
            "two slices write the same state, or one that does not exist");
    written[slice.next_state] = 1;
  }
  for (int s = 0; s < step.slice_count; s++) {
    const EdgedSlice& slice = step.slices[s];
    require(slice.state < states && (slice.position ? slice.state >= 0 : slice.state == -1),
            "a slice does not begin with the state of its position");
    require(slice.state < 0 || !written[slice.state], "a state is read and written in the same step");
  }
}

// Few rows and a long past: each chunk of each key/value head is a piece of its own.
void split_by_chunks(const EdgedConfig& c, const EdgedSlice& slice, int first, AttentionPlan& p) {
  const size_t record = (size_t)(c.heads / c.kv_heads) * (c.head_dim + 8);
  for (int i = 0; i < slice.count; i++) {
    const int begin = first_chunk(slice.position + i, p.window),
              chunks = chunks_of(slice.position + i + 1) - begin;
    p.row_partial[first + i] = (int64_t)p.partial_floats;
    for (int h = 0; h < c.kv_heads; h++)
      for (int k = 0; k < chunks; k++) {
        const size_t partial = p.partial_floats + ((size_t)h * chunks + k) * record;
        p.pieces.push_back({first + i, 1, h, begin + k, begin + k + 1, (int64_t)partial});
      }
    p.partial_floats += record * chunks * c.kv_heads;
  }
}

// Pieces of some rows and one key/value head, with all chunks that these rows see.
void split_by_rows(const EdgedConfig& c, const EdgedSlice& slice, int first, AttentionPlan& p) {
  const int most = std::max(1, kMaxLanes / 2 / (c.heads / c.kv_heads));
  for (int i = 0; i < slice.count; i += most) {
    const int rows = std::min(most, slice.count - i), end = chunks_of(slice.position + i + rows),
              begin = first_chunk(slice.position + i, p.window);
    for (int h = 0; h < c.kv_heads; h++) p.pieces.push_back({first + i, rows, h, begin, end, -1});
  }
}

AttentionPlan plan_attention(const EdgedConfig& c, const EdgedStep& step, int window) {
  AttentionPlan p;
  p.window = window;
  p.row_partial.assign((size_t)step.token_count, -1);
  int first = 0;
  for (int s = 0; s < step.slice_count; s++) {
    const EdgedSlice& slice = step.slices[s];
    const int chunks = chunks_of(slice.position + slice.count) - first_chunk(slice.position, window);
    (slice.count <= kMaxRowsSplitByChunks && chunks > 1 ? split_by_chunks : split_by_rows)(c, slice, first,
                                                                                           p);
    first += slice.count;
  }
  p.equal_pieces =
      std::all_of(p.pieces.begin(), p.pieces.end(), [](const Piece& piece) { return piece.partial >= 0; });
  return p;
}

}  // namespace

void check_step(const EdgedConfig& c, const StepNeeds& needs, const EdgedStep& step) {
  if (step.token_count < 1 || step.token_count > c.max_rows)
    fail("a step computes 1 to ", c.max_rows, " tokens, not ", step.token_count);
  require(step.slice_count >= 1 && step.slice_count <= step.token_count,
          "a step needs at least one slice, and a token in each");
  require(step.wanted_count >= 0 && step.wanted_count <= step.token_count,
          "more logits are wanted than tokens are computed");
  require(step.wanted_count == 0 || step.logits || step.hidden, "there is no space for what is wanted");
  require(step.wanted_count == 0 || !step.logits || step.logits_stride >= round_up(c.vocabulary, 8),
          "the rows of the logits are shorter than the vocabulary");
  int tokens = 0;
  for (int s = 0; s < step.slice_count; s++) {
    check_slice(c, needs, step, step.slices[s], tokens);
    tokens += step.slices[s].count;
  }
  require(tokens == step.token_count, "the slices' counts do not add up to the tokens");
  if (needs.states) check_states(step, needs.states);
  for (int i = 0; i < step.wanted_count; i++)
    require(step.wanted[i] >= 0 && step.wanted[i] < step.token_count,
            "logits are wanted of a token that is not in the step");
}

Plan plan_step(const EdgedConfig& c, int window, const EdgedStep& step) {
  Plan p{step, {}, step.token_count == step.slice_count, plan_attention(c, step, 0), {}};
  if (window) p.windowed = plan_attention(c, step, window);
  p.rows.reserve((size_t)step.token_count);
  for (int s = 0; s < step.slice_count; s++) {
    const EdgedSlice& slice = step.slices[s];
    const int first = (int)p.rows.size();
    for (int i = 0; i < slice.count; i++) p.rows.push_back({step.tokens[first + i], slice.position + i, s});
  }
  return p;
}

}  // namespace edged

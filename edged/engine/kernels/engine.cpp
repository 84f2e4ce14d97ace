#include "engine.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

#include "forward.h"

namespace edged {
namespace {

void require(bool holds, const std::string& what) {
  if (!holds) throw std::invalid_argument(what);
}

constexpr int kRowsTogether = 4;  // rows of a slice that need splitting by chunks of attention rather than by rows

}  // namespace

ActivationRoom::ActivationRoom(int rows, int width) : stride(round_up(width, 128)) {
  const size_t all = (size_t)rows * stride;
  values = Buffer(all * 4);
  codes = Buffer(all);
  scale = Buffer(all / 32 * 4);
  offset8 = Buffer(all / 32 * 4);
  sum = Buffer(all / 32 * 4);
}

Activations ActivationRoom::view(int m, int from) const {
  const size_t at = (size_t)from * stride, group = at / kActivationGroup;
  return {values.as<float>() + at, codes.as<int8_t>() + at,      scale.as<float>() + group,
          offset8.as<int32_t>() + group, sum.as<float>() + group, m, stride};
}

Engine::Engine(Model model, const Kernels& kernels)
    : model_(std::move(model)),
      kernels_(kernels),
      threads_(model_.config.threads),
      projected_stride_((model_.config.heads + 2 * model_.config.kv_heads) * model_.config.head_dim),
      shares_(kSharedPhases, model_.config.threads) {
  const EdgedConfig& c = model_.config;
  const size_t rows = (size_t)c.max_rows;
  head_stride_ = (size_t)c.head_dim * kBlockTokens * 2;
  layer_stride_ = head_stride_ * c.kv_heads;
  // A block's layers lie together: a short sequence then touches little memory, even where pages are huge.
  block_stride_ = layer_stride_ * c.layers;
  cache_ = Buffer(block_stride_ * c.blocks * 2);
  const size_t q = (size_t)c.heads * c.head_dim;
  x_ = Buffer(rows * round_up(c.width, 8) * 4);
  projected_ = Buffer(rows * projected_stride_ * 4);
  attended_ = Buffer(rows * q * 4);
  narrow_ = ActivationRoom(c.max_rows, std::max(c.width, (int)q));
  wide_ = ActivationRoom(c.max_rows, c.ffn);
  for (int t = 0; t < c.threads; t++) {
    auto room = std::make_unique<ThreadRoom>();
    room->row.resize((size_t)narrow_.stride);
    room->best.reserve(rows);
    room->narrow = ActivationRoom(1, narrow_.stride);
    room->attention = Buffer(AttendScratch::floats((size_t)c.head_dim) * 4);
    room->attend = AttendScratch(room->attention.as<float>(), (size_t)c.head_dim);
    rooms_.push_back(std::move(room));
  }
}

void Engine::copy_block(int from, int to) {
  const EdgedConfig& c = model_.config;
  for (const int block : {from, to})
    require(block >= 0 && block < c.blocks, "block " + std::to_string(block) + " is outside the cache of " + std::to_string(c.blocks) + " blocks");
  if (from == to) return;
  std::lock_guard<std::mutex> lock(mutex_);
  uint16_t* cache = cache_.as<uint16_t>();
  memcpy(cache + (size_t)to * block_stride_, cache + (size_t)from * block_stride_, block_stride_ * sizeof *cache);
}

size_t Engine::buffer_bytes() const {
  size_t all = x_.bytes() + projected_.bytes() + attended_.bytes() + partials_.bytes() + logits_.bytes();
  all += narrow_.bytes() + wide_.bytes() + (model_.cosine.size() + model_.sine.size()) * 4;
  for (const auto& room : rooms_) all += sizeof *room + room->narrow.bytes() + room->attention.bytes() + room->row.size() * 4;
  return all;
}

Plan Engine::plan(const EdgedStep& step) const {
  const EdgedConfig& c = model_.config;
  require(step.token_count >= 1 && step.token_count <= c.max_rows, "a step computes 1 to " + std::to_string(c.max_rows) + " tokens, not " + std::to_string(step.token_count));
  require(step.slice_count >= 1 && step.slice_count <= step.token_count, "a step needs at least one slice, and a token in each");
  require(step.wanted_count >= 0 && step.wanted_count <= step.token_count, "more logits are wanted than tokens are computed");
  require(step.wanted_count == 0 || step.logits_stride >= round_up(c.vocabulary, 8), "the rows of the logits are shorter than the vocabulary");
  Plan p{step, {}, {}, {}, 0, false, step.token_count == step.slice_count};
  p.rows.reserve((size_t)step.token_count);
  const int heads = c.heads / c.kv_heads;
  for (int s = 0; s < step.slice_count; s++) {
    const EdgedSlice& slice = step.slices[s];
    require(slice.count >= 1 && slice.count <= step.token_count - (int)p.rows.size(), "the slices' counts do not add up to the tokens");
    require(slice.position >= 0 && slice.position <= c.context - slice.count, "a slice reaches beyond the context of " + std::to_string(c.context) + " tokens");
    require(slice.first_block >= 0 && slice.block_count >= 0 && slice.first_block <= step.block_count - slice.block_count, "a block table lies outside the tables");
    const int needed = (slice.position + slice.count + kBlockTokens - 1) / kBlockTokens;
    require(slice.block_count >= needed, "a block table is shorter than its sequence");
    for (int b = 0; b < needed; b++) {
      const int block = step.blocks[slice.first_block + b];
      require(block >= 0 && block < c.blocks, "block " + std::to_string(block) + " is outside the cache of " + std::to_string(c.blocks) + " blocks");
    }
    const int first = (int)p.rows.size();
    for (int i = 0; i < slice.count; i++) {
      const int token = step.tokens[first + i];
      require(token >= 0 && token < c.vocabulary, "token " + std::to_string(token) + " is outside the vocabulary of " + std::to_string(c.vocabulary));
      p.rows.push_back({token, slice.position + i, s});
      p.row_partial.push_back(-1);
    }
    const auto chunks_of = [](int tokens) { return (tokens + kChunkTokens - 1) / kChunkTokens; };
    if (slice.count <= kRowsTogether && chunks_of(slice.position + slice.count) > 1) {
      // Few rows and a long past: the chunks are shared out.
      for (int i = 0; i < slice.count; i++) {
        const int chunks = chunks_of(slice.position + i + 1);
        p.row_partial[first + i] = (int64_t)p.partial_floats;
        const size_t one = (size_t)heads * (c.head_dim + 8);
        for (int h = 0; h < c.kv_heads; h++)
          for (int k = 0; k < chunks; k++) p.pieces.push_back({first + i, 1, h, k, k + 1, (int64_t)(p.partial_floats + ((size_t)h * chunks + k) * one)});
        p.partial_floats += one * chunks * c.kv_heads;
      }
    } else {
      const int together = std::max(1, kMaxLanes / 2 / heads);
      for (int i = 0; i < slice.count; i += together) {
        const int rows = std::min(together, slice.count - i);
        for (int h = 0; h < c.kv_heads; h++) p.pieces.push_back({first + i, rows, h, 0, chunks_of(slice.position + i + rows), -1});
      }
    }
  }
  require((int)p.rows.size() == step.token_count, "the slices' counts do not add up to the tokens");
  for (int i = 0; i < step.wanted_count; i++)
    require(step.wanted[i] >= 0 && step.wanted[i] < step.token_count, "logits are wanted of a token that is not in the step");
  p.alike = std::all_of(p.pieces.begin(), p.pieces.end(), [](const Piece& piece) { return piece.partial >= 0; });
  return p;
}

void Engine::step(const EdgedStep& step) {
  std::lock_guard<std::mutex> lock(mutex_);
  compute(step);
}

Best Engine::best(int row) const {
  Best found = rooms_[0]->best[(size_t)row];
  for (const auto& room : rooms_)
    if (room->best[(size_t)row] > found) found = room->best[(size_t)row];
  return found;
}

void Engine::compute(const EdgedStep& step) {
  Plan p = plan(step);
  if (partials_.bytes() < p.partial_floats * 4) partials_ = Buffer(p.partial_floats * 4);
  shares_.reset();
  Forward forward{*this, p};
  threads_.run([](void* context, int thread) { static_cast<Forward*>(context)->run(thread); }, &forward);
  for (const auto& room : rooms_)
    if (step.wanted_count && !room->finite) throw std::runtime_error("the logits are not finite: the model's weights are damaged or overflow");
}

}  // namespace edged

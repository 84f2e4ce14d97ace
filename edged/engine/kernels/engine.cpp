#include "engine.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>

#include "forward.h"

namespace edged {

ActivationBuffer::ActivationBuffer(int rows, int width) : stride(round_up(width, 128)) {
  const size_t all = (size_t)rows * stride;
  values = Buffer(all * 4);
  codes = Buffer(all);
  scale = Buffer(all / 32 * 4);
  offset8 = Buffer(all / 32 * 4);
  sum = Buffer(all / 32 * 4);
  half_offset8 = Buffer(all / 16 * 4);
  half_sum = Buffer(all / 16 * 4);
}

Activations ActivationBuffer::view(int m, int from) const {
  const CodedRow row = coded_row(from);
  return {values.as<float>() + (size_t)from * stride,
          row.codes,
          row.scale,
          row.offset8,
          row.sum,
          row.half_offset8,
          row.half_sum,
          m,
          stride};
}

CodedRow ActivationBuffer::coded_row(int at, int from) const {
  const size_t first = (size_t)at * stride + from, group = first / kActivationGroup;
  return {codes.as<int8_t>() + first,
          scale.as<float>() + group,
          offset8.as<int32_t>() + group,
          sum.as<float>() + group,
          half_offset8.as<int32_t>() + 2 * group,
          half_sum.as<float>() + 2 * group};
}

void ActivationBuffer::copy_row(int at, const ActivationBuffer& other, int row, bool floats,
                                bool with_codes) {
  const size_t n = (size_t)stride, groups = n / kActivationGroup;
  if (floats) std::copy_n(other.values.as<float>() + row * n, n, values.as<float>() + at * n);
  if (!with_codes) return;
  const CodedRow from = other.coded_row(row), to = coded_row(at);
  std::copy_n(from.codes, n, to.codes);
  std::copy_n(from.scale, groups, to.scale);
  std::copy_n(from.offset8, groups, to.offset8);
  std::copy_n(from.sum, groups, to.sum);
  std::copy_n(from.half_offset8, 2 * groups, to.half_offset8);
  std::copy_n(from.half_sum, 2 * groups, to.half_sum);
}

namespace {

// The most values of one row that the projections of a layer make.
int projected_values(const Model& model) {
  const EdgedConfig& c = model.config;
  const int attention = ((model.has(kGated) ? 2 : 1) * c.heads + 2 * c.kv_heads) * c.head_dim;
  if (!model.recurrent_layers) return attention;
  const int heads = round_up(c.delta_value_heads, kTileRows);
  return std::max(attention,
                  c.delta_key_heads ? model.channels() + model.delta_values() + 2 * heads : 3 * c.width);
}

// The values of one row that the output product of any layer reads.
int mixed_values(const Model& model) {
  const EdgedConfig& c = model.config;
  const int attention = c.heads * c.head_dim;
  if (!model.recurrent_layers) return attention;
  return std::max(attention, c.delta_key_heads ? model.delta_values() : c.width);
}

}  // namespace

Engine::Engine(Model model, const Kernels& kernels)
    : model_(std::move(model)),
      kernels_(kernels),
      threads_(model_.config.threads),
      projected_stride_(projected_values(model_)),
      shares_(kSharedPhases, model_.config.threads) {
  const EdgedConfig& c = model_.config;
  const size_t rows = (size_t)c.max_rows;
  head_stride_ = (size_t)c.head_dim * kBlockTokens * 2;
  layer_stride_ = head_stride_ * c.kv_heads;
  for (const Layer& layer : model_.layers)
    if (layer.attention.kind == kAttention) caches_[layer.attention.window > 0].layers++;
  caches_[0].blocks = c.blocks;
  caches_[1].blocks = c.window_blocks;
  for (Cache& cache : caches_) {
    // All layers of a block are adjacent: a short sequence then touches little memory, even where pages are
    // huge.
    cache.block_stride = layer_stride_ * cache.layers;
    cache.memory = Buffer(cache.block_stride * cache.blocks * 2);
  }
  const int mixed = mixed_values(model_);
  x_ = Buffer(rows * round_up(c.width, 8) * 4);
  projected_ = Buffer(rows * projected_stride_ * 4);
  attended_ = Buffer(rows * mixed * 4);
  if (model_.recurrent_layers)
    states_ = Buffer((size_t)c.states * model_.recurrent_layers * model_.state_floats() * 4);
  if (c.delta_key_heads) {
    convolved_ = Buffer(rows * model_.channels() * 4);
    unit_query_.assign((size_t)c.delta_key_dim, 1.f / (float)c.delta_key_dim);
    unit_key_.assign((size_t)c.delta_key_dim, 1.f / std::sqrt((float)c.delta_key_dim));
  }
  if (!model_.adds_products) added_ = Buffer(rows * c.width * 4);
  cosine_ = Buffer(rows * c.ropes * c.rope_pairs * 4);
  sine_ = Buffer(cosine_.bytes());
  hidden_input_ = ActivationBuffer(c.max_rows, std::max(c.width, mixed));
  const size_t choices = rows * std::max(1, c.experts_used);
  ffn_input_ = ActivationBuffer((int)choices, c.ffn);
  router_logits_ = Buffer(rows * round_up(c.experts, kTileRows) * 4);
  if (c.experts) chosen_ = Buffer(choices * 4), expert_weights_ = Buffer(choices * 4);
  for (int t = 0; t < c.threads; t++) {
    auto buffers = std::make_unique<ThreadBuffers>();
    buffers->row.resize((size_t)hidden_input_.stride);
    if (!model_.adds_products) {
      buffers->added.resize((size_t)c.width);
      buffers->residual.resize((size_t)c.width);
    }
    if (c.delta_key_heads) {
      buffers->delta_state.resize((size_t)c.delta_key_dim * kDeltaColumns);
      buffers->delta_gates.resize(2 * rows);
    }
    buffers->best.reserve(rows);
    buffers->hidden_input = ActivationBuffer(1, hidden_input_.stride);
    if (c.experts) buffers->expert_input = ActivationBuffer(kRowBlock, hidden_input_.stride);
    buffers->attention_memory = Buffer(AttentionScratch::floats((size_t)c.head_dim) * 4);
    buffers->attention = AttentionScratch(buffers->attention_memory.as<float>(), (size_t)c.head_dim);
    thread_buffers_.push_back(std::move(buffers));
  }
}

void Engine::copy_block(bool windowed, int from, int to) {
  const Cache& cache = caches_[windowed];
  for (const int block : {from, to})
    if (block < 0 || block >= cache.blocks)
      throw std::invalid_argument("block " + std::to_string(block) + " is outside the cache of " +
                                  std::to_string(cache.blocks) + " blocks");
  if (from == to) return;
  std::lock_guard<std::mutex> lock(mutex_);
  memcpy(cache.block(to), cache.block(from), cache.block_stride * sizeof(uint16_t));
}

size_t Engine::buffer_bytes() const {
  size_t all = x_.bytes() + projected_.bytes() + attended_.bytes() + partials_.bytes() + logits_.bytes();
  all += router_logits_.bytes() + chosen_.bytes() + expert_weights_.bytes();
  all += hidden_input_.bytes() + ffn_input_.bytes() + added_.bytes() + cosine_.bytes() + sine_.bytes();
  all += convolved_.bytes();
  for (const auto& buffers : thread_buffers_)
    all += sizeof *buffers + buffers->hidden_input.bytes() + buffers->expert_input.bytes() +
           buffers->attention_memory.bytes() +
           (buffers->row.size() + buffers->added.size() + buffers->residual.size() +
            buffers->delta_state.size() + buffers->delta_gates.size()) *
               4;
  return all;
}

void Engine::step(const EdgedStep& step) {
  std::lock_guard<std::mutex> lock(mutex_);
  compute(step);
}

Best Engine::best(int row) const {
  Best found = thread_buffers_[0]->best[(size_t)row];
  for (const auto& buffers : thread_buffers_)
    if (buffers->best[(size_t)row] > found) found = buffers->best[(size_t)row];
  return found;
}

void Engine::compute(const EdgedStep& step) {
  const StepNeeds needs{caches_[0].layers > 0, model_.window,
                        model_.recurrent_layers ? model_.config.states : 0};
  check_step(model_.config, needs, step);
  const Plan plan = plan_step(model_.config, model_.window, step);
  const size_t partials = std::max(plan.full.partial_floats, plan.windowed.partial_floats) * 4;
  if (partials_.bytes() < partials) partials_ = Buffer(partials);
  shares_.reset();
  Forward forward{*this, plan};
  threads_.run([](void* context, int thread) { static_cast<Forward*>(context)->run(thread); }, &forward);
  for (const auto& buffers : thread_buffers_)
    if (step.wanted_count && !buffers->all_finite)
      throw std::runtime_error("the logits are not finite: the model's weights are damaged or overflow");
}

}  // namespace edged

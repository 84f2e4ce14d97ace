// The part of the forward pass between the projections and the result of a layer with a recurrent state.
#include <algorithm>
#include <cmath>

#include "forward.h"

namespace edged {

float* Forward::state_of(const Layer& layer, int state) const {
  const Model& model = engine.model_;
  if (state < 0) return nullptr;
  return engine.states_.as<float>() +
         ((size_t)state * model.recurrent_layers + layer.state_index) * model.state_floats();
}

// The short convolution of LFM2: of B, C and x, which are a row's projections, C · convolution(B · x). Each
// thread computes some channels of all rows, and the same channels of the states.
void Forward::convolve(const Layer& layer, int thread) {
  const EdgedConfig& c = engine.model_.config;
  const Share eighths = share(c.width / 8, thread, c.threads);
  const int begin = eighths.begin * 8, n = eighths.end * 8 - begin;
  int first = 0;
  for (int s = 0; s < plan.step.slice_count; s++) {
    const EdgedSlice& slice = plan.step.slices[s];
    float* inputs = engine.projected_.as<float>() + (size_t)first * engine.projected_stride_ + begin;
    float* out = engine.attended_.as<float>() + (size_t)first * c.width + begin;
    for (int i = 0; i < slice.count; i++, inputs += engine.projected_stride_)
      engine.kernels_.multiply(inputs, inputs + 2 * c.width, n);
    inputs -= (size_t)slice.count * engine.projected_stride_;
    convolve_slice(layer, slice, inputs, begin, n, out, (size_t)c.width);
    for (int i = 0; i < slice.count; i++)
      engine.kernels_.multiply(out + (size_t)i * c.width,
                               inputs + (size_t)i * engine.projected_stride_ + c.width, n);
    first += slice.count;
  }
}

// inputs (count,n), whose rows are projections, with the state's (taps−1,n) before them -> out (count,n), and
// the last of them -> the next state, for channels from `begin` on.
void Forward::convolve_slice(const Layer& layer, const EdgedSlice& slice, const float* inputs, int begin,
                             int n, float* out, size_t out_stride) const {
  const EdgedConfig& c = engine.model_.config;
  const int past = c.taps - 1;
  const size_t channels = (size_t)engine.model_.channels();
  const float* state = state_of(layer, slice.state);
  float* next = state_of(layer, slice.next_state) + begin;
  const auto input = [&](int i) -> const float* {  // null: before the first token
    if (i >= 0) return inputs + (size_t)i * engine.projected_stride_;
    return state ? state + (size_t)(past + i) * channels + begin : nullptr;
  };
  for (int i = 0; i < slice.count; i++) {
    const float* rows[kMaxTaps];
    for (int k = 0; k < c.taps; k++) rows[k] = input(i - past + k);
    engine.kernels_.convolve(rows, layer.taps + begin, channels, c.taps, n, out + (size_t)i * out_stride);
  }
  for (int k = 0; k < past; k++, next += channels) {
    const float* row = input(slice.count - past + k);
    if (row)
      std::copy(row, row + n, next);
    else
      std::fill(next, next + n, 0.f);
  }
}

// Each thread computes some heads of queries, keys and values, of all rows.
void Forward::convolve_heads(const Layer& layer, int thread) {
  const EdgedConfig& c = engine.model_.config;
  const Share heads = share(2 * c.delta_key_heads + c.delta_value_heads, thread, c.threads);
  for (int h = heads.begin; h < heads.end; h++) convolve_head(layer, h, engine.convolved_.as<float>());
}

// One head of queries, keys or values, counted in this order: silu(convolution) -> its columns of
// out (m,channels); queries and keys with length 1, and queries then scaled by 1 / √key_dim.
void Forward::convolve_head(const Layer& layer, int head, float* out) const {
  constexpr float kEpsilon = 1e-6f;  // of the length, squared
  const EdgedConfig& c = engine.model_.config;
  const Kernels& k = engine.kernels_;
  const size_t channels = (size_t)engine.model_.channels();
  const int first_value = 2 * c.delta_key_heads;
  const int dim = head < first_value ? c.delta_key_dim : c.delta_value_dim;
  const int begin =
      std::min(head, first_value) * c.delta_key_dim + std::max(0, head - first_value) * c.delta_value_dim;
  const std::vector<float>& unit = head < c.delta_key_heads ? engine.unit_query_ : engine.unit_key_;
  int first = 0;
  for (int s = 0; s < plan.step.slice_count; s++) {
    const EdgedSlice& slice = plan.step.slices[s];
    float* x = out + (size_t)first * channels + begin;
    convolve_slice(layer, slice,
                   engine.projected_.as<float>() + (size_t)first * engine.projected_stride_ + begin, begin,
                   dim, x, channels);
    for (int i = 0; i < slice.count; i++, x += channels) {
      k.silu(x, dim);
      if (head < first_value) k.rms_norm(x, unit.data(), dim, kEpsilon / (float)dim, x);
    }
    first += slice.count;
  }
}

// Columns of the value heads' matrices do not depend on each other: kDeltaColumns of them are a unit of work,
// whose part of the state stays in the first-level cache for all tokens of a slice.
void Forward::apply_delta_rule(const Layer& layer, int thread) {
  const EdgedConfig& c = engine.model_.config;
  const int in_head = (c.delta_value_dim + kDeltaColumns - 1) / kDeltaColumns;
  const int in_slice = c.delta_value_heads * in_head;
  const Share units = share(plan.step.slice_count * in_slice, thread, c.threads);
  int slice = 0, first = 0;  // its first row
  for (int u = units.begin; u < units.end; u++) {
    for (; slice < u / in_slice; slice++) first += plan.step.slices[slice].count;
    const int head = u % in_slice / in_head;
    delta_columns(layer, slice, first, head, u % in_head * kDeltaColumns, thread);
  }
}

// The delta rule for a head's columns from `column` on and the rows of a slice; `first` is the first of them.
void Forward::delta_columns(const Layer& layer, int slice_number, int first, int head, int column,
                            int thread) {
  const Model& model = engine.model_;
  const EdgedConfig& c = model.config;
  ThreadBuffers& own = *engine.thread_buffers_[thread];
  const EdgedSlice& slice = plan.step.slices[slice_number];
  const int key_head =
      model.has(kTiledHeads) ? head % c.delta_key_heads : head / (c.delta_value_heads / c.delta_key_heads);
  const float* row = engine.convolved_.as<float>() + (size_t)first * model.channels();
  DeltaTask work;
  work.query = row + key_head * c.delta_key_dim;
  work.key = work.query + model.delta_keys();
  work.value = row + 2 * model.delta_keys() + head * c.delta_value_dim + column;
  work.stride = (size_t)model.channels();
  work.decay = own.delta_gates.data();
  work.beta = own.delta_gates.data() + slice.count;
  work.tokens = slice.count;
  work.key_dim = c.delta_key_dim;
  work.columns = std::min(kDeltaColumns, c.delta_value_dim - column);
  work.state = own.delta_state.data();
  work.out_stride = (size_t)layer.out.cols;
  work.out =
      engine.attended_.as<float>() + (size_t)first * work.out_stride + head * c.delta_value_dim + column;
  find_gates(layer, first, slice.count, head, own.delta_gates.data(), own.delta_gates.data() + slice.count);
  // The head's matrix (key_dim, value_dim) in the state.
  const size_t at =
      (size_t)(c.taps - 1) * model.channels() + (size_t)head * c.delta_key_dim * c.delta_value_dim + column;
  const float* state = state_of(layer, slice.state);
  std::fill(own.delta_state.begin(), own.delta_state.end(), 0.f);
  for (int k = 0; state && k < c.delta_key_dim; k++)
    std::copy_n(state + at + (size_t)k * c.delta_value_dim, work.columns, work.state + k * kDeltaColumns);
  engine.kernels_.delta_rule(work);
  float* next = state_of(layer, slice.next_state) + at;
  for (int k = 0; k < c.delta_key_dim; k++)
    std::copy_n(work.state + k * kDeltaColumns, work.columns, next + (size_t)k * c.delta_value_dim);
}

// decay (count,) = e^(decay · softplus(alpha + bias)) and beta (count,) = sigmoid(beta) of a value head.
void Forward::find_gates(const Layer& layer, int first, int count, int head, float* decay,
                         float* beta) const {
  const Model& model = engine.model_;
  const int heads = round_up(model.config.delta_value_heads, kTileRows);
  for (int i = 0; i < count; i++) {
    const float* gates = engine.projected_.as<float>() + (size_t)(first + i) * engine.projected_stride_ +
                         model.channels() + model.delta_values();
    const double step = (double)gates[heads + head] + layer.delta_step_bias[head];
    const double softplus = step > 20 ? step : std::log1p(std::exp(step));
    decay[i] = (float)std::exp(layer.delta_decay[head] * softplus);
    beta[i] = (float)(1 / (1 + std::exp(-(double)gates[head])));
  }
}

}  // namespace edged

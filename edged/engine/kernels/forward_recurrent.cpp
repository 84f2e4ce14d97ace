// The part of the forward pass between the projections and the result of a layer with a recurrent state.
#include <algorithm>

#include "forward.h"

namespace edged {

float* Forward::state_of(const Layer& layer, int state) const {
  const Model& model = engine.model_;
  if (state < 0) return nullptr;
  return engine.states_.as<float>() +
         ((size_t)state * model.recurrent_layers + layer.number) * model.state_floats();
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
    convolve_slice(layer, slice, inputs, begin, n, out);
    for (int i = 0; i < slice.count; i++)
      engine.kernels_.multiply(out + (size_t)i * c.width,
                               inputs + (size_t)i * engine.projected_stride_ + c.width, n);
    first += slice.count;
  }
}

// inputs (count,n), whose rows are projections, with the state's (taps−1,n) before them -> out (count,n), and
// the last of them -> the next state, for channels from `begin` on.
void Forward::convolve_slice(const Layer& layer, const EdgedSlice& slice, const float* inputs, int begin,
                             int n, float* out) const {
  const EdgedConfig& c = engine.model_.config;
  const int past = c.taps - 1;
  const float* state = state_of(layer, slice.state);
  float* next = state_of(layer, slice.next_state) + begin;
  const auto input = [&](int i) -> const float* {  // null: before the first token
    if (i >= 0) return inputs + (size_t)i * engine.projected_stride_;
    return state ? state + (size_t)(past + i) * c.width + begin : nullptr;
  };
  for (int i = 0; i < slice.count; i++) {
    const float* rows[kMaxTaps];
    for (int k = 0; k < c.taps; k++) rows[k] = input(i - past + k);
    engine.kernels_.convolve(rows, layer.taps + begin, (size_t)c.width, c.taps, n,
                             out + (size_t)i * c.width);
  }
  for (int k = 0; k < past; k++, next += c.width) {
    const float* row = input(slice.count - past + k);
    if (row)
      std::copy(row, row + n, next);
    else
      std::fill(next, next + n, 0.f);
  }
}

}  // namespace edged

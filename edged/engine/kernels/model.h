// A model's weights as views into the packed file, checked once.
#pragma once
#include <string>
#include <vector>

#include "api.h"
#include "kernels.h"

namespace edged {

// Vectors are null where the model has none.
struct Norm {
  const float *weight = nullptr, *bias = nullptr;
};

// What is done to a product before it is added to the residual stream.
struct Addition {
  const float *bias = nullptr, *norm = nullptr;
};

struct Layer {
  EdgedAttention attention;
  int cache_index = -1;  // of an attention layer: among those with a window, or among those without
  int state_index = -1;  // of a recurrent layer: among all recurrent ones
  Norm attention_norm, ffn_norm;
  const float *query_bias, *key_bias, *value_bias;
  const float *query_norm, *key_norm;
  const float* gate_up_bias;
  Addition attention_addition, ffn_addition;
  // Query, key and value, or what a recurrent layer begins with; fused where they are adjacent and stored
  // alike.
  std::vector<Matrix> projections;
  const float *taps, *delta_decay, *delta_step_bias, *delta_norm;
  std::vector<Matrix> gate_up;  // one matrix with 32 rows of each in turn, or gate and up
  Matrix out, down;
  Matrix router;  // of a mixture of experts, whose matrices follow each other in gate_up and down
};

struct Model {
  EdgedConfig config;
  Matrix embedding, head;
  Norm final_norm;
  std::vector<Layer> layers;
  std::vector<float> inverse_frequency, rope_scale;  // as the config's, which the caller may free
  int window = 0;  // of the layers that see some tokens only; 0: there are none
  int recurrent_layers = 0;
  // Values that a delta net's projections have for queries or keys, and for values.
  int delta_keys() const { return config.delta_key_heads * config.delta_key_dim; }
  int delta_values() const { return config.delta_value_heads * config.delta_value_dim; }
  // Of a recurrent layer: what is convolved, and the floats of a sequence's state: the last inputs of the
  // convolution, and each value head's matrix.
  int channels() const { return delta_keys() ? 2 * delta_keys() + delta_values() : config.width; }
  size_t state_floats() const {
    return (size_t)(config.taps - 1) * channels() + (size_t)delta_values() * config.delta_key_dim;
  }
  // Whether products are added to the residual stream as they are: else they are changed first.
  bool adds_products = true;
  bool has(EdgedFlag flag) const { return config.flags & flag; }
};

// Both throw std::invalid_argument with a sentence for the user.
Matrix read_matrix(const EdgedTensor& tensor, const std::string& name, int rows, int cols);
Model read_model(const EdgedConfig& config, const EdgedTensor* tensors, int count);

// One row of a matrix as float32 [cols].
void dequantize_row(const Matrix& w, int row, float* out);

inline int round_up(int n, int to) { return (n + to - 1) / to * to; }

}  // namespace edged

// A model's weights as views into the packed file, checked once.
#pragma once
#include <string>
#include <vector>

#include "api.h"
#include "kernels.h"

namespace edged {

struct Layer {
  const float *attention_norm, *ffn_norm;
  const float *query_bias, *key_bias, *value_bias;  // null where the family has none
  const float *query_norm, *key_norm;               // null where the family has none
  std::vector<Matrix> qkv;      // query, key and value; fused where they are adjacent and stored alike
  std::vector<Matrix> gate_up;  // one matrix with 32 rows of each in turn, or gate and up
  Matrix out, down;
};

struct Model {
  EdgedConfig config;
  Matrix embedding, head;
  const float* final_norm;
  std::vector<Layer> layers;
  std::vector<float> cosine, sine;  // [context, head_dim / 2]
};

// Both throw std::invalid_argument with a sentence for the user.
Matrix read_matrix(const EdgedTensor& tensor, const std::string& name, int rows, int cols);
Model read_model(const EdgedConfig& config, const EdgedTensor* tensors, int count);

// One row of a matrix as float32 [cols].
void dequantize_row(const Matrix& w, int row, float* out);

inline int round_up(int n, int to) { return (n + to - 1) / to * to; }

}  // namespace edged

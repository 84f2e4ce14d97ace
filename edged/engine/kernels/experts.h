// A mixture of experts: which experts a token is computed by, and which rows each expert computes.
#pragma once
#include <vector>

#include "kernels.h"

namespace edged {

constexpr int kMaxExperts = 1024;

// The part of a matrix of all experts, one after another, that is one expert's.
inline Matrix expert_of(const Matrix& all, int expert, int experts) {
  Matrix one = all;
  one.rows /= experts;
  one.tiles /= experts;
  one.data += (size_t)expert * one.tiles * one.tile_bytes;
  return one;
}

// logits (experts,) -> the `used` experts of a token, the likeliest first, of equals the lowest, and their
// weights: softmax over all experts, or (`normalized`) over those chosen.
void choose_experts(const float* logits, int experts, int used, bool normalized, int32_t* chosen,
                    float* weights);

// Which rows of a step each expert computes. A choice is row · used + rank.
struct ExpertLists {
  std::vector<int> active;   // experts with rows, ascending
  std::vector<int> begins;   // where each one's choices begin, and the end
  std::vector<int> choices;  // ascending for each expert
  // chosen (count,): the expert of each choice.
  void sort(const int32_t* chosen, int count, int experts);
  int rows(int slot) const { return begins[slot + 1] - begins[slot]; }

 private:
  std::vector<int> next_;
};

}  // namespace edged

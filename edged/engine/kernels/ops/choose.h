// From logits to a token: the same steps as `edged/engine/choose_plain.py`, which documents them, with fewer
// passes.
#pragma once
#include "api.h"
#include "kernels.h"

namespace edged {

// The token chosen from `count` logits; −1 where the largest of them is not finite. `best`: the largest,
// where it is known.
int32_t choose_token(const float* logits, int32_t count, const EdgedSampling& how, const Kernels& kernels,
                     const float* best = nullptr);

}  // namespace edged

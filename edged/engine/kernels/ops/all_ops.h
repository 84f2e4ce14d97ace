// All kernels, in the order of their dependences, and the table of them. Included once by each instruction
// set's file, after its vector operations.
#pragma once
#include "ops/elementwise.h"
// The powers of two of elementwise.h serve attention and sampling.
#include "ops/attention.h"
#include "ops/matmul.h"
#include "ops/recurrent.h"
#include "ops/sampling.h"

#define EDGED_TABLE(name)                                                                             \
  {name,        rms_norm,   layer_norm,     quantize,    matmul,   kStrips, apply_rope, swiglu,        \
   geglu,       add_to,     scale_by,       soft_cap,    write_kv, attend,  merge_partials,            \
   multiply_by, convolve,   silu_of,        gate_by,     delta_rule,                                   \
   all_finite,  max_logit,  softmax_weights}

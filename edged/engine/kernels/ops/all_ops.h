// Every kernel, in the order they need each other, and the table of them. Included once by each instruction set's file, after its words.
#pragma once
#include "ops/elementwise.h"
// The powers of two of elementwise.h serve attention and sampling.
#include "ops/attention.h"
#include "ops/matmul.h"
#include "ops/sampling.h"

#define EDGED_TABLE(name) \
  { name, rms_norm, quantize, matmul, kStrips, rotate, swiglu, add_to, scale_by, store_kv, attend, merge, finite, largest, weigh }

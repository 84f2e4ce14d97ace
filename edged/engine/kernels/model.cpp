#include "model.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "experts.h"
#include "isa/half.h"

namespace edged {
namespace {

[[noreturn]] void fail(const std::string& why) { throw std::invalid_argument(why); }

void require(bool holds, const std::string& what) {
  if (!holds) fail("this model's shape cannot be run: " + what);
}

const float* read_vector(const EdgedTensor& tensor, const std::string& name, int length, bool optional) {
  if (!tensor.data) {
    if (!optional) fail("the tensor " + name + " is missing");
    return nullptr;
  }
  if (tensor.kind != kF32 || tensor.rows != 1 || tensor.cols != length || tensor.bytes < (size_t)length * 4)
    fail("the tensor " + name + " should be " + std::to_string(length) + " float32 values");
  const auto* values = (const float*)tensor.data;
  for (int i = 0; i < length; i++)
    if (!std::isfinite(values[i])) fail("the tensor " + name + " has values that are not finite");
  return values;
}

// Whether scales and minima, or the floats themselves, are numbers. Reads the matrix once.
bool weights_are_finite(const Matrix& m) {
  if (m.kind == kF32) {
    const auto* values = (const float*)m.data;
    for (size_t i = 0; i < m.tile_bytes / 4 * m.tiles; i++)
      if (!std::isfinite(values[i])) return false;
    return true;
  }
  const bool brain = m.kind == kBF16 || traits(m.kind).scales == Scales::kBrain;
  const unsigned exponent = brain ? 0x7f80 : 0x7c00;
  const bool by_tile = is_float(m.kind) || has_row_factor(m.kind);
  const size_t length = is_float(m.kind) ? m.tile_bytes / 2 : has_minimum(m.kind) && !by_tile ? 16 : 8;
  const size_t blocks = by_tile ? m.tiles : (size_t)m.tiles * m.groups,
               stride = by_tile ? m.tile_bytes : m.block_bytes;
  for (size_t b = 0; b < blocks; b++) {
    const auto* values = (const uint16_t*)(m.data + b * stride);
    bool bad = false;
    for (size_t i = 0; i < length; i++) bad |= (values[i] & exponent) == exponent;
    if (bad) return false;
  }
  return true;
}

void check_attention(const EdgedConfig& c) {
  require(c.ropes >= 0 && c.ropes <= 8, "there are more than 8 rotary embeddings");
  require(c.rope_pairs >= 1 && c.rope_pairs <= c.head_dim / 2, "it turns more values than a head has");
  require(c.attention && (!c.ropes || (c.inverse_frequency && c.rope_scale)),
          "the rotary frequencies are missing");
  for (int i = 0; i < c.ropes * c.rope_pairs; i++)
    require(std::isfinite(c.inverse_frequency[i]) && std::isfinite(c.rope_scale[i / c.rope_pairs]),
            "a rotary frequency is not finite");
  int window = 0;
  bool recurrent = false;
  for (int i = 0; i < c.layers; i++) {
    const EdgedAttention& layer = c.attention[i];
    require(layer.kind >= 0 && layer.kind < kLayerKinds, "a layer is of an unknown kind");
    recurrent |= layer.kind != kAttention;
    require(layer.kind != (c.delta_key_heads ? kConvolution : kDeltaNet),
            "it has delta nets without sizes, or beside convolutions");
    require(layer.rope >= -1 && layer.rope < c.ropes, "a layer's rotary embedding is missing");
    require(layer.window >= 0 && (!layer.window || !window || layer.window == window),
            "its layers have different windows");
    require(layer.kind == kAttention || !layer.window, "a layer with a recurrent state has a window");
    if (layer.window) window = layer.window;
  }
  require(!recurrent || (c.taps >= 2 && c.taps <= kMaxTaps), "a convolution has 2 to 8 taps");
  require(!recurrent || (c.states >= 2 && c.states <= 4096), "states must be 2 to 4096");
}

void check_delta_net(const EdgedConfig& c) {
  if (!c.delta_key_heads && !c.delta_value_heads && !c.delta_key_dim && !c.delta_value_dim) return;
  require(c.delta_key_heads >= 1 && c.delta_value_heads >= 1 && c.delta_value_heads <= 1024 &&
              c.delta_value_heads % c.delta_key_heads == 0,
          "a delta net's value heads must be a multiple of its key heads");
  for (const int dim : {c.delta_key_dim, c.delta_value_dim})
    require(dim >= 8 && dim <= 256 && dim % 8 == 0,
            "a delta net's head dimensions must be multiples of 8 from 8 to 256");
}

void check_config(const EdgedConfig& c) {
  require(c.layers >= 1 && c.layers <= 1024, "layers must be 1 to 1024");
  require(c.width >= 8 && c.width <= 65536 && c.width % 8 == 0, "width must be a multiple of 8 up to 65536");
  require(c.ffn >= 1 && c.ffn <= 262144, "ffn must be 1 to 262144");
  require(c.heads >= 1 && c.heads <= 1024 && c.kv_heads >= 1 && c.heads % c.kv_heads == 0,
          "heads must be a multiple of kv_heads");
  require(c.heads / c.kv_heads <= kMaxLanes, "more than 48 heads share a key/value head");
  require(c.head_dim >= 8 && c.head_dim <= 256 && c.head_dim % 8 == 0,
          "the head dimension must be a multiple of 8 from 8 to 256");
  require(c.vocabulary >= 1 && c.vocabulary <= (1 << 21), "the vocabulary must be 1 to 2097152");
  require(c.context >= 1 && c.context <= (1 << 20), "the context must be 1 to 1048576");
  for (const int blocks : {c.blocks, c.window_blocks})
    require(blocks >= 1 && blocks <= (1 << 22), "blocks must be 1 to 4194304");
  require(c.max_rows >= 1 && c.max_rows <= 8192, "max_rows must be 1 to 8192");
  require(c.threads >= 1 && c.threads <= 256, "threads must be 1 to 256");
  require(c.epsilon >= 0 && c.epsilon < 1, "the norm's epsilon is not a small number");
  require((c.flags & ~kFlags) == 0, "it has an unknown flag");
  for (const float factor : {c.embedding_scale, c.residual_scale, c.logit_scale})
    require(std::isfinite(factor) && factor != 0, "a scale is 0 or not finite");
  for (const float factor : {c.attention_scale, c.attention_cap, c.logit_cap, c.growth})
    require(std::isfinite(factor) && factor >= 0, "a cap or a scale of attention is negative or not finite");
  require(c.growth_tokens >= 1 || c.growth == 0, "growth_tokens must be 1 or more");
  check_delta_net(c);
  require(c.experts >= 0 && c.experts <= kMaxExperts, "experts must be 0 to 1024");
  require(!c.experts || (c.experts_used >= 1 && c.experts_used <= c.experts && c.ffn % 32 == 0),
          "a token's experts or their ffn do not fit");
  require((int64_t)std::max(1, c.experts) * std::max(2 * c.ffn, c.width) <= 1 << 24,
          "its experts are too large");
  check_attention(c);
}

}  // namespace

Matrix read_matrix(const EdgedTensor& tensor, const std::string& name, int rows, int cols) {
  if (!tensor.data) fail("the tensor " + name + " is missing");
  if (tensor.rows != rows || tensor.cols != cols || rows < 1 || cols < 1)
    fail("the tensor " + name + " is " + std::to_string(tensor.rows) + " × " + std::to_string(tensor.cols) +
         ", but " + std::to_string(rows) + " × " + std::to_string(cols) + " is needed");
  if (tensor.kind < kF32 || tensor.kind >= kKinds) fail("the tensor " + name + " has an unknown kind");
  Matrix m;
  m.kind = (Kind)tensor.kind;
  m.rows = rows;
  m.cols = cols;
  m.data = (const uint8_t*)tensor.data;
  m.tiles = (rows + kTileRows - 1) / kTileRows;
  if (is_float(m.kind)) {
    m.tile_bytes = (size_t)cols * kTileRows * (m.kind == kF32 ? 4 : 2);
  } else {
    if (!has_group(m.kind, tensor.group))
      fail("the tensor " + name + " has groups of " + std::to_string(tensor.group) +
           ", which its kind does not have");
    if (has_blocks(m.kind) && cols % kBlockGroup)
      fail("the tensor " + name + " has columns that are no multiple of 256");
    m.group = tensor.group;
    m.groups = (cols + m.group - 1) / m.group;
    m.block_bytes = header_bytes(m.kind) + (size_t)m.group / kActivationGroup * part_bytes(m.kind);
    m.tile_bytes = factor_bytes(m.kind) + m.block_bytes * m.groups;
  }
  if (tensor.bytes / m.tile_bytes < (size_t)m.tiles)
    fail("the tensor " + name + " is shorter than its shape");
  if ((uintptr_t)m.data % 16) fail("the tensor " + name + " is not aligned to 16 bytes");
  if (!weights_are_finite(m)) fail("the tensor " + name + " has values that are not finite");
  return m;
}

namespace {

// Fuses matrices [rows, cols] that are adjacent in memory and stored alike: a single product has longer
// streams and one end to balance.
std::vector<Matrix> fuse_adjacent(const std::vector<Matrix>& parts) {
  std::vector<Matrix> fused = {parts[0]};
  for (size_t i = 1; i < parts.size(); i++) {
    Matrix& last = fused.back();
    const Matrix& part = parts[i];
    if (part.kind == last.kind && part.group == last.group && last.rows % kTileRows == 0 &&
        part.data == last.data + last.tiles * last.tile_bytes) {
      last.rows += part.rows;
      last.tiles += part.tiles;
    } else {
      fused.push_back(part);
    }
  }
  return fused;
}

}  // namespace

namespace {

// What mixes the tokens in a layer: its projections, what is beside them, and its output product.
void read_mixer(const Model& model, const EdgedTensor* t, const std::string& at, Layer& layer) {
  const EdgedConfig& c = model.config;
  const int kind = layer.attention.kind, q = c.heads * c.head_dim, kv = c.kv_heads * c.head_dim;
  const bool delta = kind == kDeltaNet;
  if (kind == kAttention) {
    std::vector<Matrix> parts = {read_matrix(t[kQuery], "query" + at, q, c.width),
                                 read_matrix(t[kKey], "key" + at, kv, c.width),
                                 read_matrix(t[kValue], "value" + at, kv, c.width)};
    if (model.has(kGated))
      parts.push_back(read_matrix(t[kAttentionGate], "attention's gate" + at, q, c.width));
    layer.projections = fuse_adjacent(parts);
    layer.out = read_matrix(t[kOut], "out" + at, c.width, q);
  } else if (delta) {
    const int values = model.delta_values(), heads = c.delta_value_heads;
    layer.projections = fuse_adjacent({read_matrix(t[kDeltaIn], "delta net" + at, model.channels(), c.width),
                                       read_matrix(t[kDeltaGate], "gate" + at, values, c.width),
                                       read_matrix(t[kDeltaBeta], "beta" + at, heads, c.width),
                                       read_matrix(t[kDeltaAlpha], "alpha" + at, heads, c.width)});
    layer.out = read_matrix(t[kDeltaOut], "delta net's output" + at, c.width, values);
  } else {
    layer.projections = {read_matrix(t[kConvIn], "convolution's input" + at, 3 * c.width, c.width)};
    layer.out = read_matrix(t[kConvOut], "convolution's output" + at, c.width, c.width);
  }
  layer.taps = read_vector(t[kTaps], "taps" + at, c.taps * model.channels(), kind == kAttention);
  layer.delta_decay = read_vector(t[kDeltaDecay], "decay" + at, c.delta_value_heads, !delta);
  layer.delta_step_bias = read_vector(t[kDeltaStepBias], "step bias" + at, c.delta_value_heads, !delta);
  layer.delta_norm = read_vector(t[kDeltaNorm], "norm" + at, c.delta_value_dim, !delta);
}

}  // namespace

Model read_model(const EdgedConfig& config, const EdgedTensor* tensors, int count) {
  check_config(config);
  const EdgedConfig& c = config;
  require(count == kModelTensors + c.layers * kLayerTensors,
          "the number of tensors does not fit the number of layers");
  Model model;
  model.config = c;
  model.inverse_frequency.assign(c.inverse_frequency, c.inverse_frequency + c.ropes * c.rope_pairs);
  model.rope_scale.assign(c.rope_scale, c.rope_scale + c.ropes);
  model.adds_products = c.residual_scale == 1;
  model.embedding = read_matrix(tensors[0], "embedding", c.vocabulary, c.width);
  model.head = tensors[1].data ? read_matrix(tensors[1], "head", c.vocabulary, c.width) : model.embedding;
  model.final_norm = {read_vector(tensors[2], "final norm", c.width, false),
                      read_vector(tensors[3], "final norm's bias", c.width, true)};
  const int q = c.heads * c.head_dim, kv = c.kv_heads * c.head_dim;
  const int q_norm = model.has(kWideNorm) ? q : c.head_dim, k_norm = model.has(kWideNorm) ? kv : c.head_dim;
  int cached[2] = {0, 0};  // layers without and with a window so far
  for (int i = 0; i < c.layers; i++) {
    const EdgedTensor* t = tensors + kModelTensors + i * kLayerTensors;
    const std::string at = " of layer " + std::to_string(i);
    const auto of_width = [&](int tensor, const char* name) {
      return read_vector(t[tensor], name + at, c.width, true);
    };
    Layer layer;
    layer.attention = c.attention[i];
    if (layer.attention.window) model.window = layer.attention.window;
    if (layer.attention.kind == kAttention)
      layer.cache_index = cached[layer.attention.window > 0]++;
    else
      layer.state_index = model.recurrent_layers++;
    layer.attention_norm = {of_width(kAttentionNorm, "attention norm"),
                            of_width(kAttentionNormBias, "attention norm's bias")};
    layer.ffn_norm = {of_width(kFfnNorm, "ffn norm"), of_width(kFfnNormBias, "ffn norm's bias")};
    layer.attention_addition = {of_width(kOutBias, "out bias"),
                                of_width(kPostAttentionNorm, "norm after attention")};
    layer.ffn_addition = {of_width(kDownBias, "down bias"), of_width(kPostFfnNorm, "norm after the ffn")};
    for (const Addition& addition : {layer.attention_addition, layer.ffn_addition})
      if (addition.bias || addition.norm) model.adds_products = false;
    layer.gate_up_bias = read_vector(t[kGateUpBias], "gate and up bias" + at, 2 * round_up(c.ffn, 32), true);
    layer.query_bias = read_vector(t[kQueryBias], "query bias" + at, q, true);
    layer.key_bias = read_vector(t[kKeyBias], "key bias" + at, kv, true);
    layer.value_bias = read_vector(t[kValueBias], "value bias" + at, kv, true);
    layer.query_norm = read_vector(t[kQueryNorm], "query norm" + at, q_norm, true);
    layer.key_norm = read_vector(t[kKeyNorm], "key norm" + at, k_norm, true);
    read_mixer(model, t, at, layer);
    const int experts = std::max(1, c.experts), ffn = experts * round_up(c.ffn, 32);
    if (t[kGateUp].data)
      layer.gate_up = {read_matrix(t[kGateUp], "gate and up" + at, 2 * ffn, c.width)};
    else
      layer.gate_up = {read_matrix(t[kSeparateGate], "gate" + at, ffn, c.width),
                       read_matrix(t[kSeparateUp], "up" + at, ffn, c.width)};
    layer.down = read_matrix(t[kDown], "down" + at, experts * c.width, c.ffn);
    if (c.experts) layer.router = read_matrix(t[kRouter], "router" + at, c.experts, c.width);
    model.layers.push_back(layer);
  }
  model.config.inverse_frequency = model.config.rope_scale = nullptr;
  model.config.attention = nullptr;
  return model;
}

namespace {

struct RowScale {
  float scale, minimum;
};

// Row r's scale and minimum of 32 k, or of half of them; in kScaleUnits of the row's factor where there is
// one.
RowScale row_scale(Kind kind, const uint8_t* header, const uint8_t* sub_header, int r, int half) {
  const auto half_at = [header](int i) { return half_to_float(((const uint16_t*)header)[i]); };
  const bool minimum = has_minimum(kind);
  const int8_t* bytes = (const int8_t*)sub_header + half * kTileRows + r;
  switch (traits(kind).scales) {
    case Scales::kRowBytes: {
      const auto* own = (const int8_t*)header + r;
      return {(float)own[0], minimum ? (float)own[kTileRows] * kMinimumUnit : 0.f};
    }
    case Scales::kBrain: {
      const uint32_t bits = (uint32_t)((const uint16_t*)header)[r] << 16;
      float scale;
      memcpy(&scale, &bits, 4);
      return {scale, 0.f};
    }
    case Scales::kBlockBytes:
      return {half_at(r) * (float)bytes[0],
              minimum ? half_at(kTileRows + r) * (float)bytes[scales_in_32(kind) * kTileRows] : 0.f};
    case Scales::kBlockNibbles:
      return {half_at(r) * (float)(bytes[0] & 15), half_at(kTileRows + r) * (float)((uint8_t)bytes[0] >> 4)};
    default: return {half_at(r), minimum ? half_at(kTileRows + r) : 0.f};
  }
}

// The bits of row r, k = i, in a plane of `bits` bits over 32 k.
int plane_bits(const uint8_t* plane, int bits, int r, int i) {
  const int in_unit = 32 / bits;  // k of a unit of 32 bytes
  return plane[i / in_unit * 32 + r * 4 + i % 4] >> (i % in_unit / 4 * bits) & ((1 << bits) - 1);
}

}  // namespace

void dequantize_row(const Matrix& w, int row, float* out) {
  const uint8_t* tile = w.data + (size_t)(row / kTileRows) * w.tile_bytes;
  const int r = row % kTileRows;
  if (is_float(w.kind)) {
    for (int k = 0; k < w.cols; k++) {
      const size_t at = (size_t)k * kTileRows + r;
      const uint16_t half = w.kind == kF32 ? 0 : ((const uint16_t*)tile)[at];
      const uint32_t wide = (uint32_t)half << 16;
      if (w.kind == kF32) out[k] = ((const float*)tile)[at];
      if (w.kind == kF16) out[k] = half_to_float(half);
      if (w.kind == kBF16) memcpy(out + k, &wide, 4);
    }
    return;
  }
  const Traits is = traits(w.kind);
  const float factor = has_row_factor(w.kind) ? half_to_float(((const uint16_t*)tile)[r]) * kScaleUnit : 1.f;
  tile += factor_bytes(w.kind);
  for (int g = 0; g < w.groups; g++, tile += w.block_bytes) {
    const uint8_t* part = tile + header_bytes(w.kind);
    for (int k = g * w.group; k < (g + 1) * w.group && k < w.cols; k++) {
      const int i = k % 32;
      if (k > g * w.group && i == 0) part += part_bytes(w.kind);
      const RowScale s = row_scale(w.kind, tile, part, r, i * scales_in_32(w.kind) / 32);
      const uint8_t* codes = part + sub_header_bytes(w.kind);
      int code = plane_bits(codes, is.low, r, i);
      if (is.high) code |= plane_bits(codes + is.low * 32, is.high, r, i) << is.low;
      if (is.low == 8) code = (int8_t)code;
      if (is.levels == Levels::kIq4) code = kIq4Levels[code];
      if (is.levels == Levels::kMxfp4) code = kMxfp4Levels[code];
      if (is.levels == Levels::kLinear) code -= is.centre;
      const float value = is.minimum ? s.scale * (float)code + s.minimum : s.scale * (float)code;
      out[k] = has_row_factor(w.kind) ? value * factor : value;
    }
  }
}

}  // namespace edged

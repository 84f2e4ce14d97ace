// The C interface that Python loads with ctypes. All structs are plain, little-endian, naturally aligned;
// library.py mirrors them. Every function that can fail returns 0, or 1 with a sentence in `error`
// (kErrorBytes). No exception leaves a function.
#pragma once
#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define EDGED_API extern "C" __declspec(dllexport)
#else
#define EDGED_API extern "C" __attribute__((visibility("default")))
#endif

constexpr int32_t kApiVersion = 11;
constexpr size_t kErrorBytes = 512;

// What mixes the tokens of a sequence in a layer.
enum EdgedLayerKind : int32_t { kAttention, kConvolution, kDeltaNet, kLayerKinds };

// How one layer mixes the tokens. Rope and window are for attention.
struct EdgedAttention {
  int32_t kind;    // EdgedLayerKind
  int32_t rope;    // which of the rotary embeddings turns its queries and keys; −1: none
  int32_t window;  // tokens that a token sees, itself the last of them; 0: all
};

constexpr int32_t kMaxTaps = 8;       // of a convolution
constexpr int32_t kModelTensors = 4;  // before those of the layers

// What a family computes in another way than Llama, as bits of EdgedConfig::flags.
enum EdgedFlag : int32_t {
  kLayerNorm = 1,          // norms subtract the mean, too, and may have a bias
  kGelu = 2,               // GELU (its tanh form) in place of SiLU
  kNormAfterRope = 4,      // queries and keys are normalized after RoPE
  kWideNorm = 8,           // the norm of queries, and that of keys, is over all heads together
  kNormalizeExperts = 16,  // the weights of a token's experts add up to 1
  kGated = 32,             // attention's result is multiplied by the sigmoid of a gate
  kTiledHeads = 64,        // value head h of a delta net belongs to key head h % key heads; else h / (value
                           // heads / key heads)
};
constexpr int32_t kFlags = 127;  // all of them

// The shape of a decoder and how it is run.
struct EdgedConfig {
  int32_t layers, width, ffn, heads, kv_heads, head_dim, vocabulary;
  int32_t context;   // tokens a sequence may have
  int32_t blocks;    // of 32 tokens, in the key/value cache of layers that see all tokens
  int32_t max_rows;  // tokens computed in one step
  int32_t threads;
  int32_t flags;
  float epsilon;  // of the norms
  float embedding_scale, residual_scale, logit_scale;
  float attention_scale;           // of queries · keys; 0: 1 / √head_dim
  float attention_cap, logit_cap;  // x becomes cap · tanh(x / cap); 0: none
  // A query at position p is multiplied by 1 + growth · ln(1 + ⌊p / growth_tokens⌋).
  float growth;
  int32_t growth_tokens;
  int32_t rope_pairs;               // of a head's values that are turned: i with i + rope_pairs
  int32_t ropes;                    // rotary embeddings
  int32_t window_blocks;            // as `blocks`, of layers that see a window
  int32_t experts, experts_used;    // of a mixture in each layer, and of them for each token; 0: no mixture
  const float* inverse_frequency;   // [ropes, rope_pairs], with the model's scaling applied
  const float* rope_scale;          // [ropes]: cosines and sines are multiplied by it
  const EdgedAttention* attention;  // [layers]
  int32_t taps;                     // tokens that a convolution sees, itself the last of them
  int32_t states;                   // recurrent states in memory, for a model that has such layers
  // Heads and their sizes in delta nets; 0: there are none.
  int32_t delta_key_heads, delta_value_heads, delta_key_dim, delta_value_dim;
};

// One tensor of the packed file. `kind`: a Kind of ops/matrix.h; a vector has one row of cols float32.
struct EdgedTensor {
  int32_t kind, rows, cols, group;
  const void* data;  // null: the model has none
  size_t bytes;
};

// Order of the tensors: embedding, head (null: tied), final norm, its bias, then for each layer those below.
// Only matrices are in every model.
enum EdgedLayerTensor : int32_t {
  kAttentionNorm,
  kQuery,
  kKey,
  kValue,
  kQueryBias,
  kKeyBias,
  kValueBias,
  kQueryNorm,
  kKeyNorm,
  kOut,
  kFfnNorm,
  kGateUp,  // [2 · ffn rounded up to 32, width]: 32 rows of gate, then 32 of up, and so on; zero rows at the
            // end
  kSeparateGate,  // gate and up, [ffn rounded up to 32, width] each, where there is no kGateUp: they may have
  kSeparateUp,    // different kinds
  kDown,
  kAttentionNormBias,
  kOutBias,
  kPostAttentionNorm,  // of what attention adds to the residual stream
  kFfnNormBias,
  kGateUpBias,  // in the order of kGateUp's rows
  kDownBias,
  kPostFfnNorm,  // of what the feed-forward layer adds
  kRouter,       // [experts, width]; gate, up and down then hold those of all experts, one after another
  kConvIn,       // of a convolution, [3 · width, width]
  kTaps,         // its weights, taps · width: those of the oldest token first
  kConvOut,
  kAttentionGate,  // [heads · head_dim, width]
  // Of a delta net, with k = key heads · key dim and v = value heads · value dim.
  kDeltaIn,     // [2k + v, width]: queries, keys and values, which are convolved with kTaps
  kDeltaGate,   // [v, width]
  kDeltaBeta,   // [value heads, width]
  kDeltaAlpha,  // the same
  kDeltaOut,    // [width, v]
  kDeltaDecay,  // a value head's state fades by e^(decay · softplus(alpha + step bias)) with each token
  kDeltaStepBias,
  kDeltaNorm,  // of a value head's result
  kLayerTensors
};

// Consecutive tokens of one sequence, to be computed in this step. Slices of one step belong to different
// sequences.
struct EdgedSlice {
  int32_t position;            // of the first token
  int32_t count;               // of tokens
  int32_t first_block;         // where its block table starts in `blocks`: of layers that see all tokens
  int32_t first_window_block;  // the same of layers that see a window; blocks behind it are not read
  int32_t block_count;         // the length of each; they must cover position + count tokens
  // Of a model with recurrent layers: the states before the first token (−1 at position 0) and after the
  // last. States that are read are not written in the same step, so a step can be repeated.
  int32_t state, next_state;
};

struct EdgedStep {
  const int32_t* tokens;  // all slices' tokens, one after another
  int32_t token_count;
  const EdgedSlice* slices;
  int32_t slice_count;
  const int32_t* blocks;  // block tables
  int32_t block_count;
  const int32_t* wanted;  // indices into tokens whose logits are wanted, ascending
  int32_t wanted_count;
  float* logits;          // [wanted_count, logits_stride]; null: no logits, only `hidden`
  int64_t logits_stride;  // ≥ the vocabulary rounded up to 8
  float* hidden;          // [wanted_count, width] what the head would multiply; null: not wanted
};

// A vocabulary and its merges of bytes or characters, as `edged/models/tokenizer/tables.py` writes them.
struct EdgedMerges {
  const int32_t* letters;   // [256]: the token of each single byte; −1: none, the byte is left out
  const uint64_t* pairs;    // [pair_count], ascending: left id · 2³² + right id
  const uint32_t* ranks;    // [pair_count]: the lowest merges first
  const int32_t* merged;    // [pair_count]: what the pair becomes
  const uint8_t* bytes;     // all tokens' bytes, one after another
  const uint32_t* ends;     // [vocabulary]: where each token's bytes end, ascending
  const int32_t* by_bytes;  // [whole_count]: tokens in the order of their bytes, for vocabularies that look
                            // up a whole piece before any merge
  int64_t pair_count, vocabulary, whole_count;
};

// How a token is chosen from logits, see edged/engine/choose_plain.py. `uniform`: a draw from [0, 1), used
// where the temperature is above 0.
struct EdgedSampling {
  double temperature, top_p, min_p, repetition_penalty, uniform;
  int32_t top_k;
  int32_t seen_count;
  const int32_t* seen;  // tokens that the repetition penalty is for, each once
};

// A sequence of which several tokens are computed and chosen in one call.
struct EdgedDecoding {
  int32_t token;        // its newest, which is computed first
  int32_t position;     // of that token
  int32_t first_block;  // where the sequence's block tables start in `blocks`, as in EdgedSlice
  int32_t first_window_block;
  int32_t block_count;  // the length of each; they must cover position + steps tokens
  // As of a slice. The steps read and write the two in turns: after an odd number the newest is `next_state`.
  int32_t state, next_state;
  int32_t reserved;
  EdgedSampling sampling;  // `uniform` is not read; chosen tokens are added to the seen ones
  const double* uniforms;  // [steps], draws from [0, 1)
  const int32_t* past;     // [past_count] all its tokens up to `token`; empty: the call does not end where
                           // drafts could follow
  int32_t past_count;
  int32_t* chosen;  // [steps]
};

struct EdgedEngine;

EDGED_API int32_t edged_api_version();
EDGED_API const char* edged_kernels(const char* name);  // the table that "auto" or a name gives; null: none
EDGED_API EdgedEngine* edged_open(const EdgedConfig* config, const EdgedTensor* tensors, int32_t count,
                                  const char* kernels, char* error);
EDGED_API int32_t edged_step(EdgedEngine* engine, const EdgedStep* step, char* error);
// Up to `steps` decode steps, each with one token of every sequence; `done` gets the number computed. It ends
// after a step in which a sequence chose one of `stops`, its last two tokens occur earlier in its past, or
// another thread set `interrupt`; and before a step that fails. If the first step fails, that is an error. 0
// steps without an error: a first token's best logit is not finite after the penalty.
EDGED_API int32_t edged_decode(EdgedEngine* engine, const EdgedDecoding* sequences, int32_t count,
                               const int32_t* blocks, int32_t block_count, const int32_t* stops,
                               int32_t stop_count, int32_t steps, const int32_t* interrupt, int32_t* done,
                               char* error);
// Copies all keys and values of one cache block into another, so that a sequence can continue from the middle
// of a shared block; `windowed`: a block of layers that see a window.
EDGED_API int32_t edged_copy_block(EdgedEngine* engine, int32_t windowed, int32_t from, int32_t to,
                                   char* error);
EDGED_API int64_t edged_memory(const EdgedEngine* engine, int32_t what);  // bytes: 0 cache, states; 1 buffers
EDGED_API void edged_close(EdgedEngine* engine);
// Token ids of byte strings that follow each other in `text`; `ids` has space for one a byte, `count` gets
// their number.
EDGED_API int32_t edged_bpe_encode(const EdgedMerges* tables, const uint8_t* text, const int32_t* lengths,
                                   int32_t pieces, int32_t* ids, int64_t* count, char* error);
// The same for symbols that are ids already, a character each; `ids` has space for one a symbol.
EDGED_API int32_t edged_bpe_merge(const EdgedMerges* tables, const int32_t* symbols, const int32_t* lengths,
                                  int32_t pieces, int32_t* ids, int64_t* count, char* error);
// The token chosen from `count` logits; −1 where the largest of them is not finite.
EDGED_API int32_t edged_choose(const float* logits, int32_t count, const EdgedSampling* how,
                               const char* kernels, int32_t* token, char* error);

// For tests and measurements: w (rows,cols) @ x (m,cols) -> y (m, rows rounded up to 8) on `threads` threads,
// `repeats` times over `copies` matrices, each `copy_stride` bytes after the one before; seconds [repeats]
// gets the time of each.
EDGED_API int32_t edged_matmul(const EdgedTensor* w, const float* x, int32_t m, float* y, int32_t threads,
                               int32_t repeats, int32_t copies, int64_t copy_stride, double* seconds,
                               const char* kernels, char* error);
EDGED_API int32_t edged_dequantize(const EdgedTensor* w, int32_t row, float* out, char* error);  // out [cols]
EDGED_API double edged_read_bandwidth(const void* data, int64_t bytes, int32_t threads,
                                      int32_t repeats);  // bytes per second, the median; 0: not measured

// Matrices as the packed file holds them, and the rows of activations that they are multiplied with.
#pragma once
#include <cstddef>
#include <cstdint>

namespace edged {

constexpr int kTileRows = 8;          // rows interleaved in one tile
constexpr int kActivationGroup = 32;  // activations share a scale over this many k

// How a matrix's weights are stored. The numbers are part of the packed format.
enum Kind : int32_t {
  kF32 = 0,
  kF16 = 1,
  kBF16 = 2,
  kQ4 = 3,
  kQ4Min = 4,
  kQ8 = 5,
  kQ8Min = 6,
  kQ4Byte = 7,
  kQ4ByteMin = 8
};
constexpr int kKinds = 9;

constexpr bool is_float(Kind kind) { return kind <= kBF16; }
constexpr bool is_q4(Kind kind) {
  return kind == kQ4 || kind == kQ4Min || kind == kQ4Byte || kind == kQ4ByteMin;
}
constexpr bool has_minimum(Kind kind) { return kind == kQ4Min || kind == kQ8Min || kind == kQ4ByteMin; }
// Whether scales and minima are int8 and each row has a factor.
constexpr bool has_factor(Kind kind) { return kind == kQ4Byte || kind == kQ4ByteMin; }
// Whether 4-bit codes 0…15 stand for −8…7.
constexpr bool is_centred(Kind kind) { return kind == kQ4 || kind == kQ4Byte; }

// Bytes of 8 rows' factors, which begin a tile, and of a group's scales and minima, which begin its block.
constexpr int factor_bytes(Kind kind) { return has_factor(kind) ? kTileRows * 2 : 0; }
constexpr int scale_bytes(Kind kind) { return kTileRows * (has_factor(kind) ? 1 : 2); }
constexpr int header_bytes(Kind kind) { return scale_bytes(kind) * (has_minimum(kind) ? 2 : 1); }

constexpr float kScaleUnit = 1.f / 128;  // of a row's factor: the unit of its int8 scales
constexpr int kMinimumUnit = 8;          // kScaleUnits: the unit of its int8 minima

// A matrix w [rows, cols], cut into tiles of 8 rows. A tile holds 8 fp16 factors where the kind has them;
// then for each group of k: 8 fp16 (or int8) scales, 8 minima of the same type where the kind has them, then
// the codes: 32 bytes for 8 k (4 bits: byte r*4+j is row r, k+j in the low nibble, k+4+j in the high one) or
// 4 k (8 bits). A weight is scale · code + minimum, or, with a factor, factor · kScaleUnit · (scale · code +
// kMinimumUnit · minimum). Float tiles hold 8 rows' weights side by side for each k. Rows beyond the last and
// k beyond the last are packed as zeros.
struct Matrix {
  Kind kind = kF32;
  int rows = 0, cols = 0, group = 0;
  const uint8_t* data = nullptr;
  int tiles = 0, groups = 0;               // groups: of `group` k in a row
  size_t block_bytes = 0, tile_bytes = 0;  // of one group, of one tile
};

// m rows of activations [m, k], as floats and as int8 in groups of 32; either may be missing where no matrix
// asks for it.
struct Activations {
  const float* values = nullptr;     // [m, stride]
  const int8_t* codes = nullptr;     // [m, stride]
  const float* scale = nullptr;      // [m, stride / 32]
  const int32_t* offset8 = nullptr;  // [m, stride / 32]: −8 × the sum of a group's codes
  const float* sum = nullptr;        // [m, stride / 32]: scale × the sum of a group's codes
  int m = 0, stride = 0;             // stride in elements, a multiple of 128, zero beyond k
};

}  // namespace edged

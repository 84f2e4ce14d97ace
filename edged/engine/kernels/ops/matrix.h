// Matrices as the packed file holds them, and the rows of activations that they are multiplied with.
#pragma once
#include <cstddef>
#include <cstdint>

namespace edged {

constexpr int kTileRows = 8;          // rows interleaved in one tile
constexpr int kActivationGroup = 32;  // activations share a scale over this many k
constexpr int kBlockGroup = 256;      // k of a block that has scales of its own scales

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
  kQ4ByteMin = 8,
  kQ5 = 9,
  kQ5Min = 10,
  kIq4Nl = 11,
  kMxfp4 = 12,
  kQ2K = 13,
  kQ3K = 14,
  kQ4K = 15,
  kQ5K = 16,
  kQ6K = 17,
  kIq4Xs = 18
};
constexpr int kKinds = 19;

// How a group's scale (and minimum, of the same form) is stored.
enum class Scales : int32_t {
  kHalf,         // float16
  kBrain,        // bfloat16, which holds powers of two from 2⁻¹²⁸ to 2¹²⁷ exactly
  kRowBytes,     // int8, by a float16 factor of the row and kScaleUnit; minima by kMinimumUnit as well
  kBlockBytes,   // int8, by a float16 factor of the block of 256 k; minima by a second factor
  kBlockNibbles  // the same of 4 bits each: the scale in a byte's low half, the minimum in its high one
};

// The value of a code: itself minus `centre`, or a value of a table.
enum class Levels : int32_t { kLinear, kIq4, kMxfp4 };
constexpr int8_t kIq4Levels[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
constexpr int8_t kMxfp4Levels[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

// A kind's layout, all that the kernels need to know of it.
struct Traits {
  int low = 0, high = 0;  // bits in the plane of a code's lowest bits (2, 4, 8) and in the one above (0 to 2)
  int centre = 0;         // what is subtracted from a code, or was added to a table's value
  bool minimum = false;
  Scales scales = Scales::kHalf;
  int scale_group = 0;  // k that share a scale in blocks of 256: 16 or 32; 0: Matrix::group, and no blocks
  Levels levels = Levels::kLinear;
};

constexpr Traits traits(Kind kind) {
  switch (kind) {
    case kQ4: return {4, 0, 8};
    case kQ4Min: return {4, 0, 0, true};
    case kQ8: return {8, 0, 0};
    case kQ8Min: return {8, 0, 0, true};
    case kQ4Byte: return {4, 0, 8, false, Scales::kRowBytes};
    case kQ4ByteMin: return {4, 0, 0, true, Scales::kRowBytes};
    case kQ5: return {4, 1, 16};
    case kQ5Min: return {4, 1, 0, true};
    case kIq4Nl: return {4, 0, 0, false, Scales::kHalf, 0, Levels::kIq4};
    case kMxfp4: return {4, 0, 12, false, Scales::kBrain, 0, Levels::kMxfp4};
    case kQ2K: return {2, 0, 0, true, Scales::kBlockNibbles, 16};
    case kQ3K: return {2, 1, 4, false, Scales::kBlockBytes, 16};
    case kQ4K: return {4, 0, 0, true, Scales::kBlockBytes, 32};
    case kQ5K: return {4, 1, 0, true, Scales::kBlockBytes, 32};
    case kQ6K: return {4, 2, 32, false, Scales::kBlockBytes, 16};
    case kIq4Xs: return {4, 0, 0, false, Scales::kBlockBytes, 32, Levels::kIq4};
    default: return {};
  }
}

constexpr bool is_float(Kind kind) { return kind <= kBF16; }
constexpr bool has_minimum(Kind kind) { return traits(kind).minimum; }
// Whether scales and minima are int8 and each row has a factor.
constexpr bool has_row_factor(Kind kind) { return traits(kind).scales == Scales::kRowBytes; }
// Whether each row of a block of 256 k has a factor for its scales.
constexpr bool has_blocks(Kind kind) { return traits(kind).scale_group != 0; }
// Whether groups are always of one size: 32 k, or blocks of 256.
constexpr bool has_fixed_group(Kind kind) { return kind >= kQ5; }
constexpr bool has_group(Kind kind, int group) {
  if (has_blocks(kind)) return group == kBlockGroup;
  return group == 32 || (!has_fixed_group(kind) && (group == 64 || group == 128));
}
// Whether codes are int8 with a sign, too large to be added up in 16 bits.
constexpr bool is_wide(Kind kind) { return traits(kind).low == 8 || traits(kind).levels == Levels::kIq4; }
// The largest code as it is multiplied, of kinds that are not wide.
constexpr int largest_code(Kind kind) {
  return traits(kind).levels == Levels::kMxfp4 ? 24 : (1 << (traits(kind).low + traits(kind).high)) - 1;
}
// Scales in a group of 32 k.
constexpr int scales_in_32(Kind kind) { return traits(kind).scale_group == 16 ? 2 : 1; }

// Bytes of the rows' factors, which begin a tile; of a block's header; of the header of 32 k; of their codes;
// of both.
constexpr int factor_bytes(Kind kind) { return has_row_factor(kind) ? kTileRows * 2 : 0; }
constexpr int header_bytes(Kind kind) {
  const int one = kTileRows * (has_row_factor(kind) ? 1 : 2);
  return has_minimum(kind) ? 2 * one : one;
}
constexpr int sub_header_bytes(Kind kind) {
  if (!has_blocks(kind)) return 0;
  const bool both = has_minimum(kind) && traits(kind).scales == Scales::kBlockBytes;
  return kTileRows * scales_in_32(kind) * (both ? 2 : 1);
}
constexpr int code_bytes(Kind kind) { return kTileRows * 4 * (traits(kind).low + traits(kind).high); }
constexpr int part_bytes(Kind kind) { return sub_header_bytes(kind) + code_bytes(kind); }

constexpr float kScaleUnit = 1.f / 128;  // of a row's factor: the unit of its int8 scales
constexpr int kMinimumUnit = 8;          // kScaleUnits: the unit of its int8 minima

// A matrix w [rows, cols], cut into tiles of 8 rows. A tile holds 8 fp16 factors where the kind has them;
// then for each group of k a block. A block begins with 8 scales and, where the kind has them, 8 minima: a
// weight is scale · code + minimum (with a row's factor, factor · kScaleUnit · (scale · code + kMinimumUnit ·
// minimum)). In a block of 256 k these are factors, and the int8 scales, then minima, of 32 k precede their
// codes: of the first 16 k, then of the others, 8 rows each.
//
// The codes of 32 k are a plane of their low bits, then one of the bits above. A plane of n bits is n units
// of 32 bytes: byte r·4 + j of a unit holds row r at k + j in its lowest n bits, k + 4 + j in the next, and
// so on. Float tiles hold 8 rows' weights side by side for each k. Rows beyond the last and k beyond the last
// are packed as zeros.
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
  const float* values = nullptr;          // [m, stride]
  const int8_t* codes = nullptr;          // [m, stride]
  const float* scale = nullptr;           // [m, stride / 32]
  const int32_t* offset8 = nullptr;       // [m, stride / 32]: −8 × the sum of a group's codes
  const float* sum = nullptr;             // [m, stride / 32]: scale × the sum of a group's codes
  const int32_t* half_offset8 = nullptr;  // [m, stride / 16]: as offset8, of 16 codes
  const float* half_sum = nullptr;        // [m, stride / 16]: as sum, of 16 codes
  int m = 0, stride = 0;                  // stride in elements, a multiple of 128, zero beyond k
};

// Where one row of activations is written as int8, from a multiple of 32 on; the fields are those of
// Activations.
struct CodedRow {
  int8_t* codes = nullptr;
  float* scale = nullptr;
  int32_t* offset8 = nullptr;
  float* sum = nullptr;
  int32_t* half_offset8 = nullptr;
  float* half_sum = nullptr;
};

}  // namespace edged

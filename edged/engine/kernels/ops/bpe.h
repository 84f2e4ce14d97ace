// Byte-pair encoding over tables that are mapped from a packed folder. Gives the ids of the tokenizers
// library without its hash maps (38 MB for 151,643 tokens).
#pragma once
#include "api.h"

namespace edged {

// Ids of `pieces` byte strings that lie one after another in `text`. `ids` has space for one id a byte;
// returns how many were written. Throws std::invalid_argument for tables or pieces that do not fit together.
int64_t bpe_encode(const EdgedMerges& tables, const uint8_t* text, const int32_t* lengths, int32_t pieces,
                   int32_t* ids);

// The same for pieces of symbols, which are ids already: a token's, or any other where the tables pair it.
int64_t bpe_merge(const EdgedMerges& tables, const int32_t* symbols, const int32_t* lengths, int32_t pieces,
                  int32_t* ids);

}  // namespace edged

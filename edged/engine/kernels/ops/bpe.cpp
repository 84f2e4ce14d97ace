#include "ops/bpe.h"

#include <algorithm>
#include <cstring>
#include <queue>
#include <stdexcept>
#include <vector>

namespace edged {
namespace {

uint64_t pair_of(int32_t left, int32_t right) { return (uint64_t)(uint32_t)left << 32 | (uint32_t)right; }

// Two neighbours that may become one. The lowest rank goes first, of equal ranks the leftmost.
struct Candidate {
  uint32_t rank;
  int32_t at;
  uint64_t pair;
  int32_t merged;
  bool operator<(const Candidate& other) const {
    return rank != other.rank ? rank > other.rank : at > other.at;
  }
};

// One piece's symbols as a list: an id, and the neighbours' places (−1: none).
struct Symbol {
  int32_t id, before, after;
};

class Encoder {
 public:
  explicit Encoder(const EdgedMerges& tables) : tables_(tables) {}

  int64_t encode(const uint8_t* text, int32_t length, int32_t* ids) {
    if (const int32_t whole = whole_token(text, length); whole >= 0) {
      *ids = whole;
      return 1;
    }
    symbols_.clear();
    for (int32_t i = 0; i < length; i++) {
      const int32_t size = (int32_t)symbols_.size(), letter = tables_.letters[text[i]];
      if (letter >= 0) symbols_.push_back({letter, size - 1, size + 1});
    }
    return merged(ids);
  }

  int64_t merge_symbols(const int32_t* given, int32_t length, int32_t* ids) {
    symbols_.clear();
    for (int32_t i = 0; i < length; i++) {
      if (given[i] < 0) throw std::invalid_argument("a symbol of a text is negative");
      symbols_.push_back({given[i], i - 1, i + 1});
    }
    return merged(ids);
  }

 private:
  int64_t merged(int32_t* ids) {
    if (symbols_.empty()) return 0;
    symbols_.back().after = -1;
    for (size_t i = 0; i + 1 < symbols_.size(); i++) queue_pair((int32_t)i);
    while (!queue_.empty()) {
      const Candidate best = queue_.top();
      queue_.pop();
      merge(best);
    }
    int64_t count = 0;
    for (int32_t i = 0; i >= 0; i = symbols_[(size_t)i].after) ids[count++] = symbols_[(size_t)i].id;
    return count;
  }

  void queue_pair(int32_t at) {
    if (at < 0 || symbols_[(size_t)at].after < 0) return;
    const uint64_t pair = pair_of(symbols_[(size_t)at].id, symbols_[(size_t)symbols_[(size_t)at].after].id);
    const uint64_t* end = tables_.pairs + tables_.pair_count;
    const uint64_t* found = std::lower_bound(tables_.pairs, end, pair);
    if (found == end || *found != pair) return;
    const size_t index = (size_t)(found - tables_.pairs);
    queue_.push({tables_.ranks[index], at, pair, tables_.merged[index]});
  }

  // A candidate whose symbols have changed since is skipped: a merged symbol's id is another, its right one's
  // is −1.
  void merge(const Candidate& best) {
    Symbol& left = symbols_[(size_t)best.at];
    if (left.id < 0 || left.after < 0) return;
    Symbol& right = symbols_[(size_t)left.after];
    if (pair_of(left.id, right.id) != best.pair) return;
    left.id = best.merged;
    left.after = right.after;
    right.id = -1;
    if (left.after >= 0) symbols_[(size_t)left.after].before = best.at;
    queue_pair(left.before);
    queue_pair(best.at);
  }

  // The token that is this whole piece, for vocabularies that look there first; −1: none.
  int32_t whole_token(const uint8_t* text, int32_t length) const {
    const int32_t* end = tables_.by_bytes + tables_.whole_count;
    const int32_t* found = std::lower_bound(
        tables_.by_bytes, end, 0, [&](int32_t token, int) { return compare(token, text, length) < 0; });
    return found != end && compare(*found, text, length) == 0 ? *found : -1;
  }

  int compare(int32_t token, const uint8_t* text, int32_t length) const {
    if (token < 0 || token >= tables_.vocabulary)
      throw std::invalid_argument("the tables of the tokenizer name a token outside the vocabulary");
    const uint32_t begin = token ? tables_.ends[token - 1] : 0, size = tables_.ends[token] - begin;
    const int order = memcmp(tables_.bytes + begin, text, std::min((size_t)size, (size_t)length));
    return order ? order : size<(uint32_t)length ? -1 : size>(uint32_t) length;
  }

  const EdgedMerges& tables_;
  std::vector<Symbol> symbols_;
  std::priority_queue<Candidate> queue_;
};

}  // namespace

int64_t bpe_encode(const EdgedMerges& tables, const uint8_t* text, const int32_t* lengths, int32_t pieces,
                   int32_t* ids) {
  Encoder encoder(tables);
  int64_t count = 0;
  for (int32_t i = 0; i < pieces; i++) {
    if (lengths[i] < 0) throw std::invalid_argument("a piece of text has a negative length");
    count += encoder.encode(text, lengths[i], ids + count);
    text += lengths[i];
  }
  return count;
}

int64_t bpe_merge(const EdgedMerges& tables, const int32_t* symbols, const int32_t* lengths, int32_t pieces,
                  int32_t* ids) {
  Encoder encoder(tables);
  int64_t count = 0;
  for (int32_t i = 0; i < pieces; i++) {
    if (lengths[i] < 0) throw std::invalid_argument("a piece of text has a negative length");
    count += encoder.merge_symbols(symbols, lengths[i], ids + count);
    symbols += lengths[i];
  }
  return count;
}

}  // namespace edged

// Several decode steps in one call: a token is chosen where its logits are, and nothing but kernels runs between two steps. What runs in
// Python between them takes long, because the weights have just passed through every cache.
#include <algorithm>
#include <exception>
#include <stdexcept>
#include <vector>

#include "engine.h"
#include "ops/choose.h"

namespace edged {
namespace {

// A sequence while it decodes.
class Decoding {
 public:
  explicit Decoding(const EdgedDecoding& given) : given_(given), seen_(given.sampling.seen, given.sampling.seen + given.sampling.seen_count) {
    if (given.past_count > 0) past_.assign(given.past, given.past + given.past_count);
  }

  // Of logits of which `best` is the largest, the first in its row.
  int32_t choose(const float* logits, int32_t vocabulary, const Best& best, int step, const Kernels& kernels) {
    EdgedSampling how = given_.sampling;
    if (how.temperature == 0 && how.repetition_penalty == 1) return best.token;
    how.chance = given_.chances[step];
    how.seen = seen_.data();
    how.seen_count = (int32_t)seen_.size();
    return choose_token(logits, vocabulary, how, kernels, &best.value);
  }

  void take(int32_t token, int step) {
    given_.chosen[step] = token;
    if (given_.sampling.repetition_penalty != 1 && std::find(seen_.begin(), seen_.end(), token) == seen_.end()) seen_.push_back(token);
    if (!past_.empty()) past_.push_back(token);
  }

  // Whether the last two tokens stand together earlier in the sequence: what followed them then could be drafts.
  bool repeats() const {
    if (past_.size() < 4) return false;
    const auto earlier = past_.end() - 1;
    return std::search(past_.begin(), earlier, past_.end() - 2, past_.end()) != earlier;
  }

 private:
  const EdgedDecoding& given_;
  std::vector<int32_t> seen_, past_;
};

}  // namespace

int Engine::decode(const DecodeOrder& order) {
  std::lock_guard<std::mutex> lock(mutex_);
  const int count = order.count, vocabulary = model_.config.vocabulary, stride = round_up(vocabulary, 8);
  if (count < 1 || order.steps < 1) throw std::invalid_argument("a decode needs at least one sequence and one step");
  if (logits_.bytes() < (size_t)count * stride * 4) logits_ = Buffer((size_t)count * stride * 4);
  std::vector<Decoding> sequences(order.sequences, order.sequences + count);
  std::vector<int32_t> tokens, wanted;
  std::vector<EdgedSlice> slices;
  for (int i = 0; i < count; i++) {
    const EdgedDecoding& one = order.sequences[i];
    tokens.push_back(one.token);
    wanted.push_back(i);
    slices.push_back({one.position, 1, one.first_block, one.block_count});
  }
  bool more = true;
  int step = 0;
  for (; step < order.steps && more; step++) {
    if (step && __atomic_load_n(order.hurry, __ATOMIC_RELAXED)) break;
    try {
      compute({tokens.data(), count, slices.data(), count, order.blocks, order.block_count, wanted.data(), count, logits_.as<float>(), stride});
    } catch (const std::exception&) {
      if (!step) throw;
      return step;
    }
    for (int i = 0; i < count; i++) {
      tokens[i] = sequences[i].choose(logits_.as<float>() + (size_t)i * stride, vocabulary, best(i), step, kernels_);
      if (tokens[i] < 0) return step;  // the caller finds out why, one step at a time
    }
    for (int i = 0; i < count; i++) {
      sequences[i].take(tokens[i], step);
      slices[i].position++;
      const bool stops = std::find(order.stops, order.stops + order.stop_count, tokens[i]) != order.stops + order.stop_count;
      more = more && !stops && !sequences[i].repeats();
    }
  }
  return step;
}

}  // namespace edged

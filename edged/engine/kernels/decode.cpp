// Several decode steps in one call, with no Python between two steps: there it runs slowly, because the
// weights have just evicted everything else from the caches.
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
  explicit Decoding(const EdgedDecoding& call)
      : call_(call), seen_(call.sampling.seen, call.sampling.seen + call.sampling.seen_count) {
    if (call.past_count > 0) past_.assign(call.past, call.past + call.past_count);
  }

  // The token of one row's logits, of which `best` is the largest.
  int32_t choose(const float* logits, int32_t vocabulary, const Best& best, int step,
                 const Kernels& kernels) {
    EdgedSampling how = call_.sampling;
    if (how.temperature == 0 && how.repetition_penalty == 1) return best.token;
    how.uniform = call_.uniforms[step];
    how.seen = seen_.data();
    how.seen_count = (int32_t)seen_.size();
    return choose_token(logits, vocabulary, how, kernels, &best.value);
  }

  void append(int32_t token, int step) {
    call_.chosen[step] = token;
    if (call_.sampling.repetition_penalty != 1 && std::find(seen_.begin(), seen_.end(), token) == seen_.end())
      seen_.push_back(token);
    if (!past_.empty()) past_.push_back(token);
  }

  // Whether the last two tokens follow each other earlier in the sequence, too: what followed them there
  // could be drafts.
  bool ends_in_repeated_pair() const {
    if (past_.size() < 4) return false;
    const auto earlier = past_.end() - 1;
    return std::search(past_.begin(), earlier, past_.end() - 2, past_.end()) != earlier;
  }

 private:
  const EdgedDecoding& call_;
  std::vector<int32_t> seen_, past_;
};

}  // namespace

int Engine::decode(const DecodeCall& call) {
  std::lock_guard<std::mutex> lock(mutex_);
  const int count = call.count, vocabulary = model_.config.vocabulary, stride = round_up(vocabulary, 8);
  if (count < 1 || call.steps < 1)
    throw std::invalid_argument("a decode needs at least one sequence and one step");
  if (logits_.bytes() < (size_t)count * stride * 4) logits_ = Buffer((size_t)count * stride * 4);
  std::vector<Decoding> sequences(call.sequences, call.sequences + count);
  std::vector<int32_t> tokens, wanted;
  std::vector<EdgedSlice> slices;
  for (int i = 0; i < count; i++) {
    const EdgedDecoding& one = call.sequences[i];
    tokens.push_back(one.token);
    wanted.push_back(i);
    slices.push_back({one.position, 1, one.first_block, one.first_window_block, one.block_count, one.state,
                      one.next_state});
  }
  bool more = true;
  int step = 0;
  for (; step < call.steps && more; step++) {
    if (step && __atomic_load_n(call.interrupt, __ATOMIC_RELAXED)) break;
    try {
      compute({tokens.data(), count, slices.data(), count, call.blocks, call.block_count, wanted.data(),
               count, logits_.as<float>(), stride, nullptr});
    } catch (const std::exception&) {
      if (!step) throw;
      return step;
    }
    for (int i = 0; i < count; i++) {
      tokens[i] =
          sequences[i].choose(logits_.as<float>() + (size_t)i * stride, vocabulary, best(i), step, kernels_);
      if (tokens[i] < 0) return step;  // the caller repeats this step alone, which reports the error
    }
    for (int i = 0; i < count; i++) {
      sequences[i].append(tokens[i], step);
      slices[i].position++;
      slices[i].state = slices[i].next_state;
      slices[i].next_state = step % 2 ? call.sequences[i].next_state : call.sequences[i].state;
      const bool stops =
          std::find(call.stops, call.stops + call.stop_count, tokens[i]) != call.stops + call.stop_count;
      more = more && !stops && !sequences[i].ends_in_repeated_pair();
    }
  }
  return step;
}

}  // namespace edged

#include "choose.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <vector>

namespace edged {
namespace {

constexpr double kColdest = 1e-6;  // the temperature below which nothing changes any more in float32
constexpr int kHandful = 16;
constexpr int kSumBlock = 256;     // weights that are summed at once, so that a draw need not add all one by one

// The order of candidates: larger weights first, of equals the lower id.
struct Before {
  const float* weights;
  bool operator()(int32_t a, int32_t b) const { return weights[a] > weights[b] || (weights[a] == weights[b] && a < b); }
};

uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return bits;
}

// One choice's candidates: all tokens until something leaves some out, then `kept_`, by rising id. A thread keeps one for the room.
class Choice {
 public:
  int32_t run(const float* logits, int32_t count, const EdgedSampling& how, const Kernels& kernels) {
    count_ = count;
    if (how.repetition_penalty != 1) logits = penalized(logits, how);
    const float best = kernels.largest(logits, count);
    if (!std::isfinite(best)) return -1;
    if (how.temperature == 0) return first_of(logits, best, kernels);
    weigh(logits, best, (float)(1.4426950408889634 / std::max(how.temperature, kColdest)), kernels);
    if (how.top_k > 0 && how.top_k < count) keep_best(how.top_k, kernels);
    if (how.top_p < 1) keep_nucleus(how.top_p);
    if (how.min_p > 0) keep_at_least((float)how.min_p);
    return all_ ? draw_from_all(how.chance) : draw_from_kept(how.chance);
  }

 private:
  const float* penalized(const float* logits, const EdgedSampling& how) {
    const float penalty = (float)how.repetition_penalty;
    scores_.assign(logits, logits + count_);
    for (int32_t i = 0; i < how.seen_count; i++) {
      const int32_t token = how.seen[i];
      if (token < 0 || token >= count_) continue;
      float& score = scores_[(size_t)token];
      score = score > 0 ? score / penalty : score * penalty;
    }
    return scores_.data();
  }

  // The lowest token whose logit is `best`.
  int32_t first_of(const float* logits, float best, const Kernels& kernels) const {
    int32_t at = 0;
    while (kernels.largest(logits + at, std::min(kSumBlock, count_ - at)) != best) at += kSumBlock;
    return (int32_t)(std::find(logits + at, logits + count_, best) - logits);
  }

  void weigh(const float* logits, float best, float factor, const Kernels& kernels) {
    all_ = true;
    weights_.resize((size_t)count_);
    ends_.clear();
    double end = 0;
    for (int32_t at = 0; at < count_; at += kSumBlock) {
      end += kernels.weigh(logits + at, std::min(kSumBlock, count_ - at), best, factor, weights_.data() + at);
      ends_.push_back(end);
    }
  }

  // Goes on with the candidates that `keeps`. Of all tokens mostly few are, so those are looked for a handful at a time.
  template <class Keeps>
  void keep(Keeps keeps) {
    if (!all_) return retain(kept_, keeps);
    kept_.clear();
    for (int32_t at = 0; at < count_; at += kHandful) {
      const int32_t end = std::min(at + kHandful, count_);
      int any = 0;
      for (int32_t id = at; id < end; id++) any |= keeps(id);
      if (!any) continue;
      const size_t before = kept_.size();
      for (int32_t id = at; id < end; id++) kept_.push_back(id);
      retain(kept_, keeps, before);
    }
    all_ = false;
  }

  // Leaves in `ids`, from `begin` on, those that `keeps`; without a branch for each, because nobody can foresee which they are.
  template <class Keeps>
  static void retain(std::vector<int32_t>& ids, Keeps keeps, size_t begin = 0) {
    size_t end = begin;
    for (size_t i = begin; i < ids.size(); i++) {
      const int32_t id = ids[i];
      ids[end] = id;
      end += keeps(id);
    }
    ids.resize(end);
  }

  void keep_at_least(float bound) {
    const float* const w = weights_.data();
    keep([=](int32_t id) { return w[id] >= bound; });
  }

  void keep_best(int32_t count, const Kernels& kernels) {
    keep_at_least(reached_by(count, kernels));
    if ((int32_t)kept_.size() <= count) return;
    std::nth_element(kept_.begin(), kept_.begin() + count, kept_.end(), Before{weights_.data()});
    kept_.resize((size_t)count);
    std::sort(kept_.begin(), kept_.end());
  }

  // A weight that at least `count` tokens reach, and not many more: the count-th largest of the largest of blocks.
  float reached_by(int32_t count, const Kernels& kernels) {
    const int32_t size = count_ / 4 / count;
    if (size < 2) return 0.f;
    std::vector<float>& maxima = scores_;  // free again
    maxima.clear();
    for (int32_t at = 0; at + size <= count_; at += size) maxima.push_back(kernels.largest(weights_.data() + at, size));
    std::nth_element(maxima.begin(), maxima.begin() + (count - 1), maxima.end(), [](float a, float b) { return a > b; });
    return maxima[(size_t)count - 1];
  }

  // The fewest of the largest that make up `share` of the sum, at least one.
  void keep_nucleus(double share) {
    const double total = sum();
    const int32_t count = all_ ? count_ : (int32_t)kept_.size();
    // What is below this adds up to less than the rest of the sum, so the nucleus lies above; a little lower against rounding.
    keep_at_least((float)(0.999 * (1 - share) * total / count));
    const Before before{weights_.data()};
    const int32_t last = last_of(share * total);
    keep([=](int32_t id) { return !before(last, id); });
  }

  // The candidate at which the sum of the largest reaches `target`; the last of all where it does not. Weights are not negative, so their
  // bits order as they do: the sum is found by the upper 12 bits, then within those by the next 11, then by the last 9.
  int32_t last_of(double target) {
    std::vector<int32_t>& among = among_;
    among = kept_;
    double above = 0;
    int known = 0;
    for (const int width : {12, 11, 9}) {
      const int shift = 32 - known - width;
      const uint32_t mask = (1u << width) - 1;
      sums_.assign((size_t)mask + 1, 0.);
      for (const int32_t id : among) sums_[bits_of(weights_[(size_t)id]) >> shift & mask] += weights_[(size_t)id];
      uint32_t found = 0;
      bool reached = false;
      for (uint32_t bin = mask + 1; bin-- && !reached;) {
        if (sums_[bin] == 0) continue;
        found = bin;
        reached = above + sums_[bin] >= target;
        if (!reached) above += sums_[bin];
      }
      if (!reached) above -= sums_[found];
      retain(among, [=, w = weights_.data()](int32_t id) { return (bits_of(w[id]) >> shift & mask) == found; });
      known += width;
    }
    const double needed = std::ceil((target - above) / weights_[(size_t)among.front()]);  // all that are left weigh the same
    return among[needed < 1 ? 0 : std::min((size_t)needed, among.size()) - 1];
  }

  double sum() const {
    if (all_) return ends_.back();
    double total = 0;
    for (const int32_t id : kept_) total += weights_[(size_t)id];
    return total;
  }

  int32_t draw_from_kept(double chance) const {
    return draw(kept_.size(), chance * sum(), [&](size_t i) { return kept_[i]; });
  }

  int32_t draw_from_all(double chance) const {
    const double place = chance * ends_.back();
    const size_t block = (size_t)(std::upper_bound(ends_.begin(), ends_.end() - 1, place) - ends_.begin()), begin = block * kSumBlock;
    const double within = place - (block ? ends_[block - 1] : 0.);
    const int32_t token = draw(std::min((size_t)kSumBlock, (size_t)count_ - begin), within, [=](size_t i) { return (int32_t)(begin + i); });
    if (token >= 0) return token;
    return (int32_t)(std::max_element(weights_.begin(), weights_.end()) - weights_.begin());  // rounding led to a block of zeros
  }

  // Of n candidates the one in which the running sum passes `place`; the last that weighs anything where rounding keeps it below; −1: none.
  template <class Id>
  int32_t draw(size_t n, double place, Id id) const {
    double end = 0;
    int32_t last = -1;
    for (size_t i = 0; i < n; i++) {
      const float weight = weights_[(size_t)id(i)];
      if (weight <= 0) continue;
      end += weight;
      last = id(i);
      if (end > place) break;
    }
    return last;
  }

  int32_t count_ = 0;
  bool all_ = true;
  std::vector<float> scores_, weights_;
  std::vector<double> ends_, sums_;  // ends_: where each block's weights end on the line that a draw falls on
  std::vector<int32_t> kept_, among_;
};

}  // namespace

int32_t choose_token(const float* logits, int32_t count, const EdgedSampling& how, const Kernels& kernels) {
  if (count < 1) throw std::invalid_argument("there are no logits to choose from");
  static thread_local Choice choice;
  return choice.run(logits, count, how, kernels);
}

}  // namespace edged

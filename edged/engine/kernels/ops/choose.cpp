#include "ops/choose.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <vector>

namespace edged {
namespace {

constexpr double kColdest = 1e-6;  // the temperature below which nothing changes any more in float32
constexpr int kHandful = 16;
constexpr int kSumBlock = 256;     // weights that are summed at once, so that a draw need not add all one by one

// The order of candidates, by their logits or weights: larger ones first, of equals the lower id.
struct Before {
  const float* values;
  bool operator()(int32_t a, int32_t b) const { return values[a] > values[b] || (values[a] == values[b] && a < b); }
};

uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return bits;
}

// One choice's candidates: all tokens until something leaves some out, then `kept_`, by rising id. A thread keeps one for the room.
class Choice {
 public:
  int32_t run(const float* logits, int32_t count, const EdgedSampling& how, const Kernels& kernels, const float* known) {
    count_ = count;
    if (how.repetition_penalty != 1) {
      logits = penalized(logits, how);
      known = nullptr;
    }
    const float best = known ? *known : kernels.largest(logits, count);
    if (!std::isfinite(best)) return -1;
    if (how.temperature == 0) return first_of(logits, best, kernels);
    all_ = true;
    weights_.resize((size_t)count);
    if (how.top_k > 0 && how.top_k < count) keep_best(logits, how.top_k, kernels);
    weigh(logits, best, (float)(1.4426950408889634 / std::max(how.temperature, kColdest)), kernels);
    if (how.top_p < 1) keep_nucleus(how.top_p);
    if (how.min_p > 0) keep_at_least(weights_.data(), (float)how.min_p);
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
    if (!all_) {
      some_.clear();
      for (const int32_t id : kept_) some_.push_back(logits[id]);
      kernels.weigh(some_.data(), (int)some_.size(), best, factor, some_.data());
      for (size_t i = 0; i < kept_.size(); i++) weights_[(size_t)kept_[i]] = some_[i];
      return;
    }
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

  void keep_at_least(const float* values, float bound) {
    keep([=](int32_t id) { return values[id] >= bound; });
  }

  void keep_best(const float* logits, int32_t count, const Kernels& kernels) {
    keep_at_least(logits, reached_by(logits, count, kernels));
    if ((int32_t)kept_.size() <= count) return;
    std::nth_element(kept_.begin(), kept_.begin() + count, kept_.end(), Before{logits});
    kept_.resize((size_t)count);
    std::sort(kept_.begin(), kept_.end());
  }

  // A logit that at least `count` tokens reach (or all that are not masked), and not many more: the count-th largest of the largest of blocks.
  float reached_by(const float* logits, int32_t count, const Kernels& kernels) {
    const int32_t size = count_ / 4 / count;
    if (size < 2) return -FLT_MAX;
    some_.clear();
    for (int32_t at = 0; at + size <= count_; at += size) some_.push_back(kernels.largest(logits + at, size));
    std::nth_element(some_.begin(), some_.begin() + (count - 1), some_.end(), [](float a, float b) { return a > b; });
    return std::max(some_[(size_t)count - 1], -FLT_MAX);
  }

  // The fewest of the largest that make up `share` of the sum, at least one.
  void keep_nucleus(double share) {
    const double total = sum();
    const int32_t count = all_ ? count_ : (int32_t)kept_.size();
    // What is below this adds up to less than the rest of the sum, so the nucleus lies above; a little lower against rounding.
    keep_at_least(weights_.data(), (float)(0.999 * (1 - share) * total / count));
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

  // All weights added up: in four sums at a time where they are many, because each waits for the one before.
  double sum() const {
    double sums[4] = {};
    if (all_)
      for (size_t i = 0; i < weights_.size(); i++) sums[i % 4] += weights_[i];
    else
      for (const int32_t id : kept_) sums[0] += weights_[(size_t)id];
    return sums[0] + sums[1] + (sums[2] + sums[3]);
  }

  int32_t draw_from_kept(double chance) const {
    return draw(kept_.size(), chance * sum(), [&](size_t i) { return kept_[i]; });
  }

  int32_t draw_from_all(double chance) const {
    double place = chance * ends_.back();
    size_t block = (size_t)(std::upper_bound(ends_.begin(), ends_.end() - 1, place) - ends_.begin());
    if (block) place -= ends_[block - 1];
    for (;; block--) {  // the best token weighs something, so a block is found; others than the first are looked at after rounding alone
      const size_t begin = block * kSumBlock, size = std::min((size_t)kSumBlock, (size_t)count_ - begin);
      const int32_t token = draw(size, place, [=](size_t i) { return (int32_t)(begin + i); });
      if (token >= 0 || !block) return token;
      place = INFINITY;
    }
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
  std::vector<float> scores_, weights_, some_;
  std::vector<double> ends_, sums_;  // ends_: where each block's weights end on the line that a draw falls on
  std::vector<int32_t> kept_, among_;
};

}  // namespace

int32_t choose_token(const float* logits, int32_t count, const EdgedSampling& how, const Kernels& kernels, const float* best) {
  if (count < 1) throw std::invalid_argument("there are no logits to choose from");
  static thread_local Choice choice;
  return choice.run(logits, count, how, kernels, best);
}

}  // namespace edged

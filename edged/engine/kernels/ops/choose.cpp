#include "ops/choose.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <vector>

namespace edged {
namespace {

constexpr double kMinTemperature = 1e-6;  // in float32 a lower temperature changes nothing
constexpr int kScanWidth = 16;            // candidates that a filter tests at a time
constexpr int kCumulativeBlock = 256;  // weights in a block whose running sum is kept, which shortens a draw

// Orders candidates by their logits or weights: larger ones first, of equals the lower id.
struct HigherFirst {
  const float* values;
  bool operator()(int32_t a, int32_t b) const {
    return values[a] > values[b] || (values[a] == values[b] && a < b);
  }
};

uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return bits;
}

// The candidates of one choice: all tokens until a filter leaves some out, then `kept_`, by rising id. Each
// thread reuses one for its memory.
class Sampler {
 public:
  int32_t run(const float* logits, int32_t count, const EdgedSampling& how, const Kernels& kernels,
              const float* best_logit) {
    count_ = count;
    if (how.repetition_penalty != 1) {
      logits = penalized(logits, how);
      best_logit = nullptr;
    }
    const float best = best_logit ? *best_logit : kernels.max_logit(logits, count);
    if (!std::isfinite(best)) return -1;
    if (how.temperature == 0) return argmax(logits, best, kernels);
    all_ = true;
    weights_.resize((size_t)count);
    if (how.top_k > 0 && how.top_k < count) keep_best(logits, how.top_k, kernels);
    compute_weights(logits, best, (float)(kLog2e / std::max(how.temperature, kMinTemperature)), kernels);
    if (how.top_p < 1) keep_nucleus(how.top_p);
    if (how.min_p > 0) keep_at_least(weights_.data(), (float)how.min_p);
    return all_ ? draw_from_all(how.uniform) : draw_from_kept(how.uniform);
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
  int32_t argmax(const float* logits, float best, const Kernels& kernels) const {
    int32_t at = 0;
    while (kernels.max_logit(logits + at, std::min(kCumulativeBlock, count_ - at)) != best)
      at += kCumulativeBlock;
    return (int32_t)(std::find(logits + at, logits + count_, best) - logits);
  }

  void compute_weights(const float* logits, float best, float factor, const Kernels& kernels) {
    if (!all_) {
      work_.clear();
      for (const int32_t id : kept_) work_.push_back(logits[id]);
      kernels.softmax_weights(work_.data(), (int)work_.size(), best, factor, work_.data());
      for (size_t i = 0; i < kept_.size(); i++) weights_[(size_t)kept_[i]] = work_[i];
      return;
    }
    cumulative_.clear();
    double end = 0;
    for (int32_t at = 0; at < count_; at += kCumulativeBlock) {
      end += kernels.softmax_weights(logits + at, std::min(kCumulativeBlock, count_ - at), best, factor,
                                     weights_.data() + at);
      cumulative_.push_back(end);
    }
  }

  // Keeps the candidates for which `keeps` is true. Of all tokens these are mostly few, so kScanWidth are
  // tested at a time.
  template <class Keeps>
  void keep(Keeps keeps) {
    if (!all_) return retain(kept_, keeps);
    kept_.clear();
    for (int32_t at = 0; at < count_; at += kScanWidth) {
      const int32_t end = std::min(at + kScanWidth, count_);
      int any = 0;
      for (int32_t id = at; id < end; id++) any |= keeps(id);
      if (!any) continue;
      const size_t before = kept_.size();
      for (int32_t id = at; id < end; id++) kept_.push_back(id);
      retain(kept_, keeps, before);
    }
    all_ = false;
  }

  // Leaves in `ids`, from `begin` on, those for which `keeps` is true; without a branch for each, which would
  // be mispredicted.
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
    keep_at_least(logits, top_k_bound(logits, count, kernels));
    if ((int32_t)kept_.size() <= count) return;
    std::nth_element(kept_.begin(), kept_.begin() + count, kept_.end(), HigherFirst{logits});
    kept_.resize((size_t)count);
    std::sort(kept_.begin(), kept_.end());
  }

  // A bound that the logits of at least `count` tokens reach (or of all that are not masked), and not of many
  // more: the count-th largest among the maxima of blocks.
  float top_k_bound(const float* logits, int32_t count, const Kernels& kernels) {
    const int32_t size = count_ / 4 / count;
    if (size < 2) return -FLT_MAX;
    work_.clear();
    for (int32_t at = 0; at + size <= count_; at += size)
      work_.push_back(kernels.max_logit(logits + at, size));
    std::nth_element(work_.begin(), work_.begin() + (count - 1), work_.end(),
                     [](float a, float b) { return a > b; });
    return std::max(work_[(size_t)count - 1], -FLT_MAX);
  }

  // The fewest of the largest that make up `share` of the sum, at least one.
  void keep_nucleus(double share) {
    const double total = sum();
    const int32_t count = all_ ? count_ : (int32_t)kept_.size();
    // Weights below this add up to less than 1 − share of the sum, so the nucleus lies above; 0.999 allows
    // for rounding.
    keep_at_least(weights_.data(), (float)(0.999 * (1 - share) * total / count));
    const HigherFirst before{weights_.data()};
    const int32_t last = nucleus_end(share * total);
    keep([=](int32_t id) { return !before(last, id); });
  }

  // The candidate at which the sum of the largest reaches `target`; the last of all where it does not.
  // Weights are not negative, so their bits order as they do: the sum is found by the upper 12 bits, then
  // within those by the next 11, then by the last 9.
  int32_t nucleus_end(double target) {
    std::vector<int32_t>& candidates = candidates_;
    candidates = kept_;
    double above = 0;
    int known_bits = 0;
    for (const int width : {12, 11, 9}) {
      const int shift = 32 - known_bits - width;
      const uint32_t mask = (1u << width) - 1;
      sums_.assign((size_t)mask + 1, 0.);
      for (const int32_t id : candidates)
        sums_[bits_of(weights_[(size_t)id]) >> shift & mask] += weights_[(size_t)id];
      uint32_t found = 0;
      bool reached = false;
      for (uint32_t bin = mask + 1; bin-- && !reached;) {
        if (sums_[bin] == 0) continue;
        found = bin;
        reached = above + sums_[bin] >= target;
        if (!reached) above += sums_[bin];
      }
      if (!reached) above -= sums_[found];
      retain(candidates,
             [=, w = weights_.data()](int32_t id) { return (bits_of(w[id]) >> shift & mask) == found; });
      known_bits += width;
    }
    const float weight = weights_[(size_t)candidates.front()];  // of each remaining candidate
    const double needed = std::ceil((target - above) / weight);
    return candidates[needed < 1 ? 0 : std::min((size_t)needed, candidates.size()) - 1];
  }

  // The sum of all weights; in four partial sums where they are many, because each addition waits for the one
  // before.
  double sum() const {
    double sums[4] = {};
    if (all_)
      for (size_t i = 0; i < weights_.size(); i++) sums[i % 4] += weights_[i];
    else
      for (const int32_t id : kept_) sums[0] += weights_[(size_t)id];
    return sums[0] + sums[1] + (sums[2] + sums[3]);
  }

  int32_t draw_from_kept(double uniform) const {
    return draw(kept_.size(), uniform * sum(), [&](size_t i) { return kept_[i]; });
  }

  int32_t draw_from_all(double uniform) const {
    double target = uniform * cumulative_.back();
    size_t block =
        (size_t)(std::upper_bound(cumulative_.begin(), cumulative_.end() - 1, target) - cumulative_.begin());
    if (block) target -= cumulative_[block - 1];
    for (;; block--) {  // ends: the best token has a weight; only rounding makes it go on to an earlier block
      const size_t begin = block * kCumulativeBlock,
                   size = std::min((size_t)kCumulativeBlock, (size_t)count_ - begin);
      const int32_t token = draw(size, target, [=](size_t i) { return (int32_t)(begin + i); });
      if (token >= 0 || !block) return token;
      target = INFINITY;
    }
  }

  // Of n candidates the one in which the running sum passes `target`; the last with a weight where rounding
  // keeps the sum below; −1: none.
  template <class Id>
  int32_t draw(size_t n, double target, Id id) const {
    double end = 0;
    int32_t last = -1;
    for (size_t i = 0; i < n; i++) {
      const float weight = weights_[(size_t)id(i)];
      if (weight <= 0) continue;
      end += weight;
      last = id(i);
      if (end > target) break;
    }
    return last;
  }

  int32_t count_ = 0;
  bool all_ = true;
  std::vector<float> scores_, weights_, work_;
  std::vector<double> cumulative_;  // the sum of all weights up to the end of each block
  std::vector<double> sums_;
  std::vector<int32_t> kept_, candidates_;
};

}  // namespace

int32_t choose_token(const float* logits, int32_t count, const EdgedSampling& how, const Kernels& kernels,
                     const float* best) {
  if (count < 1) throw std::invalid_argument("there are no logits to choose from");
  static thread_local Sampler sampler;
  return sampler.run(logits, count, how, kernels, best);
}

}  // namespace edged

// A barrier at which threads spin: phases between two barriers last microseconds, too short to sleep.
#pragma once
#include <atomic>
#include <thread>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace edged {

// Lets the core's other hardware thread run while this one spins.
inline void spin_pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

class Barrier {
 public:
  explicit Barrier(int threads) : arrivals_((size_t)threads) {}

  // Returns when every thread has called it as often as this one.
  void wait(int thread) {
    if (arrivals_.size() == 1) return;
    std::atomic<unsigned>& own = arrivals_[(size_t)thread].count;
    const unsigned now = own.load(std::memory_order_relaxed) + 1;
    own.store(now, std::memory_order_release);
    for (const Arrivals& other : arrivals_)
      for (int spins = 0; (int)(other.count.load(std::memory_order_acquire) - now) < 0; spins++) {
        if (spins < kSpinsBeforeYield)
          spin_pause();
        else
          std::this_thread::yield();
      }
  }

 private:
  // After as many another process probably runs on the missing thread's core.
  static constexpr int kSpinsBeforeYield = 4000;
  struct alignas(64) Arrivals {
    std::atomic<unsigned> count{0};
  };
  std::vector<Arrivals> arrivals_;  // one cache line for each thread, which alone writes it
};

}  // namespace edged

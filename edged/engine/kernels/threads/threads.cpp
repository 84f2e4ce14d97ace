#include "threads/threads.h"

#include <algorithm>
#include <chrono>
#include <exception>
#include <stdexcept>
#include <string>
#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace edged {
namespace {

inline void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// How long a thread spins for the next run: longer than a sampler needs between two tokens, short enough not to heat an idle board.
constexpr auto kSpin = std::chrono::microseconds(300);
constexpr int kSpinsBeforeYield = 4000;  // at a barrier: then another process probably holds the missing thread's core

// The cores that the process may use, one a thread; fewer where there are fewer.
std::vector<int> own_cores(int count) {
  std::vector<int> cores;
#if defined(__linux__)
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed)) return cores;
  for (int cpu = 0; cpu < CPU_SETSIZE && (int)cores.size() < count; cpu++)
    if (CPU_ISSET(cpu, &allowed)) cores.push_back(cpu);
#else
  (void)count;
#endif
  return cores;
}

// Moves the calling thread to one core. Best effort: a refusal costs speed alone.
void pin(int core) {
#if defined(__linux__)
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(core, &one);
  pthread_setaffinity_np(pthread_self(), sizeof one, &one);
#else
  (void)core;
#endif
}

}  // namespace

Threads::Threads(int count) : count_(count), cores_(own_cores(count)), arrivals_((size_t)count) {
  try {
    for (int t = 1; t < count_; t++) others_.emplace_back([this, t] { serve(t); });
  } catch (const std::exception& e) {
    // No destructor runs for what was never constructed, and threads that wait in its members would hang the process.
    const size_t running = others_.size() + 1;
    stop();
    throw std::runtime_error("this system lets " + std::to_string(running) + " of " + std::to_string(count_) + " threads run (" + e.what() +
                             "); set model.threads lower or raise the limit of tasks");
  }
}

Threads::~Threads() { stop(); }

void Threads::stop() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
    turn_.fetch_add(1, std::memory_order_release);
  }
  wake_.notify_all();
  for (auto& thread : others_) thread.join();
}

// The caller, which is not ours to pin, may have woken on a core that one of the others is pinned to. The system's balancing takes about
// 10 ms to see that; until then the two take turns at every barrier. So it moves to a core of its own and may use all of its cores again.
void Threads::leave_others_cores() const {
#if defined(__linux__)
  const auto taken = [this](int core) { return std::find(cores_.begin() + 1, cores_.end(), core) != cores_.end(); };
  if (cores_.size() < 2 || !taken(sched_getcpu())) return;
  cpu_set_t allowed;
  if (pthread_getaffinity_np(pthread_self(), sizeof allowed, &allowed)) return;
  for (int core = 0; core < CPU_SETSIZE; core++) {
    if (!CPU_ISSET(core, &allowed) || taken(core)) continue;
    pin(core);
    pthread_setaffinity_np(pthread_self(), sizeof allowed, &allowed);
    return;
  }
#endif
}

void Threads::run(void (*function)(void*, int), void* context) {
  leave_others_cores();
  function_ = function;
  context_ = context;
  turn_.fetch_add(1, std::memory_order_seq_cst);
  if (sleepers_.load(std::memory_order_seq_cst)) {
    std::lock_guard<std::mutex> lock(mutex_);
    wake_.notify_all();
  }
  function(context, 0);
  barrier(0);
}

void Threads::barrier(int thread) {
  if (count_ == 1) return;
  std::atomic<unsigned>& own = arrivals_[(size_t)thread].count;
  const unsigned now = own.load(std::memory_order_relaxed) + 1;
  own.store(now, std::memory_order_release);
  for (const Arrivals& other : arrivals_)
    for (int spins = 0; (int)(other.count.load(std::memory_order_acquire) - now) < 0; spins++) {
      if (spins < kSpinsBeforeYield)
        pause();
      else
        std::this_thread::yield();
    }
}

void Threads::serve(int thread) {
  if (thread < (int)cores_.size()) pin(cores_[thread]);
  unsigned seen = 0;
  for (;;) {
    const auto until = std::chrono::steady_clock::now() + kSpin;
    for (int spins = 1; turn_.load(std::memory_order_acquire) == seen; spins++) {
      pause();
      if (spins % 64 || std::chrono::steady_clock::now() < until) continue;
      std::unique_lock<std::mutex> lock(mutex_);
      sleepers_.fetch_add(1, std::memory_order_seq_cst);
      wake_.wait(lock, [&] { return turn_.load(std::memory_order_seq_cst) != seen; });
      sleepers_.fetch_sub(1, std::memory_order_relaxed);
    }
    seen++;
    if (stop_) return;
    function_(context_, thread);
    barrier(thread);
  }
}

}  // namespace edged

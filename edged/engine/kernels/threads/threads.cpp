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

namespace edged {
namespace {

// How long a thread spins for the next run: longer than a sampler needs between two tokens, short enough not
// to heat an idle board.
constexpr auto kSpin = std::chrono::microseconds(300);

// Up to `count` cores that the process may use.
std::vector<int> allowed_cores(int count) {
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

// Pins the calling thread to one core. A failure costs speed only, so it is ignored.
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

Threads::Threads(int count) : count_(count), cores_(allowed_cores(count)), barrier_(count) {
  try {
    for (int t = 1; t < count_; t++) others_.emplace_back([this, t] { work_loop(t); });
  } catch (const std::exception& e) {
    // The destructor does not run after a constructor that throws, and waiting threads would hang the
    // process.
    const size_t running = others_.size() + 1;
    stop();
    throw std::runtime_error("this system lets " + std::to_string(running) + " of " + std::to_string(count_) +
                             " threads run (" + e.what() +
                             "); set model.threads lower or raise the limit of tasks");
  }
}

Threads::~Threads() { stop(); }

void Threads::stop() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
    runs_.fetch_add(1, std::memory_order_release);
  }
  wake_.notify_all();
  for (auto& thread : others_) thread.join();
}

// The caller is not pinned and may have woken on a core that another thread is pinned to. The system's load
// balancing takes about 10 ms to separate them; until then the two wait for each other at every barrier. So
// the caller moves to a free core; then it may run anywhere again.
void Threads::leave_pinned_cores() const {
#if defined(__linux__)
  const auto range = [this](int core) {
    return std::find(cores_.begin() + 1, cores_.end(), core) != cores_.end();
  };
  if (cores_.size() < 2 || !range(sched_getcpu())) return;
  cpu_set_t allowed;
  if (pthread_getaffinity_np(pthread_self(), sizeof allowed, &allowed)) return;
  for (int core = 0; core < CPU_SETSIZE; core++) {
    if (!CPU_ISSET(core, &allowed) || range(core)) continue;
    pin(core);
    pthread_setaffinity_np(pthread_self(), sizeof allowed, &allowed);
    return;
  }
#endif
}

void Threads::run(void (*function)(void*, int), void* context) {
  leave_pinned_cores();
  function_ = function;
  context_ = context;
  runs_.fetch_add(1, std::memory_order_seq_cst);
  if (sleepers_.load(std::memory_order_seq_cst)) {
    std::lock_guard<std::mutex> lock(mutex_);
    wake_.notify_all();
  }
  function(context, 0);
  barrier(0);
}

void Threads::barrier(int thread) { barrier_.wait(thread); }

void Threads::work_loop(int thread) {
  if (thread < (int)cores_.size()) pin(cores_[thread]);
  unsigned seen = 0;
  for (;;) {
    const auto until = std::chrono::steady_clock::now() + kSpin;
    for (int spins = 1; runs_.load(std::memory_order_acquire) == seen; spins++) {
      spin_pause();
      if (spins % 64 || std::chrono::steady_clock::now() < until) continue;
      std::unique_lock<std::mutex> lock(mutex_);
      sleepers_.fetch_add(1, std::memory_order_seq_cst);
      wake_.wait(lock, [&] { return runs_.load(std::memory_order_seq_cst) != seen; });
      sleepers_.fetch_sub(1, std::memory_order_relaxed);
    }
    seen++;
    if (stop_) return;
    function_(context_, thread);
    barrier(thread);
  }
}

}  // namespace edged

// Threads that run one function together and meet at barriers. The caller is thread 0; the others spin briefly for the next run and
// then sleep. One run at a time (the engine's lock sees to it).
#pragma once
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

namespace edged {

class Threads {
 public:
  // Throws std::runtime_error where the system does not let as many run.
  explicit Threads(int count);
  ~Threads();
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;

  int count() const { return count_; }
  // Calls function(context, thread) on every thread and returns when all have returned.
  void run(void (*function)(void* context, int thread), void* context);
  // Waits, inside run, until every thread has come here; `thread` is the caller.
  void barrier(int thread);

 private:
  void serve(int thread);
  void leave_others_cores() const;
  void stop();  // ends and joins the other threads

  const int count_;
  const std::vector<int> cores_;  // where the threads belong; the caller's is the first, but only the others are pinned
  std::vector<std::thread> others_;
  void (*function_)(void*, int) = nullptr;
  void* context_ = nullptr;
  bool stop_ = false;
  alignas(64) std::atomic<unsigned> turn_{0};  // of runs
  std::atomic<int> sleepers_{0};
  std::mutex mutex_;
  std::condition_variable wake_;
  struct alignas(64) Arrivals {
    std::atomic<unsigned> count{0};
  };
  std::vector<Arrivals> arrivals_;  // at barriers, of each thread: it writes its own line and reads the others'
};

}  // namespace edged

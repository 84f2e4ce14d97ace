// Threads that run one function together and meet at barriers. The caller is thread 0; the others spin
// briefly for the next run and then sleep. One run at a time: the engine holds a lock.
#pragma once
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "threads/barrier.h"

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
  // Waits, inside run, until every thread has called it; `thread` is the caller's number.
  void barrier(int thread);

 private:
  void work_loop(int thread);
  void leave_pinned_cores() const;
  void stop();  // ends and joins the other threads

  const int count_;
  const std::vector<int> cores_;  // one for each thread; the first is the caller's, who is not pinned
  std::vector<std::thread> others_;
  void (*function_)(void*, int) = nullptr;
  void* context_ = nullptr;
  bool stop_ = false;
  alignas(64) std::atomic<unsigned> runs_{0};  // calls of run
  std::atomic<int> sleepers_{0};
  std::mutex mutex_;
  std::condition_variable wake_;
  Barrier barrier_;
};

}  // namespace edged

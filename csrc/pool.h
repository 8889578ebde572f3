// The thread pool: persistent workers, dynamic chunks, bounded spin, then sleep.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace octavo {

// A callable that is borrowed, never owned: no allocation per op.
class TaskRef {
 public:
  template <class F, class = std::enable_if_t<!std::is_same_v<std::decay_t<F>, TaskRef>>>
  TaskRef(F&& f)  // NOLINT: implicit on purpose
      : object_(const_cast<void*>(static_cast<const void*>(&f))),
        call_([](void* o, int task, int worker) { (*static_cast<std::remove_reference_t<F>*>(o))(task, worker); }) {}
  TaskRef() = default;
  void operator()(int task, int worker) const { call_(object_, task, worker); }

 private:
  void* object_ = nullptr;
  void (*call_)(void*, int, int) = nullptr;
};

// Tasks of one run() are handed out one by one, so that a thread that loses its core delays the others by
// one task and not by its share. run() returns when every task is done, whether or not every worker woke up.
// One caller at a time (guarded by a mutex: a second caller waits).
class Pool {
 public:
  // `threads` counts the caller: Pool(1) starts no thread. `cpus` (may be empty) pins worker i to cpus[i].
  explicit Pool(int threads, std::vector<int> cpus = {});
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int size() const { return static_cast<int>(seats_.size()) + 1; }
  // How many of its threads the next run() uses, 1 .. size(). The others sleep.
  int team() const { return team_.load(std::memory_order_relaxed); }
  void set_team(int threads) { team_.store(std::clamp(threads, 1, size()), std::memory_order_relaxed); }

  // Calls fn(task, worker) for task = 0 .. tasks-1, worker in 0 .. size()-1 (0 is the caller).
  template <class F>
  void run(int tasks, F&& fn) {
    if (tasks <= 1 || team() == 1) {
      for (int task = 0; task < tasks; ++task) fn(task, 0);
      return;
    }
    publish(tasks, TaskRef(fn));
  }

 private:
  // Where a worker sleeps, each by itself: an op wakes no more of them than it has work for.
  struct Seat {
    std::mutex mutex;
    std::condition_variable wake;
    std::atomic<bool> asleep{false};
    std::thread thread;
    template <class Ready>
    void sleep(Ready ready);
    void rouse();
  };

  void publish(int tasks, TaskRef fn);
  void finish(int tasks);
  void work(int worker);
  void drain(uint64_t epoch, int worker);

  // The job. `next_` holds epoch << 32 | next task: a compare-exchange that succeeds proves that the job of
  // that epoch still has an unclaimed task, so the fields read before it were that job's (publish() closes the
  // number before it changes them).
  std::atomic<uint64_t> next_{0};
  std::atomic<int> tasks_{0};
  std::atomic<const TaskRef*> fn_{nullptr};
  alignas(64) std::atomic<int> done_{0};
  alignas(64) std::atomic<int> team_{1};
  std::atomic<bool> stop_{false};
  std::mutex caller_;
  Seat caller_seat_;
  std::vector<std::unique_ptr<Seat>> seats_;  // worker i sits at i - 1
};

}  // namespace octavo

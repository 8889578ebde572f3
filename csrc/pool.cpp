#include "pool.h"

#include <chrono>

#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#endif
#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

namespace octavo {
namespace {

inline void relax() {
#if defined(__x86_64__) || defined(_M_X64)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// How long a worker spins for the next op before it sleeps: longer than the gaps inside a step, shorter than
// anything that shows up as idle CPU.
constexpr auto kSpin = std::chrono::microseconds(150);
constexpr int kSpinsBeforeYield = 2000;
constexpr uint64_t kClosed = 0x7fffffff;  // a task number that no job has

void pin(int cpu) {
#if defined(__linux__)
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  pthread_setaffinity_np(pthread_self(), sizeof(set), &set);
#else
  (void)cpu;
#endif
}

}  // namespace

Pool::Pool(int threads, std::vector<int> cpus) {
  for (int worker = 1; worker < threads; ++worker) {
    const int cpu = static_cast<size_t>(worker) < cpus.size() ? cpus[worker] : -1;
    workers_.emplace_back([this, worker, cpu] {
      if (cpu >= 0) pin(cpu);
      work(worker);
    });
  }
}

Pool::~Pool() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  for (auto& worker : workers_) worker.join();
}

void Pool::drain(uint64_t epoch, int worker) {
  uint64_t seen = next_.load(std::memory_order_acquire);
  while (seen >> 32 == epoch) {
    const int task = static_cast<int>(seen & 0xffffffffu);
    const TaskRef* fn = fn_.load(std::memory_order_acquire);
    if (task >= tasks_.load(std::memory_order_acquire)) return;
    if (!next_.compare_exchange_weak(seen, seen + 1, std::memory_order_acq_rel)) continue;
    (*fn)(task, worker);
    done_.fetch_add(1, std::memory_order_release);
    seen = next_.load(std::memory_order_acquire);
  }
}

void Pool::publish(int tasks, TaskRef fn) {
  std::lock_guard<std::mutex> one(caller_);
  const uint64_t epoch = (next_.load(std::memory_order_relaxed) >> 32) + 1;
  // A worker that still looks at the last job must not take its old number for a task of this one: the number
  // goes away before the job changes.
  next_.store((epoch - 1) << 32 | kClosed, std::memory_order_relaxed);
  fn_.store(&fn, std::memory_order_release);
  tasks_.store(tasks, std::memory_order_release);
  done_.store(0, std::memory_order_relaxed);
  next_.store((epoch & 0xffffffffu) << 32, std::memory_order_seq_cst);
  if (sleepers_.load(std::memory_order_seq_cst) > 0) {
    std::lock_guard<std::mutex> lock(mutex_);
    wake_.notify_all();
  }
  drain(epoch & 0xffffffffu, 0);
  for (int spins = 0; done_.load(std::memory_order_acquire) < tasks; ++spins) {
    if (spins < kSpinsBeforeYield) relax();
    else std::this_thread::yield();
  }
}

void Pool::work(int worker) {
  uint64_t last = 0;
  const auto fresh = [&] { return next_.load(std::memory_order_seq_cst) >> 32 != last; };
  while (!stop_) {
    const auto deadline = std::chrono::steady_clock::now() + kSpin;
    while (!fresh() && std::chrono::steady_clock::now() < deadline)
      for (int i = 0; i < 32 && !fresh(); ++i) relax();
    if (!fresh()) {
      std::unique_lock<std::mutex> lock(mutex_);
      sleepers_.fetch_add(1, std::memory_order_seq_cst);
      wake_.wait(lock, [&] { return stop_ || fresh(); });
      sleepers_.fetch_sub(1, std::memory_order_seq_cst);
      if (stop_) return;
    }
    last = next_.load(std::memory_order_acquire) >> 32;
    drain(last, worker);
  }
}

}  // namespace octavo

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
// How long the caller spins for the last task of an op before it sleeps.
constexpr auto kTailSpin = std::chrono::microseconds(50);
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
  for (int worker = 1; worker < threads; ++worker) seats_.push_back(std::make_unique<Seat>());
  set_team(size());
  for (int worker = 1; worker < threads; ++worker) {
    const int cpu = static_cast<size_t>(worker) < cpus.size() ? cpus[worker] : -1;
    seats_[static_cast<size_t>(worker - 1)]->thread = std::thread([this, worker, cpu] {
      if (cpu >= 0) pin(cpu);
      work(worker);
    });
  }
}

Pool::~Pool() {
  stop_ = true;
  for (auto& seat : seats_) seat->rouse();
  for (auto& seat : seats_) seat->thread.join();
}

// `asleep` is set before `ready` is asked, and what makes it ready is set before `asleep` is read (all in one total
// order): either the sleeper sees that it is ready, or the other side sees that it sleeps.
template <class Ready>
void Pool::Seat::sleep(Ready ready) {
  std::unique_lock<std::mutex> lock(mutex);
  asleep.store(true, std::memory_order_seq_cst);
  wake.wait(lock, ready);
  asleep.store(false, std::memory_order_relaxed);
}

void Pool::Seat::rouse() {
  if (!asleep.load(std::memory_order_seq_cst)) return;
  std::lock_guard<std::mutex> lock(mutex);
  wake.notify_one();
}

void Pool::drain(uint64_t epoch, int worker) {
  uint64_t seen = next_.load(std::memory_order_acquire);
  while (seen >> 32 == epoch) {
    const int task = static_cast<int>(seen & 0xffffffffu);
    const TaskRef* fn = fn_.load(std::memory_order_acquire);
    const int tasks = tasks_.load(std::memory_order_acquire);
    if (task >= tasks) return;
    if (!next_.compare_exchange_weak(seen, seen + 1, std::memory_order_acq_rel)) continue;
    (*fn)(task, worker);
    if (done_.fetch_add(1, std::memory_order_seq_cst) + 1 == tasks && worker > 0) caller_seat_.rouse();
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
  const int others = std::min(team(), tasks) - 1;
  for (int i = 0; i < others; ++i) seats_[static_cast<size_t>(i)]->rouse();
  drain(epoch & 0xffffffffu, 0);
  finish(tasks);
}

// Waits for tasks that others still hold. One that takes long has lost its core, maybe to another process: asleep,
// the caller leaves its own core for it.
void Pool::finish(int tasks) {
  const auto done = [&] { return done_.load(std::memory_order_seq_cst) >= tasks; };
  if (done()) return;
  const auto deadline = std::chrono::steady_clock::now() + kTailSpin;
  do {
    for (int i = 0; i < 32; ++i) {
      if (done()) return;
      relax();
    }
  } while (std::chrono::steady_clock::now() < deadline);
  caller_seat_.sleep(done);
}

void Pool::work(int worker) {
  uint64_t last = 0;
  const auto fresh = [&] { return next_.load(std::memory_order_seq_cst) >> 32 != last && worker < team(); };
  while (!stop_) {
    const auto deadline = std::chrono::steady_clock::now() + kSpin;
    while (!fresh() && std::chrono::steady_clock::now() < deadline)
      for (int i = 0; i < 32 && !fresh(); ++i) relax();
    if (!fresh()) {
      seats_[static_cast<size_t>(worker - 1)]->sleep([&] { return stop_ || fresh(); });
      if (stop_) return;
    }
    last = next_.load(std::memory_order_acquire) >> 32;
    drain(last, worker);
  }
}

}  // namespace octavo

// Every task of every job is done once, by a worker that exists, and is seen by the caller.
#include <chrono>
#include <thread>

#include "check.h"
#include "pool.h"

namespace octavo::test {
namespace {

constexpr int kSizes[] = {0, 1, 2, 3, 7, 64, 1000};

// `jobs` jobs of changing sizes. The counts are plain numbers: a thread sanitizer sees what is not ordered.
bool jobs_done(Pool& pool, int jobs, bool pauses) {
  std::vector<int> counts(1000);
  bool good = true;
  for (int job = 0; job < jobs; ++job) {
    const int tasks = kSizes[job % 7];
    if (job % 3 == 0) pool.set_team(1 + job % pool.size());
    std::vector<int> by_worker(static_cast<size_t>(pool.size()) * 16);
    std::fill(counts.begin(), counts.end(), 0);
    pool.run(tasks, [&](int task, int worker) {
      ++counts[static_cast<size_t>(task)];
      ++by_worker[static_cast<size_t>(worker) * 16];
    });
    int seen = 0;
    for (const int n : by_worker) seen += n;
    good &= seen == tasks;
    for (int i = 0; i < 1000; ++i) good &= counts[static_cast<size_t>(i)] == (i < tasks);
    // Longer than workers spin, so that some jobs find them asleep.
    if (pauses && job % 50 == 0) std::this_thread::sleep_for(std::chrono::microseconds(400));
  }
  return good;
}

}  // namespace

void pool_parts() {
  for (const int threads : {1, 2, 3, 5}) {
    Pool pool(threads);
    check(jobs_done(pool, 700, true), "pool of " + std::to_string(threads) + ": a task is missing or done twice");
    bool good[2] = {};
    std::thread other([&] { good[1] = jobs_done(pool, 350, false); });
    good[0] = jobs_done(pool, 350, false);
    other.join();
    check(good[0] && good[1], "pool of " + std::to_string(threads) + ": two callers disturb each other");
  }
  for (int i = 0; i < 50; ++i) Pool(3).run(i % 4, [](int, int) {});  // ends while workers start, spin or sleep
}

}  // namespace octavo::test

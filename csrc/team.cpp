#include "team.h"

#include <algorithm>
#include <chrono>
#include <ctime>

namespace octavo {
namespace {

constexpr int kSteps = 3;          // a comparison is of at least as many steps
constexpr double kSeconds = 0.01;  // and of at least as much time
constexpr double kLost = 0.08;     // a share of the time that is worth a trial
constexpr double kMuch = 0.15;     // one that starts it after two steps
constexpr double kGain = 0.98;     // of the time: what is called faster
constexpr double kHopeless = 1.1;  // of the time: what ends a trial of more threads at once
constexpr double kFirst = 0.25;    // seconds until one more thread is tried again
constexpr double kLongest = 8.0;   // the same, when it never pays
constexpr double kNotAgain = 0.1;  // seconds until fewer threads are tried again, at first

}  // namespace

void Team::set_most(int threads) {
  most_ = usual_ = std::max(1, threads);
  trial_ = 0;
  usual_sum_ = trial_sum_ = {};
  patience_ = kFirst;
  reluctance_ = kNotAgain;
}

int Team::threads(int64_t tokens) {
  int64_t size = 1;
  while (size < tokens) size *= 2;
  if (size != size_) {
    size_ = size;
    trial_ = 0;
    usual_sum_ = trial_sum_ = {};
  }
  return trial_ > 0 ? trial_ : usual_;
}

void Team::stepped(double seconds, double lost) {
  now_ += seconds;
  if (most_ == 1) return;
  if (trial_ > usual_ && seconds > kHopeless * usual_sum_.mean()) return settle(false);
  if (settling_) {
    settling_ = false;
    return;
  }
  Sum& sum = trial_ > 0 ? trial_sum_ : usual_sum_;
  ++sum.steps;
  sum.seconds += seconds;
  sum.lost += lost;
  const bool enough = sum.steps >= kSteps && sum.seconds >= kSeconds;
  if (trial_ > 0) {
    if (enough) settle(trial_sum_.mean() < kGain * usual_sum_.mean());
  } else if (enough || (sum.steps > 1 && sum.lost > kMuch * sum.seconds)) {
    consider();
  }
}

// After some steps as usual: is another number of threads worth a trial?
void Team::consider() {
  const bool loses = usual_sum_.lost > kLost * usual_sum_.seconds;
  if (usual_ < most_ && now_ >= next_more_) trial_ = usual_ + 1;
  else if (usual_ > 1 && loses && now_ >= next_fewer_) trial_ = std::max(1, usual_ - fewer_by_);
  settling_ = trial_ > 0;
  (trial_ > 0 ? trial_sum_ : usual_sum_) = {};
}

// The end of a trial.
void Team::settle(bool pays) {
  if (trial_ > usual_) {
    patience_ = pays ? kFirst : std::min(kLongest, 2 * patience_);
  } else if (pays) {
    fewer_by_ = 1;
    reluctance_ = kNotAgain;
  } else if (usual_ - fewer_by_ > 1) {
    fewer_by_ *= 2;  // several neighbours
  } else {
    fewer_by_ = 1;
    next_fewer_ = now_ + reluctance_;
    reluctance_ = std::min(kLongest, 2 * reluctance_);
  }
  if (pays) usual_ = trial_;
  next_more_ = now_ + patience_;
  trial_ = 0;
  settling_ = true;
  usual_sum_ = {};
}

double StepClock::wall() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double StepClock::computing() {
  timespec t{};
  if (clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t) != 0) return wall();
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

}  // namespace octavo

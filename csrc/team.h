// How many threads a decode step uses: all of them, or fewer while another process computes on the same cores.
#pragma once

#include <cstdint>

namespace octavo {

// A thread that shares its core with a busy process holds its task for a whole time slice of the scheduler (some
// milliseconds, dozens of ops), and the others wait: then fewer threads, each with a core of its own, are faster. That
// is found out by trying. Steps that lose time start a trial of fewer threads; from time to time, and ever more
// rarely while it does not pay, one more thread is tried again. No clock: time is what the steps took.
class Team {
 public:
  explicit Team(int most) { set_most(most); }
  void set_most(int threads);
  // Threads that a step of this many tokens takes next. Only steps of about the same size are compared.
  int threads(int64_t tokens);
  // The same without a trial that may be going on.
  int usual() const { return usual_; }
  // That step took `seconds`, of which its calling thread did not compute for `lost`.
  void stepped(double seconds, double lost);

 private:
  struct Sum {
    int steps = 0;
    double seconds = 0, lost = 0;
    double mean() const { return seconds / steps; }
  };
  void consider();
  void settle(bool pays);

  int most_ = 1, usual_ = 1;
  int trial_ = 0;          // threads on trial; 0: none
  bool settling_ = false;  // the first step with another number of threads moves them between cores
  int64_t size_ = 0;       // of the steps that are compared: tokens, to the power of two
  Sum usual_sum_, trial_sum_;
  double now_ = 0, next_more_ = 0, next_fewer_ = 0, patience_ = 0, reluctance_ = 0;  // seconds of steps
  int fewer_by_ = 1;
};

// Times a step, and how much of it the calling thread did not compute: it waited asleep, or had lost its core.
class StepClock {
 public:
  StepClock() : wall_(wall()), computing_(computing()) {}
  double seconds() const { return wall() - wall_; }
  double lost() const { return seconds() - (computing() - computing_); }

 private:
  static double wall();
  static double computing();
  double wall_, computing_;
};

}  // namespace octavo

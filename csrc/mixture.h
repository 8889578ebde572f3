// Mixtures of experts: which experts a token goes to, and the tokens of each expert one below the other.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "kernels.h"

namespace octavo {

class Weight;

// How scores become shares: softmax over all experts, sigmoid of each, softmax over the chosen ones.
enum class Scoring : int { softmax, sigmoid, chosen };

// y = sum over a token's experts of share * (down(activation(gate(x)) * up(x))); see ExpertsSpec in
// octavo/ops/contract.py.
struct Mixture {
  int64_t top_k = 1;
  Scoring scoring = Scoring::softmax;
  bool renormalise = false;
  float scale = 1;
  Activation activation = Activation::silu;
  float limit = 0;                                        // 0: none
  std::vector<std::shared_ptr<Weight>> gate, up, down;    // of each expert
  std::shared_ptr<Weight> gate_bias, up_bias, down_bias;  // [experts * rows], or null

  int64_t experts() const { return static_cast<int64_t>(gate.size()); }
  // Whether all gates and ups see their inputs alike.
  bool alike() const;
  // Columns of the widest matrix, as stored.
  int64_t widest() const;
  bool fits(int64_t in, int64_t scores, int64_t out) const;
};

// What the tokens of a step chose. Pair token * top_k + i is the token's i-th expert, lowest number first; the pairs'
// rows are sorted by expert, then by token.
struct Routing {
  std::vector<int32_t> experts;  // [pairs]
  std::vector<float> shares;     // [pairs]
  std::vector<int32_t> rows;     // [pairs]
  std::vector<int32_t> tokens;   // [pairs] of each row
  std::vector<int64_t> first;    // [experts + 1] where an expert's rows begin

  // Makes room for a step.
  void reset(int64_t tokens, const Mixture& mixture);
  // The choice of one token. Of equal scores the expert with the lower number is taken.
  void choose(int64_t token, const float* scores, const Mixture& mixture);
  // When every token has chosen.
  void sort(const Mixture& mixture);
};

}  // namespace octavo

// Running statistics of a softmax over a stream of logits, for up to 32 rows side by side (one a lane).
#pragma once

#include "product.h"

#include <algorithm>
#include <cmath>

namespace reasonrec {

// What a stretch of classes says of the rows of a panel. Sums are relative to `best`.
template <typename Acc>
struct LaneStatistics {
  Acc best[kPanelRows], second[kPanelRows];       // the two largest logits
  Acc sum[kPanelRows], weighted[kPanelRows];      // of e^(l - best), and of that times (l - best)
  int64_t argmax[kPanelRows];

  LaneStatistics() {
    const Acc nothing = -std::numeric_limits<Acc>::infinity();
    std::fill(best, best + kPanelRows, nothing), std::fill(second, second + kPanelRows, nothing);
    std::fill(sum, sum + kPanelRows, Acc(0)), std::fill(weighted, weighted + kPanelRows, Acc(0));
    std::fill(argmax, argmax + kPanelRows, int64_t(0));
  }
};

// Adds the logits of classes [first, first + count), which lie in logits[count][lanes].
void add_logits(LaneStatistics<float>& statistics, const float* logits, int64_t lanes, int64_t first, int64_t count);
void add_logits(LaneStatistics<double>& statistics, const double* logits, int64_t lanes, int64_t first, int64_t count);

// logits[count][lanes] = (logits + bias) * scale; bias [count] may be null.
void scale_logits(float* logits, int64_t lanes, int64_t count, const float* bias, float scale);
void scale_logits(double* logits, int64_t lanes, int64_t count, const double* bias, double scale);

// The same statistics of one row, from parts that are added in the order of their classes.
template <typename Acc>
struct RowSum {
  double best = -std::numeric_limits<double>::infinity(), second = best, sum = 0, weighted = 0;
  int64_t argmax = 0;

  void add(const LaneStatistics<Acc>& part, int64_t lane) {
    const double theirs = part.best[lane], top = std::max(best, theirs);
    const Shift ours_to = to(best, top), theirs_to = to(theirs, top);
    weighted = ours_to.factor * (weighted + sum * ours_to.by) +
               theirs_to.factor * (part.weighted[lane] + part.sum[lane] * theirs_to.by);
    sum = ours_to.factor * sum + theirs_to.factor * part.sum[lane];
    if (theirs > best) {
      second = std::max(best, static_cast<double>(part.second[lane]));
      best = theirs, argmax = part.argmax[lane];
    } else {
      second = std::max(second, theirs);
    }
  }

  double logsumexp() const {
    if (std::isinf(best) && !(best < 0 && std::isnan(sum))) return best;
    return best + std::log(sum);
  }

  // Of the mean e^l-weighted logit from the log-sum-exp: the entropy.
  double entropy() const { return std::log(sum) - weighted / sum; }

 private:
  struct Shift {
    double by, factor;
  };
  // What turns sums relative to `from` into sums relative to `top`; nothing is left of them at an infinite distance.
  static Shift to(double from, double top) {
    if (from == top) return {0, 1};
    const double factor = std::exp(from - top);
    return factor > 0 ? Shift{from - top, factor} : Shift{0, 0};
  }
};

}  // namespace reasonrec

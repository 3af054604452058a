// Statistics of softmax((hidden weight^T + bias) / temperature) per row, without storing the logits.
//
// Rows are packed in panels (csrc/cpu/product.h) past which the weight streams; every lane keeps running statistics of
// a stretch of classes. Stretches have a fixed length and are added in order, so the bits do not depend on the number
// of threads.
#pragma once

#include "product.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>

namespace reasonrec {

// A class index within a stretch, as wide as Acc, so that it fits the same vector lanes.
template <typename Acc>
using ClassIndex = std::conditional_t<sizeof(Acc) == 4, int32_t, int64_t>;

// Statistics of a stretch of classes for the rows of a panel. Sums are relative to `best`.
template <typename Acc>
struct LaneStatistics {
  Acc best[kPanelRows], second[kPanelRows];       // the two largest logits
  Acc sum[kPanelRows], weighted[kPanelRows];      // of e^(l - best), and of that times (l - best)
  ClassIndex<Acc> argmax[kPanelRows];             // within the stretch

  LaneStatistics() {
    const Acc nothing = -std::numeric_limits<Acc>::infinity();
    std::fill(best, best + kPanelRows, nothing), std::fill(second, second + kPanelRows, nothing);
    std::fill(sum, sum + kPanelRows, Acc(0)), std::fill(weighted, weighted + kPanelRows, Acc(0));
    std::fill(argmax, argmax + kPanelRows, ClassIndex<Acc>(0));
  }
};

// The same statistics of one row over all classes; stretches are added in the order of their classes.
template <typename Acc>
struct RowSum {
  double best = -std::numeric_limits<double>::infinity(), second = best, sum = 0, weighted = 0;
  int64_t argmax = 0;

  void add(const LaneStatistics<Acc>& part, int64_t lane, int64_t first) {
    const double part_best = part.best[lane], top = std::max(best, part_best);
    const Shift own_to = to(best, top), part_to = to(part_best, top);
    weighted = own_to.factor * (weighted + sum * own_to.by) +
               part_to.factor * (part.weighted[lane] + part.sum[lane] * part_to.by);
    sum = own_to.factor * sum + part_to.factor * part.sum[lane];
    if (part_best > best) {
      second = std::max(best, static_cast<double>(part.second[lane]));
      best = part_best, argmax = first + part.argmax[lane];
    } else {
      second = std::max(second, part_best);
    }
  }

  double logsumexp() const {
    if (std::isinf(best) && !(best < 0 && std::isnan(sum))) return best;
    return best + std::log(sum);
  }

  // The log-sum-exp minus the mean logit under the softmax: the entropy.
  double entropy() const { return std::log(sum) - weighted / sum; }

 private:
  struct Shift {
    double by, factor;
  };
  // Converts sums relative to `from` into sums relative to `top`; at an infinite distance they become 0.
  static Shift to(double from, double top) {
    if (from == top) return {0, 1};
    const double factor = std::exp(from - top);
    return factor > 0 ? Shift{from - top, factor} : Shift{0, 0};
  }
};

template <typename T>
class Softmax {
 public:
  using Acc = Accumulator<T>;

  // hidden [rows, width], weight [classes, width], bias [classes] (may be null).
  Softmax(const T* hidden, const T* weight, const Acc* bias, int64_t rows, int64_t classes, int64_t width,
          Acc inverse_temperature);

  int64_t rows() const { return rows_; }
  std::vector<RowSum<Acc>> statistics() const;
  // The logits of the classes wanted[rows][count]; negative entries are skipped.
  void logits_of(const int64_t* wanted, int64_t count, Acc* out) const;

  // f(panel, stretch, logits, lanes, class, count) for every tile of the classes [begin, end), in parallel over panels
  // and stretches: logits[count][lanes] of classes class, class + 1, ... for the rows of a panel.
  template <typename F>
  void for_each_tile(int64_t begin, int64_t end, const F& f) const;

 private:
  bool few_;
  const T *hidden_, *weight_;
  const Acc* bias_;
  int64_t rows_, classes_, width_;
  Acc inverse_temperature_;
  Panels<T> panels_;
  Few<T> resident_;
};

// logits[count][lanes] = (logits + bias) * scale; bias [count] may be null.
template <typename Acc>
void scale_logits(Acc* logits, int64_t lanes, int64_t count, const Acc* bias, Acc scale);

constexpr int64_t kStretch = 960;            // classes; whole tiles
constexpr int64_t kGroupBytes = 384 * 1024;   // packed rows that stay in the cache while a stretch streams past

template <typename T>
template <typename F>
void Softmax<T>::for_each_tile(int64_t begin, int64_t end, const F& f) const {
  const int64_t num_panels = (rows_ + kPanelRows - 1) / kPanelRows;
  const int64_t group = std::max<int64_t>(kGroupBytes / (kPanelRows * width_ * static_cast<int64_t>(sizeof(T))), 1);
  const int64_t groups = (num_panels + group - 1) / group, stretches = (end - begin + kStretch - 1) / kStretch;
  torch::stable::parallel_for(0, groups * stretches, 1, [&](int64_t work, int64_t last_work) {
    Tiles<T> tiles(weight_, classes_, width_);
    std::vector<Acc> logits(kMostTileRows * kPanelRows);
    const int64_t height = few_ ? 2 * kFewRows : tile_rows<T>();
    for (; work < last_work; ++work) {
      const int64_t stretch = work % stretches, first_panel = work / stretches * group;
      const int64_t last = std::min(begin + (stretch + 1) * kStretch, end);
      for (int64_t first = begin + stretch * kStretch; first < last; first += height) {
        const int64_t count = std::min(height, last - first);
        if (!few_) tiles.stage(first, count);
        const int64_t last_panel = std::min(first_panel + group, num_panels);
        for (int64_t panel = first_panel; panel < last_panel; ++panel) {
          const int64_t lanes = few_ ? kLanes : panels_.lanes(panel);
          if (few_) {
            resident_.multiply(weight_ + first * width_, count, logits.data(), kLanes, 1);
          } else {
            tiles.multiply(panels_, panel, logits.data(), panel - first_panel, last_panel - first_panel);
          }
          scale_logits(logits.data(), lanes, count, bias_ ? bias_ + first : nullptr, inverse_temperature_);
          f(panel, stretch, logits.data(), lanes, first, count);
        }
      }
    }
  });
}

}  // namespace reasonrec

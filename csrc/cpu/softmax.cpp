#include "softmax.h"

namespace reasonrec {
namespace {

// Without a branch: in a stretch of the usual length most tiles hold a new largest logit of some row.
template <typename Acc>
REASONREC_INLINE void add_body(LaneStatistics<Acc>& s, const Acc* logits, int64_t lanes, int64_t first,
                               int64_t count) {
  for (int64_t at = 0; at < lanes; at += kLanes) {
    Vec<Acc> best = load(s.best + at), second = load(s.second + at);
    const Vec<Acc> before = best;
    Mask<Acc> argmax, place = Mask<Acc>{} + static_cast<Place<Acc>>(first);
    std::memcpy(&argmax, s.argmax + at, sizeof argmax);
    for (int64_t c = 0; c < count; ++c, place += 1) {
      const Vec<Acc> l = load(logits + c * lanes + at);
      const Mask<Acc> above = l > best;
      second = above ? best : larger(l, second);
      best = above ? l : best;
      argmax = above ? place : argmax;
    }
    const Acc none = -std::numeric_limits<Acc>::infinity();
    const Vec<Acc> by = before == broadcast(none) ? broadcast(Acc(0)) : before - best;
    const Vec<Acc> shrink = exp_of(by), sum_before = load(s.sum + at);
    Vec<Acc> sum = shrink * sum_before, weighted = shrink * (load(s.weighted + at) + sum_before * by);
    const Vec<Acc> origin = best == broadcast(none) ? broadcast(Acc(0)) : best;
    for (int64_t c = 0; c < count; ++c) {
      const Vec<Acc> far = broadcast(Acc(-87)), raw = load(logits + c * lanes + at) - origin;
      const Vec<Acc> distance = raw < far ? far : raw;
      const Vec<Acc> weight = exp_of(distance);
      sum += weight, weighted += weight * distance;
    }
    store(s.sum + at, sum), store(s.weighted + at, weighted), store(s.best + at, best), store(s.second + at, second);
    std::memcpy(s.argmax + at, &argmax, sizeof argmax);
  }
}

template <typename Acc>
REASONREC_INLINE void scale_body(Acc* logits, int64_t lanes, int64_t count, const Acc* bias, Acc scale) {
  for (int64_t c = 0; c < count; ++c) {
    const Acc shift = bias == nullptr ? Acc(0) : bias[c];
    for (int64_t at = 0; at < lanes; at += kLanes) {
      Acc* place = logits + c * lanes + at;
      store(place, (load(place) + shift) * scale);
    }
  }
}

// Adds the logits of classes [first, first + count) of the stretch, which lie in logits[count][lanes].
REASONREC_DISPATCH
void add_logits(LaneStatistics<float>& s, const float* logits, int64_t lanes, int64_t first, int64_t count) {
  add_body(s, logits, lanes, first, count);
}

REASONREC_DISPATCH
void add_logits(LaneStatistics<double>& s, const double* logits, int64_t lanes, int64_t first, int64_t count) {
  add_body(s, logits, lanes, first, count);
}

}  // namespace

REASONREC_DISPATCH
void scale_logits(float* logits, int64_t lanes, int64_t count, const float* bias, float scale) {
  scale_body(logits, lanes, count, bias, scale);
}

REASONREC_DISPATCH
void scale_logits(double* logits, int64_t lanes, int64_t count, const double* bias, double scale) {
  scale_body(logits, lanes, count, bias, scale);
}

template <typename T>
Softmax<T>::Softmax(const T* hidden, const T* weight, const Acc* bias, int64_t rows, int64_t classes, int64_t width,
                    Acc inverse_temperature)
    : few_(rows <= kFewRows / 2),
      hidden_(hidden),
      weight_(weight),
      bias_(bias),
      rows_(rows),
      classes_(classes),
      width_(width),
      inverse_temperature_(inverse_temperature),
      panels_(hidden, few_ ? 0 : rows, width),
      resident_(hidden, few_ ? rows : 0, width) {}

template <typename T>
std::vector<RowSum<Accumulator<T>>> Softmax<T>::statistics() const {
  const int64_t stretches = (classes_ + kStretch - 1) / kStretch;
  std::vector<LaneStatistics<Acc>> parts((rows_ + kPanelRows - 1) / kPanelRows * stretches);
  for_each_tile(0, classes_, [&](int64_t panel, int64_t stretch, const Acc* logits, int64_t lanes, int64_t first,
                                 int64_t count) {
    add_logits(parts[panel * stretches + stretch], logits, lanes, first - stretch * kStretch, count);
  });
  std::vector<RowSum<Acc>> found(rows_);
  for (int64_t row = 0; row < rows_; ++row) {
    for (int64_t stretch = 0; stretch < stretches; ++stretch) {
      found[row].add(parts[row / kPanelRows * stretches + stretch], row % kPanelRows, stretch * kStretch);
    }
  }
  return found;
}

template <typename T>
void Softmax<T>::logits_of(const int64_t* wanted, int64_t count, Acc* out) const {
  torch::stable::parallel_for(0, rows_, 16, [&](int64_t begin, int64_t end) {
    std::vector<Acc> row(width_), other(width_);
    for (int64_t b = begin; b < end; ++b) {
      widen(row.data(), hidden_ + b * width_, width_);
      for (int64_t at = b * count; at < (b + 1) * count; ++at) {
        const int64_t c = wanted[at];
        if (c < 0) continue;
        widen(other.data(), weight_ + c * width_, width_);
        out[at] = (dot(row.data(), other.data(), width_) + (bias_ ? bias_[c] : Acc(0))) * inverse_temperature_;
      }
    }
  });
}

template class Softmax<float>;
template class Softmax<double>;
template class Softmax<BFloat16>;
template class Softmax<Half>;

}  // namespace reasonrec

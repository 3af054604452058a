#include "softmax.h"

namespace reasonrec {
namespace {

// Sum of a[i] * b[i] in sixteen partial sums for every register width: this fixed order is the same for all instruction
// sets, so that all machines without fused multiply-add contraction agree.
struct Dot {
  template <int W, typename T>
  static REASONREC_INLINE T run(const T* a, const T* b, int64_t size) {
    constexpr int L = W / sizeof(T), kVectors = kLanes / L;
    Vec<T, L> sums[kVectors] = {};
    int64_t i = 0;
    for (; i + kLanes <= size; i += kLanes) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sums[v] += load<L>(a + i + v * L) * load<L>(b + i + v * L);
    }
    T partial[kLanes];
    for (int v = 0; v < kVectors; ++v) store(partial + v * L, sums[v]);
    for (int64_t lane = 0; i < size; ++i, ++lane) partial[lane] += a[i] * b[i];
    for (int64_t half = kLanes / 2; half > 0; half /= 2) {
      for (int64_t lane = 0; lane < half; ++lane) partial[lane] += partial[lane + half];
    }
    return partial[0];
  }
};

// Adds the logits[count][lanes] of classes [first, first + count) of a stretch.
//
// Branch-free: in a stretch of the usual length most tiles have a new largest logit of some row.
struct AddLogits {
  template <int W, typename Acc>
  static REASONREC_INLINE void run(LaneStatistics<Acc>& s, const Acc* logits, int64_t lanes, int64_t first,
                                   int64_t count) {
    constexpr int L = W / sizeof(Acc);
    using V = Vec<Acc, L>;
    for (int64_t at = 0; at < lanes; at += L) {
      V best = load<L>(s.best + at), second = load<L>(s.second + at);
      const V before = best;
      Mask<V> argmax = bits_as<Mask<V>>(load<L>(s.argmax + at));
      Mask<V> index = Mask<V>{} + static_cast<ClassIndex<Acc>>(first);
      for (int64_t c = 0; c < count; ++c, index += 1) {
        const V l = load<L>(logits + c * lanes + at);
        const Mask<V> above = l > best;
        second = above ? best : larger(l, second);
        best = above ? l : best;
        argmax = above ? index : argmax;
      }
      const V zero = {}, none = broadcast<V>(-std::numeric_limits<Acc>::infinity()), far = broadcast<V>(-87);
      // Bound the distance at -87, where e^x is about 1e-38: a mask of -3e38 would overflow in the product below.
      const V fallen = before - best, by = before == none ? zero : fallen < far ? far : fallen;
      const V shrink = exp_of(by), sum_before = load<L>(s.sum + at);
      V sum = shrink * sum_before, weighted = shrink * (load<L>(s.weighted + at) + sum_before * by);
      const V origin = best == none ? zero : best;
      for (int64_t c = 0; c < count; ++c) {
        const V raw = load<L>(logits + c * lanes + at) - origin, distance = raw < far ? far : raw;
        const V weight = exp_of(distance);
        sum += weight, weighted += weight * distance;
      }
      store(s.sum + at, sum), store(s.weighted + at, weighted), store(s.best + at, best), store(s.second + at, second);
      std::memcpy(s.argmax + at, &argmax, sizeof argmax);
    }
  }
};

struct ScaleLogits {
  template <int W, typename Acc>
  static REASONREC_INLINE void run(Acc* logits, int64_t lanes, int64_t count, const Acc* bias, Acc scale) {
    constexpr int L = W / sizeof(Acc);
    for (int64_t c = 0; c < count; ++c) {
      const Acc shift = bias == nullptr ? Acc(0) : bias[c];
      for (int64_t at = 0; at < lanes; at += L) {
        Acc* entry = logits + c * lanes + at;
        store(entry, (load<L>(entry) + shift) * scale);
      }
    }
  }
};

}  // namespace

template <typename Acc>
void scale_logits(Acc* logits, int64_t lanes, int64_t count, const Acc* bias, Acc scale) {
  dispatch<ScaleLogits>(logits, lanes, count, bias, scale);
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
    dispatch<AddLogits>(parts[panel * stretches + stretch], logits, lanes, first - stretch * kStretch, count);
  });
  std::vector<RowSum<Acc>> sums(rows_);
  for (int64_t row = 0; row < rows_; ++row) {
    for (int64_t stretch = 0; stretch < stretches; ++stretch) {
      sums[row].add(parts[row / kPanelRows * stretches + stretch], row % kPanelRows, stretch * kStretch);
    }
  }
  return sums;
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
        const Acc product = dispatch<Dot>(static_cast<const Acc*>(row.data()), static_cast<const Acc*>(other.data()), width_);
        out[at] = (product + (bias_ ? bias_[c] : Acc(0))) * inverse_temperature_;
      }
    }
  });
}

template void scale_logits(float*, int64_t, int64_t, const float*, float);
template void scale_logits(double*, int64_t, int64_t, const double*, double);
template class Softmax<float>;
template class Softmax<double>;
template class Softmax<BFloat16>;
template class Softmax<Half>;

}  // namespace reasonrec

// exit_confidence: statistics of softmax(hidden heads^T / temperature) per row, without storing all logits.
//
// Few classes (at most 64, with or without an ensemble): the heads stay packed and the rows stream past, 16 at a time;
// the logits of 16 rows are then interleaved in the lanes of vectors. Many classes: csrc/cpu/softmax.h.
#include "softmax.h"

#include <torch/csrc/stable/library.h>

#include <string>
#include <tuple>

namespace reasonrec {
namespace {

constexpr int64_t kMaxEnsembleClasses = 64;

enum class Measure { kMaxProb, kMargin, kEntropy, kRatio };

Measure parse_measure(const std::string& name) {
  if (name == "max_prob") return Measure::kMaxProb;
  if (name == "margin") return Measure::kMargin;
  if (name == "entropy") return Measure::kEntropy;
  STD_TORCH_CHECK(name == "ratio", "measure: expected max_prob, margin, entropy or ratio");
  return Measure::kRatio;
}

template <typename T>
struct Problem {
  const T *hidden, *heads;
  const Accumulator<T>* bias;  // may be null
  const int64_t* targets;      // may be null
  int64_t rows, ensemble, classes, width, positive;
  Measure measure;
  Accumulator<T> inverse_temperature;
};

template <typename Acc>
struct Outputs {
  int64_t* prediction;
  Acc *probability, *positive, *confidence, *entropy, *logsumexp, *target_logprob;
};

// For 16 rows in lanes: replaces the logits [K * C][16] by log-probabilities, and computes the statistics from them.
template <typename Acc>
struct Sixteen {
  std::vector<Acc> logits, mean, logsumexp;  // [K * C][16], [C][16], [K][16]
  Acc probability[kLanes], positive[kLanes], confidence[kLanes], entropy[kLanes];
  Acc prediction[kLanes];

  Sixteen(int64_t ensemble, int64_t classes)
      : logits(ensemble * classes * kLanes), mean(classes * kLanes), logsumexp(ensemble * kLanes) {}
};

// log(sum(e^x)) over [count][stride], per lane.
template <int L, typename Acc>
REASONREC_INLINE Vec<Acc, L> logsumexp_of(const Acc* x, int64_t count, int64_t stride) {
  using V = Vec<Acc, L>;
  const V infinite = broadcast<V>(std::numeric_limits<Acc>::infinity());
  V top = load<L>(x), sum = {};
  for (int64_t c = 1; c < count; ++c) top = larger(load<L>(x + c * stride), top);
  const V origin = top == -infinite ? V{} : top;
  for (int64_t c = 0; c < count; ++c) sum += exp_of(load<L>(x + c * stride) - origin);
  const V result = top + log_of(sum);
  return top == infinite ? top : result;
}

struct FewClasses {
  template <int W, typename Acc>
  static REASONREC_INLINE void run(Sixteen<Acc>& s, int64_t ensemble, int64_t classes, int64_t positive,
                                   Measure measure) {
    constexpr int L = W / sizeof(Acc);
    using V = Vec<Acc, L>;
    std::fill(s.mean.begin(), s.mean.end(), Acc(0));
    for (int64_t at = 0; at < kLanes; at += L) {
      Acc *all_logits = s.logits.data() + at, *mean = s.mean.data() + at;
      for (int64_t k = 0; k < ensemble; ++k) {
        Acc* logits = all_logits + k * classes * kLanes;
        const V logsumexp = logsumexp_of<L>(logits, classes, kLanes);
        store(s.logsumexp.data() + k * kLanes + at, logsumexp);
        for (int64_t c = 0; c < classes; ++c) {
          const V logprob = load<L>(logits + c * kLanes) - logsumexp;
          store(logits + c * kLanes, logprob);
          store(mean + c * kLanes, load<L>(mean + c * kLanes) + exp_of(logprob) / static_cast<Acc>(ensemble));
        }
      }
      V best = load<L>(mean), second = {}, prediction = {}, entropy = {};
      const V tiny = broadcast<V>(std::numeric_limits<Acc>::min());
      for (int64_t c = 0; c < classes; ++c) {
        const V p = load<L>(mean + c * kLanes);
        entropy -= p * log_of(p < tiny ? tiny : p);
        if (c == 0) continue;
        const Mask<V> above = p > best;
        second = above ? best : larger(p, second);
        best = above ? p : best;
        prediction = above ? broadcast<V>(static_cast<Acc>(c)) : prediction;
      }
      V confidence = best;
      if (measure == Measure::kMargin) confidence = best - second;
      if (measure == Measure::kEntropy) {
        confidence = classes > 1 ? Acc(1) - entropy / std::log(static_cast<Acc>(classes)) : broadcast<V>(1);
      }
      if (measure == Measure::kRatio) {
        const Acc *zero = all_logits, *one = all_logits + kLanes;
        const int64_t next = 2 * kLanes;
        const V ratio = ensemble == 1 ? load<L>(zero) - load<L>(one)
                                      : logsumexp_of<L>(zero, ensemble, next) - logsumexp_of<L>(one, ensemble, next);
        confidence = ratio < V{} ? -ratio : ratio;
      }
      store(s.probability + at, best), store(s.positive + at, load<L>(mean + positive * kLanes));
      store(s.confidence + at, confidence), store(s.entropy + at, entropy), store(s.prediction + at, prediction);
    }
  }
};

template <typename T>
void run_few_classes(const Problem<T>& p, const Outputs<Accumulator<T>>& out) {
  using Acc = Accumulator<T>;
  const int64_t columns = p.ensemble * p.classes, blocks = (p.rows + kLanes - 1) / kLanes;
  std::vector<Few<T>> heads;
  for (int64_t first = 0; first < columns; first += kFewRows) {
    heads.emplace_back(p.heads + first * p.width, std::min(kFewRows, columns - first), p.width);
  }
  torch::stable::parallel_for(0, blocks, 4, [&](int64_t begin, int64_t end) {
    Sixteen<Acc> s(p.ensemble, p.classes);
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block * kLanes, count = std::min(kLanes, p.rows - first);
      for (size_t group = 0; group < heads.size(); ++group) {
        heads[group].multiply(p.hidden + first * p.width, count, s.logits.data() + group * kFewRows * kLanes, 1, kLanes);
      }
      scale_logits(s.logits.data(), kLanes, columns, p.bias, p.inverse_temperature);
      dispatch<FewClasses>(s, p.ensemble, p.classes, p.positive, p.measure);
      for (int64_t row = 0; row < count; ++row) {
        const int64_t b = first + row;
        out.prediction[b] = static_cast<int64_t>(s.prediction[row]), out.probability[b] = s.probability[row];
        out.positive[b] = s.positive[row], out.confidence[b] = s.confidence[row], out.entropy[b] = s.entropy[row];
        for (int64_t k = 0; k < p.ensemble; ++k) {
          out.logsumexp[b * p.ensemble + k] = s.logsumexp[k * kLanes + row];
          if (p.targets) {
            out.target_logprob[b * p.ensemble + k] = s.logits[(k * p.classes + p.targets[b]) * kLanes + row];
          }
        }
      }
    }
  });
}

// Many classes

template <typename Acc>
void write_row(const RowSum<Acc>& row, Acc positive_logit, Acc target_logit, int64_t b, int64_t classes,
               Measure measure, bool targets, const Outputs<Acc>& out) {
  const double lse = row.logsumexp(), probability = std::exp(row.best - lse), entropy = row.entropy();
  out.prediction[b] = row.argmax;
  out.probability[b] = static_cast<Acc>(probability);
  out.positive[b] = static_cast<Acc>(std::exp(positive_logit - lse));
  out.entropy[b] = static_cast<Acc>(entropy);
  out.logsumexp[b] = static_cast<Acc>(lse);
  if (targets) out.target_logprob[b] = static_cast<Acc>(target_logit - lse);
  double confidence = probability;
  if (measure == Measure::kMargin) confidence = probability - std::exp(row.second - lse);
  if (measure == Measure::kEntropy) confidence = 1 - entropy / std::log(static_cast<double>(classes));
  out.confidence[b] = static_cast<Acc>(confidence);
}

template <typename T>
void run_many_classes(const Problem<T>& p, const Outputs<Accumulator<T>>& out) {
  const Softmax<T> softmax(p.hidden, p.heads, p.bias, p.rows, p.classes, p.width, p.inverse_temperature);
  const int64_t count = p.targets ? 2 : 1;
  std::vector<int64_t> wanted(p.rows * count, p.positive);
  for (int64_t b = 0; p.targets && b < p.rows; ++b) wanted[2 * b + 1] = p.targets[b];
  std::vector<Accumulator<T>> logits(p.rows * count);
  softmax.logits_of(wanted.data(), count, logits.data());
  const auto rows = softmax.statistics();
  for (int64_t b = 0; b < p.rows; ++b) {
    write_row(rows[b], logits[b * count], logits[(b + 1) * count - 1], b, p.classes, p.measure, count == 2, out);
  }
}

using Results = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// bias (in the type of the sums) and targets are empty if absent; heads are [K, C, D].
Results exit_confidence(Tensor hidden, Tensor heads, Tensor bias, Tensor temperature, std::string measure,
                        int64_t positive, Tensor targets) {
  hidden = torch::stable::contiguous(hidden), heads = torch::stable::contiguous(heads);
  targets = torch::stable::contiguous(targets);
  const int64_t rows = hidden.size(0), ensemble = heads.size(0), classes = heads.size(1), width = heads.size(2);
  STD_TORCH_CHECK(hidden.dim() == 2 && hidden.size(1) == width, "hidden: expected as many columns as heads");
  STD_TORCH_CHECK(ensemble == 1 || classes <= kMaxEnsembleClasses, "heads: an ensemble has at most 64 classes");
  STD_TORCH_CHECK(classes > 0 && ensemble > 0, "heads: expected at least one class");
  STD_TORCH_CHECK(positive >= 0 && positive < classes, "positive: expected a class");
  const ScalarType type = hidden.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  bias = torch::stable::contiguous(torch::stable::to(bias, type));
  auto column = [&](int64_t extra) {
    return extra < 0 ? torch::stable::new_empty(hidden, {rows}, type)
                     : torch::stable::new_empty(hidden, {rows, extra}, type);
  };
  Tensor prediction = torch::stable::new_empty(hidden, {rows}, ScalarType::Long);
  Tensor probability = column(-1), positive_probability = column(-1), confidence = column(-1), entropy = column(-1);
  Tensor logsumexp = column(ensemble), target_logprob = column(targets.numel() > 0 ? ensemble : 0);
  const int64_t* target = targets.numel() > 0 ? targets.const_data_ptr<int64_t>() : nullptr;
  for (int64_t b = 0; target != nullptr && b < rows; ++b) {
    STD_TORCH_CHECK(target[b] >= 0 && target[b] < classes, "targets: expected classes in [0, ", classes, "); got ",
                    target[b], " in row ", b);
  }
  with_floating_type(hidden, "hidden", [&](auto element) {
    using T = decltype(element);
    using Acc = Accumulator<T>;
    const Problem<T> problem{hidden.const_data_ptr<T>(),
                             heads.const_data_ptr<T>(),
                             bias.numel() > 0 ? bias.const_data_ptr<Acc>() : nullptr,
                             target,
                             rows,
                             ensemble,
                             classes,
                             width,
                             positive,
                             parse_measure(measure),
                             static_cast<Acc>(1.0 / temperature.const_data_ptr<double>()[0])};
    const Outputs<Acc> out{prediction.mutable_data_ptr<int64_t>(), probability.mutable_data_ptr<Acc>(),
                           positive_probability.mutable_data_ptr<Acc>(), confidence.mutable_data_ptr<Acc>(),
                           entropy.mutable_data_ptr<Acc>(), logsumexp.mutable_data_ptr<Acc>(),
                           target_logprob.mutable_data_ptr<Acc>()};
    if (classes <= kMaxEnsembleClasses) run_few_classes(problem, out);
    else run_many_classes(problem, out);
  });
  return {probability, positive_probability, confidence, entropy, logsumexp, target_logprob, prediction};
}

}  // namespace
}  // namespace reasonrec

STABLE_TORCH_LIBRARY_IMPL(reasonrec_fast, CPU, m) {
  m.impl("exit_confidence", TORCH_BOX(&reasonrec::exit_confidence));
}

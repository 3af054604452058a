// exit_confidence: statistics of softmax(hidden heads^T / temperature), row by row, without holding the logits.
//
// One pass over the classes keeps a running maximum, the sum of exponentials, their sum weighted by the logit (for
// the entropy) and the two largest logits. An ensemble (K > 1, C <= 64) averages probabilities, so each member's
// row of C logits is kept on the stack.
#include "common.h"

#include <torch/csrc/stable/library.h>

#include <cmath>
#include <limits>
#include <string>
#include <tuple>
#include <vector>

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

template <typename Acc>
struct RowStatistics {
  int64_t prediction = 0;
  Acc probability = 0, second = 0, positive = 0, entropy = 0, log_ratio = 0;
};

// Running softmax statistics over a stream of logits.
template <typename Acc>
struct Stream {
  Acc maximum = -std::numeric_limits<Acc>::infinity(), second = maximum, sum = 0, weighted = 0;
  int64_t argmax = 0;
  bool nan = false;

  void add(Acc logit, int64_t index) {
    nan |= std::isnan(logit);
    if (logit > maximum) {
      const Acc shrink = std::exp(maximum - logit);
      sum *= shrink, weighted *= shrink;
      second = maximum, maximum = logit, argmax = index;
    } else if (logit > second) {
      second = logit;
    }
    const Acc weight = std::isinf(logit) && logit < 0 ? Acc(0) : std::exp(logit - maximum);
    sum += weight;
    if (weight > 0) weighted += weight * logit;
  }

  Acc logsumexp() const { return nan ? std::numeric_limits<Acc>::quiet_NaN() : maximum + std::log(sum); }
};

template <typename T>
struct Problem {
  const T *hidden, *heads, *bias;  // bias may be null
  const int64_t* targets;          // may be null
  int64_t rows, members, classes, width, positive;
  Measure measure;
  Accumulator<T> inverse_temperature;
};

template <typename Acc>
struct Outputs {
  int64_t* prediction;
  Acc *probability, *positive, *confidence, *entropy, *logsumexp, *target_logprob;
};

template <typename Acc>
Acc confidence_of(const RowStatistics<Acc>& row, Measure measure, int64_t classes) {
  switch (measure) {
    case Measure::kMaxProb: return row.probability;
    case Measure::kMargin: return row.probability - row.second;
    case Measure::kEntropy: return classes > 1 ? Acc(1) - row.entropy / std::log(static_cast<Acc>(classes)) : Acc(1);
    case Measure::kRatio: return std::abs(row.log_ratio);
  }
  return Acc(0);
}

// One member alone: everything follows from the stream.
template <typename Acc>
RowStatistics<Acc> of_stream(const Stream<Acc>& stream, Acc positive_logit, int64_t classes) {
  const Acc lse = stream.logsumexp();
  RowStatistics<Acc> row;
  row.prediction = stream.argmax;
  row.probability = std::exp(stream.maximum - lse);
  row.second = std::exp(stream.second - lse);
  row.positive = std::exp(positive_logit - lse);
  row.entropy = lse - stream.weighted / stream.sum;
  if (classes == 2) row.log_ratio = stream.maximum - stream.second;
  return row;
}

// An ensemble: the statistics of its mean probabilities.
template <typename Acc>
RowStatistics<Acc> of_mean(const Acc* mean, int64_t positive, int64_t classes) {
  RowStatistics<Acc> row;
  row.probability = -1;
  for (int64_t c = 0; c < classes; ++c) {
    if (mean[c] > row.probability || std::isnan(mean[c])) {
      row.second = row.probability < 0 ? Acc(0) : row.probability;
      row.probability = mean[c], row.prediction = c;
    } else if (mean[c] > row.second) {
      row.second = mean[c];
    }
    if (mean[c] != 0) row.entropy -= mean[c] * std::log(mean[c]);
  }
  row.positive = mean[positive];
  if (classes == 2) row.log_ratio = std::log(mean[0]) - std::log(mean[1]);
  return row;
}

template <typename T>
void run(const Problem<T>& p, const Outputs<Accumulator<T>>& out) {
  using Acc = Accumulator<T>;
  const int64_t width = p.width, classes = p.classes;
  // Heads in the type of the sums, once for all rows (as they are where they have it).
  std::vector<Acc> widened;
  const Acc* heads;
  if constexpr (std::is_same_v<T, Acc>) {
    heads = p.heads;
  } else {
    widened.resize(p.members * classes * width);
    widen(widened.data(), p.heads, p.members * classes * width);
    heads = widened.data();
  }
  torch::stable::parallel_for(0, p.rows, 1, [&](int64_t begin, int64_t end) {
    std::vector<Acc> row(width);
    for (int64_t b = begin; b < end; ++b) {
      widen(row.data(), p.hidden + b * width, width);
      RowStatistics<Acc> statistics;
      Acc mean[kMaxEnsembleClasses] = {}, logits[kMaxEnsembleClasses];
      for (int64_t k = 0; k < p.members; ++k) {
        Stream<Acc> stream;
        Acc target_logit = 0, positive_logit = 0;
        for (int64_t c = 0; c < classes; ++c) {
          const int64_t index = k * classes + c;
          const Acc bias = p.bias ? static_cast<Acc>(p.bias[index]) : Acc(0);
          const Acc logit = (dot(row.data(), heads + index * width, width) + bias) * p.inverse_temperature;
          stream.add(logit, c);
          if (p.members > 1) logits[c] = logit;
          if (c == p.positive) positive_logit = logit;
          if (p.targets && c == p.targets[b]) target_logit = logit;
        }
        const Acc lse = stream.logsumexp();
        out.logsumexp[b * p.members + k] = lse;
        if (p.targets) out.target_logprob[b * p.members + k] = target_logit - lse;
        if (p.members == 1) {
          statistics = of_stream(stream, positive_logit, classes);
        } else {
          for (int64_t c = 0; c < classes; ++c) mean[c] += std::exp(logits[c] - lse) / static_cast<Acc>(p.members);
        }
      }
      if (p.members > 1) statistics = of_mean(mean, p.positive, classes);
      out.prediction[b] = statistics.prediction;
      out.probability[b] = statistics.probability;
      out.positive[b] = statistics.positive;
      out.confidence[b] = confidence_of(statistics, p.measure, classes);
      out.entropy[b] = statistics.entropy;
    }
  });
}

using Results = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// bias and targets are empty where the caller has none; heads are [K, C, D].
Results exit_confidence(Tensor hidden, Tensor heads, Tensor bias, Tensor temperature, std::string measure,
                        int64_t positive, Tensor targets) {
  hidden = torch::stable::contiguous(hidden), heads = torch::stable::contiguous(heads), bias = torch::stable::contiguous(bias), targets = torch::stable::contiguous(targets);
  const int64_t rows = hidden.size(0), members = heads.size(0), classes = heads.size(1), width = heads.size(2);
  STD_TORCH_CHECK(hidden.dim() == 2 && hidden.size(1) == width, "hidden: expected as many columns as heads");
  STD_TORCH_CHECK(members == 1 || classes <= kMaxEnsembleClasses, "heads: an ensemble has at most 64 classes");
  STD_TORCH_CHECK(classes > 0 && members > 0, "heads: expected at least one class");
  STD_TORCH_CHECK(positive >= 0 && positive < classes, "positive: expected a class");
  const ScalarType type = hidden.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  auto column = [&](int64_t extra) {
    return extra < 0 ? torch::stable::new_empty(hidden, {rows}, type)
                     : torch::stable::new_empty(hidden, {rows, extra}, type);
  };
  Tensor prediction = torch::stable::new_empty(hidden, {rows}, ScalarType::Long);
  Tensor probability = column(-1), positive_probability = column(-1), confidence = column(-1), entropy = column(-1);
  Tensor logsumexp = column(members), target_logprob = column(targets.numel() > 0 ? members : 0);
  with_floating_type(hidden, "hidden", [&](auto element) {
    using T = decltype(element);
    using Acc = Accumulator<T>;
    const Problem<T> problem{hidden.const_data_ptr<T>(),
                             heads.const_data_ptr<T>(),
                             bias.numel() > 0 ? bias.const_data_ptr<T>() : nullptr,
                             targets.numel() > 0 ? targets.const_data_ptr<int64_t>() : nullptr,
                             rows,
                             members,
                             classes,
                             width,
                             positive,
                             parse_measure(measure),
                             static_cast<Acc>(1.0 / temperature.const_data_ptr<double>()[0])};
    run(problem, Outputs<Acc>{prediction.mutable_data_ptr<int64_t>(), probability.mutable_data_ptr<Acc>(),
                              positive_probability.mutable_data_ptr<Acc>(), confidence.mutable_data_ptr<Acc>(),
                              entropy.mutable_data_ptr<Acc>(), logsumexp.mutable_data_ptr<Acc>(),
                              target_logprob.mutable_data_ptr<Acc>()});
  });
  return {probability, positive_probability, confidence, entropy, logsumexp, target_logprob, prediction};
}

}  // namespace
}  // namespace reasonrec

STABLE_TORCH_LIBRARY_IMPL(reasonrec_fast, CPU, m) {
  m.impl("exit_confidence", TORCH_BOX(&reasonrec::exit_confidence));
}

// token_logprobs: log-probabilities of given tokens under softmax((hidden weight^T + bias) / temperature), the
// log-sum-exp and the entropy; and the gradients. Neither pass stores all logits.
//
// Backward recomputes the logits one block of the vocabulary at a time. Their gradient is written to a buffer of the
// block, one class per row, from which torch's matrix products give the gradients of hidden and weight.
#include "softmax.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <string>
#include <tuple>

namespace reasonrec {
namespace {

constexpr int64_t kBlockBytes = 16 * 1024 * 1024;  // of a block of the gradient of the logits

template <typename T>
Softmax<T> softmax_of(const Tensor& hidden, const Tensor& weight, const Tensor& bias, const Tensor& temperature) {
  using Acc = Accumulator<T>;
  return Softmax<T>(hidden.const_data_ptr<T>(), weight.const_data_ptr<T>(),
                    bias.numel() > 0 ? bias.const_data_ptr<Acc>() : nullptr, hidden.size(0), weight.size(0),
                    hidden.size(1), static_cast<Acc>(1.0 / temperature.const_data_ptr<double>()[0]));
}

ScalarType wide_type(const Tensor& hidden) {
  return hidden.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// The tokens, with -1 for ignored ones.
std::vector<int64_t> wanted_tokens(const Tensor& tokens, int64_t ignore_index, int64_t classes) {
  std::vector<int64_t> wanted(tokens.const_data_ptr<int64_t>(), tokens.const_data_ptr<int64_t>() + tokens.numel());
  const int64_t rows = std::max<int64_t>(tokens.size(0), 1), a_row = std::max<int64_t>(tokens.numel() / rows, 1);
  for (int64_t at = 0; at < tokens.numel(); ++at) {
    int64_t& token = wanted[at];
    if (token == ignore_index) {
      token = -1;
    } else {
      STD_TORCH_CHECK(token >= 0 && token < classes, "tokens: expected ignore_index or a class in [0, ", classes,
                      "); got ", token, " in row ", at / a_row);
    }
  }
  return wanted;
}

using Results = std::tuple<Tensor, Tensor, Tensor>;

// tokens [B, M]; bias is empty if absent.
Results token_logprobs(Tensor hidden, Tensor weight, Tensor bias, Tensor tokens, Tensor temperature,
                       int64_t ignore_index) {
  const ScalarType wide = wide_type(hidden);
  hidden = torch::stable::contiguous(hidden), weight = torch::stable::contiguous(weight);
  bias = torch::stable::contiguous(torch::stable::to(bias, wide)), tokens = torch::stable::contiguous(tokens);
  const int64_t rows = hidden.size(0), count = tokens.size(1);
  const std::vector<int64_t> wanted = wanted_tokens(tokens, ignore_index, weight.size(0));
  Tensor logprobs = torch::stable::new_zeros(hidden, {rows, count}, wide);
  Tensor logsumexp = torch::stable::new_empty(hidden, {rows}, wide);
  Tensor entropy = torch::stable::new_empty(hidden, {rows}, wide);
  with_floating_type(hidden, "hidden", [&](auto element) {
    using T = decltype(element);
    using Acc = Accumulator<T>;
    const Softmax<T> softmax = softmax_of<T>(hidden, weight, bias, temperature);
    Acc* out = logprobs.mutable_data_ptr<Acc>();
    softmax.logits_of(wanted.data(), count, out);
    const auto sums = softmax.statistics();
    for (int64_t b = 0; b < rows; ++b) {
      const double lse = sums[b].logsumexp();
      logsumexp.mutable_data_ptr<Acc>()[b] = static_cast<Acc>(lse);
      entropy.mutable_data_ptr<Acc>()[b] = static_cast<Acc>(sums[b].entropy());
      for (int64_t at = b * count; at < (b + 1) * count; ++at) {
        if (wanted[at] >= 0) out[at] = static_cast<Acc>(out[at] - lse);
      }
    }
  });
  return {logprobs, logsumexp, entropy};
}

// Per-row factors of the gradient of a logit l of probability p = e^(l - lse):
//   p (through_all - through_entropy (l - lse + entropy)), plus the tokens' own gradients at the tokens.
template <typename Acc>
struct RowGradients {
  std::vector<Acc> logsumexp, entropy, through_all, through_entropy;  // padded to whole panels

  explicit RowGradients(int64_t rows)
      : logsumexp(rows), entropy(rows), through_all(rows), through_entropy(rows) {}
};

// Replaces logits[count][lanes] by their gradients.
struct GradientOfLogits {
  template <int W, typename Acc>
  static REASONREC_INLINE void run(const RowGradients<Acc>& rows, int64_t first_row, Acc* logits, int64_t lanes,
                                   int64_t count, Acc scale) {
    constexpr int L = W / sizeof(Acc);
    using V = Vec<Acc, L>;
    const V far = broadcast<V>(-87);
    for (int64_t at = 0; at < lanes; at += L) {
      const int64_t row = first_row + at;
      const V lse = load<L>(rows.logsumexp.data() + row), all = load<L>(rows.through_all.data() + row);
      const V through = load<L>(rows.through_entropy.data() + row), entropy = load<L>(rows.entropy.data() + row);
      for (int64_t c = 0; c < count; ++c) {
        Acc* entry = logits + c * lanes + at;
        const V raw = load<L>(entry) - lse, logprob = raw < far ? far : raw;
        store(entry, exp_of(logprob) * (all - through * (logprob + entropy)) * scale);
      }
    }
  }
};

// to[count][stride] = from[count][lanes], converted to the type of to.
struct Narrow {
  template <int W, typename T>
  static REASONREC_INLINE void run(const Accumulator<T>* from, int64_t lanes, int64_t count, T* to, int64_t stride) {
    constexpr int L = W / sizeof(Accumulator<T>);
    for (int64_t c = 0; c < count; ++c) {
      for (int64_t at = 0; at < lanes; at += L) store_narrow(to + c * stride + at, load<L>(from + c * lanes + at));
    }
  }
};

// sums += added
struct AddValues {
  template <int W, typename T>
  static REASONREC_INLINE void run(const T* added, Accumulator<T>* sums, int64_t count) {
    constexpr int L = W / sizeof(Accumulator<T>);
    int64_t i = 0;
    for (; i + L <= count; i += L) store(sums + i, load<L>(sums + i) + load_wide<L>(added + i));
    for (; i < count; ++i) sums[i] += static_cast<Accumulator<T>>(added[i]);
  }
};

// A given token of a row, and the gradient of its log-probability.
template <typename Acc>
struct TokenGradient {
  int64_t token, row;
  Acc gradient;
  bool operator<(const TokenGradient& other) const {
    return token < other.token || (token == other.token && row < other.row);
  }
};

// grads: of logprobs [B, M], logsumexp [B] and entropy [B], contiguous, in the type of the sums.
template <typename T>
Results backward(const Tensor& hidden, const Tensor& weight, const Tensor& bias, const std::vector<int64_t>& wanted,
                 const Tensor& temperature, const Tensor& logsumexp, const Tensor& entropy, const Tensor& grad_logprobs,
                 const Tensor& grad_logsumexp, const Tensor& grad_entropy) {
  using Acc = Accumulator<T>;
  const int64_t rows = hidden.size(0), width = hidden.size(1), classes = weight.size(0);
  const int64_t padded = (rows + kPanelRows - 1) / kPanelRows * kPanelRows;
  const int64_t count = rows > 0 ? static_cast<int64_t>(wanted.size()) / rows : 0;
  const Softmax<T> softmax = softmax_of<T>(hidden, weight, bias, temperature);
  const Acc scale = static_cast<Acc>(1.0 / temperature.const_data_ptr<double>()[0]);
  RowGradients<Acc> of_rows(padded);
  std::vector<TokenGradient<Acc>> given;
  for (int64_t b = 0; b < rows; ++b) {
    of_rows.logsumexp[b] = logsumexp.const_data_ptr<Acc>()[b], of_rows.entropy[b] = entropy.const_data_ptr<Acc>()[b];
    of_rows.through_entropy[b] = grad_entropy.const_data_ptr<Acc>()[b];
    of_rows.through_all[b] = grad_logsumexp.const_data_ptr<Acc>()[b];
    for (int64_t at = b * count; at < (b + 1) * count; ++at) {
      if (wanted[at] < 0) continue;
      const Acc gradient = grad_logprobs.const_data_ptr<Acc>()[at];
      of_rows.through_all[b] -= gradient;
      given.push_back({wanted[at], b, gradient});
    }
  }
  std::sort(given.begin(), given.end());

  const ScalarType wide = wide_type(hidden);
  Tensor grad_hidden = torch::stable::new_zeros(hidden, {rows, width}, wide);
  Tensor grad_weight = torch::stable::new_empty(weight, {classes, width});
  Tensor grad_bias = torch::stable::new_zeros(hidden, {bias.numel() > 0 ? classes : 0}, wide);
  const int64_t tallest = std::max<int64_t>(kBlockBytes / (std::max<int64_t>(padded, 1) * sizeof(T)) / kStretch, 1) * kStretch;
  // Zeros: with AMX, oneDNN reads up to 31 columns beyond those of a bfloat16 view and multiplies them by zero, and what
  // was never written may be NaN.
  Tensor block = torch::stable::new_zeros(hidden, {std::min(tallest, classes), padded});
  for (int64_t begin = 0; begin < classes; begin += tallest) {
    const int64_t end = std::min(begin + tallest, classes);
    T* out = block.mutable_data_ptr<T>();
    softmax.for_each_tile(begin, end, [&](int64_t panel, int64_t, Acc* logits, int64_t lanes, int64_t first,
                                          int64_t height) {
      const int64_t first_row = panel * kPanelRows;
      dispatch<GradientOfLogits>(of_rows, first_row, logits, lanes, height, scale);
      auto next = std::lower_bound(given.begin(), given.end(), TokenGradient<Acc>{first, -1, 0});
      for (; next != given.end() && next->token < first + height; ++next) {
        const int64_t lane = next->row - first_row;
        if (lane >= 0 && lane < kPanelRows) logits[(next->token - first) * lanes + lane] += next->gradient * scale;
      }
      dispatch<Narrow>(logits, lanes, height, out + (first - begin) * padded + first_row, padded);
    });
    if (bias.numel() > 0) {
      for (int64_t c = begin; c < end; ++c) {
        const T* row = out + (c - begin) * padded;
        Acc sum = 0;
        for (int64_t b = 0; b < rows; ++b) sum += static_cast<Acc>(row[b]);
        grad_bias.mutable_data_ptr<Acc>()[c] = sum;
      }
    }
    Tensor rows_of_block = torch::stable::narrow(block, 0, 0, end - begin);
    Tensor gradient = torch::stable::narrow(rows_of_block, 1, 0, rows);
    Tensor part = torch::stable::narrow(grad_weight, 0, begin, end - begin);
    torch::stable::copy_(part, torch::stable::matmul(gradient, hidden));
    Tensor weight_of_block = weight;
    weight_of_block = torch::stable::narrow(weight_of_block, 0, begin, end - begin);
    const Tensor to_hidden = torch::stable::contiguous(
        torch::stable::matmul(torch::stable::transpose(gradient, 0, 1), weight_of_block));
    const T* added = to_hidden.const_data_ptr<T>();
    Acc* sums = grad_hidden.mutable_data_ptr<Acc>();
    torch::stable::parallel_for(0, rows * width, 1 << 15, [&](int64_t from, int64_t to) {
      dispatch<AddValues>(added + from, sums + from, to - from);
    });
  }
  return {torch::stable::to(grad_hidden, hidden.scalar_type()), grad_weight, grad_bias};
}

Results token_logprobs_backward(Tensor hidden, Tensor weight, Tensor bias, Tensor tokens, Tensor temperature,
                                int64_t ignore_index, Tensor logsumexp, Tensor entropy, Tensor grad_logprobs,
                                Tensor grad_logsumexp, Tensor grad_entropy) {
  const ScalarType wide = wide_type(hidden);
  hidden = torch::stable::contiguous(hidden), weight = torch::stable::contiguous(weight);
  bias = torch::stable::contiguous(torch::stable::to(bias, wide)), tokens = torch::stable::contiguous(tokens);
  grad_logprobs = torch::stable::contiguous(grad_logprobs);
  grad_logsumexp = torch::stable::contiguous(grad_logsumexp), grad_entropy = torch::stable::contiguous(grad_entropy);
  const std::vector<int64_t> wanted = wanted_tokens(tokens, ignore_index, weight.size(0));
  Results results;
  with_floating_type(hidden, "hidden", [&](auto element) {
    results = backward<decltype(element)>(hidden, weight, bias, wanted, temperature, logsumexp, entropy,
                                          grad_logprobs, grad_logsumexp, grad_entropy);
  });
  return results;
}

}  // namespace
}  // namespace reasonrec

STABLE_TORCH_LIBRARY_IMPL(reasonrec_fast, CPU, m) {
  m.impl("token_logprobs", TORCH_BOX(&reasonrec::token_logprobs));
  m.impl("token_logprobs_backward", TORCH_BOX(&reasonrec::token_logprobs_backward));
}

// The schemas of all native operators. Implementations are registered per device in csrc/cpu and csrc/cuda; fake and
// autograd registrations are beside the public functions in reasonrec_fast/ops.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(reasonrec_fast, m) {
  m.def(
      "aggregate(Tensor user_indptr, Tensor user_indices, Tensor item_indptr, Tensor item_indices, Tensor x, "
      "Tensor weights, float dropout, Tensor seed) -> Tensor");
  m.def(
      "exit_confidence(Tensor hidden, Tensor heads, Tensor bias, Tensor temperature, str measure, int positive, "
      "Tensor targets) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "token_logprobs(Tensor hidden, Tensor weight, Tensor bias, Tensor tokens, Tensor temperature, int ignore_index) "
      "-> (Tensor, Tensor, Tensor)");
  m.def(
      "token_logprobs_backward(Tensor hidden, Tensor weight, Tensor bias, Tensor tokens, Tensor temperature, "
      "int ignore_index, Tensor logsumexp, Tensor entropy, Tensor grad_logprobs, Tensor grad_logsumexp, "
      "Tensor grad_entropy) -> (Tensor, Tensor, Tensor)");
  m.def(
      "topk(Tensor queries, Tensor items, int k, Tensor indptr, Tensor indices, Tensor rows) -> (Tensor, Tensor)");
  m.def(
      "packed_attention(Tensor query, Tensor key, Tensor value, Tensor segments, float scale, float softcap) -> "
      "Tensor");
  m.def("linear(Tensor rows, Tensor weight, Tensor bias) -> Tensor");
  m.def("route_budget(Tensor uncertainty, int count) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("gather_rows(Tensor x, Tensor index, Tensor(a!) out) -> ()");
  m.def("partition(Tensor destination, int num_destinations) -> (Tensor, Tensor, Tensor)");
}

// aggregate: sum over l of w_l S^l x with S = D^-1/2 A D^-1/2, straight from the two CSR directions.
//
// The normalisation is folded in: a row is the sum of its neighbours' rows times their inverse root degrees, times
// its own. Nothing of the size of the edges is stored. Each row is summed by one thread in the order of its
// neighbours, so the result has the same bits for any number of threads.
#include "common.h"

#include <torch/csrc/stable/library.h>

#include <cmath>
#include <vector>

namespace reasonrec {
namespace {

// The hash of reasonrec_fast.ops.aggregate.edge_hash.
inline uint32_t edge_hash(int64_t seed, int64_t user, int64_t item) {
  auto fold = [](int64_t value) {
    const auto bits = static_cast<uint64_t>(value);
    return static_cast<uint32_t>(bits) ^ static_cast<uint32_t>(static_cast<uint64_t>(value >> 32));
  };
  uint32_t state = fold(seed);
  for (int64_t value : {user, item}) {
    state ^= fold(value);
    state = (state ^ (state >> 16)) * 0x85EBCA6Bu;
    state = (state ^ (state >> 13)) * 0xC2B2AE35u;
    state ^= state >> 16;
  }
  return state;
}

template <typename Index>
struct Graph {
  const Index* indptr[2];   // users' rows, items' rows
  const Index* indices[2];
  int64_t count[2];

  int64_t nodes() const { return count[0] + count[1]; }
};

template <typename Acc>
struct Dropout {
  uint64_t below;  // edges whose hash is below are dropped
  int64_t seed;
  Acc scale;
};

template <typename Index, typename Acc>
void propagate(const Graph<Index>& graph, const std::vector<Acc>& inverse_root, const Acc* x, Acc* y, int64_t width,
               const Dropout<Acc>& dropout) {
  for (int side = 0; side < 2; ++side) {
    const Index* indptr = graph.indptr[side];
    const Index* indices = graph.indices[side];
    const int64_t own = side == 0 ? 0 : graph.count[0];
    const int64_t other = side == 0 ? graph.count[0] : 0;
    torch::stable::parallel_for(0, graph.count[side], 64, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        Acc* out = y + (own + row) * width;
        std::fill(out, out + width, Acc(0));
        for (int64_t edge = indptr[row]; edge < static_cast<int64_t>(indptr[row + 1]); ++edge) {
          const int64_t column = indices[edge];
          if (dropout.below != 0) {
            const uint32_t hash = side == 0 ? edge_hash(dropout.seed, row, column) : edge_hash(dropout.seed, column, row);
            if (hash < dropout.below) continue;
          }
          const int64_t neighbour = other + column;
          add_scaled(out, x + neighbour * width, inverse_root[neighbour], width);
        }
        const Acc scale = inverse_root[own + row] * dropout.scale;
        for (int64_t i = 0; i < width; ++i) out[i] *= scale;
      }
    });
  }
}

template <typename T, typename Index>
void run(const Graph<Index>& graph, const T* x, const Tensor& weights, double rate, int64_t seed, T* out,
         int64_t width) {
  using Acc = Accumulator<T>;
  const int64_t nodes = graph.nodes(), size = nodes * width;
  const Acc* weight = weights.const_data_ptr<Acc>();
  std::vector<Acc> inverse_root(nodes);
  for (int side = 0; side < 2; ++side) {
    for (int64_t row = 0; row < graph.count[side]; ++row) {
      const auto degree = graph.indptr[side][row + 1] - graph.indptr[side][row];
      inverse_root[(side == 0 ? 0 : graph.count[0]) + row] =
          degree > 0 ? Acc(1) / std::sqrt(static_cast<Acc>(degree)) : Acc(0);
    }
  }
  const Dropout<Acc> dropout{static_cast<uint64_t>(rate * 4294967296.0), seed, static_cast<Acc>(1.0 / (1.0 - rate))};
  std::vector<Acc> layer(size), following(weights.numel() > 1 ? size : 0), total(size, Acc(0));
  widen(layer.data(), x, size);
  for (int64_t index = 0; index < weights.numel(); ++index) {
    if (index > 0) {
      propagate(graph, inverse_root, layer.data(), following.data(), width, dropout);
      layer.swap(following);
    }
    if (weight[index] == Acc(0)) continue;
    torch::stable::parallel_for(0, nodes, 256, [&](int64_t begin, int64_t end) {
      add_scaled(total.data() + begin * width, layer.data() + begin * width, weight[index], (end - begin) * width);
    });
  }
  for (int64_t i = 0; i < size; ++i) out[i] = static_cast<T>(total[i]);
}

Tensor aggregate(Tensor user_indptr, Tensor user_indices, Tensor item_indptr, Tensor item_indices, Tensor x,
                 Tensor weights, double dropout, Tensor seed) {
  user_indptr = torch::stable::contiguous(user_indptr), user_indices = torch::stable::contiguous(user_indices);
  item_indptr = torch::stable::contiguous(item_indptr), item_indices = torch::stable::contiguous(item_indices);
  x = torch::stable::contiguous(x), weights = torch::stable::contiguous(weights);
  const int64_t num_users = user_indptr.numel() - 1, num_items = item_indptr.numel() - 1;
  STD_TORCH_CHECK(x.dim() == 2 && x.size(0) == num_users + num_items, "x: expected one row a node");
  Tensor out = torch::stable::empty_like(x);
  with_index_type(user_indptr, "graph", [&](auto index) {
    using Index = decltype(index);
    const Graph<Index> graph{{user_indptr.const_data_ptr<Index>(), item_indptr.const_data_ptr<Index>()},
                             {user_indices.const_data_ptr<Index>(), item_indices.const_data_ptr<Index>()},
                             {num_users, num_items}};
    with_floating_type(x, "x", [&](auto element) {
      using T = decltype(element);
      run<T, Index>(graph, x.const_data_ptr<T>(), weights, dropout, seed.const_data_ptr<int64_t>()[0],
                    out.mutable_data_ptr<T>(), x.size(1));
    });
  });
  return out;
}

}  // namespace
}  // namespace reasonrec

STABLE_TORCH_LIBRARY_IMPL(reasonrec_fast, CPU, m) { m.impl("aggregate", TORCH_BOX(&reasonrec::aggregate)); }

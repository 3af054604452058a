// aggregate: sum over l of w_l S^l x with S = D^-1/2 A D^-1/2, straight from the two CSR directions.
//
// Layers are kept times the inverse root degree, in the type of x, so that a row is a bare sum of its neighbours' rows;
// what scales it, the running total and the next layer come out of the same registers. Nothing of the size of the
// edges is stored. Each row is summed by one thread in the order of its neighbours, so the result has the same bits for
// any number of threads; rows are divided among threads by their edges.
#include "vector.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <memory>

namespace reasonrec {
namespace {

constexpr int64_t kShares = 64;    // parts of the rows that are handed to threads
constexpr int64_t kAhead = 12;     // edges from a row that is being fetched to the one that is being added

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

// Rows of one side of the graph, summed from the rows of the other.
template <typename T, typename Index>
struct Side {
  using Acc = Accumulator<T>;
  const Index *indptr, *indices;
  const Acc* inverse_root;  // of the rows
  const T* neighbours;      // the layer before, scaled: rows of the other side
  T* scaled;                // this layer, scaled; null where no layer follows
  Acc* total;               // the sum over layers so far
  int64_t rows, width;
  Acc weight;               // of this layer in the total
  bool users;               // whether the rows are users
  uint64_t dropped_below;   // edges whose hash is below are left out
  int64_t seed;
  Acc kept_scale;

  bool dropped(int64_t row, int64_t column) const {
    const uint32_t hash = users ? edge_hash(seed, row, column) : edge_hash(seed, column, row);
    return hash < dropped_below;
  }
};

// NV vectors of columns of one row.
template <int NV, bool kDropout, typename T, typename Index>
REASONREC_INLINE void sum_columns(const Side<T, Index>& side, int64_t row, int64_t column) {
  using Acc = Accumulator<T>;
  constexpr bool kEvenOdd = std::is_same_v<T, BFloat16> && NV % 2 == 0;
  const int64_t begin = side.indptr[row], end = side.indptr[row + 1];
  const T* base = side.neighbours + column;
  Vec<Acc> sums[NV] = {};
  for (int64_t edge = begin; edge < end; ++edge) {
    const char* coming = reinterpret_cast<const char*>(base + side.indices[std::min(edge + kAhead, end - 1)] * side.width);
#pragma GCC unroll 4
    for (int64_t byte = 0; byte < static_cast<int64_t>(NV * kLanes * sizeof(T)); byte += 64) {
      __builtin_prefetch(coming + byte);
    }
    const int64_t neighbour = side.indices[edge];
    if (kDropout && side.dropped(row, neighbour)) continue;
    const T* from = base + neighbour * side.width;
    if constexpr (kEvenOdd) {
#pragma GCC unroll 4
      for (int v = 0; v < NV; v += 2) {
        Vec<Acc> even, odd;
        load_even_odd(from + v * kLanes, even, odd);
        sums[v] += even, sums[v + 1] += odd;
      }
    } else {
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) sums[v] += load_wide(from + v * kLanes);
    }
  }
  if constexpr (kEvenOdd) {
    for (int v = 0; v < NV; v += 2) in_order(sums[v], sums[v + 1]);
  }
  const Acc root = side.inverse_root[row], scale = root * side.kept_scale;
  for (int v = 0; v < NV; ++v) {
    const int64_t place = row * side.width + column + v * kLanes;
    const Vec<Acc> layer = sums[v] * scale;
    if (side.weight != 0) store(side.total + place, load(side.total + place) + layer * side.weight);
    if (side.scaled) store_narrow(side.scaled + place, layer * root);
  }
}

// The columns that do not fill a vector.
template <typename T, typename Index>
REASONREC_INLINE void sum_last_columns(const Side<T, Index>& side, int64_t row, int64_t column) {
  using Acc = Accumulator<T>;
  Acc sums[kLanes] = {};
  for (int64_t edge = side.indptr[row]; edge < static_cast<int64_t>(side.indptr[row + 1]); ++edge) {
    const int64_t neighbour = side.indices[edge];
    if (side.dropped_below != 0 && side.dropped(row, neighbour)) continue;
    const T* from = side.neighbours + neighbour * side.width;
    for (int64_t c = column; c < side.width; ++c) sums[c - column] += static_cast<Acc>(from[c]);
  }
  const Acc root = side.inverse_root[row], scale = root * side.kept_scale;
  for (int64_t c = column; c < side.width; ++c) {
    const Acc layer = sums[c - column] * scale;
    if (side.weight != 0) side.total[row * side.width + c] += layer * side.weight;
    if (side.scaled) side.scaled[row * side.width + c] = static_cast<T>(layer * root);
  }
}

template <bool kDropout, typename T, typename Index>
REASONREC_INLINE void sum_rows_body(const Side<T, Index>& side, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    int64_t column = 0;
    for (; column + 4 * kLanes <= side.width; column += 4 * kLanes) sum_columns<4, kDropout>(side, row, column);
    for (; column + kLanes <= side.width; column += kLanes) sum_columns<1, kDropout>(side, row, column);
    if (column < side.width) sum_last_columns(side, row, column);
  }
}

#define REASONREC_SUM_ROWS(T, Index)                                                             \
  REASONREC_DISPATCH void sum_rows(const Side<T, Index>& side, int64_t begin, int64_t end) {     \
    if (side.dropped_below != 0) return sum_rows_body<true>(side, begin, end);                   \
    sum_rows_body<false>(side, begin, end);                                                      \
  }
REASONREC_SUM_ROWS(float, int32_t)
REASONREC_SUM_ROWS(float, int64_t)
REASONREC_SUM_ROWS(double, int32_t)
REASONREC_SUM_ROWS(double, int64_t)
REASONREC_SUM_ROWS(BFloat16, int32_t)
REASONREC_SUM_ROWS(BFloat16, int64_t)
REASONREC_SUM_ROWS(Half, int32_t)
REASONREC_SUM_ROWS(Half, int64_t)
#undef REASONREC_SUM_ROWS

// The first row of a share when rows and edges are divided evenly.
template <typename Index>
int64_t first_row(const Index* indptr, int64_t rows, int64_t share) {
  const int64_t work = (rows + static_cast<int64_t>(indptr[rows])) * share / kShares;
  int64_t low = 0, high = rows;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (middle + static_cast<int64_t>(indptr[middle]) < work) low = middle + 1; else high = middle;
  }
  return low;
}

template <typename Index>
struct Graph {
  const Index* indptr[2];  // users' rows, items' rows
  const Index* indices[2];
  int64_t count[2];
};

template <typename T, typename Index>
void run(const Graph<Index>& graph, const T* x, const Tensor& weights, double rate, int64_t seed, T* out,
         int64_t width) {
  using Acc = Accumulator<T>;
  const int64_t nodes = graph.count[0] + graph.count[1], size = nodes * width, layers = weights.numel() - 1;
  const Acc* weight = weights.const_data_ptr<Acc>();
  // Not initialised: every value is written before it is read.
  const std::unique_ptr<Acc[]> inverse_root(new Acc[nodes]), wide(new Acc[std::is_same_v<T, Acc> ? 0 : size]);
  std::unique_ptr<T[]> scaled(new T[layers > 0 ? size : 0]), following(new T[layers > 1 ? size : 0]);
  Acc* total;
  if constexpr (std::is_same_v<T, Acc>) total = out; else total = wide.get();
  for (int side = 0; side < 2; ++side) {
    const int64_t offset = side == 0 ? 0 : graph.count[0];
    torch::stable::parallel_for(0, graph.count[side], 256, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const auto degree = graph.indptr[side][row + 1] - graph.indptr[side][row];
        const Acc root = degree > 0 ? Acc(1) / std::sqrt(static_cast<Acc>(degree)) : Acc(0);
        inverse_root[offset + row] = root;
        for (int64_t i = (offset + row) * width; i < (offset + row + 1) * width; ++i) {
          total[i] = static_cast<Acc>(x[i]) * weight[0];
          if (layers > 0) scaled[i] = static_cast<T>(static_cast<Acc>(x[i]) * root);
        }
      }
    });
  }
  for (int64_t layer = 1; layer <= layers; ++layer) {
    Side<T, Index> sides[2];
    for (int side = 0; side < 2; ++side) {
      const int64_t offset = side == 0 ? 0 : graph.count[0], other = side == 0 ? graph.count[0] : 0;
      sides[side] = {graph.indptr[side],
                     graph.indices[side],
                     inverse_root.get() + offset,
                     scaled.get() + other * width,
                     layer < layers ? following.get() + offset * width : nullptr,
                     total + offset * width,
                     graph.count[side],
                     width,
                     weight[layer],
                     side == 0,
                     static_cast<uint64_t>(rate * 4294967296.0),
                     seed,
                     static_cast<Acc>(1.0 / (1.0 - rate))};
    }
    torch::stable::parallel_for(0, 2 * kShares, 1, [&](int64_t begin, int64_t end) {
      for (int64_t share = begin; share < end; ++share) {
        const auto& side = sides[share / kShares];
        sum_rows(side, first_row(side.indptr, side.rows, share % kShares),
                 first_row(side.indptr, side.rows, share % kShares + 1));
      }
    });
    scaled.swap(following);
  }
  if constexpr (!std::is_same_v<T, Acc>) {
    torch::stable::parallel_for(0, size, 1 << 14, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) out[i] = static_cast<T>(total[i]);
    });
  }
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

// aggregate: sum over l of w_l S^l x with S = D^-1/2 A D^-1/2, straight from the two CSR directions.
//
// Layers are kept times the inverse root degree, in the type of x, so that a row is a bare sum of its neighbours' rows;
// what scales it, its share of the total and the next layer come out of the same registers. Users take from items and
// items from users, so layers form two chains that never meet (users, items, users ... and items, users, items ...):
// one after the other they need one buffer, and half of it is read at a time. Nothing of the size of the edges is
// stored. Each row is summed by one thread in the order of its neighbours, so the result has the same bits for any
// number of threads; rows are divided among threads by their edges.
#include "scratch.h"
#include "vector.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>

namespace reasonrec {
namespace {

constexpr int64_t kShares = 64;    // parts of the rows that are handed to threads
constexpr int64_t kAhead = 16;     // edges from a row that is being fetched to the one that is being added

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

// One layer of one side of the graph: its rows, summed from the rows of the other.
template <typename T, typename Index>
struct Visit {
  using Acc = Accumulator<T>;
  const Index *indptr, *indices;
  const Acc* inverse_root;  // of the rows
  const T* neighbours;      // the layer before, scaled: rows of the other side
  T* scaled;                // this layer, scaled; null where no layer follows
  const T* x;               // layer 0 of the rows
  Acc* total;               // the sum over layers so far
  T* out;
  int64_t rows, width;
  Acc x_weight, weight;     // of layer 0 and of this one in the total
  bool first, last;         // whether the total of these rows begins or ends here
  bool users;               // whether the rows are users
  uint64_t dropped_below;   // edges whose hash is below are left out
  int64_t seed;
  Acc kept_scale;

  bool dropped(int64_t row, int64_t column) const {
    const uint32_t hash = users ? edge_hash(seed, row, column) : edge_hash(seed, column, row);
    return hash < dropped_below;
  }
};

// NV vectors of columns of one row. Edges up to last_edge follow in memory: the rows of the next ones are fetched early.
template <int NV, bool kDropout, typename T, typename Index>
REASONREC_INLINE void sum_columns(const Visit<T, Index>& visit, int64_t row, int64_t column, int64_t last_edge) {
  using Acc = Accumulator<T>;
  constexpr bool kEvenOdd = std::is_same_v<T, BFloat16> && NV % 2 == 0;
  const int64_t begin = visit.indptr[row], end = visit.indptr[row + 1];
  const T* base = visit.neighbours + column;
  Vec<Acc> sums[NV] = {};
  for (int64_t edge = begin; edge < end; ++edge) {
    const char* coming = reinterpret_cast<const char*>(base + visit.indices[std::min(edge + kAhead, last_edge)] * visit.width);
#pragma GCC unroll 4
    for (int64_t byte = 0; byte < static_cast<int64_t>(NV * kLanes * sizeof(T)); byte += 64) {
      __builtin_prefetch(coming + byte);
    }
    const int64_t neighbour = visit.indices[edge];
    if (kDropout && visit.dropped(row, neighbour)) continue;
    const T* from = base + neighbour * visit.width;
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
  const Acc root = visit.inverse_root[row], scale = root * visit.kept_scale;
  for (int v = 0; v < NV; ++v) {
    const int64_t place = row * visit.width + column + v * kLanes;
    const Vec<Acc> layer = sums[v] * scale;
    if (visit.scaled) store_narrow(visit.scaled + place, layer * root);
    if (visit.weight == 0) continue;
    Vec<Acc> total = layer * visit.weight;
    if (!visit.first) total += load(visit.total + place);
    else if (visit.x_weight != 0) total += load_wide(visit.x + place) * visit.x_weight;
    if (visit.last) store_narrow(visit.out + place, total); else store(visit.total + place, total);
  }
}

// The columns that do not fill a vector.
template <typename T, typename Index>
REASONREC_INLINE void sum_last_columns(const Visit<T, Index>& visit, int64_t row, int64_t column) {
  using Acc = Accumulator<T>;
  Acc sums[kLanes] = {};
  for (int64_t edge = visit.indptr[row]; edge < static_cast<int64_t>(visit.indptr[row + 1]); ++edge) {
    const int64_t neighbour = visit.indices[edge];
    if (visit.dropped_below != 0 && visit.dropped(row, neighbour)) continue;
    const T* from = visit.neighbours + neighbour * visit.width;
    for (int64_t c = column; c < visit.width; ++c) sums[c - column] += static_cast<Acc>(from[c]);
  }
  const Acc root = visit.inverse_root[row], scale = root * visit.kept_scale;
  for (int64_t c = column; c < visit.width; ++c) {
    const int64_t place = row * visit.width + c;
    const Acc layer = sums[c - column] * scale;
    if (visit.scaled) visit.scaled[place] = static_cast<T>(layer * root);
    if (visit.weight == 0) continue;
    Acc total = layer * visit.weight;
    if (!visit.first) total += visit.total[place];
    else if (visit.x_weight != 0) total += static_cast<Acc>(visit.x[place]) * visit.x_weight;
    if (visit.last) visit.out[place] = static_cast<T>(total); else visit.total[place] = total;
  }
}

template <bool kDropout, typename T, typename Index>
REASONREC_INLINE void sum_rows_body(const Visit<T, Index>& visit, int64_t begin, int64_t end) {
  const int64_t last_edge = static_cast<int64_t>(visit.indptr[end]) - 1;
  for (int64_t row = begin; row < end; ++row) {
    int64_t column = 0;
    for (; column + 4 * kLanes <= visit.width; column += 4 * kLanes) sum_columns<4, kDropout>(visit, row, column, last_edge);
    for (; column + kLanes <= visit.width; column += kLanes) sum_columns<1, kDropout>(visit, row, column, last_edge);
    if (column < visit.width) sum_last_columns(visit, row, column);
  }
}

#define REASONREC_SUM_ROWS(T, Index)                                                             \
  REASONREC_DISPATCH void sum_rows(const Visit<T, Index>& visit, int64_t begin, int64_t end) {   \
    if (visit.dropped_below != 0) return sum_rows_body<true>(visit, begin, end);                 \
    sum_rows_body<false>(visit, begin, end);                                                     \
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

// to[i] = from[i] * scale
#define REASONREC_SCALE(T)                                                                                 \
  REASONREC_DISPATCH void scale_values(const T* from, Accumulator<T> scale, T* to, int64_t count) {        \
    int64_t i = 0;                                                                                         \
    for (; i + kLanes <= count; i += kLanes) store_narrow(to + i, load_wide(from + i) * scale);            \
    for (; i < count; ++i) to[i] = static_cast<T>(static_cast<Accumulator<T>>(from[i]) * scale);           \
  }
REASONREC_SCALE(float)
REASONREC_SCALE(double)
REASONREC_SCALE(BFloat16)
REASONREC_SCALE(Half)
#undef REASONREC_SCALE

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
  const Acc* weight = weights.const_data_ptr<Acc>();
  const int64_t offset[2] = {0, graph.count[0] * width}, size = (graph.count[0] + graph.count[1]) * width;
  int64_t layers = weights.numel() - 1, left[2] = {0, 0};  // layers of each side that the total still waits for
  while (layers > 0 && weight[layers] == 0) --layers;
  for (int64_t layer = 1; layer <= layers; ++layer) left[0] += weight[layer] != 0, left[1] += weight[layer] != 0;
  const bool apart = !std::is_same_v<T, Acc> && left[0] > 1;  // whether the sum is held in another type than out's
  const Scratch<Acc> inverse_root = scratch<Acc>(graph.count[0] + graph.count[1]), wide = scratch<Acc>(apart ? size : 0);
  const Scratch<T> scaled = scratch<T>(layers > 0 ? size : 0);
  Acc* total = wide.get();
  if constexpr (std::is_same_v<T, Acc>) total = out;
  for (int side = 0; side < 2; ++side) {
    torch::stable::parallel_for(0, graph.count[side], 256, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const auto degree = graph.indptr[side][row + 1] - graph.indptr[side][row];
        inverse_root[side * graph.count[0] + row] = degree > 0 ? Acc(1) / std::sqrt(static_cast<Acc>(degree)) : Acc(0);
        if (layers == 0) scale_values(x + offset[side] + row * width, weight[0], out + offset[side] + row * width, width);
      }
    });
  }
  bool first[2] = {true, true};
  for (int chain = 0; chain < 2 && layers > 0; ++chain) {
    const Acc* roots = inverse_root.get() + chain * graph.count[0];
    torch::stable::parallel_for(0, graph.count[chain], 256, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const int64_t place = offset[chain] + row * width;
        scale_values(x + place, roots[row], scaled.get() + place, width);
      }
    });
    for (int64_t layer = 1; layer <= layers; ++layer) {
      const int side = (chain + layer) % 2, other = 1 - side;
      const bool counts = weight[layer] != 0;
      if (counts) --left[side];
      const Visit<T, Index> visit{graph.indptr[side],
                                  graph.indices[side],
                                  inverse_root.get() + side * graph.count[0],
                                  scaled.get() + offset[other],
                                  layer < layers ? scaled.get() + offset[side] : nullptr,
                                  x + offset[side],
                                  total + (total ? offset[side] : 0),
                                  out + offset[side],
                                  graph.count[side],
                                  width,
                                  weight[0],
                                  weight[layer],
                                  first[side],
                                  left[side] == 0,
                                  side == 0,
                                  static_cast<uint64_t>(rate * 4294967296.0),
                                  seed,
                                  static_cast<Acc>(1.0 / (1.0 - rate))};
      torch::stable::parallel_for(0, kShares, 1, [&](int64_t begin, int64_t end) {
        sum_rows(visit, first_row(visit.indptr, visit.rows, begin), first_row(visit.indptr, visit.rows, end));
      });
      if (counts) first[side] = false;
    }
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

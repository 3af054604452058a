// aggregate: sum over l of w_l S^l x with S = D^-1/2 A D^-1/2, directly from the CSR of both directions.
//
// Layers are stored multiplied by the inverse root degree, in the type of x, so that a row is a plain sum of its
// neighbours' rows; the sum is scaled, added to the total and stored for the next layer while it is in registers. Users
// read only items and items only users, so layers form two independent chains (users, items, users ... and items, users,
// items ...). Computed one after the other they share one buffer, half of which is read at a time. Where that half does
// not fit into the caches, a few columns are taken through all layers before the next ones. Nothing of the size of the
// edges is stored. One thread sums a row in the order of its neighbours, so the result has the same bits for any number
// of threads; rows are divided among threads by their edges. A layer of weight 0 is skipped, since it may hold NaN.
#include "scratch.h"
#include "vector.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>

namespace reasonrec {
namespace {

constexpr int64_t kShares = 64;                    // parts of the rows that are distributed to threads
constexpr int64_t kTableBytes = int64_t(4) << 20;  // of one side's layer; above it columns are processed in slabs
constexpr int64_t kSlabRegisters = 4;              // per row of a slab: fewer cost more than the caches save
constexpr int64_t kAhead = 16;                     // prefetch distance in edges

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

// One layer of one side of the graph: its rows are sums of rows of the other side.
template <typename T, typename Index>
struct Visit {
  using Acc = Accumulator<T>;
  const Index *indptr, *indices;
  const Acc* inverse_root;  // of the rows
  const T* neighbours;      // the previous layer, scaled: rows of the other side
  T* scaled;                // this layer, scaled; null for the last layer
  const T* x;               // layer 0 of the rows
  Acc* total;               // the sum over layers so far
  T* out;
  int64_t rows, width;      // width: row stride of x, total and out
  int64_t slab;             // columns that are summed; row stride of neighbours and scaled
  Acc x_weight, weight;     // of layer 0 and of this one in the total
  bool first, last;         // whether this is the first or last layer in these rows' total
  bool users;               // whether the rows are users
  uint64_t dropped_below;   // edges with a smaller hash are dropped
  int64_t seed;
  Acc kept_scale;

  bool dropped(int64_t row, int64_t column) const {
    const uint32_t hash = users ? edge_hash(seed, row, column) : edge_hash(seed, column, row);
    return hash < dropped_below;
  }
};

// Sums NV vectors of columns of one row. The rows of later edges, up to last_edge, are prefetched.
template <int L, int NV, bool kDropout, typename T, typename Index>
REASONREC_INLINE void sum_columns(const Visit<T, Index>& visit, int64_t row, int64_t column, int64_t last_edge) {
  using Acc = Accumulator<T>;
  constexpr bool kEvenOdd = std::is_same_v<T, BFloat16> && NV % 2 == 0;
  const int64_t begin = visit.indptr[row], end = visit.indptr[row + 1];
  const T* base = visit.neighbours + column;
  Vec<Acc, L> sums[NV] = {};
  for (int64_t edge = begin; edge < end; ++edge) {
    const T* next = base + visit.indices[std::min(edge + kAhead, last_edge)] * visit.slab;
    const char* coming = reinterpret_cast<const char*>(next);
#pragma GCC unroll 4
    for (int64_t byte = 0; byte < static_cast<int64_t>(NV * L * sizeof(T)); byte += 64) {
      __builtin_prefetch(coming + byte);
    }
    const int64_t neighbour = visit.indices[edge];
    if (kDropout && visit.dropped(row, neighbour)) continue;
    const T* from = base + neighbour * visit.slab;
    if constexpr (kEvenOdd) {
#pragma GCC unroll 4
      for (int v = 0; v < NV; v += 2) {
        Vec<Acc, L> even, odd;
        load_even_odd(from + v * L, even, odd);
        sums[v] += even, sums[v + 1] += odd;
      }
    } else {
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) sums[v] += load_wide<L>(from + v * L);
    }
  }
  if constexpr (kEvenOdd) {
    for (int v = 0; v < NV; v += 2) in_order(sums[v], sums[v + 1]);
  }
  const Acc root = visit.inverse_root[row], scale = root * visit.kept_scale;
  for (int v = 0; v < NV; ++v) {
    const int64_t position = row * visit.width + column + v * L;
    const Vec<Acc, L> layer = sums[v] * scale;
    if (visit.scaled) store_narrow(visit.scaled + row * visit.slab + column + v * L, layer * root);
    if (visit.weight == 0) continue;
    Vec<Acc, L> total = layer * visit.weight;
    if (!visit.first) total += load<L>(visit.total + position);
    else if (visit.x_weight != 0) total += load_wide<L>(visit.x + position) * visit.x_weight;
    if (visit.last) store_narrow(visit.out + position, total); else store(visit.total + position, total);
  }
}

// The remaining columns, which do not fill a vector.
template <int L, typename T, typename Index>
REASONREC_INLINE void sum_last_columns(const Visit<T, Index>& visit, int64_t row, int64_t column) {
  using Acc = Accumulator<T>;
  Acc sums[L] = {};
  for (int64_t edge = visit.indptr[row]; edge < static_cast<int64_t>(visit.indptr[row + 1]); ++edge) {
    const int64_t neighbour = visit.indices[edge];
    if (visit.dropped_below != 0 && visit.dropped(row, neighbour)) continue;
    const T* from = visit.neighbours + neighbour * visit.slab;
    for (int64_t c = column; c < visit.slab; ++c) sums[c - column] += static_cast<Acc>(from[c]);
  }
  const Acc root = visit.inverse_root[row], scale = root * visit.kept_scale;
  for (int64_t c = column; c < visit.slab; ++c) {
    const int64_t position = row * visit.width + c;
    const Acc layer = sums[c - column] * scale;
    if (visit.scaled) visit.scaled[row * visit.slab + c] = static_cast<T>(layer * root);
    if (visit.weight == 0) continue;
    Acc total = layer * visit.weight;
    if (!visit.first) total += visit.total[position];
    else if (visit.x_weight != 0) total += static_cast<Acc>(visit.x[position]) * visit.x_weight;
    if (visit.last) visit.out[position] = static_cast<T>(total); else visit.total[position] = total;
  }
}

// The columns of a row from `column` on: NV vectors at a time while possible, then half as many, and so on.
template <int L, int NV, bool kDropout, typename T, typename Index>
REASONREC_INLINE void sum_row(const Visit<T, Index>& visit, int64_t row, int64_t column, int64_t last_edge) {
  for (; column + NV * L <= visit.slab; column += NV * L) {
    sum_columns<L, NV, kDropout>(visit, row, column, last_edge);
  }
  if constexpr (NV > 1) {
    sum_row<L, NV / 2, kDropout>(visit, row, column, last_edge);
  } else if (column < visit.slab) {
    sum_last_columns<L>(visit, row, column);
  }
}

template <int L, bool kDropout, typename T, typename Index>
REASONREC_INLINE void sum_rows(const Visit<T, Index>& visit, int64_t begin, int64_t end) {
  const int64_t last_edge = static_cast<int64_t>(visit.indptr[end]) - 1;
  for (int64_t row = begin; row < end; ++row) sum_row<L, std::min(64 / L, 8), kDropout>(visit, row, 0, last_edge);
}

struct SumRows {
  template <int W, typename T, typename Index>
  static REASONREC_INLINE void run(const Visit<T, Index>& visit, int64_t begin, int64_t end) {
    constexpr int L = W / sizeof(Accumulator<T>);
    if (visit.dropped_below != 0) return sum_rows<L, true>(visit, begin, end);
    sum_rows<L, false>(visit, begin, end);
  }
};

// to[row][i] = from[row][i] * scales[row]; the row strides are width and from_stride.
struct ScaleRows {
  template <int W, typename T>
  static REASONREC_INLINE void run(const T* from, int64_t from_stride, const Accumulator<T>* scales, T* to, int64_t width,
                                   int64_t begin, int64_t end) {
    constexpr int L = W / sizeof(Accumulator<T>);
    for (int64_t row = begin; row < end; ++row) {
      const T* source = from + row * from_stride;
      T* target = to + row * width;
      int64_t i = 0;
      for (; i + L <= width; i += L) store_narrow(target + i, load_wide<L>(source + i) * scales[row]);
      for (; i < width; ++i) target[i] = static_cast<T>(static_cast<Accumulator<T>>(source[i]) * scales[row]);
    }
  }
};

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
  int64_t layers = weights.numel() - 1, counted[2] = {0, 0};  // layers of each side that contribute to the total
  while (layers > 0 && weight[layers] == 0) --layers;
  if (layers == 0) {
    return torch::stable::parallel_for(0, size, 4096, [&](int64_t begin, int64_t end) {
      if (weight[0] == 0) return std::fill(out + begin, out + end, static_cast<T>(0));
      for (int64_t i = begin; i < end; ++i) out[i] = static_cast<T>(static_cast<Acc>(x[i]) * weight[0]);
    });
  }
  for (int64_t layer = 1; layer <= layers; ++layer) counted[0] += weight[layer] != 0, counted[1] += weight[layer] != 0;
  const bool apart = !std::is_same_v<T, Acc> && counted[0] > 1;  // whether the total needs a buffer of another type than out
  const Scratch<Acc> inverse_root = scratch<Acc>(graph.count[0] + graph.count[1]), wide = scratch<Acc>(apart ? size : 0);
  const bool fits = std::max(graph.count[0], graph.count[1]) * width * static_cast<int64_t>(sizeof(T)) <= kTableBytes;
  const int64_t slab = fits ? width : std::min<int64_t>(width, kSlabRegisters * register_bytes() / sizeof(T));
  const Scratch<T> scaled = scratch<T>((graph.count[0] + graph.count[1]) * slab);
  Acc* total = wide.get();
  if constexpr (std::is_same_v<T, Acc>) total = out;
  for (int side = 0; side < 2; ++side) {
    torch::stable::parallel_for(0, graph.count[side], 256, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const auto degree = graph.indptr[side][row + 1] - graph.indptr[side][row];
        inverse_root[side * graph.count[0] + row] = degree > 0 ? Acc(1) / std::sqrt(static_cast<Acc>(degree)) : Acc(0);
      }
    });
  }
  T* of_side[2] = {scaled.get(), scaled.get() + graph.count[0] * slab};
  for (int64_t column = 0; column < width; column += slab) {
    const int64_t columns = std::min(slab, width - column);
    int64_t left[2] = {counted[0], counted[1]};
    bool first[2] = {true, true};
    for (int chain = 0; chain < 2; ++chain) {
      const Acc* roots = inverse_root.get() + chain * graph.count[0];
      torch::stable::parallel_for(0, graph.count[chain], 256, [&](int64_t begin, int64_t end) {
        dispatch<ScaleRows>(x + offset[chain] + column, width, roots, of_side[chain], columns, begin, end);
      });
      for (int64_t layer = 1; layer <= layers; ++layer) {
        const int side = (chain + layer) % 2, other = 1 - side;
        const bool counts = weight[layer] != 0;
        if (counts) --left[side];
        const Visit<T, Index> visit{graph.indptr[side],
                                    graph.indices[side],
                                    inverse_root.get() + side * graph.count[0],
                                    of_side[other],
                                    layer < layers ? of_side[side] : nullptr,
                                    x + offset[side] + column,
                                    total + (total ? offset[side] + column : 0),
                                    out + offset[side] + column,
                                    graph.count[side],
                                    width,
                                    columns,
                                    weight[0],
                                    weight[layer],
                                    first[side],
                                    left[side] == 0,
                                    side == 0,
                                    static_cast<uint64_t>(rate * 4294967296.0),
                                    seed,
                                    static_cast<Acc>(1.0 / (1.0 - rate))};
        torch::stable::parallel_for(0, kShares, 1, [&](int64_t begin, int64_t end) {
          dispatch<SumRows>(visit, first_row(visit.indptr, visit.rows, begin), first_row(visit.indptr, visit.rows, end));
        });
        if (counts) first[side] = false;
      }
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
  STD_TORCH_CHECK(num_users >= 0 && num_items >= 0, "graph: expected an indptr of at least one entry; got none");
  Tensor out = torch::stable::empty_like(x);
  with_index_type(user_indptr, "graph", [&](auto index) {
    using Index = decltype(index);
    const Graph<Index> graph{{user_indptr.const_data_ptr<Index>(), item_indptr.const_data_ptr<Index>()},
                             {user_indices.const_data_ptr<Index>(), item_indices.const_data_ptr<Index>()},
                             {num_users, num_items}};
    for (int side = 0; side < 2; ++side) {
      const int64_t edges = side == 0 ? user_indices.numel() : item_indices.numel();
      STD_TORCH_CHECK(graph.indptr[side][graph.count[side]] == static_cast<Index>(edges),
                      "graph: expected an indptr that ends at ", edges, ", the number of indices; got another");
    }
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

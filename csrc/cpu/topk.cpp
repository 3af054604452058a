// topk: the items with the largest inner products with each query, without storing the [B, N] scores.
//
// Queries are packed in panels, past which the items stream (csrc/cpu/product.h). Every row keeps a heap of its best k.
// A score is compared with the worst of them, sixteen rows at a time, and only scores that pass are handled one by one
// (and looked up among the row's exclusions). The result does not depend on how the work is divided: by descending
// score, then by ascending index.
#include "product.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <tuple>

#ifdef REASONREC_X86
#include <immintrin.h>
#endif

namespace reasonrec {
namespace {

constexpr int64_t kMostPanels = 4;
constexpr int64_t kLeastStretch = 4096;  // items; shorter stretches would spend most of their time on filling heaps

template <typename Acc>
struct Match {
  Acc score;
  int64_t item;
  // Whether this item ranks before the other.
  bool operator<(const Match& other) const {
    return score > other.score || (score == other.score && item < other.item);
  }
};

// Excluded items of every row, sorted.
class Exclusions {
 public:
  Exclusions(const Tensor& indptr, const Tensor& indices, const Tensor& rows, int64_t batch, int64_t count)
      : starts_(batch + 1, 0) {
    if (indptr.numel() == 0) return;
    STD_TORCH_CHECK(rows.numel() == batch, "exclude: expected ", batch, " rows, one a query; got ", rows.numel());
    const int64_t* bounds = indptr.const_data_ptr<int64_t>();
    const int64_t* items = indices.const_data_ptr<int64_t>();
    const int64_t* csr = rows.const_data_ptr<int64_t>();
    for (int64_t row = 0; row < batch; ++row) {
      STD_TORCH_CHECK(csr[row] >= 0 && csr[row] + 1 < indptr.numel(), "exclude: expected rows of the CSR; got ",
                      csr[row], " in row ", row);
      const int64_t begin = bounds[csr[row]], end = bounds[csr[row] + 1];
      STD_TORCH_CHECK(begin >= 0 && begin <= end && end <= indices.numel(), "exclude: expected an indptr that rises within ",
                      indices.numel(), " indices; got ", begin, " to ", end, " in row ", csr[row]);
      starts_[row + 1] = starts_[row] + end - begin;
    }
    items_.resize(starts_[batch]);
    torch::stable::parallel_for(0, batch, 64, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const auto first = items_.begin() + starts_[row], last = items_.begin() + starts_[row + 1];
        std::copy(items + bounds[csr[row]], items + bounds[csr[row] + 1], first);
        if (!std::is_sorted(first, last)) std::sort(first, last);
      }
    });
    for (int64_t row = 0; row < batch; ++row) {
      if (starts_[row] == starts_[row + 1]) continue;
      const int64_t low = items_[starts_[row]], high = items_[starts_[row + 1] - 1];
      STD_TORCH_CHECK(low >= 0 && high < count, "exclude: expected items in [0, ", count, "); got ", low < 0 ? low : high,
                      " in row ", row);
    }
  }

  // Position of a row's first excluded item that is at least `item`.
  int64_t from(int64_t row, int64_t item) const {
    return std::lower_bound(items_.begin() + starts_[row], items_.begin() + starts_[row + 1], item) - items_.begin();
  }

  // Whether a row excludes an item. Items must ascend from call to call: `cursor` only moves forward.
  bool has(int64_t row, int64_t item, int64_t& cursor) const {
    while (cursor < starts_[row + 1] && items_[cursor] < item) ++cursor;
    return cursor < starts_[row + 1] && items_[cursor] == item;
  }

 private:
  std::vector<int64_t> starts_, items_;
};

// The best k items of one row, as a heap with the worst of them on top.
template <typename Acc>
class Best {
 public:
  explicit Best(size_t k) : k_(k) { heap_.reserve(k); }

  // What a score must exceed; NaN while the heap is not full, since `score <= NaN` is false for every score.
  Acc bar() const { return heap_.size() < k_ ? std::numeric_limits<Acc>::quiet_NaN() : heap_.front().score; }

  void offer(Match<Acc> match) {
    if (heap_.size() < k_) {
      heap_.push_back(match);
      std::push_heap(heap_.begin(), heap_.end());
    } else if (match < heap_.front()) {
      replace_worst(match);
    }
  }

  const std::vector<Match<Acc>>& matches() const { return heap_; }

 private:
  // Moves the worse child up until the new item fits: half the comparisons of a pop and a push.
  void replace_worst(Match<Acc> match) {
    size_t hole = 0;
    for (size_t child = 1; child < k_; child = 2 * hole + 1) {
      if (child + 1 < k_) child += heap_[child] < heap_[child + 1];
      if (!(match < heap_[child])) break;
      heap_[hole] = heap_[child], hole = child;
    }
    heap_[hole] = match;
  }

  size_t k_;
  std::vector<Match<Acc>> heap_;
};

// bits[c][lanes / 16]: the lanes of scores[count][lanes] with !(score <= bar), which includes a NaN score or bar.
template <typename Acc>
void above_generic(const Acc* scores, int64_t lanes, int64_t count, const Acc* bars, uint16_t* bits) {
  for (int64_t at = 0; at < count * lanes; at += kLanes) {
    uint32_t mask = 0;
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      mask |= static_cast<uint32_t>(!(scores[at + lane] <= bars[(at + lane) % lanes])) << lane;
    }
    bits[at / kLanes] = static_cast<uint16_t>(mask);
  }
}

#ifdef REASONREC_X86
REASONREC_V4 void above_v4(const float* scores, int64_t lanes, int64_t count, const float* bars, uint16_t* bits) {
  for (int64_t at = 0; at < count * lanes; at += kLanes) {
    bits[at / kLanes] =
        _mm512_cmp_ps_mask(_mm512_loadu_ps(scores + at), _mm512_loadu_ps(bars + at % lanes), _CMP_NLE_UQ);
  }
}

REASONREC_V3 void above_v3(const float* scores, int64_t lanes, int64_t count, const float* bars, uint16_t* bits) {
  for (int64_t at = 0; at < count * lanes; at += kLanes) {
    uint32_t mask = 0;
    for (int64_t lane = 0; lane < kLanes; lane += 8) {
      const __m256 score = _mm256_loadu_ps(scores + at + lane), bar = _mm256_loadu_ps(bars + at % lanes + lane);
      mask |= static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(score, bar, _CMP_NLE_UQ))) << lane;
    }
    bits[at / kLanes] = static_cast<uint16_t>(mask);
  }
}
#endif

template <typename Acc>
void above(const Acc* scores, int64_t lanes, int64_t count, const Acc* bars, uint16_t* bits) {
#ifdef REASONREC_X86
  if constexpr (std::is_same_v<Acc, float>) {
    if (has_v4()) return above_v4(scores, lanes, count, bars, bits);
    if (has_v3()) return above_v3(scores, lanes, count, bars, bits);
  }
#endif
  above_generic(scores, lanes, count, bars, bits);
}

// Offers scores[count][lanes] of items first, first + 1, ... to the rows of a panel.
template <typename Acc>
void offer(const Acc* scores, int64_t lanes, int64_t rows, int64_t first, int64_t count, int64_t first_row,
           const Exclusions& excluded, int64_t* cursors, Best<Acc>* best, Acc* bars) {
  uint16_t bits[kMostTileRows * kPanelRows / kLanes];
  above(scores, lanes, count, bars, bits);
  for (int64_t at = 0; at < count * lanes; at += kLanes) {
    for (uint32_t left = bits[at / kLanes]; left != 0; left &= left - 1) {
      const int64_t index = at + __builtin_ctz(left), row = index % lanes, item = first + index / lanes;
      if (row >= rows || scores[index] <= bars[row] || excluded.has(first_row + row, item, cursors[row])) {
        continue;
      }
      best[row].offer({std::isnan(scores[index]) ? -std::numeric_limits<Acc>::infinity() : scores[index], item});
      bars[row] = best[row].bar();
    }
  }
}

template <typename T>
void run(const T* queries, const T* items, int64_t batch, int64_t count, int64_t width, int64_t k,
         const Exclusions& excluded, Accumulator<T>* values, int64_t* indices) {
  using Acc = Accumulator<T>;
  const bool few = batch <= kFewRows / 2;
  const Panels<T> panels(queries, few ? 0 : batch, width);
  const Few<T> resident(queries, few ? batch : 0, width);
  const int64_t num_panels = (batch + kPanelRows - 1) / kPanelRows;
  const int64_t threads = std::max<int64_t>(torch::stable::get_num_threads(), 1);
  // If there are more panels than threads, several share a pass over the items; if fewer, the items are divided too.
  const int64_t group = std::clamp<int64_t>(num_panels / (2 * threads), 1, kMostPanels);
  const int64_t groups = (num_panels + group - 1) / group;
  const int64_t wanted = (threads + groups - 1) / groups;
  const int64_t stretches = std::max<int64_t>(std::min(wanted, count / kLeastStretch), 1);
  const int64_t tile = few ? 2 * kFewRows : tile_rows<T>(), num_tiles = (count + tile - 1) / tile;
  const int64_t stretch_items = (num_tiles + stretches - 1) / stretches * tile;
  std::vector<Best<Acc>> best(stretches * num_panels * kPanelRows, Best<Acc>(std::min(k, count)));
  torch::stable::parallel_for(0, groups * stretches, 1, [&](int64_t begin, int64_t end) {
    Tiles<T> tiles(items, count, width);
    std::vector<Acc> scores(kMostTileRows * kPanelRows), bars(group * kPanelRows);
    std::vector<int64_t> cursors(group * kPanelRows);
    for (int64_t work = begin; work < end; ++work) {
      const int64_t stretch = work % stretches, first_panel = work / stretches * group;
      const int64_t start = stretch * stretch_items, stop = std::min(start + stretch_items, count);
      std::fill(bars.begin(), bars.end(), Best<Acc>(1).bar());
      for (int64_t lane = 0; lane < group * kPanelRows; ++lane) {
        const int64_t row = first_panel * kPanelRows + lane;
        if (row < batch) cursors[lane] = excluded.from(row, start);
      }
      for (int64_t first = start; first < stop; first += tile) {
        const int64_t height = std::min(tile, stop - first);
        if (!few) tiles.stage(first, height);
        const int64_t last_panel = std::min(first_panel + group, num_panels);
        for (int64_t panel = first_panel; panel < last_panel; ++panel) {
          const int64_t first_row = panel * kPanelRows, lanes = few ? kLanes : panels.lanes(panel);
          if (few) {
            resident.multiply(items + first * width, height, scores.data(), kLanes, 1);
          } else {
            tiles.multiply(panels, panel, scores.data(), panel - first_panel, last_panel - first_panel);
          }
          offer(scores.data(), lanes, std::min(kPanelRows, batch - first_row), first, height, first_row, excluded,
                cursors.data() + (panel - first_panel) * kPanelRows,
                best.data() + (stretch * num_panels + panel) * kPanelRows,
                bars.data() + (panel - first_panel) * kPanelRows);
        }
      }
    }
  });
  torch::stable::parallel_for(0, batch, 16, [&](int64_t begin, int64_t end) {
    std::vector<Match<Acc>> matches;
    for (int64_t row = begin; row < end; ++row) {
      matches.clear();
      for (int64_t stretch = 0; stretch < stretches; ++stretch) {
        const auto& part = best[stretch * num_panels * kPanelRows + row].matches();
        matches.insert(matches.end(), part.begin(), part.end());
      }
      std::sort(matches.begin(), matches.end());
      for (int64_t slot = 0; slot < k; ++slot) {
        const bool there = slot < static_cast<int64_t>(matches.size());
        values[row * k + slot] = there ? matches[slot].score : -std::numeric_limits<Acc>::infinity();
        indices[row * k + slot] = there ? matches[slot].item : -1;
      }
    }
  });
}

std::tuple<Tensor, Tensor> topk(Tensor queries, Tensor items, int64_t k, Tensor indptr, Tensor indices, Tensor rows) {
  queries = torch::stable::contiguous(queries), items = torch::stable::contiguous(items);
  indptr = torch::stable::contiguous(indptr), indices = torch::stable::contiguous(indices);
  rows = torch::stable::contiguous(rows);
  const int64_t batch = queries.size(0), count = items.size(0), width = queries.size(1);
  STD_TORCH_CHECK(items.size(1) == width && items.scalar_type() == queries.scalar_type(),
                  "items: expected the width and dtype of queries");
  const ScalarType type = queries.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  Tensor values = torch::stable::new_empty(queries, {batch, k}, type);
  Tensor top_items = torch::stable::new_empty(queries, {batch, k}, ScalarType::Long);
  if (batch == 0 || k == 0) return {values, top_items};
  const Exclusions excluded(indptr, indices, rows, batch, count);
  with_floating_type(queries, "queries", [&](auto element) {
    using T = decltype(element);
    run<T>(queries.const_data_ptr<T>(), items.const_data_ptr<T>(), batch, count, width, k, excluded,
           values.mutable_data_ptr<Accumulator<T>>(), top_items.mutable_data_ptr<int64_t>());
  });
  return {values, top_items};
}

}  // namespace
}  // namespace reasonrec

STABLE_TORCH_LIBRARY_IMPL(reasonrec_fast, CPU, m) { m.impl("topk", TORCH_BOX(&reasonrec::topk)); }

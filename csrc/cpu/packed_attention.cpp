// packed_attention: softmax(q kT) v over ranges of keys, without padding and without copying shared prefixes.
//
// A unit of work is a panel of up to 32 query rows (tokens of a segment, or of several that share a prefix, times the query
// heads of one key head) and all keys visible to it. Queries are packed, with 16 rows in the lanes of vectors (csrc/cpu/product.h). Keys, and values,
// which are transposed once, are read as the product's weight. Scores [keys][lanes] stay in the cache.
#include "product.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cmath>

namespace reasonrec {
namespace {

// A row of the operator's `segments`: a range of queries and the keys visible to them. Query i attends to the whole
// prefix and to `seen + i` keys from own_begin on.
struct Segment {
  int64_t query_begin, queries, prefix_begin, prefix, own_begin, seen;
};

struct Keys {
  int64_t begin, count;
};

// Values per element of a packed row: pairs of 16-bit values, or single values.
template <typename E>
constexpr int64_t kPerStep = std::is_same_v<E, uint16_t> ? 2 : 1;
template <typename E>
using Step = std::conditional_t<std::is_same_v<E, uint16_t>, uint32_t, E>;
template <typename E>
using Sum = std::conditional_t<std::is_same_v<E, uint16_t>, float, E>;

int64_t steps_of(uint16_t, int64_t width) { return pair_steps(width); }
int64_t steps_of(float, int64_t width) { return width; }
int64_t steps_of(double, int64_t width) { return width; }

// scores[count][lanes]: scales and caps them, sets masked keys to -inf, and updates each lane's largest score in top.
struct ScaleScores {
  template <int W, typename Acc>
  static REASONREC_INLINE void run(Acc* scores, int64_t lanes, int64_t count, const int32_t* visible, Acc scale, Acc cap,
                                   Acc* top) {
    constexpr int L = W / sizeof(Acc);
    using V = Vec<Acc, L>;
    const V none = broadcast<V>(-std::numeric_limits<Acc>::infinity());
    for (int64_t at = 0; at < lanes; at += L) {
      V best = load<L>(top + at);
      const Mask<V> limit = __builtin_convertvector(load<L>(visible + at), Mask<V>);
      Mask<V> key{};
      for (int64_t k = 0; k < count; ++k, key += 1) {
        V score = load<L>(scores + k * lanes + at) * scale;
        if (cap > 0) {
          for (int lane = 0; lane < L; ++lane) score[lane] = cap * std::tanh(score[lane] / cap);
        }
        score = key < limit ? score : none;
        best = larger(score, best);
        store(scores + k * lanes + at, score);
      }
      store(top + at, best);
    }
  }
};

// packed: e^(score - top) in the layout of a product's packed rows, single values or pairs of bfloat16; total += their
// sum.
struct ExpScores {
  template <int W, typename Acc>
  static REASONREC_INLINE void run(const Acc* scores, int64_t lanes, int64_t count, const Acc* top, Acc* total,
                                   Acc* packed) {
    constexpr int L = W / sizeof(Acc);
    for (int64_t at = 0; at < lanes; at += L) {
      const auto best = load<L>(top + at);
      auto sum = load<L>(total + at);
      for (int64_t k = 0; k < count; ++k) {
        const auto weight = exp_of(load<L>(scores + k * lanes + at) - best);
        sum += weight;
        store(packed + k * lanes + at, weight);
      }
      store(total + at, sum);
    }
  }

  template <int W>
  static REASONREC_INLINE void run(const float* scores, int64_t lanes, int64_t count, const float* top, float* total,
                                   uint32_t* packed) {
    constexpr int L = W / sizeof(float);
    using V = Vec<float, L>;
    for (int64_t at = 0; at < lanes; at += L) {
      const V best = load<L>(top + at);
      V sum = load<L>(total + at);
      for (int64_t k = 0; k < count; k += 2) {
        const V first = exp_of(load<L>(scores + k * lanes + at) - best);
        const V second = k + 1 < count ? exp_of(load<L>(scores + (k + 1) * lanes + at) - best) : V{};
        sum += first + second;
        store(packed + k / 2 * lanes + at, rounded_bits(first) >> 16 | (rounded_bits(second) & 0xffff0000u));
      }
      store(total + at, sum);
    }
  }
};

void put(uint16_t* to, float x) {
  const BFloat16 rounded(x);
  std::memcpy(to, &rounded, sizeof rounded);
}
void put(float* to, float x) { *to = x; }
void put(double* to, double x) { *to = x; }

template <typename E>
class Attention {
 public:
  using Acc = Sum<E>;

  Attention(const E* query, const E* key, const E* value, int64_t keys, int64_t heads, int64_t key_heads, int64_t width,
            Acc scale, Acc cap, E* out)
      : query_(query), key_(key), keys_(keys), heads_(heads), key_heads_(key_heads), width_(width), scale_(scale),
        cap_(cap), out_(out), values_((key_heads * width + kMostTileRows) * keys) {
    transpose(value);
  }

  // Rows of up to 32 lanes for one key head: row r of a segment is token r / repeats, query head r % repeats.
  class Worker {
   public:
    explicit Worker(const Attention& of) : of_(of), tile_(tile_rows_of(E{})) {}

    // Rows [first, first + 32) of each of the segments, which have the same prefix; several segments fit whole. Their
    // lanes read the prefix together and each segment's own keys alone; every lane's sums are those of its segment
    // alone, in the same order.
    void run(const Segment* segments, int64_t count, int64_t head, int64_t first) {
      const int64_t repeats = of_.heads_ / of_.key_heads_;
      int64_t rows = 0;
      for (int64_t s = 0; s < count; ++s) rows += std::min(kPanelRows, segments[s].queries * repeats - first);
      const int64_t lanes = lanes_of(rows);
      queries_.assign(steps_of(E{}, of_.width_) * lanes, 0);
      for (int64_t s = 0, lane = 0; s < count; ++s) {
        lane += pack_queries(segments[s], head, first, queries_.data() + lane, lanes);
      }
      const Keys prefix{segments->prefix_begin, segments->prefix};
      int32_t all[kPanelRows];
      Acc top[kPanelRows], total[kPanelRows] = {};
      for (int64_t lane = 0; lane < lanes; ++lane) {
        all[lane] = static_cast<int32_t>(prefix.count);
        top[lane] = -std::numeric_limits<Acc>::infinity();
      }
      scores_.resize((prefix.count + tile_) * lanes);
      multiply_keys(prefix, head, lanes, queries_.data(), scores_.data());
      dispatch<ScaleScores>(scores_.data(), lanes, prefix.count, all, of_.scale_, of_.cap_, top);
      own_size_ = 0;
      for (int64_t s = 0, lane = 0; s < count; ++s) lane += score_own(segments[s], head, first, lane, lanes, top);
      output_.assign((of_.width_ + tile_) * lanes, 0);
      add_values(prefix, head, lanes, scores_.data(), top, total, output_.data());
      const Acc* own_scores = own_scores_.data();
      for (int64_t s = 0, lane = 0; s < count; ++s) {
        lane += finish(segments[s], head, first, lane, lanes, own_scores, top, total, count == 1);
      }
    }

   private:
    static int64_t tile_rows_of(uint16_t) { return tile_rows<BFloat16>(); }
    static int64_t tile_rows_of(float) { return tile_rows<float>(); }
    static int64_t tile_rows_of(double) { return tile_rows<double>(); }

    static int64_t lanes_of(int64_t rows) { return rows > kLanes ? kPanelRows : kLanes; }

    int64_t rows_of(const Segment& segment, int64_t first) const {
      return std::min(kPanelRows, segment.queries * (of_.heads_ / of_.key_heads_) - first);
    }

    // The segment's own keys that its last row here sees.
    Keys own_keys(const Segment& segment, int64_t first) const {
      const int64_t repeats = of_.heads_ / of_.key_heads_;
      return {segment.own_begin, segment.seen + (first + rows_of(segment, first) - 1) / repeats};
    }

    // packed[steps][lanes]: the segment's rows, of which it returns the number.
    int64_t pack_queries(const Segment& segment, int64_t head, int64_t first, Step<E>* packed, int64_t lanes) {
      const int64_t repeats = of_.heads_ / of_.key_heads_, rows = rows_of(segment, first);
      for (int64_t row = 0; row < rows; ++row) {
        const int64_t token = segment.query_begin + (first + row) / repeats;
        const E* from = of_.query_ + (token * of_.heads_ + head * repeats + (first + row) % repeats) * of_.width_;
        for (int64_t c = 0; c < of_.width_; c += kPerStep<E>) {
          Step<E> step = 0;
          // Copies of sizes that the compiler knows; a call for each would cost more than the products.
          if (c + kPerStep<E> <= of_.width_) {
            std::memcpy(&step, from + c, sizeof step);
          } else {
            std::memcpy(&step, from + c, sizeof(E));
          }
          packed[c / kPerStep<E> * lanes + row] = step;
        }
      }
      return rows;
    }

    // Puts the scores of a segment's own keys behind those in own_scores_, in lanes of its own; updates its lanes of top.
    int64_t score_own(const Segment& segment, int64_t head, int64_t first, int64_t lane, int64_t lanes, Acc* top) {
      const int64_t repeats = of_.heads_ / of_.key_heads_, rows = rows_of(segment, first), width = lanes_of(rows);
      const Keys own = own_keys(segment, first);
      const Step<E>* queries = queries_.data();
      if (rows < lanes && (lane > 0 || width < lanes)) {
        own_queries_.assign(steps_of(E{}, of_.width_) * width, 0);
        pack_queries(segment, head, first, own_queries_.data(), width);
        queries = own_queries_.data();
      }
      int32_t visible[kPanelRows];
      Acc own_top[kPanelRows];
      for (int64_t row = 0; row < width; ++row) {
        visible[row] = static_cast<int32_t>(segment.seen + (first + std::min(row, rows - 1)) / repeats);
        own_top[row] = row < rows ? top[lane + row] : -std::numeric_limits<Acc>::infinity();
      }
      const size_t offset = own_size_;
      own_size_ += (own.count + tile_) * width;
      if (own_scores_.size() < own_size_) own_scores_.resize(own_size_);  // it never shrinks: growing writes zeros
      Acc* const scores = own_scores_.data() + offset;
      multiply_keys(own, head, width, queries, scores);
      dispatch<ScaleScores>(scores, width, own.count, visible, of_.scale_, of_.cap_, own_top);
      std::copy(own_top, own_top + rows, top + lane);
      return rows;
    }

    // Adds the values of a segment's own keys to those of the prefix and writes its rows; moves own_scores behind them.
    int64_t finish(const Segment& segment, int64_t head, int64_t first, int64_t lane, int64_t lanes,
                   const Acc*& own_scores, Acc* top, Acc* total, bool alone) {
      const int64_t repeats = of_.heads_ / of_.key_heads_, rows = rows_of(segment, first), width = lanes_of(rows);
      const Keys own = own_keys(segment, first);
      Acc *own_top = top + lane, *own_total = total + lane, *output = output_.data();
      Acc tops[kPanelRows] = {}, totals[kPanelRows] = {};
      if (!alone) {
        std::copy(own_top, own_top + rows, tops), std::copy(own_total, own_total + rows, totals);
        own_output_.resize((of_.width_ + tile_) * width);
        for (int64_t c = 0; c < of_.width_; ++c) {
          const Acc* from = output + c * lanes + lane;
          std::copy(from, from + rows, own_output_.data() + c * width);
        }
        own_top = tops, own_total = totals, output = own_output_.data();
      }
      add_values(own, head, width, own_scores, own_top, own_total, output);
      own_scores += (own.count + tile_) * width;
      for (int64_t row = 0; row < rows; ++row) {
        const int64_t token = segment.query_begin + (first + row) / repeats;
        E* to = of_.out_ + (token * of_.heads_ + head * repeats + (first + row) % repeats) * of_.width_;
        const Acc share = 1 / own_total[row];
        for (int64_t c = 0; c < of_.width_; ++c) put(to + c, output[c * width + row] * share);
      }
      return rows;
    }

    void multiply_keys(const Keys& keys, int64_t head, int64_t lanes, const Step<E>* queries, Acc* scores) {
      const int64_t stride = of_.key_heads_ * of_.width_;
      for (int64_t k = 0; k < keys.count; k += tile_) {
        const int64_t position = keys.begin + k;
        const E* rows = of_.key_ + position * stride + head * of_.width_;
        int64_t apart = stride;
        if (position + tile_ > of_.keys_) {  // rows past the end are multiplied, but the results are not used
          edge_.assign(tile_ * of_.width_, 0);
          for (int64_t row = 0; row < of_.keys_ - position; ++row) {
            std::copy(rows + row * stride, rows + row * stride + of_.width_, edge_.data() + row * of_.width_);
          }
          rows = edge_.data(), apart = of_.width_;
        }
        multiply_tile(queries, rows, apart, of_.width_, lanes, scores + k * lanes);
      }
    }

    void add_values(const Keys& keys, int64_t head, int64_t lanes, const Acc* scores, const Acc* top, Acc* total,
                    Acc* output) {
      if (keys.count == 0) return;
      weights_.assign(steps_of(E{}, keys.count) * lanes, 0);
      dispatch<ExpScores>(scores, lanes, keys.count, top, total, weights_.data());
      part_.resize(tile_ * lanes);
      const E* values = of_.values_.data() + head * of_.width_ * of_.keys_ + keys.begin;
      for (int64_t c = 0; c < of_.width_; c += tile_) {
        multiply_tile(weights_.data(), values + c * of_.keys_, of_.keys_, keys.count, lanes, part_.data());
        for (int64_t i = 0; i < tile_ * lanes; ++i) output[c * lanes + i] += part_[i];
      }
    }

    const Attention& of_;
    const int64_t tile_;
    std::vector<Step<E>> queries_, own_queries_, weights_;
    std::vector<Acc> scores_, own_scores_, part_, output_, own_output_;
    std::vector<E> edge_;
    size_t own_size_ = 0;  // values of own_scores_ in use
  };

 private:
  // values_[head][column][key]; padded, since the last tile may read rows past the last head.
  void transpose(const E* value) {
    const int64_t stride = key_heads_ * width_, blocks = (keys_ + kPanelRows - 1) / kPanelRows;
    torch::stable::parallel_for(0, blocks, 4, [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block) {
        const int64_t first = block * kPanelRows, last = std::min(first + kPanelRows, keys_);
        for (int64_t c = 0; c < stride; ++c) {
          for (int64_t k = first; k < last; ++k) values_[c * keys_ + k] = value[k * stride + c];
        }
      }
    });
  }

  const E *query_, *key_;
  const int64_t keys_, heads_, key_heads_, width_;
  const Acc scale_, cap_;
  E* const out_;
  std::vector<E> values_;
};

// Segments [first, first + count) that are read together, in panels of 32 rows a key head (one, if they are several).
struct Group {
  int64_t first, count, panels;
};

// Neighbours with the same prefix and few rows each, such as sequences that grow by a token a step, share panels.
std::vector<Group> groups_of(const Segment* segments, int64_t count, int64_t repeats) {
  std::vector<Group> groups;
  for (int64_t s = 0, rows = 0; s < count; ++s) {
    const int64_t own = segments[s].queries * repeats;
    const bool few = own > 0 && own <= kLanes && segments[s].prefix > 0;
    if (few && !groups.empty() && rows > 0 && rows + own <= kPanelRows &&
        segments[s].prefix_begin == segments[s - 1].prefix_begin && segments[s].prefix == segments[s - 1].prefix) {
      ++groups.back().count, rows += own;
    } else {
      groups.push_back({s, 1, (own + kPanelRows - 1) / kPanelRows});
      rows = few ? own : 0;
    }
  }
  return groups;
}

template <typename E>
void run(const Tensor& query, const Tensor& key, const Tensor& value, const Segment* segments, int64_t count,
         double scale, double cap, Tensor& out) {
  const int64_t heads = query.size(1), key_heads = key.size(1), width = query.size(2), repeats = heads / key_heads;
  const Attention<E> attention(static_cast<const E*>(query.const_data_ptr()), static_cast<const E*>(key.const_data_ptr()),
                               static_cast<const E*>(value.const_data_ptr()), key.size(0), heads, key_heads, width,
                               static_cast<Sum<E>>(scale), static_cast<Sum<E>>(cap),
                               static_cast<E*>(out.mutable_data_ptr()));
  const std::vector<Group> groups = groups_of(segments, count, repeats);
  std::vector<int64_t> starts(groups.size() + 1, 0);  // of each group's units
  for (size_t g = 0; g < groups.size(); ++g) starts[g + 1] = starts[g] + groups[g].panels * key_heads;
  // Units differ in cost, so threads take the next one from a shared counter.
  std::atomic<int64_t> next{0};
  const int64_t threads = std::max<int64_t>(torch::stable::get_num_threads(), 1);
  torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    typename Attention<E>::Worker worker(attention);
    for (int64_t unit; begin < end && (unit = next.fetch_add(1)) < starts.back();) {
      const int64_t g = std::upper_bound(starts.begin(), starts.end(), unit) - starts.begin() - 1;
      const Group& group = groups[g];
      const int64_t index = unit - starts[g];
      worker.run(segments + group.first, group.count, index / group.panels, index % group.panels * kPanelRows);
    }
  });
}

void check(const Tensor& query, const Tensor& key, const Tensor& value, const Segment* segments, int64_t count) {
  STD_TORCH_CHECK(key.size(0) == value.size(0) && key.size(1) == value.size(1) && key.size(2) == query.size(2) &&
                      value.size(2) == query.size(2) && key.size(1) > 0 && query.size(1) % key.size(1) == 0,
                  "key, value: expected [K, G, d] with the width of query and a number of heads that divides its own");
  const int64_t keys = key.size(0);
  int64_t covered = 0;  // the output is uninitialised, so every query must be covered by a segment
  for (int64_t s = 0; s < count; ++s) {
    const Segment& g = segments[s];
    const bool queries = g.query_begin == covered && g.queries >= 0 && g.queries <= query.size(0) - covered;
    const bool prefix = g.prefix_begin >= 0 && g.prefix >= 0 && g.prefix_begin <= keys && g.prefix <= keys - g.prefix_begin;
    const bool own = g.own_begin >= 0 && g.own_begin <= keys && g.seen >= 1 && g.seen <= keys - g.own_begin &&
                     g.queries - 1 <= keys - g.own_begin - g.seen;
    STD_TORCH_CHECK(queries && prefix && own, "segments: expected ranges within the queries, in order, and the keys; row ",
                    s, " is outside");
    covered += g.queries;
  }
  STD_TORCH_CHECK(covered == query.size(0), "segments: expected to cover ", query.size(0), " queries; they cover ",
                  covered);
}

Tensor packed_attention(Tensor query, Tensor key, Tensor value, Tensor segments, double scale, double softcap) {
  query = torch::stable::contiguous(query), key = torch::stable::contiguous(key);
  value = torch::stable::contiguous(value), segments = torch::stable::contiguous(segments);
  static_assert(sizeof(Segment) == 6 * sizeof(int64_t));
  const auto* list = reinterpret_cast<const Segment*>(segments.const_data_ptr<int64_t>());
  check(query, key, value, list, segments.size(0));
  const ScalarType type = query.scalar_type();
  STD_TORCH_CHECK(key.scalar_type() == type && value.scalar_type() == type, "key, value: expected the dtype of query");
  const bool pairs = type == ScalarType::BFloat16 && bf16_in_pairs();
  if (!pairs && (type == ScalarType::BFloat16 || type == ScalarType::Half)) {
    auto wide = [](const Tensor& x) { return torch::stable::to(x, ScalarType::Float); };
    return torch::stable::to(packed_attention(wide(query), wide(key), wide(value), segments, scale, softcap), type);
  }
  Tensor out = torch::stable::empty_like(query);
  if (out.numel() == 0) return out;
  if (pairs) {
    run<uint16_t>(query, key, value, list, segments.size(0), scale, softcap, out);
  } else if (type == ScalarType::Float) {
    run<float>(query, key, value, list, segments.size(0), scale, softcap, out);
  } else {
    STD_TORCH_CHECK(type == ScalarType::Double, "query: expected float32, float64, bfloat16 or float16");
    run<double>(query, key, value, list, segments.size(0), scale, softcap, out);
  }
  return out;
}

}  // namespace
}  // namespace reasonrec

STABLE_TORCH_LIBRARY_IMPL(reasonrec_fast, CPU, m) { m.impl("packed_attention", TORCH_BOX(&reasonrec::packed_attention)); }

// Builds the user–item graph from a list of edges: CSR of both directions, by counting sorts.
//
// Three stable counting sorts (by item, by user, and the transposition by item) and one pass that drops duplicates:
// linear in edges and nodes, in time and in memory. Threads count and move their own share of the edges. Each thread
// needs a table with an entry per node, so their number is bounded to keep all tables within a small multiple of the
// edges. The result does not depend on the number of threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

namespace reasonrec {

// Calls f(thread, begin, end) on equal shares of [0, count).
template <typename F>
void in_shares(int64_t count, int threads, const F& f) {
  std::vector<std::thread> pool;
  for (int thread = 1; thread < threads; ++thread) {
    pool.emplace_back([&, thread] { f(thread, count * thread / threads, count * (thread + 1) / threads); });
  }
  f(0, int64_t(0), count / threads);
  for (auto& thread : pool) thread.join();
}

// An uninitialised array.
template <typename T>
class Array {
 public:
  explicit Array(int64_t size = 0) : size_(size), data_(new T[size]) {}

  int64_t size() const { return size_; }
  T* data() const { return data_.get(); }
  T* release() { return data_.release(); }
  T& operator[](int64_t i) const { return data_[i]; }

 private:
  int64_t size_;
  std::unique_ptr<T[]> data_;
};

template <typename Index>
struct CsrGraph {
  Array<Index> user_indptr, user_indices, item_indptr, item_indices;
};

// Stable sort of the edges by key: calls move(edge, position). `begin` receives the position at which each key starts.
template <typename Index, typename Key, typename Move>
void counting_sort(int64_t edges, int64_t keys, int threads, const Key& key, Index* begin, const Move& move) {
  std::vector<Array<Index>> next;
  for (int thread = 0; thread < threads; ++thread) next.emplace_back(keys);
  in_shares(edges, threads, [&](int thread, int64_t first, int64_t last) {
    std::fill(next[thread].data(), next[thread].data() + keys, Index(0));
    for (int64_t edge = first; edge < last; ++edge) ++next[thread][key(edge)];
  });
  Index total = 0;
  for (int64_t k = 0; k < keys; ++k) {
    begin[k] = total;
    for (int thread = 0; thread < threads; ++thread) total += std::exchange(next[thread][k], total);
  }
  begin[keys] = total;
  in_shares(edges, threads, [&](int thread, int64_t first, int64_t last) {
    for (int64_t edge = first; edge < last; ++edge) move(edge, next[thread][key(edge)]++);
  });
}

// users, items: one entry per edge; the caller has checked that they are within the counts.
template <typename Index>
CsrGraph<Index> build_graph(const int64_t* users, const int64_t* items, int64_t edges, int64_t num_users,
                            int64_t num_items, int threads) {
  const int64_t widest = std::max<int64_t>(std::max(num_users, num_items), 1);
  threads = static_cast<int>(std::clamp<int64_t>(4 * edges / widest, 1, std::max(threads, 1)));
  Array<Index> by_item_user(edges), by_item_item(edges), sorted(edges), start(num_users + 1), count(num_items + 1);
  counting_sort<Index>(edges, num_items, threads, [&](int64_t e) { return items[e]; }, count.data(),
                       [&](int64_t e, int64_t position) {
                         by_item_user[position] = static_cast<Index>(users[e]);
                         by_item_item[position] = static_cast<Index>(items[e]);
                       });
  counting_sort<Index>(edges, num_users, threads, [&](int64_t e) { return by_item_user[e]; }, start.data(),
                       [&](int64_t e, int64_t position) { sorted[position] = by_item_item[e]; });
  CsrGraph<Index> graph{Array<Index>(num_users + 1), Array<Index>(), Array<Index>(num_items + 1), Array<Index>()};
  graph.user_indptr[0] = 0;
  in_shares(num_users, threads, [&](int, int64_t first, int64_t last) {
    for (int64_t user = first; user < last; ++user) {
      Index* row = sorted.data() + start[user];
      graph.user_indptr[user + 1] = static_cast<Index>(std::unique(row, sorted.data() + start[user + 1]) - row);
    }
  });
  for (int64_t user = 0; user < num_users; ++user) graph.user_indptr[user + 1] += graph.user_indptr[user];
  const int64_t kept = graph.user_indptr[num_users];
  graph.user_indices = Array<Index>(kept), graph.item_indices = Array<Index>(kept);
  Array<Index>& owner = by_item_user;  // the user of each edge that was kept
  in_shares(num_users, threads, [&](int, int64_t first, int64_t last) {
    for (int64_t user = first; user < last; ++user) {
      const int64_t begin = graph.user_indptr[user], size = graph.user_indptr[user + 1] - begin;
      std::copy_n(sorted.data() + start[user], size, graph.user_indices.data() + begin);
      std::fill_n(owner.data() + begin, size, static_cast<Index>(user));
    }
  });
  counting_sort<Index>(kept, num_items, threads, [&](int64_t e) { return graph.user_indices[e]; },
                       graph.item_indptr.data(),
                       [&](int64_t e, int64_t position) { graph.item_indices[position] = owner[e]; });
  return graph;
}

}  // namespace reasonrec

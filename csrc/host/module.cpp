// reasonrec_fast._host: host code other than operators. Built for each Python version, unlike _C.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <limits>
#include <stdexcept>
#include <string>

#include "batcher.h"
#include "graph.h"

namespace py = pybind11;

namespace {

using Longs = py::array_t<int64_t, py::array::c_style | py::array::forcecast>;

template <typename T>
py::array_t<T> as_numpy(reasonrec::Array<T>&& array) {
  const int64_t size = array.size();
  T* data = array.release();
  return py::array_t<T>(size, data, py::capsule(data, [](void* memory) { delete[] static_cast<T*>(memory); }));
}

void check_range(const int64_t* values, int64_t size, int64_t count, const char* name) {
  for (int64_t i = 0; i < size; ++i) {
    if (values[i] < 0 || values[i] >= count) {
      throw std::invalid_argument(std::string(name) + ": expected indices in [0, " + std::to_string(count) + "); got " +
                                  std::to_string(values[i]));
    }
  }
}

template <typename Index>
py::tuple build(const Longs& users, const Longs& items, int64_t num_users, int64_t num_items, int threads) {
  reasonrec::CsrGraph<Index> graph;
  const int64_t *from = users.data(), *to = items.data(), edges = users.size();
  {
    py::gil_scoped_release released;
    check_range(from, edges, num_users, "users");
    check_range(to, edges, num_items, "items");
    graph = reasonrec::build_graph<Index>(from, to, edges, num_users, num_items, threads);
  }
  return py::make_tuple(as_numpy(std::move(graph.user_indptr)), as_numpy(std::move(graph.user_indices)),
                        as_numpy(std::move(graph.item_indptr)), as_numpy(std::move(graph.item_indices)));
}

py::tuple build_graph(const Longs& users, const Longs& items, int64_t num_users, int64_t num_items, int threads) {
  if (users.ndim() != 1 || items.ndim() != 1 || users.size() != items.size()) {
    throw std::invalid_argument("users, items: expected vectors of one length");
  }
  const int64_t widest = std::max({num_users, num_items, static_cast<int64_t>(users.size())});
  if (widest <= std::numeric_limits<int32_t>::max()) return build<int32_t>(users, items, num_users, num_items, threads);
  return build<int64_t>(users, items, num_users, num_items, threads);
}

const char* name_of(reasonrec::Batcher::Answer answer) {
  switch (answer) {
    case reasonrec::Batcher::Answer::kTaken: return "taken";
    case reasonrec::Batcher::Answer::kFull: return "full";
    default: return "closed";
  }
}

}  // namespace

PYBIND11_MODULE(_host, m) {
  m.def("build_graph", &build_graph, py::arg("users"), py::arg("items"), py::arg("num_users"), py::arg("num_items"),
        py::arg("threads"),
        "Compressed rows of both directions (user_indptr, user_indices, item_indptr, item_indices) of a list of edges.");
  py::class_<reasonrec::Batcher>(m, "Batcher")
      .def(py::init<int64_t, double, int64_t>(), py::arg("max_size"), py::arg("max_wait_seconds"), py::arg("capacity"))
      .def("put",
           [](reasonrec::Batcher& self, const std::vector<int64_t>& ids, const std::vector<int64_t>& sizes) {
             if (ids.size() != sizes.size()) throw std::invalid_argument("sizes: expected one of each id");
             return name_of(self.put(ids, sizes));
           },
           py::arg("ids"), py::arg("sizes"), "\"taken\", \"full\" or \"closed\": all of them or none.")
      .def("take", &reasonrec::Batcher::take, py::call_guard<py::gil_scoped_release>(),
           "Ids of the next batch; waits for it without the interpreter's lock. Empty once closed and handed out.")
      .def("close", &reasonrec::Batcher::close)
      .def_property_readonly("queued", &reasonrec::Batcher::queued);
}

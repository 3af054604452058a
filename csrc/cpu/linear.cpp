// linear: rows weight^T + bias for the few rows of a step of decoding, for which a library's product reads the weight at
// half the rate of the memory or less.
//
// Rows are packed in panels (csrc/cpu/product.h) and the weight streams past them once, not repacked. Sums are float32,
// rounded once. The sum of a row and a column has one order, whatever rows lie beside it and on any number of threads.
#include "product.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>

namespace reasonrec {
namespace {

template <typename T>
void multiply(const Tensor& rows, const Tensor& weight, const Tensor& bias, Tensor& out) {
  const int64_t columns = weight.size(0), width = weight.size(1);
  const Panels<T> panels(rows.const_data_ptr<T>(), rows.size(0), width);
  const T* added = bias.numel() > 0 ? bias.const_data_ptr<T>() : nullptr;
  const T* const from = weight.const_data_ptr<T>();
  T* const to = out.mutable_data_ptr<T>();
  const int64_t height = tile_rows<T>(), tiles = (columns + height - 1) / height;
  torch::stable::parallel_for(0, tiles, 8, [&](int64_t begin, int64_t end) {
    Tiles<T> tile(from, columns, width);
    std::vector<float> products(kMostTileRows * kPanelRows);
    for (; begin < end; ++begin) {
      const int64_t first = begin * height, count = std::min(height, columns - first);
      tile.stage(first, count);
      for (int64_t panel = 0; panel < panels.count(); ++panel) {
        const int64_t lanes = panels.lanes(panel);
        tile.multiply(panels, panel, products.data(), panel, panels.count());
        for (int64_t lane = 0; lane < panels.rows(panel); ++lane) {
          T* const row = to + (panel * kPanelRows + lane) * columns + first;
          for (int64_t c = 0; c < count; ++c) {
            row[c] = static_cast<T>(products[c * lanes + lane] + (added ? static_cast<float>(added[first + c]) : 0));
          }
        }
      }
    }
  });
}

// rows [B, D], weight [N, D]; bias [N], or empty if absent. All float32 or all bfloat16, as is the result [B, N].
Tensor linear(Tensor rows, Tensor weight, Tensor bias) {
  rows = torch::stable::contiguous(rows), weight = torch::stable::contiguous(weight);
  bias = torch::stable::contiguous(bias);
  const int64_t columns = weight.size(0);
  const ScalarType type = rows.scalar_type();
  STD_TORCH_CHECK(rows.size(1) == weight.size(1), "rows: expected as many columns as weight; got ", rows.size(1), ", ",
                  weight.size(1));
  STD_TORCH_CHECK(bias.numel() == 0 || bias.numel() == columns, "bias: expected as many values as weight has rows; got ",
                  bias.numel(), ", ", columns);
  STD_TORCH_CHECK(weight.scalar_type() == type && bias.scalar_type() == type, "weight, bias: expected the dtype of rows");
  Tensor out = torch::stable::new_empty(rows, {rows.size(0), columns});
  if (type == ScalarType::BFloat16) {
    multiply<BFloat16>(rows, weight, bias, out);
  } else {
    STD_TORCH_CHECK(type == ScalarType::Float, "rows: expected float32 or bfloat16");
    multiply<float>(rows, weight, bias, out);
  }
  return out;
}

}  // namespace
}  // namespace reasonrec

STABLE_TORCH_LIBRARY_IMPL(reasonrec_fast, CPU, m) {
  m.impl("linear", TORCH_BOX(&reasonrec::linear));
}

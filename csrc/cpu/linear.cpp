// linear: rows weight^T + bias in float32 for the few rows of a step of decoding, where a library's product takes more
// than twice the time in which the weight can be read.
//
// Rows are packed in panels (csrc/cpu/product.h) and the weight streams past them once, not repacked. The sum of a row
// and a column runs over the columns of the weight in order, whatever rows lie beside it and on any number of threads.
#include "product.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>

namespace reasonrec {
namespace {

// rows [B, D], weight [N, D]; bias [N], or empty if absent. All float32.
Tensor linear(Tensor rows, Tensor weight, Tensor bias) {
  rows = torch::stable::contiguous(rows), weight = torch::stable::contiguous(weight);
  bias = torch::stable::contiguous(bias);
  const int64_t count = rows.size(0), columns = weight.size(0), width = weight.size(1);
  STD_TORCH_CHECK(rows.size(1) == width, "rows: expected as many columns as weight; got ", rows.size(1), ", ", width);
  STD_TORCH_CHECK(bias.numel() == 0 || bias.numel() == columns, "bias: expected as many values as weight has rows; got ",
                  bias.numel(), ", ", columns);
  Tensor out = torch::stable::new_empty(rows, {count, columns});
  const Panels<float> panels(rows.const_data_ptr<float>(), count, width);
  const float* added = bias.numel() > 0 ? bias.const_data_ptr<float>() : nullptr;
  const float* const from = weight.const_data_ptr<float>();
  float* const to = out.mutable_data_ptr<float>();
  const int64_t height = tile_rows<float>(), tiles = (columns + height - 1) / height;
  torch::stable::parallel_for(0, tiles, 8, [&](int64_t begin, int64_t end) {
    Tiles<float> tile(from, columns, width);
    float products[kMostTileRows * kPanelRows];
    for (; begin < end; ++begin) {
      const int64_t first = begin * height, some = std::min(height, columns - first);
      tile.stage(first, some);
      for (int64_t panel = 0; panel < panels.count(); ++panel) {
        const int64_t lanes = panels.lanes(panel);
        tile.multiply(panels, panel, products, panel, panels.count());
        for (int64_t lane = 0; lane < panels.rows(panel); ++lane) {
          float* const row = to + (panel * kPanelRows + lane) * columns + first;
          for (int64_t c = 0; c < some; ++c) row[c] = products[c * lanes + lane] + (added ? added[first + c] : 0);
        }
      }
    }
  });
  return out;
}

}  // namespace
}  // namespace reasonrec

STABLE_TORCH_LIBRARY_IMPL(reasonrec_fast, CPU, m) {
  m.impl("linear", TORCH_BOX(&reasonrec::linear));
}

// amx_body on emulated tiles; rows are packed as Panels does it.
#include "amx_on_host.h"

#include "../../csrc/cpu/product_amx.h"

#include <vector>

extern "C" void run_product(const uint16_t* hidden, int64_t lanes, const uint16_t* weight, int64_t width, float* out) {
  std::vector<uint32_t> packed((width + 31) / 32 * 16 * lanes, 0);
  for (int64_t lane = 0; lane < lanes; ++lane) {
    for (int64_t k = 0; k < width; ++k) {
      packed[k / 2 * lanes + lane] |= static_cast<uint32_t>(hidden[lane * width + k]) << (16 * (k % 2));
    }
  }
  if (lanes == 16) reasonrec::amx_body<false>(packed.data(), weight, width, width, lanes, out, {});
  else reasonrec::amx_body<true>(packed.data(), weight, width, width, lanes, out, {});
}

// Exact int8 products with AMX. Codes are int8 rows; 16 rows of 64 codes are one tile, and so are 16 steps of V4x16 (64 k
// of 16 columns). Whole tiles are computed: up to 15 rows after the last are read and written.
#pragma once
#include "unpack.h"
#ifdef PPLX_EMULATE
#include "../tests/amx_emulation.h"
#endif

namespace {

constexpr int kCodeBytes = 1;
constexpr int kPanelsAtOnce = 2;

inline void store_codes(uint8_t* p, Ints a) { store_bytes(reinterpret_cast<int8_t*>(p), a); }

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Two neighboring panels of 8 bits: 64 k of the first and of the second.
struct Panels {
  const int8_t* panels;
  size_t panel;
  const int8_t* left(int k) { return panels + 16 * k; }
  const int8_t* right(int k) { return panels + panel + 16 * k; }
};

// Two neighboring panels of 4 bits. The next 64 k are unpacked while these are multiplied.
struct PackedPanels {
  const int8_t* panels;
  size_t panel;
  int depth;
  int8_t* unpacked;
  static_assert(4 * 2048 <= kUnpackedBytes);
  int8_t* place(int k) { return unpacked + k / 64 % 4 * 2048; }
  void prepare(int k) {
    if (k >= depth) return;
    unpack(panels, depth, k, 64, place(k));
    unpack(panels + panel, depth, k, 64, place(k) + 1024);
  }
  const int8_t* left(int k) {
    prepare(k + 64);
    return place(k);
  }
  const int8_t* right(int k) { return place(k) + 1024; }
};

// Two panels and one or two groups of 16 rows: sums in tiles 0 to 3, rows in 4 and 5, weights in 6 and 7.
template <bool TwoGroups, class P>
inline void tile(const uint8_t* a, size_t row_bytes, P b, int depth, int32_t* c, size_t step, bool add) {
  if (add) {
    _tile_loadd(0, c, step * 4);
    _tile_loadd(1, c + 16, step * 4);
  } else {
    _tile_zero(0);
    _tile_zero(1);
  }
  if (TwoGroups && add) {
    _tile_loadd(2, c + 16 * step, step * 4);
    _tile_loadd(3, c + 16 * step + 16, step * 4);
  } else if (TwoGroups) {
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int k = 0; k < depth; k += 64) {
    _tile_loadd(6, b.left(k), 64);
    _tile_loadd(7, b.right(k), 64);
    _tile_loadd(4, a + k, row_bytes);
    _tile_dpbssd(0, 4, 6);
    _tile_dpbssd(1, 4, 7);
    if (TwoGroups) {
      _tile_loadd(5, a + 16 * row_bytes + k, row_bytes);
      _tile_dpbssd(2, 5, 6);
      _tile_dpbssd(3, 5, 7);
    }
  }
  _tile_stored(0, c, step * 4);
  _tile_stored(1, c + 16, step * 4);
  if (TwoGroups) {
    _tile_stored(2, c + 16 * step, step * 4);
    _tile_stored(3, c + 16 * step + 16, step * 4);
  }
}

inline void multiply(const uint8_t* a, size_t row_bytes, int rows, const int8_t* panels, int n_panels, int depth,
                     const int32_t*, int32_t* c, size_t step, int16_t*, bool add = false) {
  static constexpr TileConfig config;
  _tile_loadconfig(&config);
  for (int p = 0; p < n_panels; p += 2)
    for (int i = 0; i < rows; i += 32)
      (rows - i > 16 ? tile<true, Panels> : tile<false, Panels>)(
          a + i * row_bytes, row_bytes, {panels + static_cast<size_t>(p) * 16 * depth, static_cast<size_t>(depth) * 16}, depth,
          c + i * step + 16 * p, step, add);
  _tile_release();
}

// Few rows, for which memory is the limit: unpacking and multiplying take turns so often that both overlap with reading.
#define PPLX_MULTIPLY_PACKED
constexpr int kMostPackedRows = 32;
inline void multiply_packed(const uint8_t* a, size_t row_bytes, int rows, const Weights& w, int32_t* c, size_t step, int8_t* unpacked) {
  static constexpr TileConfig config;
  _tile_loadconfig(&config);
  for (int column = 0; column < w.columns; column += 32) {
    PackedPanels panels{w.panels + column / 16 * w.panel_bytes(), w.panel_bytes(), w.depth, unpacked};
    panels.prepare(0);
    (rows > 16 ? tile<true, PackedPanels> : tile<false, PackedPanels>)(a, row_bytes, panels, w.depth, c + column, step, false);
  }
  _tile_release();
}

}  // namespace

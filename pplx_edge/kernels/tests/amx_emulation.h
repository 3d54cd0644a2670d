// The AMX instructions of tiles_amx.h in plain C++, for tests on machines without AMX.
#pragma once
#include <cstdint>
#include <cstring>

struct EmulatedTiles {
  uint16_t row_bytes[8] = {};
  uint8_t rows[8] = {};
  uint8_t data[8][16][64] = {};
};
inline thread_local EmulatedTiles emulated_tiles;

inline void _tile_loadconfig(const void* config) {
  const uint8_t* bytes = static_cast<const uint8_t*>(config);
  std::memcpy(emulated_tiles.row_bytes, bytes + 16, 16);
  std::memcpy(emulated_tiles.rows, bytes + 48, 8);
}
inline void _tile_release() { emulated_tiles = EmulatedTiles{}; }
inline void _tile_zero(int t) { std::memset(emulated_tiles.data[t], 0, sizeof emulated_tiles.data[t]); }
inline void _tile_loadd(int t, const void* base, size_t stride) {
  _tile_zero(t);
  for (int r = 0; r < emulated_tiles.rows[t]; r++)
    std::memcpy(emulated_tiles.data[t][r], static_cast<const uint8_t*>(base) + r * stride, emulated_tiles.row_bytes[t]);
}
inline void _tile_stored(int t, void* base, size_t stride) {
  for (int r = 0; r < emulated_tiles.rows[t]; r++)
    std::memcpy(static_cast<uint8_t*>(base) + r * stride, emulated_tiles.data[t][r], emulated_tiles.row_bytes[t]);
}
inline void _tile_dpbssd(int d, int a, int b) {
  EmulatedTiles& tiles = emulated_tiles;
  for (int m = 0; m < tiles.rows[d]; m++)
    for (int n = 0; n < tiles.row_bytes[d] / 4; n++) {
      int32_t sum;
      std::memcpy(&sum, &tiles.data[d][m][4 * n], 4);
      for (int k = 0; k < tiles.row_bytes[a] / 4; k++)
        for (int j = 0; j < 4; j++)
          sum += static_cast<int8_t>(tiles.data[a][m][4 * k + j]) * static_cast<int8_t>(tiles.data[b][k][4 * n + j]);
      std::memcpy(&tiles.data[d][m][4 * n], &sum, 4);
    }
}

// Encoders of IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS and IQ3_S. Rules: ggml-quants.c; layouts: ggml-common.h. See encode_grid.h.
#include <quantry/dispatch.h>

#include "encode_grid_search.h"

QUANTRY_BEGIN

// A super-block in lanes first … of a tile that was searched.
template <class T>
struct Found {
  const GridTile<T>& tile;
  int first;

  float scale(int group) const { return tile.scale[first + group]; }
  bool empty(int group) const { return tile.empty[first + group] != 0; }
  uint32_t index(int group, int row) const { return static_cast<uint32_t>(tile.index[row][first + group]); }
  uint32_t signs(int group, int eight) const { return static_cast<uint32_t>(tile.signs[eight][first + group]); }
  // Four 7-bit sign codes.
  uint32_t sign_word(int group) const {
    return signs(group, 0) | signs(group, 1) << 7 | signs(group, 2) << 14 | signs(group, 3) << 21;
  }
};

template <class T>
void put(uint8_t* to, T value) { memcpy(to, &value, sizeof value); }

struct IQ2_XXS : GridType {
  static constexpr int kGroup = 32, kRow = 8, kTop = 3, kBytes = 66, kSteps = 6;
  static constexpr float kStep = 0.1f, kEps = 1e-15f, kSigma = 1, kStored = 1;
  static constexpr bool kParity = true, kFirstFit = true;
  static constexpr Redo kRedo = Redo::kAllRows;

  static void store(const Found<IQ2_XXS>& found, const uint8_t* scales, uint8_t* out) {
    if (!scales) return;
    for (int j = 0; j < 8; j++) {
      for (int k = 0; k < 4; k++) out[2 + 8 * j + k] = static_cast<uint8_t>(found.index(j, k));
      put(out + 6 + 8 * j, found.sign_word(j) | static_cast<uint32_t>(scales[j]) << 28);
    }
  }
};

struct IQ2_XS : GridType {
  static constexpr int kGroup = 16, kRow = 8, kTop = 3, kBytes = 74, kSteps = 9;
  static constexpr float kStep = 0.1f, kEps = 1e-15f, kSigma = 1, kStored = 1;
  static constexpr bool kParity = true;

  static void store(const Found<IQ2_XS>& found, const uint8_t* scales, uint8_t* out) {
    if (!scales) return;
    for (int i = 0; i < 32; i++)
      put(out + 2 + 2 * i, static_cast<uint16_t>(found.index(i / 2, i % 2) | found.signs(i / 2, i % 2) << 9));
    for (int j = 0; j < 8; j++) out[66 + j] = static_cast<uint8_t>(scales[2 * j] | scales[2 * j + 1] << 4);
  }
};

struct IQ2_S : GridType {
  static constexpr int kGroup = 16, kRow = 8, kTop = 3, kBytes = 82, kSteps = 9;
  static constexpr float kStep = 0.1f, kEps = 1e-8f, kSigma = 2, kPlainSigma = 0.25f, kStored = 0.9875f;

  static void store(const Found<IQ2_S>& found, const uint8_t* scales, uint8_t* out) {
    for (int i = 0; i < 32; i++) {
      const uint32_t index = found.index(i / 2, i % 2);
      out[2 + i] = static_cast<uint8_t>(index);
      out[66 + i / 4] |= static_cast<uint8_t>(index >> 8 << 2 * (i % 4));
      out[34 + i] = static_cast<uint8_t>(found.signs(i / 2, i % 2));
    }
    for (int j = 0; scales && j < 8; j++) out[74 + j] = static_cast<uint8_t>(scales[2 * j] | scales[2 * j + 1] << 4);
  }
};

struct IQ3_XXS : GridType {
  static constexpr int kGroup = 32, kRow = 4, kTop = 8, kBytes = 98, kSteps = 15;
  static constexpr float kStep = 0.2f, kEps = 1e-8f, kSigma = 2, kStored = 1.0125f;
  static constexpr bool kParity = true;

  static void store(const Found<IQ3_XXS>& found, const uint8_t* scales, uint8_t* out) {
    if (!scales) return;
    for (int j = 0; j < 8; j++) {
      for (int k = 0; k < 8; k++) out[2 + 8 * j + k] = static_cast<uint8_t>(found.index(j, k));
      put(out + 66 + 4 * j, found.sign_word(j) | static_cast<uint32_t>(scales[j]) << 28);
    }
  }
};

struct IQ3_S : GridType {
  static constexpr int kGroup = 32, kRow = 4, kTop = 8, kBytes = 110, kSteps = 9;
  static constexpr float kStep = 0.2f, kEps = 0, kSigma = 2, kStored = 1.033f;
  static constexpr Redo kRedo = Redo::kAllIfOneIsOff;

  // Indices and signs are appended: a group of zeros takes no place, and the later ones decode wrongly. So llama.cpp writes.
  static void store(const Found<IQ3_S>& found, const uint8_t* scales, uint8_t* out) {
    uint8_t* index_to = out + 2;
    uint8_t* signs_to = out + 74;
    for (int j = 0; j < 8; j++) {
      if (found.empty(j)) continue;
      for (int k = 0; k < 8; k++) {
        *index_to++ = static_cast<uint8_t>(found.index(j, k));
        out[66 + j] |= static_cast<uint8_t>(found.index(j, k) >> 8 << k);
      }
      for (int k = 0; k < 4; k++) *signs_to++ = static_cast<uint8_t>(found.signs(j, k));
    }
    for (int j = 0; scales && j < 4; j++) out[106 + j] = static_cast<uint8_t>(scales[2 * j] | scales[2 * j + 1] << 4);
  }
};

// The super-block's scale, the groups' in 4 bits, and what the type stores. No scales: all are 0.
template <class T>
void store_block(const Found<T>& found, uint8_t* out) {
  constexpr int kGroups = 256 / T::kGroup;
  memset(out, 0, T::kBytes);
  float max = 0;
  for (int g = 0; g < kGroups; g++) max = max > found.scale(g) ? max : found.scale(g);
  if (max == 0) return T::store(found, nullptr, out);
  const float d = max / 31, inverse = 1 / d;
  put_half(out, T::kStored == 1 ? d : d * T::kStored);
  uint8_t scales[kGroups];
  for (int g = 0; g < kGroups; g++) scales[g] = static_cast<uint8_t>(scale_level(inverse, found.scale(g), 15));
  T::store(found, scales, out);
}

template <class T>
struct Encoder : T {
  typedef GridTile<T> Tile;
  static void search(Tile& tile, int at, bool weighted, const uint8_t* tables) {
    prepare_tile(tile, at, weighted);
    search_tile(tile, at, tables);
  }
  static void finish(const Tile& tile, int first, uint8_t* out) { store_block(Found<T>{tile, first}, out); }
};

constexpr GridOps kGridOps = {
    encode_grid<Encoder<IQ2_XXS>>, encode_grid<Encoder<IQ2_XS>>,  encode_grid<Encoder<IQ2_S>>,
    encode_grid<Encoder<IQ3_XXS>>, encode_grid<Encoder<IQ3_S>>,
};

QUANTRY_END

QUANTRY_TABLE(GridOps, quantry_grid_ops) quantry::QUANTRY_TARGET::kGridOps;

// Bit streams ↔ planes of panels, 32 columns of 16 rows at a time. A KERNELS source of a plugin:
//
//   #include <quantry/grouped/repack.h>
//   QUANTRY_GROUPED_REPACK(quantry_gptq)
//
// In between stand *quads*: word J of a lane holds columns 4·J … 4·J+3 of its row, a byte each. 32 codes of b bits are b words
// of a row's stream, so every step is a few shifts of whole vectors of rows. Bits only move; each function has its inverse
// beside it. Panels are independent: threads share them out.
#pragma once
#include "../dispatch.h"
#include "../panel.h"
#include "../threads.h"
#include "repack_ops.h"

QUANTRY_BEGIN

constexpr int kQuads = kChunk / 4;

struct alignas(64) Lanes {   // words of 16 rows: quads, or the words of their streams
  uint32_t word[kQuads][kRows];

  QUANTRY_INLINE vc load(int i, int strip) const {
    return load_codes(reinterpret_cast<const uint8_t*>(word[i] + strip * kLanes));
  }
  QUANTRY_INLINE void store(int i, int strip, vc v) { store_codes(reinterpret_cast<uint8_t*>(word[i] + strip * kLanes), v); }
};

constexpr uint32_t low_bits(int n) { return n >= 32 ? ~0u : (1u << n) - 1; }

// Words of a row's stream for the first `columns` codes of a chunk: which bits count, and the top bit of each code.
template <int B>
struct StreamBits {
  uint32_t keep[B], flip[B];
  int bytes;

  QUANTRY_INLINE StreamBits(int64_t columns, bool flipped) : keep{}, flip{}, bytes(static_cast<int>((columns * B + 7) / 8)) {
    for (int bit = 0; bit < columns * B; ++bit) {
      keep[bit / 32] |= 1u << bit % 32;
      if (flipped && bit % B == B - 1) flip[bit / 32] |= 1u << bit % 32;
    }
  }
};

// Four codes of B bits, together at the low end of a word ↔ one in each byte.
template <int B>
QUANTRY_INLINE vc spread(vc v) {
  if constexpr (B == 8) return v;
  constexpr uint32_t pair = low_bits(2 * B), one = low_bits(B) * 0x00010001u;
  v = or_codes(and_bits(v, pair), shift_left<16 - 2 * B>(and_bits(v, pair << (2 * B) % 32)));
  return or_codes(and_bits(v, one), shift_left<8 - B>(and_bits(v, one << B)));
}
template <int B>
QUANTRY_INLINE vc gather(vc v) {
  if constexpr (B == 8) return v;
  constexpr uint32_t pair = low_bits(2 * B), one = low_bits(B) * 0x00010001u;
  v = or_codes(and_bits(v, one), and_bits(shift_right<8 - B>(v), one << B));
  return or_codes(and_bits(v, pair), and_bits(shift_right<16 - 2 * B>(v), pair << (2 * B) % 32));
}

template <int B>
QUANTRY_INLINE void stream_to_quads(const Lanes& stream, Lanes& quads) {
  for (int strip = 0; strip < kStrips; ++strip) {
    repeat<kQuads>([&](auto j) QUANTRY_LAMBDA {
      constexpr int bit = 4 * B * j, word = bit / 32, shift = bit % 32;
      vc v = stream.load(word, strip);
      if constexpr (shift > 0) v = shift_right<shift>(v);
      if constexpr (shift + 4 * B > 32) v = or_codes(v, shift_left<32 - shift>(stream.load(word + 1, strip)));
      quads.store(j, strip, spread<B>(v));
    });
  }
}
template <int B>
QUANTRY_INLINE void quads_to_stream(const Lanes& quads, Lanes& stream) {
  for (int strip = 0; strip < kStrips; ++strip) {
    vc words[B + 1];
    for (int i = 0; i <= B; ++i) words[i] = as_codes(zero_int());
    repeat<kQuads>([&](auto j) QUANTRY_LAMBDA {
      constexpr int bit = 4 * B * j, word = bit / 32, shift = bit % 32;
      vc v = gather<B>(quads.load(j, strip));
      if constexpr (shift + 4 * B > 32) words[word + 1] = or_codes(words[word + 1], shift_right<32 - shift>(v));
      if constexpr (shift > 0) v = shift_left<shift>(v);
      words[word] = or_codes(words[word], v);
    });
    for (int i = 0; i < B; ++i) stream.store(i, strip, words[i]);
  }
}

// One chunk of a plane of `Width` bits that holds the bits of the codes from `At` on.
template <int Width, int At>
QUANTRY_INLINE void quads_to_plane(const Lanes& quads, uint8_t* plane) {
  constexpr int fields = 8 / Width;
  constexpr uint32_t mask = low_bits(Width) * 0x01010101u;
  for (int strip = 0; strip < kStrips; ++strip) {
    for (int cell = 0; cell < Width; ++cell) {
      vc sum = as_codes(zero_int());
      repeat<fields>([&](auto f) QUANTRY_LAMBDA {
        constexpr int shift = Width * f - At;
        vc v = and_bits(quads.load(cell * fields + f, strip), mask << At);
        if constexpr (shift > 0) v = shift_left<shift>(v);
        if constexpr (shift < 0) v = shift_right<-shift>(v);
        sum = or_codes(sum, v);
      });
      store_codes(plane + cell * kCell + strip * kStripBytes, sum);
    }
  }
}
template <int Width, int At>
QUANTRY_INLINE void plane_to_quads(const uint8_t* plane, Lanes& quads) {
  constexpr int fields = 8 / Width;
  constexpr uint32_t mask = low_bits(Width) * 0x01010101u;
  for (int strip = 0; strip < kStrips; ++strip) {
    for (int cell = 0; cell < Width; ++cell) {
      vc word = load_codes(plane + cell * kCell + strip * kStripBytes);
      repeat<fields>([&](auto f) QUANTRY_LAMBDA {
        constexpr int shift = Width * f - At;
        vc v = word;
        if constexpr (shift > 0) v = shift_right<shift>(v);
        if constexpr (shift < 0) v = shift_left<-shift>(v);
        v = and_bits(v, mask << At);
        if constexpr (At > 0) v = or_codes(v, quads.load(cell * fields + f, strip));
        quads.store(cell * fields + f, strip, v);
      });
    }
  }
}

template <int B>
struct PlaneWidths {
  static constexpr int kLow = B == 8 ? 8 : B >= 4 ? 4 : B >= 2 ? 2 : 1;
  static constexpr int kHigh = B == 3 || B == 5 ? 1 : B == 6 || B == 7 ? 2 : 0;
  static constexpr int kTop = B == 7 ? 1 : 0;
};

// Eight codes of B bits, together in B bytes ↔ one a byte.
template <int B>
QUANTRY_INLINE uint64_t spread_eight(uint64_t v) {
  if constexpr (B == 8) return v;
  constexpr uint64_t half = (uint64_t(1) << 4 * B) - 1, pair = ((uint64_t(1) << 2 * B) - 1) * 0x0000000100000001u,
                     one = ((uint64_t(1) << B) - 1) * 0x0001000100010001u;
  v = (v & half) | (v & half << 4 * B) << (32 - 4 * B);
  v = (v & pair) | (v & pair << 2 * B) << (16 - 2 * B);
  return (v & one) | (v & one << B) << (8 - B);
}
template <int B>
QUANTRY_INLINE uint64_t gather_eight(uint64_t v) {
  if constexpr (B == 8) return v;
  constexpr uint64_t half = (uint64_t(1) << 4 * B) - 1, pair = ((uint64_t(1) << 2 * B) - 1) * 0x0000000100000001u,
                     one = ((uint64_t(1) << B) - 1) * 0x0001000100010001u;
  v = (v & one) | (v >> (8 - B) & one << B);
  v = (v & pair) | (v >> (16 - 2 * B) & pair << 2 * B);
  return (v & half) | (v >> (32 - 4 * B) & half << 4 * B);
}

// B bytes as a number, by two overlapping loads: one of odd size would wait for its own bytes in memory.
template <int B>
QUANTRY_INLINE uint64_t load_bytes(const uint8_t* p) {
  if constexpr (B == 1) return *p;
  if constexpr (B == 2 || B == 3) {
    uint16_t first, last;
    memcpy(&first, p, 2);
    memcpy(&last, p + B - 2, 2);
    return first | static_cast<uint64_t>(last) << (B - 2) * 8;
  }
  if constexpr (B >= 4) {
    uint32_t first, last;
    memcpy(&first, p, 4);
    memcpy(&last, p + B - 4, 4);
    return first | static_cast<uint64_t>(last) << (B - 4) * 8;
  }
}

// One panel: where its rows' codes and its planes lie.
template <int B>
struct PanelStream {
  using W = PlaneWidths<B>;
  const GroupedRepack& a;
  uint8_t *stream, *codes, *high, *top;
  int rows;
  int64_t chunks, step;   // step: bytes between two rows, or two columns of a group

  QUANTRY_INLINE PanelStream(const GroupedRepack& args, int64_t index) : a(args), chunks((args.columns + kChunk - 1) / kChunk) {
    const int64_t panels = (a.rows + kRows - 1) / kRows, panel = index % panels, matrix = index / panels;
    codes = a.codes + index * chunks * kCell * W::kLow;
    high = W::kHigh ? a.high + index * chunks * kCell * W::kHigh : nullptr;
    top = W::kTop ? a.top + index * chunks * kCell * W::kTop : nullptr;
    rows = static_cast<int>(min_of(kRows, a.rows - panel * kRows));
    if (a.group == 0) {
      step = (a.columns * B + 7) / 8;
      stream = a.stream + (matrix * a.rows + panel * kRows) * step;
    } else {
      const int64_t parts = a.group / kRows;   // panels of a group
      step = a.group * B / 8;
      stream = a.stream + ((matrix * panels + panel) / parts * a.columns) * step + panel % parts * 2 * B;
    }
  }

  QUANTRY_INLINE void read_rows(const StreamBits<B>& bits, int64_t chunk, Lanes& quads) const {
    Lanes words;
    for (int r = 0; r < rows; ++r) {
      uint32_t row[B] = {};
      const uint8_t* from = stream + r * step + chunk * 4 * B;
      if (bits.bytes == 4 * B) memcpy(row, from, 4 * B);   // a constant size is a few moves
      else memcpy(row, from, static_cast<size_t>(bits.bytes));
      for (int i = 0; i < B; ++i) words.word[i][r] = (row[i] & bits.keep[i]) ^ bits.flip[i];
    }
    for (int r = rows; r < kRows; ++r)
      for (int i = 0; i < B; ++i) words.word[i][r] = 0;
    stream_to_quads<B>(words, quads);
  }
  QUANTRY_INLINE void write_rows(const StreamBits<B>& bits, int64_t chunk, const Lanes& quads) const {
    Lanes words;
    quads_to_stream<B>(quads, words);
    for (int r = 0; r < rows; ++r) {
      uint32_t row[B];
      for (int i = 0; i < B; ++i) row[i] = (words.word[i][r] ^ bits.flip[i]) & bits.keep[i];
      uint8_t* to = stream + r * step + chunk * 4 * B;
      if (bits.bytes == 4 * B) memcpy(to, row, 4 * B);
      else memcpy(to, row, static_cast<size_t>(bits.bytes));
    }
  }

  // axis OUT: 16 codes of a column are those of the panel's rows.
  QUANTRY_INLINE uint64_t flip_eight() const { return a.flip ? uint64_t(0x0101010101010101u) << (B - 1) : 0; }
  QUANTRY_INLINE void read_columns(int64_t chunk, Lanes& quads) const {
    const int count = static_cast<int>(min_of(kChunk, a.columns - chunk * kChunk));
    for (int quad = 0; quad < kQuads; ++quad) {
      uint64_t codes_of[4][2] = {};
      for (int c = 0; c < 4 && 4 * quad + c < count; ++c) {
        const uint8_t* column = stream + (chunk * kChunk + 4 * quad + c) * step;
        for (int half = 0; half < 2; ++half)
          codes_of[c][half] = spread_eight<B>(load_bytes<B>(column + half * B)) ^ flip_eight();
      }
      const uint8_t* bytes = reinterpret_cast<const uint8_t*>(codes_of);
      for (int strip = 0; strip < kStrips; ++strip) {
        vc word = as_codes(load_u8(bytes + strip * kLanes));
        word = or_codes(word, shift_left<8>(as_codes(load_u8(bytes + kRows + strip * kLanes))));
        word = or_codes(word, shift_left<16>(as_codes(load_u8(bytes + 2 * kRows + strip * kLanes))));
        quads.store(quad, strip, or_codes(word, shift_left<24>(as_codes(load_u8(bytes + 3 * kRows + strip * kLanes)))));
      }
    }
  }
  QUANTRY_INLINE void write_columns(int64_t chunk, const Lanes& quads) const {
    const int count = static_cast<int>(min_of(kChunk, a.columns - chunk * kChunk));
    for (int quad = 0; quad < kQuads; ++quad) {
      uint64_t codes_of[4][2];
      int8_t* bytes = reinterpret_cast<int8_t*>(codes_of);
      for (int strip = 0; strip < kStrips; ++strip) {
        repeat<4>([&](auto c) QUANTRY_LAMBDA {
          constexpr int column = c;
          store_bytes(bytes + column * kRows + strip * kLanes, signed_byte<column>(quads.load(quad, strip)));
        });
      }
      for (int c = 0; c < 4 && 4 * quad + c < count; ++c) {
        uint8_t* column = stream + (chunk * kChunk + 4 * quad + c) * step;
        for (int half = 0; half < 2; ++half) {
          const uint64_t v = gather_eight<B>(codes_of[c][half] ^ flip_eight());
          memcpy(column + half * B, &v, B);
        }
      }
    }
  }

  QUANTRY_INLINE void write_planes(int64_t chunk, const Lanes& quads) const {
    quads_to_plane<W::kLow, 0>(quads, codes + chunk * kCell * W::kLow);
    if constexpr (W::kHigh > 0) quads_to_plane<W::kHigh, W::kLow>(quads, high + chunk * kCell * W::kHigh);
    if constexpr (W::kTop > 0) quads_to_plane<W::kTop, W::kLow + W::kHigh>(quads, top + chunk * kCell * W::kTop);
  }
  QUANTRY_INLINE void read_planes(int64_t chunk, Lanes& quads) const {
    plane_to_quads<W::kLow, 0>(codes + chunk * kCell * W::kLow, quads);
    if constexpr (W::kHigh > 0) plane_to_quads<W::kHigh, W::kLow>(high + chunk * kCell * W::kHigh, quads);
    if constexpr (W::kTop > 0) plane_to_quads<W::kTop, W::kLow + W::kHigh>(top + chunk * kCell * W::kTop, quads);
  }
};

// Calls body(panel, chunk, bits of its columns) for every chunk of every panel.
template <int B, class Body>
QUANTRY_INLINE void each_chunk(const GroupedRepack& a, const Body& body) {
  const int64_t panels = a.batch * ((a.rows + kRows - 1) / kRows);
  const StreamBits<B> whole(kChunk, a.flip != 0), rest(a.columns % kChunk, a.flip != 0);
  parallel(useful_threads(panels * kRows * a.columns * B / 8, a.threads), [&](Team team) {
    const Range mine = team.share(panels);
    for (int64_t p = mine.begin; p < mine.end; ++p) {
      const PanelStream<B> panel(a, p);
      for (int64_t c = 0; c < a.columns / kChunk; ++c) body(panel, c, whole);
      if (a.columns % kChunk) body(panel, a.columns / kChunk, rest);
    }
  });
}

template <int B>
void pack_codes(const GroupedRepack& a) {
  each_chunk<B>(a, [&](const PanelStream<B>& panel, int64_t chunk, const StreamBits<B>& bits) {
    Lanes quads;
    if (a.group == 0) panel.read_rows(bits, chunk, quads);
    else panel.read_columns(chunk, quads);
    panel.write_planes(chunk, quads);
  });
}

template <int B>
void unpack_codes(const GroupedRepack& a) {
  each_chunk<B>(a, [&](const PanelStream<B>& panel, int64_t chunk, const StreamBits<B>& bits) {
    Lanes quads;
    panel.read_planes(chunk, quads);
    if (a.group == 0) panel.write_rows(bits, chunk, quads);
    else panel.write_columns(chunk, quads);
  });
}

inline void pack_grouped(const GroupedRepack* a) {
  with_count<8>(a->bits, [&](auto bits) { pack_codes<bits>(*a); });
}
inline void unpack_grouped(const GroupedRepack* a) {
  with_count<8>(a->bits, [&](auto bits) { unpack_codes<bits>(*a); });
}

QUANTRY_END

#define QUANTRY_GROUPED_REPACK(prefix)                            \
  using namespace quantry::QUANTRY_TARGET;                        \
  QUANTRY_TABLE(GroupedRepackOps, prefix##_grouped_repack_ops) {  \
    pack_grouped, unpack_grouped,                                 \
  };

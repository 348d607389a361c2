// Encoders of ggml blocks. Rules: ggml-quants.c; layouts: ggml-common.h. See encode.h for what is exact.
#include "encode.h"

#include <quantry/dispatch.h>
#include <quantry/encode/rows.h>

#include "encode_search.h"

QUANTRY_BEGIN

void put_half(uint8_t* p, float x) {
  uint16_t h = x == x ? to_half(x) : 0xfe00;   // x86's own NaN, which ARM would make positive
  memcpy(p, &h, 2);
}

// Sum of squares in index order, as the reference adds them.
float square_sum(const float* x, int64_t n) {
  float sum = 0;
  for (int64_t i = 0; i < n; i++) sum += x[i] * x[i];
  return sum;
}

// weight · sqrt(sigma2 + x²): how importance enters every search but Q6_K's.
void importance_weights(const float* x, const float* importance, float sigma2, float* to, int n) {
  for (int i = 0; i < n; i += kWide) {
    Floats v = read(x + i);
    write(to + i, read(importance + i) * root(sigma2 + v * v));
  }
}

struct Extremes {
  float min, max, largest, signed_largest;   // of equal values the first, which decides the sign of zero
};

Extremes extremes(const float* x, int n) {
  Floats min = read(x), max = min, largest = magnitude(min);
  for (int i = kWide; i < n; i += kWide) {
    Floats v = read(x + i), a = magnitude(v);
    min = pick(v < min, v, min);
    max = pick(v > max, v, max);
    largest = pick(a > largest, a, largest);
  }
  Extremes e{min[0], max[0], largest[0], 0};
  for (int lane = 1; lane < kWide; lane++) {
    e.min = min[lane] < e.min ? min[lane] : e.min;
    e.max = max[lane] > e.max ? max[lane] : e.max;
    e.largest = largest[lane] > e.largest ? largest[lane] : e.largest;
  }
  int i = 0;
  while (i < n - 1 && x[i] != e.min) i++;
  e.min = x[i];
  if (e.max == e.min) e.max = e.min;
  i = 0;
  while (i < n - 1 && magnitude(x[i]) != e.largest) i++;
  e.signed_largest = e.largest > 0 ? x[i] : 0;
  return e;
}

// 32 codes to the 4- and 5-bit blocks: nibbles of j and j+16 in a byte, then for 5 bits the high bits of all 32.
void put_nibbles(const uint8_t (&code)[32], uint8_t* to) {
  for (int j = 0; j < 16; j++) to[j] = static_cast<uint8_t>((code[j] & 15) | code[j + 16] << 4);
}

void put_fifth_bits(const uint8_t (&code)[32], uint8_t* to) {
  uint32_t high = 0;
  for (int j = 0; j < 32; j++) high |= static_cast<uint32_t>(code[j] >> 4 & 1) << j;
  memcpy(to, &high, 4);
}

template <bool kFive>
void put_codes(const uint8_t (&code)[32], uint8_t* to) {
  if (kFive) put_fifth_bits(code, to);
  put_nibbles(code, to + (kFive ? 4 : 0));
}

template <class Code>
QUANTRY_INLINE void each_code(const float* x, int n, uint8_t* to, Code&& code) {
  for (int i = 0; i < n; i += kWide) {
    Bytes q = __builtin_convertvector(code(read(x + i)), Bytes);   // the low bytes
    memcpy(to + i, &q, sizeof q);
  }
}

// Q4_0, Q5_0: d·(code - half), the value of largest magnitude on code 0.
template <bool kFive>
void encode_symmetric(const float* x, uint8_t* out) {
  constexpr int kHalf = kFive ? 16 : 8;
  const float d = extremes(x, 32).signed_largest / -kHalf;
  const float inverse = d != 0 ? 1.0f / d : 0.0f;
  uint8_t code[32];
  each_code(x, 32, code, [&](Floats v) QUANTRY_LAMBDA {
    Ints q = truncated(v * inverse + (kHalf + 0.5f)) << 24 >> 24;   // through int8, as in ggml
    return clamp(q, INT32_MIN, 2 * kHalf - 1);
  });
  put_half(out, d);
  put_codes<kFive>(code, out + 2);
}

// Q4_1, Q5_1: d·code + m.
template <bool kFive>
void encode_affine(const float* x, uint8_t* out) {
  const Extremes e = extremes(x, 32);
  const float d = (e.max - e.min) / (kFive ? 31 : 15);
  const float inverse = d != 0 ? 1.0f / d : 0.0f;
  uint8_t code[32];
  each_code(x, 32, code, [&](Floats v) QUANTRY_LAMBDA {
    Ints q = truncated((v - e.min) * inverse + 0.5f) << 24 >> 24;
    return kFive ? q : clamp(q, INT32_MIN, 15);   // ggml does not clamp Q5_1
  });
  put_half(out, d);
  put_half(out + 2, e.min);
  put_codes<kFive>(code, out + 4);
}

float encode_bytes(const float* x, uint8_t* to) {
  const float d = extremes(x, 32).largest / 127;
  const float inverse = d != 0 ? 1.0f / d : 0.0f;
  each_code(x, 32, to, [&](Floats v) QUANTRY_LAMBDA { return rounded(v * inverse); });
  return d;
}

int code_sum(const uint8_t* codes, int n) {
  int sum = 0;
  for (int i = 0; i < n; i++) sum += static_cast<int8_t>(codes[i]);
  return sum;
}

void encode_q8_0(const float* x, uint8_t* out) { put_half(out, encode_bytes(x, out + 2)); }

void encode_q8_1(const float* x, uint8_t* out) {
  const float d = encode_bytes(x, out + 4);
  put_half(out, d);
  put_half(out + 2, static_cast<float>(code_sum(out + 4, 32)) * d);
}

void encode_q8_k(const float* x, uint8_t* out) {
  const float extreme = extremes(x, 256).signed_largest;
  memset(out, 0, 292);
  if (extreme == 0) return;
  const float scale = -127.0f / extreme, d = 1 / scale;
  each_code(x, 256, out + 4, [&](Floats v) QUANTRY_LAMBDA {
    return clamp(nearest(scale * v), INT32_MIN, 127);
  });
  for (int k = 0; k < 16; k++) {
    int16_t sum = static_cast<int16_t>(code_sum(out + 4 + 16 * k, 16));
    memcpy(out + 260 + 2 * k, &sum, 2);
  }
  memcpy(out, &d, 4);
}

template <void (*kEncode)(const float*, uint8_t*), int kBlock, int kBytes>
void plain(const EncodeJob& job) {
  for (int64_t b = job.first; b < job.first + job.count; b++) kEncode(job.x + b * kBlock, job.out + b * kBytes);
}

// Q4_0 … Q5_1 with importance: sigma2 spans the row; the codes of the search are final.
template <bool kFive, bool kAffine>
void searched(const EncodeJob& job) {
  constexpr int kBytes = 2 + 16 + (kFive ? 4 : 0) + (kAffine ? 2 : 0);
  Tile<32> tile;
  float weight[32 * kTile];
  float sigma2 = 0;
  int64_t row = -1;
  for (int64_t b = job.first; b < job.first + job.count; b += kTile) {
    const int64_t left = job.first + job.count - b;
    const int count = static_cast<int>(left < kTile ? left : kTile);
    for (int s = 0; s < count; s++) {
      const int64_t at = (b + s) * 32;
      if (at / job.columns != row) {
        row = at / job.columns;
        sigma2 = square_sum(job.x + row * job.columns, job.columns) / static_cast<float>(job.columns);
      }
      importance_weights(job.x + at, job.importance + at % job.columns, sigma2, weight + 32 * s, 32);
    }
    gather(job.x + b * 32, count, tile.x);
    gather(weight, count, tile.weight);
    for (int at = 0; at < kTile; at += kWide) {
      if (kAffine) fit_affine<32, kFive ? 31 : 15>(tile, at, {-0.9f, 0.05f, 36});
      else fit_symmetric<32, kFive ? 16 : 8>(tile, at);
    }
    for (int s = 0; s < count; s++) {
      uint8_t* out = job.out + (b + s) * kBytes;
      uint8_t code[32];
      for (int i = 0; i < 32; i++) code[i] = static_cast<uint8_t>(tile.code[i][s]);
      put_half(out, tile.scale[s]);
      if (kAffine) put_half(out + 2, -tile.min[s]);
      put_codes<kFive>(code, out + (kAffine ? 4 : 2));
    }
  }
}

template <bool kFive, bool kAffine>
void legacy(const EncodeJob& job) {
  if (job.importance) searched<kFive, kAffine>(job);
  else if (kAffine) plain<encode_affine<kFive>, 32, kFive ? 24 : 20>(job);
  else plain<encode_symmetric<kFive>, 32, kFive ? 22 : 18>(job);
}

// The eight 6-bit scales and mins of Q4_K and Q5_K in 12 bytes.
void put_scales(const uint8_t (&scale)[8], const uint8_t (&min)[8], uint8_t* to) {
  memcpy(to, scale, 4);
  memcpy(to + 4, min, 4);
  for (int j = 4; j < 8; j++) {
    to[j + 4] = static_cast<uint8_t>((scale[j] & 15) | (min[j] & 15) << 4);
    to[j - 4] |= static_cast<uint8_t>(scale[j] >> 4 << 6);
    to[j] |= static_cast<uint8_t>(min[j] >> 4 << 6);
  }
}

void get_scale(const uint8_t* s, int j, float& scale, float& min) {
  const bool low = j < 4;
  scale = static_cast<float>(low ? s[j] & 63 : (s[j + 4] & 15) | s[j - 4] >> 6 << 4);
  min = static_cast<float>(low ? s[j + 4] & 63 : s[j + 4] >> 4 | s[j] >> 6 << 4);
}

// One scale per sub-block to 6 bits of the largest; returns the super-block's d.
float six_bits(const float* scale, uint8_t (&code)[8]) {
  float max = 0;
  for (int j = 0; j < 8; j++) max = scale[j] > max ? scale[j] : max;
  const float inverse = max > 0 ? 63.0f / max : 0.0f;
  for (int j = 0; j < 8; j++) {
    uint8_t c = static_cast<uint8_t>(nearest(inverse * scale[j]));
    code[j] = c < 63 ? c : 63;
  }
  return max / 63.0f;
}

// One super-block of Q4_K (kTop 15) or Q5_K (31) from the searched sub-blocks first … first+7 of a tile.
template <int kTop>
void finish_k(const float* x, const Tile<32>& tile, int first, const float* weight, uint8_t* out) {
  uint8_t scales[8], mins[8];
  float d, dmin;
  if (weight) {
    float scale[8], min[8], sum[8];
    for (int j = 0; j < 8; j++) {
      scale[j] = tile.scale[first + j];
      min[j] = tile.min[first + j];
      sum[j] = 0;
      for (int i = 0; i < 32; i++) sum[j] += weight[32 * j + i];
    }
    d = fit_positive<63>(scale, sum, scales);
    dmin = fit_positive<63>(min, sum, mins);
    for (int j = 0; kTop == 31 && j < 8; j++) {   // ggml clamps the wrapped bytes of Q5_K only
      scales[j] = scales[j] < 63 ? scales[j] : 63;
      mins[j] = mins[j] < 63 ? mins[j] : 63;
    }
  } else {
    d = six_bits(tile.scale + first, scales);
    dmin = six_bits(tile.min + first, mins);
  }
  put_half(out, d);
  put_half(out + 2, dmin);
  put_scales(scales, mins, out + 4);
  d = from_half(to_half(d));
  dmin = from_half(to_half(dmin));
  uint8_t code[256];
  for (int j = 0; j < 8; j++) {
    float sc, m;
    get_scale(out + 4, j, sc, m);
    const float dl = d * sc, ml = dmin * m;
    if (dl == 0) {   // the codes of the search stay
      for (int i = 0; i < 32; i++) code[32 * j + i] = static_cast<uint8_t>(tile.code[i][first + j]);
      continue;
    }
    each_code(x + 32 * j, 32, code + 32 * j, [&](Floats v) QUANTRY_LAMBDA {
      return clamp(nearest((v + ml) / dl), 0, kTop);
    });
  }
  uint8_t* qs = out + 16;
  if (kTop == 31) {
    for (int l = 0; l < 32; l++) {
      int high = 0;
      for (int j = 0; j < 8; j++) high |= code[32 * j + l] >> 4 << j;
      qs[l] = static_cast<uint8_t>(high);
    }
    qs += 32;
  }
  for (int p = 0; p < 4; p++)
    for (int l = 0; l < 32; l++)
      qs[32 * p + l] = static_cast<uint8_t>((code[64 * p + l] & 15) | code[64 * p + 32 + l] << 4);
}

template <int kTop>
void encode_k(const EncodeJob& job) {
  constexpr int kBytes = kTop == 31 ? 176 : 144;
  constexpr Steps kPlain = kTop == 31 ? Steps{-0.5f, 0.1f, 15} : Steps{-1.0f, 0.1f, 20};
  Tile<32> tile;
  float weight[512];
  for (int64_t b = job.first; b < job.first + job.count; b += 2) {
    const int count = b + 1 < job.first + job.count ? 2 : 1;
    const float* x = job.x + b * 256;
    gather(x, 8 * count, tile.x);
    if (job.importance) {
      for (int s = 0; s < count; s++) {
        const float sigma2 = 2 * square_sum(x + 256 * s, 256) / 256;
        importance_weights(x + 256 * s, job.importance + (b + s) * 256 % job.columns, sigma2, weight + 256 * s, 256);
      }
      gather(weight, 8 * count, tile.weight);
    }
    for (int at = 0; at < kTile; at += kWide) {
      if (!job.importance) {
        Floats sum = {};
        for (int i = 0; i < 32; i++) sum += read(&tile.x[i][at]) * read(&tile.x[i][at]);
        const Floats mean = root(sum / 32.0f);
        for (int i = 0; i < 32; i++) write(&tile.weight[i][at], mean + magnitude(read(&tile.x[i][at])));
      }
      fit_affine<32, kTop>(tile, at, job.importance ? Steps{-0.9f, 0.05f, 36} : kPlain);
    }
    for (int s = 0; s < count; s++)
      finish_k<kTop>(x + 256 * s, tile, 8 * s, job.importance ? weight + 256 * s : nullptr, job.out + (b + s) * kBytes);
  }
}

void encode_q6_k_block(const float* x, const float* importance, uint8_t* out) {
  Tile<16> tile;
  gather(x, 16, tile.x);
  if (importance) gather(importance, 16, tile.weight);
  for (int at = 0; at < kTile; at += kWide) {
    for (int i = 0; !importance && i < 16; i++) {
      Floats v = read(&tile.x[i][at]);
      write(&tile.weight[i][at], v * v);
    }
    fit_symmetric<16, 32>(tile, at);
  }
  float extreme = 0;
  for (float s : tile.scale) extreme = magnitude(s) > magnitude(extreme) ? s : extreme;   // skips a NaN, as ggml does
  memset(out, 0, 210);
  if (magnitude(extreme) < 1e-15f) return;
  const float inverse = -128.0f / extreme;
  put_half(out + 208, 1 / inverse);
  const float d = from_half(to_half(1 / inverse));
  uint8_t code[256];
  for (int k = 0; k < 16; k++) {
    const int s = nearest(inverse * tile.scale[k]);
    const int8_t scale = static_cast<int8_t>(s < 127 ? s : 127);
    out[192 + k] = static_cast<uint8_t>(scale);
    const float dl = d * static_cast<float>(scale);
    if (dl == 0) {
      for (int i = 0; i < 16; i++) code[16 * k + i] = static_cast<uint8_t>(tile.code[i][k]);
      continue;
    }
    each_code(x + 16 * k, 16, code + 16 * k, [&](Floats v) QUANTRY_LAMBDA {
      return clamp(nearest(v / dl), -32, 31) + 32;
    });
  }
  for (int h = 0; h < 2; h++) {
    const uint8_t* c = code + 128 * h;
    for (int l = 0; l < 64; l++) out[64 * h + l] = static_cast<uint8_t>((c[l] & 15) | c[l + 64] << 4);
    for (int l = 0; l < 32; l++)
      out[128 + 32 * h + l] = static_cast<uint8_t>(c[l] >> 4 | c[l + 32] >> 4 << 2 | c[l + 64] >> 4 << 4 | c[l + 96] >> 4 << 6);
  }
}

void encode_q6_k(const EncodeJob& job) {
  for (int64_t b = job.first; b < job.first + job.count; b++) {
    const float* importance = job.importance ? job.importance + b * 256 % job.columns : nullptr;
    encode_q6_k_block(job.x + b * 256, importance, job.out + b * 210);
  }
}

int encode_matrix(EncodeFn encode, int block, int bytes, const QuantryRows& rows, uint8_t* out) {
  const int64_t blocks = rows.columns / block;
  return encode_rows(rows, [&](const float* x, int64_t first, int64_t count) {
    encode(EncodeJob{x, rows.importance, rows.columns, 0, count * blocks, out + first * blocks * bytes});
  });
}

constexpr EncodeOps kEncodeOps = {
    encode_matrix,
    legacy<false, false>, legacy<false, true>, legacy<true, false>, legacy<true, true>,
    plain<encode_q8_0, 32, 34>, plain<encode_q8_1, 32, 36>,
    encode_k<15>, encode_k<31>, encode_q6_k, plain<encode_q8_k, 256, 292>,
};

QUANTRY_END

QUANTRY_TABLE(EncodeOps, quantry_encode_ops) quantry::QUANTRY_TARGET::kEncodeOps;

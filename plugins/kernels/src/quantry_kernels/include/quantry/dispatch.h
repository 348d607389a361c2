// Choosing an instruction set at run time.
//
// A KERNELS source is compiled once per target and ends in one table of function pointers:
//     struct EncodeOps { int (*q8_0)(const float*, int64_t, uint8_t*); };          // in a header both sides include
//     QUANTRY_TABLE(EncodeOps, quantry_encode_ops) { quantry::QUANTRY_TARGET::encode_q8_0 };
// An ENTRY source declares the tables of all targets and looks one up per call:
//     QUANTRY_DECLARE_TABLES(EncodeOps, quantry_encode_ops)
//     extern "C" QUANTRY_EXPORT int quantry_gguf_encode(int target, ...) {
//       const EncodeOps* ops = QUANTRY_TABLE_FOR(quantry_encode_ops, target);
//       if (!ops) return QUANTRY_BAD_TARGET;
// The target is an argument of every exported function, so the library keeps no state and tests walk all targets in
// one process. Code in a KERNELS source sits between QUANTRY_BEGIN and QUANTRY_END (quantry/target.h): nothing that
// a header defines may be shared by two targets, or the linker might keep the copy with the wider instructions.
#pragma once
#include "status.h"

#define QUANTRY_EXPORT __attribute__((visibility("default")))

enum QuantryTarget { QUANTRY_SCALAR = 0, QUANTRY_AVX2 = 1, QUANTRY_AVX512 = 2, QUANTRY_NEON = 3, QUANTRY_TARGETS = 4 };

#define QUANTRY_CAT_(a, b) a##_##b
#define QUANTRY_CAT(a, b) QUANTRY_CAT_(a, b)
#define QUANTRY_TABLE(type, name)                                  \
  extern "C" {                                                     \
  extern const type QUANTRY_CAT(name, QUANTRY_TARGET);             \
  }                                                                \
  const type QUANTRY_CAT(name, QUANTRY_TARGET) =

#if defined(__x86_64__) || defined(_M_X64)

// libgcc's probe reads cpuid and xgetbv once, when the library is loaded; here it costs one load.
static inline int quantry_target_runs(int target) {
  switch (target) {
    case QUANTRY_SCALAR: return 1;
    case QUANTRY_AVX2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    case QUANTRY_AVX512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("avx512vnni");
    default: return 0;
  }
}
#define QUANTRY_DECLARE_TABLES(type, name) \
  extern "C" {                             \
  extern const type name##_scalar;         \
  extern const type name##_avx2;           \
  extern const type name##_avx512;         \
  }
#define QUANTRY_TABLE_FOR(name, target)                     \
  (!quantry_target_runs(target)   ? nullptr                 \
   : (target) == QUANTRY_AVX512   ? &name##_avx512          \
   : (target) == QUANTRY_AVX2     ? &name##_avx2            \
                                  : &name##_scalar)

#elif defined(__aarch64__)

#if defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
static inline int quantry_target_runs(int target) {
  if (target == QUANTRY_NEON) return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;   // the dot product instructions
  return target == QUANTRY_SCALAR;
}
#else   // every Apple core that runs 64-bit macOS has them
static inline int quantry_target_runs(int target) { return target == QUANTRY_SCALAR || target == QUANTRY_NEON; }
#endif
#define QUANTRY_DECLARE_TABLES(type, name) \
  extern "C" {                             \
  extern const type name##_scalar;         \
  extern const type name##_neon;           \
  }
#define QUANTRY_TABLE_FOR(name, target) \
  (!quantry_target_runs(target) ? nullptr : (target) == QUANTRY_NEON ? &name##_neon : &name##_scalar)

#else

static inline int quantry_target_runs(int target) { return target == QUANTRY_SCALAR; }
#define QUANTRY_DECLARE_TABLES(type, name) \
  extern "C" {                             \
  extern const type name##_scalar;         \
  }
#define QUANTRY_TABLE_FOR(name, target) (quantry_target_runs(target) ? &name##_scalar : nullptr)

#endif

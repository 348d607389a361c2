# quantry_add_library(name KERNELS a.cpp b.cpp ... ENTRY entry.cpp ...)
#   KERNELS: compiled once per instruction set, each time with -DQUANTRY_TARGET=<name of the set>; a source defines
#            tables of function pointers with QUANTRY_TABLE (quantry/dispatch.h).
#   ENTRY:   compiled once with the baseline's flags; declares the tables, picks one per call, exports the C ABI.
get_filename_component(QUANTRY_INCLUDE "${CMAKE_CURRENT_LIST_DIR}/../include" ABSOLUTE)
option(QUANTRY_SANITIZE "Build with AddressSanitizer and UBSan" OFF)
option(QUANTRY_WERROR "Treat warnings as errors (CI)" OFF)

if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  set(QUANTRY_TARGETS scalar avx2 avx512)
  set(QUANTRY_FLAGS_scalar -O1)   # for machines that hardly exist any more; -O2 took twice the time of the other targets
  set(QUANTRY_FLAGS_avx2 -mavx2 -mfma -mf16c)
  set(QUANTRY_FLAGS_avx512 ${QUANTRY_FLAGS_avx2} -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni
      -mprefer-vector-width=512 -Wno-uninitialized)   # GCC 12 warns inside its own AVX-512 headers
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64|ARM64)$")
  set(QUANTRY_TARGETS scalar neon)
  set(QUANTRY_FLAGS_neon -march=armv8.2-a+dotprod)
else()
  set(QUANTRY_TARGETS scalar)
endif()

function(quantry_add_library name)
  cmake_parse_arguments(A "" "" "KERNELS;ENTRY" ${ARGN})
  find_package(OpenMP REQUIRED COMPONENTS C CXX)
  # -O2: at -O3 GCC 12 spills the accumulators of the micro-kernels. No contraction: only written FMAs, so that
  # results agree between compilers and dequantized values are bit-equal to the formats' definition.
  set(common -O2 -fno-math-errno -ffp-contract=off -fvisibility=hidden -fvisibility-inlines-hidden -fno-exceptions
      -fno-rtti -fno-threadsafe-statics -fno-asynchronous-unwind-tables -Wall -Wextra -Wno-maybe-uninitialized)
  if(QUANTRY_WERROR)
    list(APPEND common -Werror)
  endif()
  if(QUANTRY_SANITIZE)
    # Buffers of torch and numpy lie on the heap. Checks of every inlined lambda's stack slot and pointer would make the
    # compiler run for ten minutes a file instead of one.
    list(APPEND common -O1 -g1 -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
         -fno-sanitize=null,alignment,object-size,pointer-overflow,vptr)
    if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
      list(APPEND common -fno-sanitize-address-use-after-scope --param=asan-stack=0)
    endif()
    add_link_options(-fsanitize=address,undefined)
  endif()
  add_library(${name} MODULE ${A_ENTRY})
  target_compile_definitions(${name} PRIVATE QUANTRY_TARGET=entry)
  target_compile_options(${name} PRIVATE ${common} ${OpenMP_CXX_FLAGS})
  target_include_directories(${name} PRIVATE ${QUANTRY_INCLUDE})
  foreach(t IN LISTS QUANTRY_TARGETS)
    add_library(${name}_${t} OBJECT ${A_KERNELS})
    target_compile_definitions(${name}_${t} PRIVATE QUANTRY_TARGET=${t})
    target_compile_options(${name}_${t} PRIVATE ${common} ${QUANTRY_FLAGS_${t}} ${OpenMP_CXX_FLAGS})
    target_include_directories(${name}_${t} PRIVATE ${QUANTRY_INCLUDE})
    set_target_properties(${name}_${t} PROPERTIES POSITION_INDEPENDENT_CODE ON CXX_STANDARD 17 CXX_STANDARD_REQUIRED ON)
    target_sources(${name} PRIVATE $<TARGET_OBJECTS:${name}_${t}>)
  endforeach()
  # Linked as C: a kernel that needs the C++ runtime fails here instead of at a user's.
  set_target_properties(${name} PROPERTIES PREFIX "" LINKER_LANGUAGE C CXX_STANDARD 17 CXX_STANDARD_REQUIRED ON)
  target_link_libraries(${name} PRIVATE OpenMP::OpenMP_C)
  if(UNIX AND NOT APPLE)
    target_link_options(${name} PRIVATE -Wl,--exclude-libs,ALL -Wl,-z,relro,-z,now)
    if(NOT QUANTRY_SANITIZE)   # the sanitizers' symbols come from LD_PRELOAD
      target_link_options(${name} PRIVATE -Wl,--no-undefined)
    endif()
  endif()
  install(TARGETS ${name} LIBRARY DESTINATION ${SKBUILD_PROJECT_NAME_UNDER}/_native)
endfunction()

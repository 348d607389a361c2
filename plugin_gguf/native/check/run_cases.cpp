// Runs the library's functions on cases read from a file and writes what they gave, so that a test can judge targets that
// have no Python here (NEON under qemu).
//
//   run_cases target cases.bin results.bin
//   case   = i64 type, exact, m, rows, columns | u8 blocks[rows · row bytes] | f32 x[m, columns] | f32 dy[m, rows]
//   result = u8 unpacked blocks, of types with panels | f32 y[m, rows] | f32 dx[m, columns] | f32 embedding[rows, columns]
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <vector>

#include "../cpu/ops.h"

extern "C" {
int quantry_gguf_type_sizes(int type, int* out);
int quantry_gguf_pack(int, int, int64_t, int64_t, int64_t, const void*, int64_t, void*, void*, void*, int64_t, int);
int quantry_gguf_unpack(int, int, int64_t, int64_t, int64_t, void*, int64_t, const void*, const void*, const void*,
                        int64_t, int);
int quantry_gguf_linear_scratch(const QuantryBoundLinear* const*, int, int64_t, int, int64_t*);
int quantry_gguf_linear_one(const QuantryBoundLinear*, int, int64_t, const void*, int64_t, const float*, void*, int, void*,
                            int64_t);
int quantry_gguf_linear_dx_scratch(int, int64_t, int64_t, int, int64_t*);
int quantry_gguf_linear_dx(int, int, int, int64_t, int64_t, int64_t, const void*, int64_t, const void*, const void*,
                           const void*, int64_t, void*, int, void*, int64_t);
int quantry_gguf_embedding(int, int, int, const int64_t*, int64_t, int64_t, int64_t, const void*, const void*, const void*,
                           int64_t, void*, int);
int quantry_gguf_embedding_rows(int, int, int, const int64_t*, int64_t, int64_t, int64_t, const void*, int64_t, void*, int);
}

namespace {

template <class T>
void read(FILE* f, std::vector<T>& values) {
  if (fread(values.data(), sizeof(T), values.size(), f) != values.size()) exit(3);
}
template <class T>
void write(FILE* f, const std::vector<T>& values) {
  fwrite(values.data(), sizeof(T), values.size(), f);
}
void must(int status) {
  if (status) {
    fprintf(stderr, "status %d\n", status);
    exit(1);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  const int target = atoi(argv[1]);
  FILE *in = fopen(argv[2], "rb"), *out = fopen(argv[3], "wb");
  if (!in || !out) return 2;
  int64_t header[5];
  while (fread(header, 8, 5, in) == 5) {
    const int type = static_cast<int>(header[0]), exact = static_cast<int>(header[1]);
    const int64_t m = header[2], rows = header[3], columns = header[4], panels = (rows + 15) / 16;
    int sizes[5];
    must(quantry_gguf_type_sizes(type, sizes));
    std::vector<uint8_t> blocks(rows * columns / sizes[0] * sizes[1]), back(blocks.size());
    std::vector<float> x(m * columns), dy(m * rows), y(m * rows), dx(m * columns), table(rows * columns);
    read(in, blocks);
    read(in, x);
    read(in, dy);
    std::vector<uint8_t> codes(panels * columns / 32 * sizes[2]), high(panels * columns / 32 * sizes[3]),
        meta(panels * columns / sizes[0] * sizes[4]);
    const int64_t bytes = codes.size() + high.size() + meta.size(), size = blocks.size();
    const bool panels_of_type = sizes[2] != 0;   // else the blocks stand in place of the codes
    if (panels_of_type) {
      must(quantry_gguf_pack(target, type, 1, rows, columns, blocks.data(), size, codes.data(), high.data(), meta.data(),
                             bytes, 2));
      must(quantry_gguf_unpack(target, type, 1, rows, columns, back.data(), size, codes.data(), high.data(), meta.data(),
                               bytes, 2));
      write(out, back);
    }
    const QuantryBoundLinear w{target, type, exact, 0, rows, columns, panels_of_type ? codes.data() : blocks.data(),
                               high.data(), meta.data(), panels_of_type ? bytes : size};
    const QuantryBoundLinear* list[] = {&w};
    int64_t need = 0;
    must(quantry_gguf_linear_scratch(list, 1, m, 2, &need));
    std::vector<char> scratch(need);
    must(quantry_gguf_linear_one(&w, 0, m, x.data(), columns, nullptr, y.data(), 2, scratch.data(), need));
    must(quantry_gguf_linear_dx_scratch(target, m, rows, 2, &need));
    scratch.resize(need);
    must(quantry_gguf_linear_dx(target, type, 0, m, rows, columns, dy.data(), rows, w.codes, w.high, w.meta, w.plane_bytes,
                                dx.data(), 2, scratch.data(), need));
    std::vector<int64_t> ids(rows);
    for (int64_t i = 0; i < rows; ++i) ids[i] = i;
    if (panels_of_type)
      must(quantry_gguf_embedding(target, type, 0, ids.data(), rows, rows, columns, w.codes, w.high, w.meta, w.plane_bytes,
                                  table.data(), 2));
    else
      must(quantry_gguf_embedding_rows(target, type, 0, ids.data(), rows, rows, columns, w.codes, w.plane_bytes,
                                       table.data(), 2));
    write(out, y);
    write(out, dx);
    write(out, table);
  }
  return fclose(out) ? 4 : 0;
}

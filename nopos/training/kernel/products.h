// Vectors of floats, and products of small matrices with all sums in registers.
//
// Every matrix is row-major. Rows are padded to whole vectors with zeros. Their stride is an odd number of vectors, so
// that the rows of a wide matrix do not all meet in the same sets of the cache; what it adds to that is never read.

#pragma once

#include <algorithm>
#include <cstdint>

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16, TILE_ROWS = 7, TILE_VECTORS = 4;
#elif defined(__AVX__)
constexpr int LANES = 8, TILE_ROWS = 6, TILE_VECTORS = 2;
#else
constexpr int LANES = 4, TILE_ROWS = 3, TILE_VECTORS = 3;
#endif
// A tile's sums leave registers for a row of the right factor and one number of the left. Found by timing: of AVX's
// sixteen, 6 by 2 reached 80 GFLOP/s a core where 4 by 3 reached 35.

typedef float Vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t Integers __attribute__((vector_size(4 * LANES)));

inline Vector &at(float *address) { return *reinterpret_cast<Vector *>(address); }
inline const Vector &at(const float *address) { return *reinterpret_cast<const Vector *>(address); }
inline Vector all(float value) { return Vector{} + value; }
inline long padded(long columns) { return (columns + LANES - 1) / LANES * LANES; }
inline long stride(long columns) { return padded(columns) | LANES; }

inline float sum(Vector values) {
    float total = 0;
    for (int lane = 0; lane < LANES; ++lane) total += values[lane];
    return total;
}

// The factor of which single numbers are taken: entry (row, step) is at[row * by_row + step * by_step].
struct Left {
    const float *at;
    long by_row, by_step;
};

// out [ROWS, VECTORS * LANES] (+)= left [ROWS, steps] right [steps, VECTORS * LANES], all sums in registers.
template <int ROWS, int VECTORS, bool ADD>
void tile(Left left, const float *right, long right_row, int steps, float *out, long out_row) {
    Vector sums[ROWS][VECTORS];
    for (int r = 0; r < ROWS; ++r)
        for (int v = 0; v < VECTORS; ++v) sums[r][v] = ADD ? at(out + r * out_row + v * LANES) : Vector{};
    for (int step = 0; step < steps; ++step)
        for (int r = 0; r < ROWS; ++r)
            for (int v = 0; v < VECTORS; ++v)
                sums[r][v] += left.at[r * left.by_row + step * left.by_step] * at(right + step * right_row + v * LANES);
    for (int r = 0; r < ROWS; ++r)
        for (int v = 0; v < VECTORS; ++v) at(out + r * out_row + v * LANES) = sums[r][v];
}

template <int ROWS, int VECTORS, bool ADD>
void tile_of(int rows, int vectors, Left left, const float *right, long right_row, int steps, float *out, long out_row) {
    if constexpr (ROWS > 1)
        if (rows < ROWS)
            return tile_of<ROWS - 1, VECTORS, ADD>(rows, vectors, left, right, right_row, steps, out, out_row);
    if constexpr (VECTORS > 1)
        if (vectors < VECTORS)
            return tile_of<ROWS, VECTORS - 1, ADD>(rows, vectors, left, right, right_row, steps, out, out_row);
    tile<ROWS, VECTORS, ADD>(left, right, right_row, steps, out, out_row);
}

// out [rows, columns] (+)= left [rows, steps] right [steps, columns]; the columns are padded to whole vectors.
template <bool ADD>
void multiply(int rows, int columns, int steps, Left left, const float *right, long right_row, float *out, long out_row) {
    const int tiles = (rows + TILE_ROWS - 1) / TILE_ROWS, vectors = int(padded(columns) / LANES);
    for (int v = 0; v < vectors; v += TILE_VECTORS)
        for (int t = 0; t < tiles; ++t) {  // of nearly one height: a last one of a single row would be slow
            const int first = int(long(rows) * t / tiles), height = int(long(rows) * (t + 1) / tiles) - first;
            tile_of<TILE_ROWS, TILE_VECTORS, ADD>(
                height, std::min(TILE_VECTORS, vectors - v), {left.at + first * left.by_row, left.by_row, left.by_step},
                right + v * LANES, right_row, steps, out + first * out_row + v * LANES, out_row);
        }
}

}  // namespace

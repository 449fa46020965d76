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
inline long stride_for(long columns) { return padded(columns) | LANES; }

inline float sum(Vector values) {
    float total = 0;
    for (int lane = 0; lane < LANES; ++lane) total += values[lane];
    return total;
}

// The factor of which single numbers are taken: entry (row, d) is first[row * by_row + d * by_depth].
struct Left {
    const float *first;
    long by_row, by_depth;
    Left from(int row) const { return {first + row * by_row, by_row, by_depth}; }
};

// Rows of a matrix, from one to the next of which it is `stride` numbers.
struct Rows {
    float *first;
    long stride;
    float *operator[](int number) const { return first + number * stride; }
    Rows from(int number) const { return {first + number * stride, stride}; }
    Left left() const { return {first, stride, 1}; }
    Left left_transposed() const { return {first, 1, stride}; }
};

// out [ROWS, VECTORS * LANES] (+)= left [ROWS, depth] right [depth, VECTORS * LANES], all sums in registers.
template <int ROWS, int VECTORS, bool ADD>
void tile(Left left, Rows right, int depth, Rows out) {
    Vector sums[ROWS][VECTORS];
    for (int r = 0; r < ROWS; ++r)
        for (int v = 0; v < VECTORS; ++v) sums[r][v] = ADD ? at(out[r] + v * LANES) : Vector{};
    for (int d = 0; d < depth; ++d)
        for (int r = 0; r < ROWS; ++r)
            for (int v = 0; v < VECTORS; ++v)
                sums[r][v] += left.first[r * left.by_row + d * left.by_depth] * at(right[d] + v * LANES);
    for (int r = 0; r < ROWS; ++r)
        for (int v = 0; v < VECTORS; ++v) at(out[r] + v * LANES) = sums[r][v];
}

template <int ROWS, int VECTORS, bool ADD>
void tile_of(int rows, int vectors, Left left, Rows right, int depth, Rows out) {
    if constexpr (ROWS > 1)
        if (rows < ROWS)
            return tile_of<ROWS - 1, VECTORS, ADD>(rows, vectors, left, right, depth, out);
    if constexpr (VECTORS > 1)
        if (vectors < VECTORS)
            return tile_of<ROWS, VECTORS - 1, ADD>(rows, vectors, left, right, depth, out);
    tile<ROWS, VECTORS, ADD>(left, right, depth, out);
}

// out [rows, columns] (+)= left [rows, depth] right [depth, columns]; the columns are padded to whole vectors.
template <bool ADD>
void multiply(int rows, int columns, int depth, Left left, Rows right, Rows out) {
    const int tiles = (rows + TILE_ROWS - 1) / TILE_ROWS, vectors = int(padded(columns) / LANES);
    for (int v = 0; v < vectors; v += TILE_VECTORS)
        for (int t = 0; t < tiles; ++t) {  // of nearly one height: a last one of a single row would be slow
            const int first = int(long(rows) * t / tiles), height = int(long(rows) * (t + 1) / tiles) - first;
            tile_of<TILE_ROWS, TILE_VECTORS, ADD>(height, std::min(TILE_VECTORS, vectors - v), left.from(first),
                                                  {right.first + v * LANES, right.stride}, depth,
                                                  {out[first] + v * LANES, out.stride});
        }
}

}  // namespace

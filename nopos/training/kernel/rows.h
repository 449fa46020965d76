// Rows of activations, and what is done to one row after another: copies, LayerNorm, softmax.

#pragma once

#include <cmath>

#include "products.h"

namespace {

constexpr float EPSILON = 1e-5f;  // LayerNorm's

inline float largest(Vector values) {
    float most = values[0];
    for (int lane = 1; lane < LANES; ++lane) most = std::max(most, values[lane]);
    return most;
}

// e to the power of values that are not positive: 2^n times a polynomial, to about 1e-7 of the value.
inline Vector exponential(Vector x) {
    x = x < -87.f ? all(-87.f) : x;
    const Vector n = (x * 1.44269504f + 12582912.f) - 12582912.f;  // 1.5 * 2^23 leaves no room for a fraction
    const Vector r = x - n * 0.693359375f + n * 2.12194440e-4f;
    Vector p = all(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    const Integers power = (__builtin_convertvector(n, Integers) + 127) << 23;
    return (p * r * r + r + 1.f) * reinterpret_cast<const Vector &>(power);
}

inline void copy(const float *from, float *to, int columns) {
    for (int c = 0; c < columns; c += LANES) at(to + c) = at(from + c);
}

inline void add(const float *from, float *to, int columns) {
    for (int c = 0; c < columns; c += LANES) at(to + c) += at(from + c);
}

inline void add_rows(int first, int end, Rows from, float *to, int columns) {
    for (int t = first; t < end; ++t) add(from[t], to, columns);
}

// [rows, columns] to [columns, rows], padded with zeros.
inline void transpose(int rows, int columns, Rows from, Rows to) {
    for (int c = 0; c < columns; ++c) {
        for (int r = 0; r < rows; ++r) to[c][r] = from[r][c];
        std::fill(to[c] + rows, to[c] + to.stride, 0.f);
    }
}

// LayerNorm without weight and bias, of rows from `first` to before `end`.
inline void normalize(int first, int end, int width, Rows in, Rows out, float *scale) {
    for (int t = first; t < end; ++t) {
        Vector total{}, squares{};
        for (int c = 0; c < width; c += LANES) total += at(in[t] + c);
        const float mean = sum(total) / width;
        for (int c = 0; c < width; c += LANES) at(out[t] + c) = at(in[t] + c) - mean;
        std::fill(out[t] + width, out[t] + padded(width), 0.f);
        for (int c = 0; c < width; c += LANES) squares += at(out[t] + c) * at(out[t] + c);
        scale[t] = 1.f / std::sqrt(sum(squares) / width + EPSILON);
        for (int c = 0; c < width; c += LANES) at(out[t] + c) *= scale[t];
    }
}

// Adds to `d_in` what `d_out`, the gradient by normalised rows, is for the rows.
inline void back_through_normalize(int first, int end, int width, Rows d_out, Rows out, const float *scale, Rows d_in) {
    for (int t = first; t < end; ++t) {
        Vector total{}, along{};
        for (int c = 0; c < width; c += LANES) {
            total += at(d_out[t] + c);
            along += at(d_out[t] + c) * at(out[t] + c);
        }
        const float mean = sum(total) / width, slope = sum(along) / width;
        for (int c = 0; c < width; c += LANES)
            at(d_in[t] + c) += scale[t] * (at(d_out[t] + c) - mean - slope * at(out[t] + c));
        std::fill(d_in[t] + width, d_in[t] + padded(width), 0.f);
    }
}

struct Softmax {
    float top, log_of_sum;  // the largest number, and the logarithm of the sum relative to it: a small loss needs both
};

// In place, over the first `count` of `columns` numbers; the others become 0.
inline Softmax softmax(float *row, int count, int columns) {
    std::fill(row + count, row + columns, -INFINITY);
    Vector most = at(row);
    for (int c = LANES; c < columns; c += LANES) most = most > at(row + c) ? most : at(row + c);
    const float top = largest(most);
    Vector total{};
    for (int c = 0; c < columns; c += LANES) total += at(row + c) = exponential(at(row + c) - top);
    std::fill(row + count, row + columns, 0.f);
    const float all_of_it = sum(total);
    for (int c = 0; c < columns; c += LANES) at(row + c) /= all_of_it;
    return {top, std::log(all_of_it)};
}

inline void back_through_softmax(const float *pattern, float *d_pattern, int columns) {
    Vector total{};
    for (int c = 0; c < columns; c += LANES) total += at(pattern + c) * at(d_pattern + c);
    const float mean = sum(total);
    for (int c = 0; c < columns; c += LANES) at(d_pattern + c) = at(pattern + c) * (at(d_pattern + c) - mean);
}

}  // namespace

// Newton-Schulz iteration: `orthogonalized` of `optimizer.py`.

#pragma once

#include "rows.h"

namespace {

// Brings the singular values of a matrix that is not taller than wide near 1. All are [rows, columns] or [rows, rows].
class NewtonSchulz {
  public:
    NewtonSchulz(int rows, int columns, float *scratch) : rows(rows), columns(columns), next(scratch) {
        X = matrix(rows, columns), product = matrix(rows, columns), transposed = matrix(columns, rows);
        gram = matrix(rows, rows), polynomial = matrix(rows, rows);
    }

    long used(const float *scratch) const { return next - scratch; }

    // `from` and `to` are not padded, and transposed if the matrix is.
    void operator()(float *from, bool is_transposed, const float *coefficients, int rounds, float *to) {
        load(from, is_transposed);
        for (int round = 0; round < rounds; ++round) iterate(coefficients[0], coefficients[1], coefficients[2]);
        store(to, is_transposed);
    }

  private:
    const int rows, columns;
    float *next;
    Rows X, product, transposed, gram, polynomial;

    Rows matrix(int rows, int columns) {
        const Rows made{next, stride_for(columns)};
        next += long(rows) * stride_for(columns);
        return made;
    }

    void load(float *from, bool is_transposed) {
        Vector squares{};
        if (is_transposed) transpose(columns, rows, {from, rows}, X);
        for (int r = 0; r < rows; ++r) {
            if (!is_transposed) std::copy_n(from + long(r) * columns, columns, X[r]);
            std::fill(X[r] + columns, X[r] + X.stride, 0.f);
            for (int c = 0; c < columns; c += LANES) squares += at(X[r] + c) * at(X[r] + c);
        }
        const float norm = std::max(std::sqrt(sum(squares)), 1e-7f);
        for (int r = 0; r < rows; ++r)
            for (int c = 0; c < columns; c += LANES) at(X[r] + c) /= norm;
    }

    // X to a X + (b G + c G G) X, where G is X X^T.
    void iterate(float a, float b, float c) {
        transpose(rows, columns, X, transposed);
        multiply<false>(rows, rows, columns, X.left(), transposed, gram);
        multiply<false>(rows, rows, rows, gram.left(), gram, polynomial);
        for (int r = 0; r < rows; ++r) {
            for (int k = 0; k < rows; k += LANES) at(polynomial[r] + k) = b * at(gram[r] + k) + c * at(polynomial[r] + k);
            polynomial[r][r] += a;
        }
        multiply<false>(rows, columns, rows, polynomial.left(), X, product);
        const Rows before = X;
        X = product, product = before;
    }

    void store(float *to, bool is_transposed) const {
        for (int r = 0; r < rows; ++r)
            for (int c = 0; c < columns; ++c) to[is_transposed ? long(c) * rows + r : long(r) * columns + c] = X[r][c];
    }
};

}  // namespace

// From a model's parameters to the weights that its sequences meet, and back: `_weights` of `ensemble.py`.

#pragma once

#include "model.h"
#include "rows.h"

namespace {

inline float dot(const float *left, const float *right, int count) {
    Vector sums{};
    int c = 0;
    for (; c + LANES <= count; c += LANES) sums += at(left + c) * at(right + c);
    float total = sum(sums);
    for (; c < count; ++c) total += left[c] * right[c];
    return total;
}

// One model's weights and their transposes, `transposed`.
class Weights {
  public:
    Weights(const Model &model, const Parameters<const float> &parameters, float *weights, float *transposed)
        : model(model), sizes(model.sizes), parameters(parameters), weights(weights), transposed(transposed) {}

    // A part is a layer's attention, its MLP, ..., the unembedding; the embedding goes with the first.
    void make(int part) {
        const int number = part / 2;
        if (part == 0) make_embedding();
        if (number == sizes.layers)
            fold(last(LN_FINAL_W), last(LN_FINAL_B), last(W_U), last(B_U), 1.f, model.unembed);
        else if (part % 2 == 0)
            make_attention(number);
        else {
            const Layer &layer = model.layers[number];
            fold(block(number, LN2_W), block(number, LN2_B), block(number, W_IN), block(number, B_IN), 1.f, layer.in);
            pad(block(number, W_OUT), layer.out.W);
            pad(block(number, B_OUT), layer.out.b);
        }
    }

    // What `gradients`, those by the weights, are by the parameters.
    void back(int part, float *gradients, const Parameters<float> &d_parameters) {
        this->gradients = gradients, this->d_parameters = &d_parameters;
        const int number = part / 2;
        if (number == sizes.layers) {
            clear(d_last(LN_FINAL_W)), clear(d_last(LN_FINAL_B));
            back_through_fold(last(LN_FINAL_W), last(LN_FINAL_B), last(W_U), 1.f, model.unembed, d_last(LN_FINAL_W),
                              d_last(LN_FINAL_B), d_last(W_U), d_last(B_U));
        } else if (part % 2 == 0)
            back_through_attention(number);
        else {
            const Layer &layer = model.layers[number];
            clear(d_block(number, LN2_W)), clear(d_block(number, LN2_B));
            back_through_fold(block(number, LN2_W), block(number, LN2_B), block(number, W_IN), 1.f, layer.in,
                              d_block(number, LN2_W), d_block(number, LN2_B), d_block(number, W_IN), d_block(number, B_IN));
            unpad(layer.out.W, d_block(number, W_OUT));
            unpad(layer.out.b, d_block(number, B_OUT));
        }
        if (part == 0) back_through_embedding();
    }

  private:
    const Model &model;
    const Sizes &sizes;
    const Parameters<const float> &parameters;
    float *weights, *transposed, *gradients = nullptr;
    const Parameters<float> *d_parameters = nullptr;

    const float *block(int layer, int name) const { return parameters.of_layer(layer, name); }
    const float *last(int name) const { return parameters.last(name, sizes.layers); }
    float *d_block(int layer, int name) const { return d_parameters->of_layer(layer, name); }
    float *d_last(int name) const { return d_parameters->last(name, sizes.layers); }
    Rows of(const Matrix &matrix) const { return {weights + matrix.first, matrix.stride}; }
    Rows transposed_of(const Matrix &matrix) const { return {transposed + matrix.transposed, matrix.transposed_stride}; }
    Rows gradient(const Matrix &matrix) const { return {gradients + matrix.first, matrix.stride}; }
    void clear(float *of_layer_norm) const { std::fill_n(of_layer_norm, sizes.d_model, 0.f); }

    // Where the products act they carry the scale of the scores in the keys, else the queries do.
    float scale() const { return 1.f / std::sqrt(float(sizes.d_head)); }
    float scale_of_queries() const { return sizes.products_act ? 1.f : scale(); }
    float scale_of_keys() const { return sizes.products_act ? scale() : 1.f; }
    long of_head(int head) const { return long(head) * sizes.d_model * sizes.d_head; }
    long bias_of_head(int head) const { return long(head) * sizes.d_head; }

    // -- forward --

    void make_embedding() {
        pad(parameters[W_E], model.embed);
        if (sizes.learned_positions) pad(parameters[W_POS], model.positions);
    }

    void make_attention(int number) {
        const Layer &layer = model.layers[number];
        const float *ln_w = block(number, LN1_W), *ln_b = block(number, LN1_B);
        for (int h = 0; h < sizes.heads; ++h) {
            const Head &head = layer.heads[h];
            const long W = of_head(h), b = bias_of_head(h);
            fold(ln_w, ln_b, block(number, W_Q) + W, block(number, B_Q) + b, scale_of_queries(), head.read_q);
            fold(ln_w, ln_b, block(number, W_K) + W, block(number, B_K) + b, scale_of_keys(), head.read_k);
            fold(ln_w, ln_b, block(number, W_V) + W, block(number, B_V) + b, 1.f, head.read_v);
            pad(block(number, W_O) + W, head.o);
            if (!sizes.products_act) continue;
            through(head.read_q, transposed_of(head.read_k.W), head.query);
            // A query's pattern sums to 1, so what is added to every value is added to what it gathers.
            through(head.read_v, of(head.o), head.value);
            for (int c = 0; c < sizes.d_model; ++c) of(head.value.b).first[c] += block(number, B_O)[c];
        }
        if (!sizes.products_act) pad(block(number, B_O), layer.o_bias);
        if (layer.knows_only_tokens) make_tables(layer);
    }

    // Every token's query, key and value.
    void make_tables(const Layer &layer) {
        const Rows read = of(layer.token_read);
        normalize(0, sizes.d_vocab, sizes.d_model, of(model.embed), read, of(layer.token_scale).first);
        for (const Head &head : layer.heads) {
            for_each_table(head, [&](const Affine &map, const Matrix &table) {
                for (int token = 0; token < sizes.d_vocab; ++token) copy(of(map.b).first, of(table)[token], table.columns);
                multiply<true>(sizes.d_vocab, table.columns, sizes.d_model, read.left(), of(map.W), of(table));
            });
        }
    }

    // Where the products act, a token's key is the token itself as it is read.
    template <class Function>
    void for_each_table(const Head &head, Function function) const {
        function(head.query, head.q.W);
        if (!sizes.products_act) function(head.key, head.k.W);
        function(head.value, head.v.W);
    }

    // The map that reads normalised rows as this one, of W and b, reads LayerNorm's output, times `scale`.
    void fold(const float *ln_w, const float *ln_b, const float *W, const float *b, float scale, const Affine &to) {
        const Rows out = of(to.W);
        float *const bias = of(to.b).first;
        const int columns = to.W.columns;
        std::fill_n(bias, to.b.stride, 0.f);
        std::copy_n(b, columns, bias);
        for (int r = 0; r < to.W.rows; ++r) {
            const float factor = scale * ln_w[r];
            for (int c = 0; c < columns; ++c) {
                out[r][c] = factor * W[long(r) * columns + c];
                bias[c] += ln_b[r] * W[long(r) * columns + c];
            }
            std::fill(out[r] + columns, out[r] + to.W.stride, 0.f);
        }
        for (int c = 0; c < columns; ++c) bias[c] *= scale;
        write_transpose(to.W);
    }

    // `left`, and then W.
    void through(const Affine &left, Rows W, const Affine &to) const {
        for (const auto &[from, out] : {std::pair{left.W, to.W}, std::pair{left.b, to.b}})
            multiply<false>(out.rows, out.columns, from.columns, of(from).left(), W, of(out));
        write_transpose(to.W);
    }

    void pad(const float *parameter, const Matrix &to) const {
        for (int r = 0; r < to.rows; ++r) {
            std::copy_n(parameter + long(r) * to.columns, to.columns, of(to)[r]);
            std::fill(of(to)[r] + to.columns, of(to)[r] + to.stride, 0.f);
        }
        write_transpose(to);
    }

    void write_transpose(const Matrix &matrix) const {
        if (matrix.transposed_stride) transpose(matrix.rows, matrix.columns, of(matrix), transposed_of(matrix));
    }

    // -- back --

    void back_through_attention(int number) {
        const Layer &layer = model.layers[number];
        if (layer.knows_only_tokens) back_through_tables(layer);
        const float *ln_w = block(number, LN1_W), *ln_b = block(number, LN1_B);
        float *const d_ln_w = d_block(number, LN1_W), *const d_ln_b = d_block(number, LN1_B);
        clear(d_ln_w), clear(d_ln_b);
        for (int h = 0; h < sizes.heads; ++h) {
            const Head &head = layer.heads[h];
            const long W = of_head(h), b = bias_of_head(h);
            if (sizes.products_act) {
                back_through_through(head.read_q, of(head.read_k.W), head.query);
                // By the right factor; of the queries it is the keys' transpose.
                add_products(gradients_of(head.query), sizes.d_model, rows_of(head.read_q), sizes.d_head,
                             gradient(head.read_k.W));
                back_through_through(head.read_v, transposed_of(head.o), head.value);
                add_products(rows_of(head.read_v), sizes.d_head, gradients_of(head.value), sizes.d_model, gradient(head.o));
                std::copy_n(gradient(head.value.b).first, sizes.d_model, d_block(number, B_O));
            }
            back_through_fold(ln_w, ln_b, block(number, W_Q) + W, scale_of_queries(), head.read_q, d_ln_w, d_ln_b,
                              d_block(number, W_Q) + W, d_block(number, B_Q) + b);
            back_through_fold(ln_w, ln_b, block(number, W_K) + W, scale_of_keys(), head.read_k, d_ln_w, d_ln_b,
                              d_block(number, W_K) + W, d_block(number, B_K) + b);
            back_through_fold(ln_w, ln_b, block(number, W_V) + W, 1.f, head.read_v, d_ln_w, d_ln_b,
                              d_block(number, W_V) + W, d_block(number, B_V) + b);
            unpad(head.o, d_block(number, W_O) + W);
        }
        if (!sizes.products_act) unpad(layer.o_bias, d_block(number, B_O));
    }

    void back_through_tables(const Layer &layer) {
        const Rows read = of(layer.token_read), d_read = gradient(layer.token_read);
        for (const Head &head : layer.heads) {
            for_each_table(head, [&](const Affine &map, const Matrix &table) {
                const Rows d_table = gradient(table);
                add_rows(0, sizes.d_vocab, d_table, gradient(map.b).first, table.columns);
                multiply<true>(sizes.d_model, table.columns, sizes.d_vocab, read.left_transposed(), d_table, gradient(map.W));
                multiply<true>(sizes.d_vocab, sizes.d_model, table.columns, d_table.left(), transposed_of(map.W), d_read);
            });
        }
        back_through_normalize(0, sizes.d_vocab, sizes.d_model, d_read, read, of(layer.token_scale).first,
                               gradient(model.embed));
    }

    // Adds the gradient by the left factor of `through`; `transposed_W` is the right one's transpose.
    void back_through_through(const Affine &left, Rows transposed_W, const Affine &out) const {
        for (const auto &[from, to] : {std::pair{out.W, left.W}, std::pair{out.b, left.b}})
            multiply<true>(to.rows, to.columns, from.columns, gradient(from).left(), transposed_W, gradient(to));
    }

    // A map's matrix and bias, or the gradients by them.
    struct Parts {
        Rows W, b;
    };
    Parts rows_of(const Affine &map) const { return {of(map.W), of(map.b)}; }
    Parts gradients_of(const Affine &map) const { return {gradient(map.W), gradient(map.b)}; }

    // Adds to `out` [columns, right_columns] the transpose of `left` times `right`, of matrices [d_model, ...] and biases.
    void add_products(Parts left, int columns, Parts right, int right_columns, Rows out) const {
        multiply<true>(columns, right_columns, sizes.d_model, left.W.left_transposed(), right.W, out);
        multiply<true>(columns, right_columns, 1, left.b.left_transposed(), right.b, out);
    }

    void back_through_fold(const float *ln_w, const float *ln_b, const float *W, float scale, const Affine &map,
                           float *d_ln_w, float *d_ln_b, float *d_W, float *d_b) const {
        const Rows d_map = gradient(map.W);
        const float *const d_bias = gradient(map.b).first;
        const int columns = map.W.columns;
        for (int r = 0; r < map.W.rows; ++r) {
            const float *const row = W + long(r) * columns;
            d_ln_w[r] += scale * dot(row, d_map[r], columns);
            d_ln_b[r] += scale * dot(row, d_bias, columns);
            for (int c = 0; c < columns; ++c)
                d_W[long(r) * columns + c] = scale * (ln_w[r] * d_map[r][c] + ln_b[r] * d_bias[c]);
        }
        for (int c = 0; c < columns; ++c) d_b[c] = scale * d_bias[c];
    }

    void back_through_embedding() const {
        unpad(model.embed, (*d_parameters)[W_E]);
        if (sizes.learned_positions) unpad(model.positions, (*d_parameters)[W_POS]);
    }

    void unpad(const Matrix &matrix, float *d_parameter) const {
        for (int r = 0; r < matrix.rows; ++r)
            std::copy_n(gradient(matrix)[r], matrix.columns, d_parameter + long(r) * matrix.columns);
    }
};

}  // namespace

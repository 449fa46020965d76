// What a model's numbers are called and where they lie: as parameters, and as the weights that a sequence meets.

#pragma once

#include <utility>
#include <vector>

#include "products.h"

extern "C" struct Sizes {  // as `fused.py` gives them
    int32_t models, batch, pos, first, layers, heads, d_model, d_head, d_mlp, d_vocab;
    int32_t learned_positions, causal, products_act, threads;
};

namespace {

// Parameters in the order of `parameter_shapes`: two, sixteen of each layer, four.
enum { W_E, W_POS, FIRST_LAYER };
enum { LN1_W, LN1_B, W_Q, W_K, W_V, B_Q, B_K, B_V, W_O, B_O, LN2_W, LN2_B, W_IN, B_IN, W_OUT, B_OUT, OF_LAYER };
enum { LN_FINAL_W, LN_FINAL_B, W_U, B_U, OF_END };

// Where one model's parameters, or the gradients by them, begin; rows are not padded.
template <class Number>
struct Parameters {
    std::vector<Number *> first;
    Number *operator[](int name) const { return first[name]; }
    Number *of_layer(int layer, int name) const { return first[FIRST_LAYER + layer * OF_LAYER + name]; }
    Number *last(int name, int layers) const { return first[FIRST_LAYER + layers * OF_LAYER + name]; }
};

// A matrix among a model's weights: `at` is where it begins, in the weights as in the gradients by them.
struct Matrix {
    int rows, columns;
    long first, stride;
    long transposed, transposed_stride;  // its transpose among the transposed weights, if it has one there
};

struct Affine {
    Matrix W, b;
};

struct Head {
    Affine q, k, v;  // what a sequence meets; where a layer knows only tokens, tables by token, without biases
    Matrix o;
    // What these are made of: LayerNorm's output to queries, keys and values of the head ...
    Affine read_q, read_k, read_v;
    // ... and to what rows meet, which is the same unless the products W_Q W_K^T and W_V W_O act.
    Affine query, key, value;
};

struct Layer {
    bool knows_only_tokens;
    std::vector<Head> heads;
    Matrix o_bias;
    Affine in, out;
    Matrix token_read, token_scale;  // the embedding, normalised, and by what; with `knows_only_tokens` alone
};

// The weights of one model. First come those that a sequence meets: each block of sequences has gradients of its own by
// them. Then come those of which these are made.
class Model {
  public:
    Sizes sizes;
    long met = 0, numbers = 0, transposed_numbers = 0;
    Matrix embed, positions;
    Affine unembed;
    std::vector<Layer> layers;
    std::vector<long> ends;  // where the weights of each part end: a layer's attention, its MLP, ..., the unembedding

    explicit Model(const Sizes &given) : sizes(given) {
        embed = matrix(sizes.d_vocab, sizes.d_model);
        if (sizes.learned_positions) positions = matrix(sizes.pos, sizes.d_model);
        for (int number = 0; number < sizes.layers; ++number) {
            layers.push_back({number == 0 && !sizes.learned_positions, std::vector<Head>(sizes.heads), {}, {}, {}, {}, {}});
            met_by_attention(layers.back());
            ends.push_back(numbers);
            layers.back().in = affine(sizes.d_model, sizes.d_mlp);
            layers.back().out = affine(sizes.d_mlp, sizes.d_model);
            ends.push_back(numbers);
        }
        unembed = affine(sizes.d_model, sizes.d_vocab);
        ends.push_back(numbers);
        met = numbers;
        for (Layer &layer : layers) made_for_attention(layer);
    }

    int parts() const { return int(ends.size()); }
    // Columns of queries, keys and values as rows meet them.
    int width() const { return sizes.products_act ? sizes.d_model : sizes.d_head; }

  private:
    Matrix matrix(int rows, int columns, bool is_transposed = false) {
        const Matrix made{rows, columns, numbers, stride_for(columns), transposed_numbers, is_transposed ? stride_for(rows) : 0};
        numbers += rows * made.stride;
        transposed_numbers += columns * made.transposed_stride;
        return made;
    }

    Affine affine(int rows, int columns) {
        const Matrix W = matrix(rows, columns, true);
        return {W, matrix(1, columns)};
    }

    void met_by_attention(Layer &layer) {
        for (Head &head : layer.heads) {
            const bool keys_are_rows = sizes.products_act && !layer.knows_only_tokens;
            for (Affine *each : {&head.q, &head.k, &head.v})
                if (each != &head.k || !keys_are_rows)
                    *each = layer.knows_only_tokens ? Affine{matrix(sizes.d_vocab, width()), {}}
                                                    : affine(sizes.d_model, width());
            if (!sizes.products_act) head.o = matrix(sizes.d_head, sizes.d_model, true);
        }
        if (!sizes.products_act) layer.o_bias = matrix(1, sizes.d_model);
    }

    void made_for_attention(Layer &layer) {
        for (Head &head : layer.heads) {
            head.query = head.q, head.key = head.k, head.value = head.v;
            if (layer.knows_only_tokens)
                for (Affine *each : {&head.query, &head.key, &head.value})
                    if (each != &head.key || !sizes.products_act) *each = affine(sizes.d_model, width());
            head.read_q = head.query, head.read_k = head.key, head.read_v = head.value;
            if (sizes.products_act) {
                for (Affine *each : {&head.read_q, &head.read_k, &head.read_v}) *each = affine(sizes.d_model, sizes.d_head);
                head.o = matrix(sizes.d_head, sizes.d_model, true);
            }
        }
        if (!layer.knows_only_tokens) return;
        layer.token_read = sizes.products_act ? layer.heads[0].k.W : matrix(sizes.d_vocab, sizes.d_model);
        layer.token_scale = matrix(1, sizes.d_vocab);
    }
};

}  // namespace

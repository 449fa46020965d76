// One sequence, forward and back: each stage of the model has the name that it has in `model/transformer.py`.

#pragma once

#include "model.h"
#include "rows.h"

namespace {

struct HeadRows {
    Rows q, k, v, transposed, pattern, z;
};

struct LayerRows {
    Rows read, read_again;  // the residual stream, normalised: what attention and what the MLP read
    float *scale, *scale_again;
    std::vector<HeadRows> heads;
    Rows hidden;
};

// Forward and back through one sequence. `weights` and `transposed` are a model's; `gradients` lie as the weights do.
class Sequence {
  public:
    Sequence(const Model &model, float *scratch) : model(model), sizes(model.sizes), next(scratch) {
        for (int layer = 0; layer < sizes.layers; ++layer) {
            LayerRows made{rows(sizes.d_model), rows(sizes.d_model), numbers(sizes.pos), numbers(sizes.pos), {}, {}};
            for (int head = 0; head < sizes.heads; ++head)
                made.heads.push_back({rows(model.width()), rows(model.width()), rows(model.width()),
                                      {numbers(long(model.width()) * stride_for(sizes.pos)), stride_for(sizes.pos)},
                                      rows(sizes.pos), rows(model.width())});
            made.hidden = rows(sizes.d_mlp);
            layers.push_back(made);
        }
        residual = rows(sizes.d_model), d_residual = rows(sizes.d_model), d_read = rows(sizes.d_model);
        read = rows(sizes.d_model), scale = numbers(sizes.pos), logits = rows(sizes.d_vocab);
        d_hidden = rows(sizes.d_mlp), d_pattern = rows(sizes.pos);
        d_q = rows(model.width()), d_k = rows(model.width()), d_v = rows(model.width()), d_z = rows(model.width());
    }

    long used(const float *scratch) const { return next - scratch; }

    // Adds the sequence's gradients times `share`; gives the sum of its losses in nats.
    double losses_and_gradients(float *weights, float *transposed, const int64_t *tokens, const int64_t *wanted,
                                float share, float *gradients) {
        this->weights = weights, this->transposed = transposed, this->gradients = gradients, this->tokens = tokens;
        embed();
        for (int layer = 0; layer < sizes.layers; ++layer) {
            attention(layer);
            mlp(layer);
        }
        const double loss = unembed(wanted, share);
        back_through_unembed();
        for (int layer = sizes.layers - 1; layer >= 0; --layer) {
            back_through_mlp(layer);
            back_through_attention(layer);
        }
        back_through_embed();
        return loss;
    }

  private:
    const Model &model;
    const Sizes &sizes;
    float *next;
    std::vector<LayerRows> layers;
    Rows residual, read, logits, d_residual, d_read, d_hidden, d_pattern, d_q, d_k, d_v, d_z;
    float *scale;
    float *weights, *transposed, *gradients;
    const int64_t *tokens;

    float *numbers(long count) {
        float *made = next;
        next += padded(count);
        return made;
    }
    Rows rows(int columns) { return {numbers(sizes.pos * stride_for(columns)), stride_for(columns)}; }
    // The weights are only read; Rows are of numbers that can be written.
    Rows of(const Matrix &matrix) const { return {weights + matrix.first, matrix.stride}; }
    Rows transposed_of(const Matrix &matrix) const { return {transposed + matrix.transposed, matrix.transposed_stride}; }
    Rows gradient(const Matrix &matrix) const { return {gradients + matrix.first, matrix.stride}; }
    // The last layer's MLP and the logits exist only where something is to be predicted.
    int first_in_mlp(int layer) const { return layer == sizes.layers - 1 ? sizes.first : 0; }

    // -- forward --

    void embed() {
        for (int t = 0; t < sizes.pos; ++t) {
            copy(of(model.embed)[tokens[t]], residual[t], sizes.d_model);
            if (sizes.learned_positions) add(of(model.positions)[t], residual[t], sizes.d_model);
        }
    }

    void attention(int number) {
        const Layer &layer = model.layers[number];
        LayerRows &kept = layers[number];
        if (!layer.knows_only_tokens) normalize_residual(0, kept.read, kept.scale);
        if (!sizes.products_act)
            for (int t = 0; t < sizes.pos; ++t) add(of(layer.o_bias).first, residual[t], sizes.d_model);
        for (int h = 0; h < sizes.heads; ++h) {
            const Head &head = layer.heads[h];
            HeadRows &own = kept.heads[h];
            project(layer, head.q, kept.read, own.q);
            project(layer, head.v, kept.read, own.v);
            if (sizes.products_act && !layer.knows_only_tokens) own.k = kept.read;
            else project(layer, head.k, kept.read, own.k);
            attend(own);
            if (sizes.products_act)
                for (int t = 0; t < sizes.pos; ++t) add(own.z[t], residual[t], sizes.d_model);
            else
                multiply<true>(sizes.pos, sizes.d_model, model.width(), own.z.left(), of(head.o), residual);
        }
    }

    void project(const Layer &layer, const Affine &map, Rows read, Rows out) {
        if (layer.knows_only_tokens)
            for (int t = 0; t < sizes.pos; ++t) copy(of(map.W)[tokens[t]], out[t], map.W.columns);
        else
            affine(0, map, read, out);
    }

    // Softmax attention; the queries come scaled. Bands of queries skip the keys that the causal mask hides from all.
    void attend(HeadRows &head) {
        transpose(sizes.pos, model.width(), head.k, head.transposed);
        for (int low = 0, high; low < sizes.pos; low = high) {
            high = band_end(low);
            const int keys = seen(high);
            multiply<false>(high - low, keys, model.width(), head.q.from(low).left(), head.transposed,
                            head.pattern.from(low));
            for (int query = low; query < high; ++query) softmax(head.pattern[query], seen(query + 1), padded(keys));
            multiply<false>(high - low, model.width(), keys, head.pattern.from(low).left(), head.v, head.z.from(low));
        }
    }

    int band_end(int low) const { return sizes.causal ? std::min(low + LANES, sizes.pos) : sizes.pos; }
    int seen(int high) const { return sizes.causal ? high : sizes.pos; }
    int first_to_see(int key) const { return sizes.causal ? key : 0; }

    void mlp(int number) {
        const Layer &layer = model.layers[number];
        LayerRows &kept = layers[number];
        const int first = first_in_mlp(number), count = sizes.pos - first;
        normalize_residual(first, kept.read_again, kept.scale_again);
        affine(first, layer.in, kept.read_again, kept.hidden);
        for (int t = first; t < sizes.pos; ++t)
            for (int c = 0; c < sizes.d_mlp; c += LANES) {
                Vector &value = at(kept.hidden[t] + c);
                value = value > 0.f ? value : Vector{};
            }
        for (int t = first; t < sizes.pos; ++t) add(of(layer.out.b).first, residual[t], sizes.d_model);
        multiply<true>(count, sizes.d_model, sizes.d_mlp, kept.hidden.from(first).left(), of(layer.out.W),
                       residual.from(first));
    }

    // The sum of the losses; leaves their gradient by logit in place of the logits.
    double unembed(const int64_t *wanted, float share) {
        normalize_residual(sizes.first, read, scale);
        affine(sizes.first, model.unembed, read, logits);
        double total = 0;
        for (int t = sizes.first; t < sizes.pos; ++t) {
            float *row = logits[t];
            const int64_t right = wanted[t - sizes.first];
            const float logit = row[right];
            const Softmax found = softmax(row, sizes.d_vocab, padded(sizes.d_vocab));
            total += double(found.top - logit) + found.log_of_sum;
            row[right] -= 1.f;
            for (int c = 0; c < sizes.d_vocab; c += LANES) at(row + c) *= share;
        }
        return total;
    }

    // -- back --

    void back_through_unembed() {
        back_through_affine(sizes.first, model.unembed, read, logits);
        for (int t = 0; t < sizes.pos; ++t) std::fill_n(d_residual[t], padded(sizes.d_model), 0.f);
        back_to_rows<false>(sizes.first, model.unembed.W, logits, d_read);
        back_to_residual(sizes.first, read, scale);
    }

    void back_through_mlp(int number) {
        const Layer &layer = model.layers[number];
        LayerRows &kept = layers[number];
        const int first = first_in_mlp(number);
        back_through_affine(first, layer.out, kept.hidden, d_residual);
        back_to_rows<false>(first, layer.out.W, d_residual, d_hidden);
        for (int t = first; t < sizes.pos; ++t)
            for (int c = 0; c < sizes.d_mlp; c += LANES) {
                Vector &value = at(d_hidden[t] + c);
                value = at(kept.hidden[t] + c) > 0.f ? value : Vector{};
            }
        back_through_affine(first, layer.in, kept.read_again, d_hidden);
        back_to_rows<false>(first, layer.in.W, d_hidden, d_read);
        back_to_residual(first, kept.read_again, kept.scale_again);
    }

    void back_through_attention(int number) {
        const Layer &layer = model.layers[number];
        LayerRows &kept = layers[number];
        if (!sizes.products_act) add_rows(0, sizes.pos, d_residual, gradient(layer.o_bias).first, sizes.d_model);
        if (!layer.knows_only_tokens)
            for (int t = 0; t < sizes.pos; ++t) std::fill_n(d_read[t], padded(sizes.d_model), 0.f);
        for (int h = 0; h < sizes.heads; ++h) {
            const Head &head = layer.heads[h];
            HeadRows &own = kept.heads[h];
            Rows written = d_residual;
            if (!sizes.products_act) {
                multiply<true>(model.width(), sizes.d_model, sizes.pos, own.z.left_transposed(), d_residual,
                               gradient(head.o));
                back_to_rows<false>(0, head.o, d_residual, d_z);
                written = d_z;
            }
            back_through_attend(own, written);
            back_through_project(layer, head.q, kept.read, d_q);
            back_through_project(layer, head.v, kept.read, d_v);
            if (sizes.products_act && !layer.knows_only_tokens)
                for (int t = 0; t < sizes.pos; ++t) add(d_k[t], d_read[t], sizes.d_model);
            else
                back_through_project(layer, head.k, kept.read, d_k);
        }
        if (!layer.knows_only_tokens) back_to_residual(0, kept.read, kept.scale);
    }

    void back_through_attend(HeadRows &head, Rows d_written) {
        const int width = model.width();
        transpose(sizes.pos, width, head.v, head.transposed);
        for (int low = 0, high; low < sizes.pos; low = high) {
            high = band_end(low);
            const int keys = seen(high), query = first_to_see(low), queries = sizes.pos - query;
            multiply<false>(high - low, keys, width, d_written.from(low).left(), head.transposed, d_pattern.from(low));
            multiply<false>(high - low, width, queries, head.pattern.from(query).left_transposed().from(low),
                            d_written.from(query), d_v.from(low));
            for (int t = low; t < high; ++t) back_through_softmax(head.pattern[t], d_pattern[t], padded(keys));
            multiply<false>(high - low, width, keys, d_pattern.from(low).left(), head.k, d_q.from(low));
        }
        for (int low = 0, high; low < sizes.pos; low = high) {  // by key, now that all queries have their gradients
            high = band_end(low);
            const int query = first_to_see(low);
            multiply<false>(high - low, width, sizes.pos - query, d_pattern.from(query).left_transposed().from(low),
                            head.q.from(query), d_k.from(low));
        }
    }

    void back_through_project(const Layer &layer, const Affine &map, Rows read, Rows d_out) {
        if (layer.knows_only_tokens) {
            for (int t = 0; t < sizes.pos; ++t) add(d_out[t], gradient(map.W)[tokens[t]], map.W.columns);
            return;
        }
        back_through_affine(0, map, read, d_out);
        back_to_rows<true>(0, map.W, d_out, d_read);
    }

    void back_through_embed() {
        for (int t = 0; t < sizes.pos; ++t) {
            add(d_residual[t], gradient(model.embed)[tokens[t]], sizes.d_model);
            if (sizes.learned_positions)
                add(d_residual[t], gradient(model.positions)[t], sizes.d_model);
        }
    }

    // -- what stages share --

    void affine(int first, const Affine &map, Rows in, Rows out) const {
        for (int t = first; t < sizes.pos; ++t) copy(of(map.b).first, out[t], map.W.columns);
        multiply<true>(sizes.pos - first, map.W.columns, map.W.rows, in.from(first).left(), of(map.W), out.from(first));
    }

    void back_through_affine(int first, const Affine &map, Rows in, Rows d_out) const {
        add_rows(first, sizes.pos, d_out, gradient(map.b).first, map.W.columns);
        multiply<true>(map.W.rows, map.W.columns, sizes.pos - first, in.from(first).left_transposed(), d_out.from(first),
                       gradient(map.W));
    }

    template <bool ADD>
    void back_to_rows(int first, const Matrix &W, Rows d_out, Rows d_in) const {
        multiply<ADD>(sizes.pos - first, W.rows, W.columns, d_out.from(first).left(), transposed_of(W), d_in.from(first));
    }

    void normalize_residual(int first, Rows out, float *scale) const {
        normalize(first, sizes.pos, sizes.d_model, residual, out, scale);
    }

    void back_to_residual(int first, Rows normalized, const float *scale) const {
        back_through_normalize(first, sizes.pos, sizes.d_model, d_read, normalized, scale, d_residual);
    }
};

}  // namespace

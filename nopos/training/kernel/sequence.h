// One sequence, forward and back: each stage of the model has the name that it has in `model/transformer.py`.

#pragma once

#include "model.h"
#include "rows.h"

namespace {

struct HeadRows {
    Rows q, k, v, turned, pattern, z;
};

struct LayerRows {
    Rows read, read_again;  // the residual stream, normalised: what attention and what the MLP read
    float *scale, *scale_again;
    std::vector<HeadRows> heads;
    Rows hidden;
};

// Forward and back through one sequence. `weights` and their transposes, `turned`, are a model's; `gradients` lie as the
// weights do.
class Sequence {
  public:
    Sequence(const Model &model, float *scratch) : model(model), sizes(model.sizes), next(scratch) {
        for (int layer = 0; layer < sizes.layers; ++layer) {
            LayerRows made{rows(sizes.d_model), rows(sizes.d_model), numbers(sizes.pos), numbers(sizes.pos), {}, {}};
            for (int head = 0; head < sizes.heads; ++head)
                made.heads.push_back({rows(model.width()), rows(model.width()), rows(model.width()),
                                      {numbers(long(model.width()) * stride(sizes.pos)), stride(sizes.pos)},
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
    double losses_and_gradients(const float *weights, const float *turned, const int64_t *tokens, const int64_t *wanted,
                                float share, float *gradients) {
        this->weights = weights, this->turned = turned, this->gradients = gradients, this->tokens = tokens;
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
    const float *weights, *turned;
    float *gradients;
    const int64_t *tokens;

    float *numbers(long count) {
        float *made = next;
        next += padded(count);
        return made;
    }
    Rows rows(int columns) { return {numbers(sizes.pos * stride(columns)), stride(columns)}; }
    const float *of(const Matrix &matrix) const { return weights + matrix.at; }
    float *gradient(const Matrix &matrix) const { return gradients + matrix.at; }
    // The last layer's MLP and the logits exist only where something is to be predicted.
    int first_in_mlp(int layer) const { return layer == sizes.layers - 1 ? sizes.first : 0; }

    // -- forward --

    void embed() {
        for (int t = 0; t < sizes.pos; ++t) {
            copy(of(model.embed) + tokens[t] * model.embed.row, residual[t], sizes.d_model);
            if (sizes.learned_positions) add(of(model.positions) + t * model.positions.row, residual[t], sizes.d_model);
        }
    }

    void attention(int number) {
        const Layer &layer = model.layers[number];
        LayerRows &kept = layers[number];
        if (!layer.knows_only_tokens) normalize_residual(0, kept.read, kept.scale);
        if (!sizes.products_act)
            for (int t = 0; t < sizes.pos; ++t) add(of(layer.o_bias), residual[t], sizes.d_model);
        for (int h = 0; h < sizes.heads; ++h) {
            const Head &head = layer.heads[h];
            HeadRows &rows = kept.heads[h];
            project(layer, head.q, kept.read, rows.q);
            project(layer, head.v, kept.read, rows.v);
            if (sizes.products_act && !layer.knows_only_tokens) rows.k = kept.read;
            else project(layer, head.k, kept.read, rows.k);
            attend(rows);
            if (sizes.products_act)
                for (int t = 0; t < sizes.pos; ++t) add(rows.z[t], residual[t], sizes.d_model);
            else
                multiply<true>(sizes.pos, sizes.d_model, model.width(), rows.z.left(), of(head.o), head.o.row, residual.at,
                               residual.row);
        }
    }

    void project(const Layer &layer, const Affine &map, Rows read, Rows out) {
        if (layer.knows_only_tokens)
            for (int t = 0; t < sizes.pos; ++t) copy(of(map.W) + tokens[t] * map.W.row, out[t], map.W.columns);
        else
            affine(0, map, read, out);
    }

    // Softmax attention; the queries come scaled. Bands of queries skip the keys that the causal mask hides from all.
    void attend(HeadRows &head) {
        transpose(sizes.pos, model.width(), head.k.at, head.k.row, head.turned);
        for (int low = 0, high; low < sizes.pos; low = high) {
            high = band_end(low);
            const int keys = seen(high);
            multiply<false>(high - low, keys, model.width(), head.q.from(low).left(), head.turned.at, head.turned.row,
                            head.pattern[low], head.pattern.row);
            for (int query = low; query < high; ++query) softmax(head.pattern[query], seen(query + 1), padded(keys));
            multiply<false>(high - low, model.width(), keys, head.pattern.from(low).left(), head.v.at, head.v.row,
                            head.z[low], head.z.row);
        }
    }

    int band_end(int low) const { return sizes.causal ? std::min(low + LANES, sizes.pos) : sizes.pos; }
    int seen(int high) const { return sizes.causal ? high : sizes.pos; }

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
        for (int t = first; t < sizes.pos; ++t) add(of(layer.out.b), residual[t], sizes.d_model);
        multiply<true>(count, sizes.d_model, sizes.d_mlp, kept.hidden.from(first).left(), of(layer.out.W), layer.out.W.row,
                       residual[first], residual.row);
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
        if (!sizes.products_act) add_rows(0, sizes.pos, d_residual, gradient(layer.o_bias), sizes.d_model);
        if (!layer.knows_only_tokens)
            for (int t = 0; t < sizes.pos; ++t) std::fill_n(d_read[t], padded(sizes.d_model), 0.f);
        for (int h = 0; h < sizes.heads; ++h) {
            const Head &head = layer.heads[h];
            HeadRows &rows = kept.heads[h];
            Rows written = d_residual;
            if (!sizes.products_act) {
                multiply<true>(model.width(), sizes.d_model, sizes.pos, rows.z.transposed(), d_residual.at, d_residual.row,
                               gradient(head.o), head.o.row);
                back_to_rows<false>(0, head.o, d_residual, d_z);
                written = d_z;
            }
            back_through_attend(rows, written);
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
        transpose(sizes.pos, model.width(), head.v.at, head.v.row, head.turned);
        for (int low = 0, high; low < sizes.pos; low = high) {
            high = band_end(low);
            const int keys = seen(high);
            multiply<false>(high - low, keys, model.width(), d_written.from(low).left(), head.turned.at, head.turned.row,
                            d_pattern[low], d_pattern.row);
            multiply<false>(high - low, model.width(), sizes.pos - (sizes.causal ? low : 0),
                            {head.pattern[sizes.causal ? low : 0] + low, 1, head.pattern.row},
                            d_written[sizes.causal ? low : 0], d_written.row, d_v[low], d_v.row);
            for (int query = low; query < high; ++query)
                back_through_softmax(head.pattern[query], d_pattern[query], padded(keys));
            multiply<false>(high - low, model.width(), keys, d_pattern.from(low).left(), head.k.at, head.k.row, d_q[low],
                            d_q.row);
        }
        for (int low = 0, high; low < sizes.pos; low = high) {  // by key: from the queries that see it
            high = band_end(low);
            const int query = sizes.causal ? low : 0;
            multiply<false>(high - low, model.width(), sizes.pos - query, {d_pattern[query] + low, 1, d_pattern.row},
                            head.q[query], head.q.row, d_k[low], d_k.row);
        }
    }

    void back_through_project(const Layer &layer, const Affine &map, Rows read, Rows d_out) {
        if (layer.knows_only_tokens) {
            for (int t = 0; t < sizes.pos; ++t) add(d_out[t], gradient(map.W) + tokens[t] * map.W.row, map.W.columns);
            return;
        }
        back_through_affine(0, map, read, d_out);
        back_to_rows<true>(0, map.W, d_out, d_read);
    }

    void back_through_embed() {
        for (int t = 0; t < sizes.pos; ++t) {
            add(d_residual[t], gradient(model.embed) + tokens[t] * model.embed.row, sizes.d_model);
            if (sizes.learned_positions)
                add(d_residual[t], gradient(model.positions) + t * model.positions.row, sizes.d_model);
        }
    }

    // -- what stages share --

    void affine(int first, const Affine &map, Rows in, Rows out) const {
        for (int t = first; t < sizes.pos; ++t) copy(of(map.b), out[t], map.W.columns);
        multiply<true>(sizes.pos - first, map.W.columns, map.W.rows, in.from(first).left(), of(map.W), map.W.row, out[first],
                       out.row);
    }

    void back_through_affine(int first, const Affine &map, Rows in, Rows d_out) const {
        add_rows(first, sizes.pos, d_out, gradient(map.b), map.W.columns);
        multiply<true>(map.W.rows, map.W.columns, sizes.pos - first, in.from(first).transposed(), d_out[first], d_out.row,
                       gradient(map.W), map.W.row);
    }

    template <bool ADD>
    void back_to_rows(int first, const Matrix &W, Rows d_out, Rows d_in) const {
        multiply<ADD>(sizes.pos - first, W.rows, W.columns, d_out.from(first).left(), turned + W.turned, W.turned_row,
                      d_in[first], d_in.row);
    }

    void normalize_residual(int first, Rows out, float *scale) const {
        normalize(first, sizes.pos, sizes.d_model, residual, out, scale);
    }

    void back_to_residual(int first, Rows normalized, const float *scale) const {
        back_through_normalize(first, sizes.pos, sizes.d_model, d_read, normalized, scale, d_residual);
    }
};

}  // namespace

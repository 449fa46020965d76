// Losses and gradients of stacked models, a sequence at a time: what `ensemble` computes, inside the cache.
//
// A thread takes one sequence forward and back while its activations and the weights lie near the core. Sequences form
// blocks of a fixed size. A block's gradients are summed in the order of its sequences, and the blocks' in their order,
// so the sums depend neither on the number of threads nor on the models beside one.
//
// Every matrix is row-major. Rows are padded to whole vectors with zeros, and their stride is an odd number of vectors,
// so that the rows of a wide matrix do not all meet in the same sets of the cache.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <omp.h>
#include <vector>

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16, TILE_ROWS = 7, TILE_VECTORS = 4;
#elif defined(__AVX__)
constexpr int LANES = 8, TILE_ROWS = 4, TILE_VECTORS = 3;
#else
constexpr int LANES = 4, TILE_ROWS = 3, TILE_VECTORS = 3;
#endif
// A tile's sums fill the registers, but for a row of the right factor and one number of the left.

constexpr float EPSILON = 1e-5f;                    // LayerNorm's
constexpr int SMALLEST_BLOCK = 8, MOST_BLOCKS = 16; // sequences in a block, blocks in a batch

typedef float Vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t Integers __attribute__((vector_size(4 * LANES)));

inline Vector &at(float *address) { return *reinterpret_cast<Vector *>(address); }
inline const Vector &at(const float *address) { return *reinterpret_cast<const Vector *>(address); }
inline Vector all(float value) { return Vector{} + value; }
inline int padded(int columns) { return (columns + LANES - 1) / LANES * LANES; }
inline int stride(int columns) { return padded(columns) | LANES; }

inline float sum(Vector values) {
    float total = 0;
    for (int lane = 0; lane < LANES; ++lane) total += values[lane];
    return total;
}

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

// ---- products -------------------------------------------------------------------------------------------------------

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
    const int tiles = (rows + TILE_ROWS - 1) / TILE_ROWS, vectors = padded(columns) / LANES;
    for (int v = 0; v < vectors; v += TILE_VECTORS)
        for (int t = 0; t < tiles; ++t) {  // of nearly one height: a last one of a single row would be slow
            const int first = rows * t / tiles, height = rows * (t + 1) / tiles - first;
            tile_of<TILE_ROWS, TILE_VECTORS, ADD>(
                height, std::min(TILE_VECTORS, vectors - v), {left.at + first * left.by_row, left.by_row, left.by_step},
                right + v * LANES, right_row, steps, out + first * out_row + v * LANES, out_row);
        }
}

// ---- weights --------------------------------------------------------------------------------------------------------

}  // namespace

extern "C" struct Sizes {  // as `fused.py` gives them
    int32_t models, batch, pos, first, layers, heads, d_model, d_head, d_mlp, d_vocab;
    int32_t learned_positions, causal, products_act, threads;
};

namespace {

// One matrix of a model: where it lies in one of the weights, and in a model's packed copy of all of them.
struct Matrix {
    int weight, rows, columns;
    long source, source_row;  // in the weight
    long packed, row;         // in the copy, and in gradients
    long turned, turned_row;  // its transpose, in the turned copy
};

struct Head {
    Matrix q, q_bias, k, k_bias, v, v_bias, o;
};

struct Layer {
    bool knows_only_tokens;  // then q, k and v are tables by token, without biases
    std::vector<Head> heads;
    Matrix o_bias, in, in_bias, out, out_bias;
};

// All matrices, numbered by weight in the order in which `fused.py` gives the weights.
struct Model {
    Sizes sizes;
    std::vector<Matrix> matrices;
    std::vector<long> numbers;  // in each weight of one model
    long packed_numbers = 0, turned_numbers = 0;
    Matrix embed, positions, unembed, unembed_bias;
    std::vector<Layer> layers;

    explicit Model(const Sizes &given) : sizes(given) {
        embed = weight(sizes.d_vocab, sizes.d_model, false);
        if (sizes.learned_positions) positions = weight(sizes.pos, sizes.d_model, false);
        for (int number = 0; number < sizes.layers; ++number) {
            layers.push_back({number == 0 && !sizes.learned_positions, std::vector<Head>(sizes.heads), {}, {}, {}, {}, {}});
            Layer &layer = layers.back();
            projection(layer, &Head::q, &Head::q_bias);
            if (!sizes.products_act || layer.knows_only_tokens) projection(layer, &Head::k, &Head::k_bias);
            projection(layer, &Head::v, &Head::v_bias);
            if (!sizes.products_act) {
                by_head(layer, &Head::o, sizes.d_head, sizes.d_model, false, true);
                layer.o_bias = weight(1, sizes.d_model, false);
            }
            layer.in = weight(sizes.d_model, sizes.d_mlp, true);
            layer.in_bias = weight(1, sizes.d_mlp, false);
            layer.out = weight(sizes.d_mlp, sizes.d_model, true);
            layer.out_bias = weight(1, sizes.d_model, false);
        }
        unembed = weight(sizes.d_model, sizes.d_vocab, true);
        unembed_bias = weight(1, sizes.d_vocab, false);
    }

  private:
    Matrix matrix(int rows, int columns, long source, long source_row, bool is_turned) {
        Matrix made{int(numbers.size()), rows, columns, source, source_row, packed_numbers, stride(columns), turned_numbers,
                    is_turned ? stride(rows) : 0};
        packed_numbers += rows * made.row;
        turned_numbers += columns * made.turned_row;
        matrices.push_back(made);
        return made;
    }

    Matrix weight(int rows, int columns, bool is_turned) {
        const Matrix made = matrix(rows, columns, 0, columns, is_turned);
        numbers.push_back(long(rows) * columns);
        return made;
    }

    // A weight with the heads side by side, or below each other: a matrix for each head.
    void by_head(Layer &layer, Matrix Head::*part, int rows, int columns, bool side_by_side, bool is_turned) {
        for (int head = 0; head < sizes.heads; ++head)
            layer.heads[head].*part =
                side_by_side ? matrix(rows, columns, long(head) * columns, long(sizes.heads) * columns, is_turned)
                             : matrix(rows, columns, long(head) * rows * columns, columns, is_turned);
        numbers.push_back(long(sizes.heads) * rows * columns);
    }

    void projection(Layer &layer, Matrix Head::*W, Matrix Head::*b) {
        const int rows = layer.knows_only_tokens ? sizes.d_vocab : sizes.d_model;
        by_head(layer, W, rows, sizes.d_head, true, !layer.knows_only_tokens);
        if (!layer.knows_only_tokens) by_head(layer, b, 1, sizes.d_head, true, false);
    }
};

void pack(const Matrix &matrix, const float *weight, float *packed, float *turned) {
    for (int r = 0; r < matrix.rows; ++r)
        for (int c = 0; c < matrix.row; ++c)
            packed[matrix.packed + r * matrix.row + c] =
                c < matrix.columns ? weight[matrix.source + r * matrix.source_row + c] : 0.f;
    for (int c = 0; c < (matrix.turned_row ? matrix.columns : 0); ++c)
        for (int r = 0; r < matrix.turned_row; ++r)
            turned[matrix.turned + c * matrix.turned_row + r] =
                r < matrix.rows ? weight[matrix.source + r * matrix.source_row + c] : 0.f;
}

// ---- one sequence -----------------------------------------------------------------------------------------------------

// Rows of activations, one for each position.
struct Rows {
    float *at;
    long row;
    float *operator[](int position) const { return at + position * row; }
    Rows from(int position) const { return {at + position * row, row}; }
    Left left() const { return {at, row, 1}; }
    Left transposed() const { return {at, 1, row}; }
};

struct HeadRows {
    Rows q, k, v, turned, pattern, z;
};

struct LayerRows {
    Rows read, read_again;  // the residual stream, normalised: what attention and what the MLP read
    float *scale, *scale_again;
    std::vector<HeadRows> heads;
    Rows hidden;
};

// Forward and back through one sequence. `packed` and `turned` are a model's weights, `gradients` lie as `packed` does.
class Sequence {
  public:
    Sequence(const Model &model, float *scratch) : model(model), sizes(model.sizes), next(scratch) {
        for (int layer = 0; layer < sizes.layers; ++layer) {
            LayerRows made{rows(sizes.d_model), rows(sizes.d_model), numbers(sizes.pos), numbers(sizes.pos), {}, {}};
            for (int head = 0; head < sizes.heads; ++head)
                made.heads.push_back({rows(sizes.d_head), rows(sizes.d_head), rows(sizes.d_head),
                                      {numbers(sizes.d_head * stride(sizes.pos)), stride(sizes.pos)},
                                      rows(sizes.pos), rows(sizes.d_head)});
            made.hidden = rows(sizes.d_mlp);
            layers.push_back(made);
        }
        residual = rows(sizes.d_model), d_residual = rows(sizes.d_model), d_read = rows(sizes.d_model);
        read = rows(sizes.d_model), scale = numbers(sizes.pos), logits = rows(sizes.d_vocab);
        d_hidden = rows(sizes.d_mlp), d_pattern = rows(sizes.pos);
        d_q = rows(sizes.d_head), d_k = rows(sizes.d_head), d_v = rows(sizes.d_head), d_z = rows(sizes.d_head);
    }

    long used(const float *scratch) const { return next - scratch; }

    // Adds the sequence's gradients times `share`; gives the sum of its losses in nats.
    double losses_and_gradients(const float *packed, const float *turned, const int64_t *tokens, const int64_t *wanted,
                                float share, float *gradients) {
        this->packed = packed, this->turned = turned, this->gradients = gradients, this->tokens = tokens;
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
    const float *packed, *turned;
    float *gradients;
    const int64_t *tokens;

    float *numbers(long count) {
        float *made = next;
        next += padded(count);
        return made;
    }
    Rows rows(int columns) { return {numbers(long(sizes.pos) * stride(columns)), stride(columns)}; }
    const float *of(const Matrix &matrix) const { return packed + matrix.packed; }
    float *gradient(const Matrix &matrix) const { return gradients + matrix.packed; }
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
        if (!layer.knows_only_tokens) normalize(0, kept.read, kept.scale);
        if (!sizes.products_act)
            for (int t = 0; t < sizes.pos; ++t) add(of(layer.o_bias), residual[t], sizes.d_model);
        for (int h = 0; h < sizes.heads; ++h) {
            const Head &head = layer.heads[h];
            HeadRows &rows = kept.heads[h];
            project(layer, head.q, head.q_bias, kept.read, rows.q);
            project(layer, head.v, head.v_bias, kept.read, rows.v);
            if (sizes.products_act && !layer.knows_only_tokens) rows.k = kept.read;
            else project(layer, head.k, head.k_bias, kept.read, rows.k);
            attend(rows);
            if (sizes.products_act)
                for (int t = 0; t < sizes.pos; ++t) add(rows.z[t], residual[t], sizes.d_model);
            else
                multiply<true>(sizes.pos, sizes.d_model, sizes.d_head, rows.z.left(), of(head.o), head.o.row, residual.at,
                               residual.row);
        }
    }

    void project(const Layer &layer, const Matrix &W, const Matrix &b, Rows read, Rows out) {
        if (layer.knows_only_tokens)
            for (int t = 0; t < sizes.pos; ++t) copy(of(W) + tokens[t] * W.row, out[t], W.columns);
        else
            affine(0, W, b, read, out);
    }

    // Softmax attention; the queries come scaled. Bands of queries skip the keys that the causal mask hides from all.
    void attend(HeadRows &head) {
        turn(head.k, head.turned);
        for (int low = 0, high; low < sizes.pos; low = high) {
            high = band_end(low);
            const int keys = seen(high);
            multiply<false>(high - low, keys, sizes.d_head, head.q.from(low).left(), head.turned.at, head.turned.row,
                            head.pattern[low], head.pattern.row);
            for (int query = low; query < high; ++query) softmax(head.pattern[query], seen(query + 1), padded(keys));
            multiply<false>(high - low, sizes.d_head, keys, head.pattern.from(low).left(), head.v.at, head.v.row,
                            head.z[low], head.z.row);
        }
    }

    int band_end(int low) const { return sizes.causal ? std::min(low + LANES, sizes.pos) : sizes.pos; }
    int seen(int high) const { return sizes.causal ? high : sizes.pos; }

    void mlp(int number) {
        const Layer &layer = model.layers[number];
        LayerRows &kept = layers[number];
        const int first = first_in_mlp(number), count = sizes.pos - first;
        normalize(first, kept.read_again, kept.scale_again);
        affine(first, layer.in, layer.in_bias, kept.read_again, kept.hidden);
        for (int t = first; t < sizes.pos; ++t)
            for (int c = 0; c < sizes.d_mlp; c += LANES) {
                Vector &value = at(kept.hidden[t] + c);
                value = value > 0.f ? value : Vector{};
            }
        for (int t = first; t < sizes.pos; ++t) add(of(layer.out_bias), residual[t], sizes.d_model);
        multiply<true>(count, sizes.d_model, sizes.d_mlp, kept.hidden.from(first).left(), of(layer.out), layer.out.row,
                       residual[first], residual.row);
    }

    // The sum of the losses; leaves their gradient by logit in place of the logits.
    double unembed(const int64_t *wanted, float share) {
        normalize(sizes.first, read, scale);
        affine(sizes.first, model.unembed, model.unembed_bias, read, logits);
        double total = 0;
        for (int t = sizes.first; t < sizes.pos; ++t) {
            float *row = logits[t];
            const int64_t right = wanted[t - sizes.first];
            const float logit = row[right];
            total += softmax(row, sizes.d_vocab, padded(sizes.d_vocab)) - logit;
            row[right] -= 1.f;
            for (int c = 0; c < sizes.d_vocab; c += LANES) at(row + c) *= share;
        }
        return total;
    }

    // -- back --

    void back_through_unembed() {
        back_through_affine(sizes.first, model.unembed, model.unembed_bias, read, logits);
        for (int t = 0; t < sizes.pos; ++t) std::fill_n(d_residual[t], padded(sizes.d_model), 0.f);
        back_to_rows<false>(sizes.first, model.unembed, logits, d_read);
        back_through_normalize(sizes.first, read, scale);
    }

    void back_through_mlp(int number) {
        const Layer &layer = model.layers[number];
        LayerRows &kept = layers[number];
        const int first = first_in_mlp(number);
        back_through_affine(first, layer.out, layer.out_bias, kept.hidden, d_residual);
        back_to_rows<false>(first, layer.out, d_residual, d_hidden);
        for (int t = first; t < sizes.pos; ++t)
            for (int c = 0; c < sizes.d_mlp; c += LANES) {
                Vector &value = at(d_hidden[t] + c);
                value = at(kept.hidden[t] + c) > 0.f ? value : Vector{};
            }
        back_through_affine(first, layer.in, layer.in_bias, kept.read_again, d_hidden);
        back_to_rows<false>(first, layer.in, d_hidden, d_read);
        back_through_normalize(first, kept.read_again, kept.scale_again);
    }

    void back_through_attention(int number) {
        const Layer &layer = model.layers[number];
        LayerRows &kept = layers[number];
        if (!sizes.products_act) add_columns(0, d_residual, gradient(layer.o_bias), sizes.d_model);
        if (!layer.knows_only_tokens)
            for (int t = 0; t < sizes.pos; ++t) std::fill_n(d_read[t], padded(sizes.d_model), 0.f);
        for (int h = 0; h < sizes.heads; ++h) {
            const Head &head = layer.heads[h];
            HeadRows &rows = kept.heads[h];
            Rows written = d_residual;
            if (!sizes.products_act) {
                multiply<true>(sizes.d_head, sizes.d_model, sizes.pos, rows.z.transposed(), d_residual.at, d_residual.row,
                               gradient(head.o), head.o.row);
                back_to_rows<false>(0, head.o, d_residual, d_z);
                written = d_z;
            }
            back_through_attend(rows, written);
            back_through_project(layer, head.q, head.q_bias, kept.read, d_q);
            back_through_project(layer, head.v, head.v_bias, kept.read, d_v);
            if (sizes.products_act && !layer.knows_only_tokens)
                for (int t = 0; t < sizes.pos; ++t) add(d_k[t], d_read[t], sizes.d_model);
            else
                back_through_project(layer, head.k, head.k_bias, kept.read, d_k);
        }
        if (!layer.knows_only_tokens) back_through_normalize(0, kept.read, kept.scale);
    }

    void back_through_attend(HeadRows &head, Rows d_written) {
        turn(head.v, head.turned);
        for (int low = 0, high; low < sizes.pos; low = high) {
            high = band_end(low);
            const int keys = seen(high);
            multiply<false>(high - low, keys, sizes.d_head, d_written.from(low).left(), head.turned.at, head.turned.row,
                            d_pattern[low], d_pattern.row);
            multiply<false>(high - low, sizes.d_head, sizes.pos - (sizes.causal ? low : 0),
                            {head.pattern[sizes.causal ? low : 0] + low, 1, head.pattern.row},
                            d_written[sizes.causal ? low : 0], d_written.row, d_v[low], d_v.row);
            for (int query = low; query < high; ++query)
                back_through_softmax(head.pattern[query], d_pattern[query], padded(keys));
            multiply<false>(high - low, sizes.d_head, keys, d_pattern.from(low).left(), head.k.at, head.k.row, d_q[low],
                            d_q.row);
        }
        for (int low = 0, high; low < sizes.pos; low = high) {  // by key: from the queries that see it
            high = band_end(low);
            const int query = sizes.causal ? low : 0;
            multiply<false>(high - low, sizes.d_head, sizes.pos - query, {d_pattern[query] + low, 1, d_pattern.row},
                            head.q[query], head.q.row, d_k[low], d_k.row);
        }
    }

    void back_through_project(const Layer &layer, const Matrix &W, const Matrix &b, Rows read, Rows d_out) {
        if (layer.knows_only_tokens) {
            for (int t = 0; t < sizes.pos; ++t) add(d_out[t], gradient(W) + tokens[t] * W.row, W.columns);
            return;
        }
        back_through_affine(0, W, b, read, d_out);
        back_to_rows<true>(0, W, d_out, d_read);
    }

    void back_through_embed() {
        for (int t = 0; t < sizes.pos; ++t) {
            add(d_residual[t], gradient(model.embed) + tokens[t] * model.embed.row, sizes.d_model);
            if (sizes.learned_positions)
                add(d_residual[t], gradient(model.positions) + t * model.positions.row, sizes.d_model);
        }
    }

    // -- what stages share --

    static void copy(const float *from, float *to, int columns) {
        for (int c = 0; c < columns; c += LANES) at(to + c) = at(from + c);
    }

    static void add(const float *from, float *to, int columns) {
        for (int c = 0; c < columns; c += LANES) at(to + c) += at(from + c);
    }

    void add_columns(int first, Rows from, float *to, int columns) const {
        for (int t = first; t < sizes.pos; ++t) add(from[t], to, columns);
    }

    void turn(Rows from, Rows to) const {  // [pos, d_head] to [d_head, pos]
        for (int c = 0; c < sizes.d_head; ++c) {
            for (int t = 0; t < sizes.pos; ++t) to[c][t] = from[t][c];
            std::fill(to[c] + sizes.pos, to[c] + to.row, 0.f);
        }
    }

    void affine(int first, const Matrix &W, const Matrix &b, Rows in, Rows out) const {
        for (int t = first; t < sizes.pos; ++t) copy(of(b), out[t], W.columns);
        multiply<true>(sizes.pos - first, W.columns, W.rows, in.from(first).left(), of(W), W.row, out[first], out.row);
    }

    void back_through_affine(int first, const Matrix &W, const Matrix &b, Rows in, Rows d_out) const {
        add_columns(first, d_out, gradient(b), W.columns);
        multiply<true>(W.rows, W.columns, sizes.pos - first, in.from(first).transposed(), d_out[first], d_out.row,
                       gradient(W), W.row);
    }

    template <bool ADD>
    void back_to_rows(int first, const Matrix &W, Rows d_out, Rows d_in) const {
        multiply<ADD>(sizes.pos - first, W.rows, W.columns, d_out.from(first).left(), turned + W.turned, W.turned_row,
                      d_in[first], d_in.row);
    }

    // LayerNorm without weight and bias, of the residual stream.
    void normalize(int first, Rows out, float *scale) const {
        const int width = sizes.d_model;
        for (int t = first; t < sizes.pos; ++t) {
            Vector total{}, squares{};
            for (int c = 0; c < width; c += LANES) total += at(residual[t] + c);
            const float mean = sum(total) / width;
            for (int c = 0; c < width; c += LANES) at(out[t] + c) = at(residual[t] + c) - mean;
            std::fill(out[t] + width, out[t] + padded(width), 0.f);
            for (int c = 0; c < width; c += LANES) squares += at(out[t] + c) * at(out[t] + c);
            scale[t] = 1.f / std::sqrt(sum(squares) / width + EPSILON);
            for (int c = 0; c < width; c += LANES) at(out[t] + c) *= scale[t];
        }
    }

    // Adds what `d_read`, the gradient by normalised rows, is for the residual stream.
    void back_through_normalize(int first, Rows normalized, const float *scale) const {
        const int width = sizes.d_model;
        for (int t = first; t < sizes.pos; ++t) {
            Vector total{}, along{};
            for (int c = 0; c < width; c += LANES) {
                total += at(d_read[t] + c);
                along += at(d_read[t] + c) * at(normalized[t] + c);
            }
            const float mean = sum(total) / width, slope = sum(along) / width;
            for (int c = 0; c < width; c += LANES)
                at(d_residual[t] + c) += scale[t] * (at(d_read[t] + c) - mean - slope * at(normalized[t] + c));
            std::fill(d_residual[t] + width, d_residual[t] + padded(width), 0.f);
        }
    }

    // In place, over the first `count` of `columns` numbers; the others become 0. Gives the logarithm of the sum.
    static float softmax(float *row, int count, int columns) {
        std::fill(row + count, row + columns, -INFINITY);
        Vector most = at(row);
        for (int c = LANES; c < columns; c += LANES) most = most > at(row + c) ? most : at(row + c);
        const float top = largest(most);
        Vector total{};
        for (int c = 0; c < columns; c += LANES) total += at(row + c) = exponential(at(row + c) - top);
        std::fill(row + count, row + columns, 0.f);
        const float all_of_it = sum(total);
        for (int c = 0; c < columns; c += LANES) at(row + c) /= all_of_it;
        return top + std::log(all_of_it);
    }

    static void back_through_softmax(const float *pattern, float *d_pattern, int columns) {
        Vector total{};
        for (int c = 0; c < columns; c += LANES) total += at(pattern + c) * at(d_pattern + c);
        const float mean = sum(total);
        for (int c = 0; c < columns; c += LANES) at(d_pattern + c) = at(pattern + c) * (at(d_pattern + c) - mean);
    }
};

// ---- all sequences ----------------------------------------------------------------------------------------------------

int sequences_in_block(const Sizes &sizes) {
    return std::max(SMALLEST_BLOCK, (sizes.batch + MOST_BLOCKS - 1) / MOST_BLOCKS);
}
int blocks(const Sizes &sizes) { return (sizes.batch + sequences_in_block(sizes) - 1) / sequences_in_block(sizes); }

long scratch_numbers(const Model &model) { return padded(Sequence(model, nullptr).used(nullptr)); }

}  // namespace

extern "C" {

// Numbers of floats that `losses_and_gradients` wants to work in.
int64_t workspace(const Sizes *sizes) {
    const Model model(*sizes);
    const long of_model = model.packed_numbers * (1 + blocks(*sizes)) + model.turned_numbers;
    return sizes->models * of_model + sizes->threads * scratch_numbers(model) + LANES;
}

// Each model's mean loss in nats and its gradient by each weight. `weights` and `gradients` point to [model ...] arrays,
// `tokens` is [model batch pos], `wanted` [model batch predicted].
void losses_and_gradients(const Sizes *given, const float *const *weights, const int64_t *tokens, const int64_t *wanted,
                          float *work, float *losses, float *const *gradients) {
    const Sizes sizes = *given;
    const Model model(sizes);
    const int per_block = sequences_in_block(sizes), of_model = blocks(sizes), predicted = sizes.pos - sizes.first;
    const int parts = int(model.matrices.size());
    work += -(reinterpret_cast<intptr_t>(work) / 4) & (LANES - 1);
    float *const packed = work, *const turned = packed + sizes.models * model.packed_numbers;
    float *const summed = turned + sizes.models * model.turned_numbers;
    float *const scratch = summed + long(sizes.models) * of_model * model.packed_numbers;
    std::vector<double> block_losses(sizes.models * of_model);
    const float share = 1.f / (float(sizes.batch) * predicted);

#pragma omp parallel num_threads(sizes.threads)
    {
#pragma omp for schedule(static)
        for (int item = 0; item < sizes.models * parts; ++item) {
            const Matrix &matrix = model.matrices[item % parts];
            const long m = item / parts;
            pack(matrix, weights[matrix.weight] + m * model.numbers[matrix.weight], packed + m * model.packed_numbers,
                 turned + m * model.turned_numbers);
        }
#pragma omp for schedule(dynamic)
        for (int item = 0; item < sizes.models * of_model; ++item) {
            const long m = item / of_model, first = long(item % of_model) * per_block;
            float *const own = summed + item * model.packed_numbers;
            std::fill_n(own, model.packed_numbers, 0.f);
            Sequence sequence(model, scratch + omp_get_thread_num() * scratch_numbers(model));
            for (long s = m * sizes.batch + first; s < m * sizes.batch + std::min<long>(first + per_block, sizes.batch); ++s)
                block_losses[item] += sequence.losses_and_gradients(
                    packed + m * model.packed_numbers, turned + m * model.turned_numbers, tokens + s * sizes.pos,
                    wanted + s * predicted, share, own);
        }
#pragma omp for schedule(static)
        for (int item = 0; item < sizes.models * parts; ++item) {
            const Matrix &matrix = model.matrices[item % parts];
            const long m = item / parts;
            const float *const first = summed + m * of_model * model.packed_numbers + matrix.packed;
            float *const gradient = gradients[matrix.weight] + m * model.numbers[matrix.weight] + matrix.source;
            for (int r = 0; r < matrix.rows; ++r)
                for (int c = 0; c < matrix.columns; ++c) {
                    float total = 0;
                    for (int block = 0; block < of_model; ++block)
                        total += first[block * model.packed_numbers + r * matrix.row + c];
                    gradient[r * matrix.source_row + c] = total;
                }
        }
    }
    for (int m = 0; m < sizes.models; ++m) {
        double total = 0;
        for (int block = 0; block < of_model; ++block) total += block_losses[m * of_model + block];
        losses[m] = float(total / (double(sizes.batch) * predicted));
    }
}
}

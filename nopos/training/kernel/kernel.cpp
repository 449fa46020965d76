// Losses and gradients of stacked models, a sequence at a time: what `ensemble.py` computes, inside the cache.
//
// A thread takes one sequence forward and back while its activations and the weights lie near the core. Sequences form
// blocks of a fixed size. A block's gradients are summed in the order of its sequences, and the blocks' in their order,
// so the sums depend neither on the number of threads nor on the models beside one.

#include <omp.h>

#include "orthogonalize.h"
#include "sequence.h"
#include "weights.h"

namespace {

constexpr int SMALLEST_BLOCK = 8, MOST_BLOCKS = 16;  // sequences in a block, blocks in a batch
constexpr int BLOCKS_OF_A_THREAD = 16;               // of the models that go together, so that no thread waits long

int sequences_in_block(const Sizes &sizes) {
    return std::max(SMALLEST_BLOCK, (sizes.batch + MOST_BLOCKS - 1) / MOST_BLOCKS);
}
int blocks(const Sizes &sizes) { return (sizes.batch + sequences_in_block(sizes) - 1) / sequences_in_block(sizes); }

int models_together(const Sizes &sizes) {
    return std::min(sizes.models, (BLOCKS_OF_A_THREAD * sizes.threads + blocks(sizes) - 1) / blocks(sizes));
}

// What one model needs: weights, their transposes, gradients by block; and a thread for its sequence.
long numbers_of_model(const Model &model) {
    return 2 * model.numbers + model.transposed_numbers + (blocks(model.sizes) - 1) * model.met;
}
long numbers_of_sequence(const Model &model) { return padded(Sequence(model, nullptr).used(nullptr)); }

float *aligned(float *work) { return work + (-(reinterpret_cast<intptr_t>(work) / 4) & (LANES - 1)); }

// The parameters of one of the models on the leading axis, or what is to be their gradients; not used ones are null.
template <class Number>
Parameters<Number> of_model(const Sizes &sizes, Number *const *stacked, const int64_t *from_model_to_model, long model) {
    Parameters<Number> found;
    for (int name = 0; name < FIRST_LAYER + sizes.layers * OF_LAYER + OF_END; ++name)
        found.first.push_back(stacked[name] ? stacked[name] + model * from_model_to_model[name] : nullptr);
    return found;
}

// One of the models that go together.
struct Member {
    const Parameters<const float> parameters;
    const Parameters<float> d_parameters;
    float *weights, *transposed, *gradients;
    float *gradients_of(const Model &model, int block) const {  // those of the first have room for what the weights are made of
        return gradients + (block == 0 ? 0 : model.numbers + (block - 1) * model.met);
    }
};

}  // namespace

extern "C" {

// Numbers of floats that `losses_and_gradients` wants to work in.
int64_t workspace(const Sizes *sizes) {
    const Model model(*sizes);
    return models_together(*sizes) * numbers_of_model(model) + sizes->threads * numbers_of_sequence(model) + LANES;
}

// Each model's mean loss in nats and its gradient by each parameter. `parameters` and `gradients` point to [model ...]
// arrays, whose next model is so many numbers on; `tokens` is [model batch pos], `wanted` [model batch predicted].
void losses_and_gradients(const Sizes *given, const float *const *parameters, const int64_t *to_next_parameters,
                          const int64_t *tokens, const int64_t *wanted, float *work, float *losses, float *const *gradients,
                          const int64_t *to_next_gradients) {
    const Sizes sizes = *given;
    const Model model(sizes);
    const int per_block = sequences_in_block(sizes), of_batch = blocks(sizes), predicted = sizes.pos - sizes.first;
    const int together = models_together(sizes), parts = model.parts();
    const long of_sequence = numbers_of_sequence(model);
    float *const scratch = aligned(work), *const numbers = scratch + sizes.threads * of_sequence;
    std::vector<double> block_losses(sizes.models * of_batch);
    const float share = 1.f / (float(sizes.batch) * predicted);

    for (int start = 0; start < sizes.models; start += together) {
        const int count = std::min(together, sizes.models - start);
        std::vector<Member> members;
        for (int m = 0; m < count; ++m) {
            float *const own = numbers + m * numbers_of_model(model);
            members.push_back({of_model(sizes, parameters, to_next_parameters, start + m),
                               of_model(sizes, gradients, to_next_gradients, start + m), own, own + model.numbers,
                               own + model.numbers + model.transposed_numbers});
        }
#pragma omp parallel num_threads(sizes.threads)
        {
#pragma omp for schedule(dynamic)
            for (int item = 0; item < count * parts; ++item) {
                const Member &member = members[item / parts];
                Weights(model, member.parameters, member.weights, member.transposed).make(item % parts);
            }
#pragma omp for schedule(dynamic)
            for (int item = 0; item < count * of_batch; ++item) {
                const Member &member = members[item / of_batch];
                const int block = item % of_batch;
                const long before = long(start + item / of_batch) * sizes.batch;
                float *const own = member.gradients_of(model, block);
                std::fill_n(own, block == 0 ? model.numbers : model.met, 0.f);
                Sequence sequence(model, scratch + omp_get_thread_num() * of_sequence);
                for (long s = before + block * per_block; s < before + std::min((block + 1) * per_block, sizes.batch); ++s)
                    block_losses[start * of_batch + item] += sequence.losses_and_gradients(
                        member.weights, member.transposed, tokens + s * sizes.pos, wanted + s * predicted, share, own);
            }
#pragma omp for schedule(dynamic)
            for (int item = 0; item < count * parts; ++item) {
                const Member &member = members[item / parts];
                const int part = item % parts;
                const long first = part == 0 ? 0 : model.ends[part - 1];
                for (int block = 1; block < of_batch; ++block)
                    add(member.gradients_of(model, block) + first, member.gradients + first, model.ends[part] - first);
                Weights(model, member.parameters, member.weights, member.transposed)
                    .back(part, member.gradients, member.d_parameters);
            }
        }
    }
    for (int m = 0; m < sizes.models; ++m) {
        double total = 0;
        for (int block = 0; block < of_batch; ++block) total += block_losses[m * of_batch + block];
        losses[m] = float(total / (double(sizes.batch) * predicted));
    }
}

// Numbers of floats that `orthogonalize` wants to work in.
int64_t workspace_to_orthogonalize(int32_t rows, int32_t columns, int32_t threads) {
    const int low = std::min(rows, columns), high = std::max(rows, columns);
    return threads * NewtonSchulz(low, high, nullptr).used(nullptr) + LANES;
}

// Each of so many matrices, [rows, columns] one after another, with its singular values brought near 1.
void orthogonalize(int32_t matrices, int32_t rows, int32_t columns, int32_t threads, const float *coefficients,
                   int32_t rounds, float *from, float *work, float *to) {
    const int low = std::min(rows, columns), high = std::max(rows, columns);
    float *const scratch = aligned(work);
    const long of_thread = NewtonSchulz(low, high, nullptr).used(nullptr), size = long(rows) * columns;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int matrix = 0; matrix < matrices; ++matrix)
        NewtonSchulz(low, high, scratch + omp_get_thread_num() * of_thread)(from + matrix * size, rows > columns,
                                                                          coefficients, rounds, to + matrix * size);
}
}

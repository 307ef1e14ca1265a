// The decoder's C interface: makes plans and memory, chooses the instruction set, starts the threads.
#include "core.h"

#include <cstring>
#include <map>
#include <memory>
#include <new>
#include <system_error>
#include <utility>
#include <vector>

#include "plan.h"
#include "threads.h"

static const Kernels* const ALL[] = {avx512_kernels, avx2_kernels, &portable_kernels};  // best first

static const Kernels* find(const char* name) {
    for (const Kernels* kernels : ALL) {
        if (kernels != nullptr && std::strcmp(kernels->name, name) == 0 && kernels->runs_here()) return kernels;
    }
    return nullptr;
}

// Memory that only grows, aligned to cache lines.
template <class T>
class Buffer {
public:
    T* of(int64_t count) {
        const size_t needed = (size_t)count * sizeof(T) + 128;
        if (bytes_.size() < needed) {
            bytes_.clear();
            bytes_.resize(needed + needed / 4);
        }
        const auto at = ((uintptr_t)bytes_.data() + 63) / 64 * 64;
        return (T*)at;
    }

private:
    std::vector<uint8_t> bytes_;
};

struct Decoder {
    Decoder(const Model& given, int threads, const Kernels& chosen)
        : model(given), layers(given.layers, given.layers + given.num_layers), kernels(chosen), pool(threads) {
        model.layers = layers.data();
    }

    // Memory for the products of `tokens` rows.
    Workspace inputs(int64_t tokens, int64_t num_counters) {
        const int64_t attended = (int64_t)model.heads * model.head_dim;
        const int64_t widest = attended > model.hidden ? attended : model.hidden;
        Workspace w{};
        w.x = x.of(tokens * widest);
        w.codes = codes.of(tokens * widest);
        w.scales = scales.of(tokens * widest / 32);
        w.sums = sums.of(tokens * widest / 32);
        w.scratch_floats = (kernels.scratch_floats(model) + 15) / 16 * 16;
        w.scratch = scratch.of(w.scratch_floats * pool.count());
        const int64_t lines = num_counters * (pool.count() + 1);
        w.counters = counters.of(lines * 16);
        std::memset(w.counters, 0, (size_t)lines * 64);
        return w;
    }

    void forward(const Step& step) {
        const int64_t tokens = step.num_tokens, inner = model.inner;
        std::map<int, int> kinds;  // window -> index of its plan
        std::vector<int32_t> plan_of_layer;
        for (const Layer& layer : layers) {
            const int index = (int)kinds.size();
            plan_of_layer.push_back(kinds.emplace(layer.window, index).first->second);
        }
        if (plans.size() < kinds.size()) plans.resize(kinds.size());
        std::vector<Plan> made(kinds.size());
        int64_t num_partials = 0;
        for (const auto& [window, index] : kinds) {
            made[index] = plans[index].make(step, window);
            if (made[index].num_partials > num_partials) num_partials = made[index].num_partials;
        }

        Workspace w = inputs(tokens, 8 * (int64_t)model.num_layers + 8);
        w.residual = residual.of(tokens * model.hidden);
        w.branch = branch.of(tokens * model.hidden);
        w.q = q.of(tokens * model.heads * model.head_dim);
        w.x2 = x2.of(tokens * inner);
        w.codes2 = codes2.of(tokens * inner);
        w.scales2 = scales2.of(tokens * inner / 32);
        w.sums2 = sums2.of(tokens * inner / 32);
        w.partials = partials.of(num_partials * model.heads * (model.head_dim + 2));
        w.angles = angles.of((int64_t)model.num_ropes * tokens * model.head_dim);
        for (int r = 0; r < model.num_ropes; r++) {
            const Rope& rope = model.ropes[r];
            for (int64_t t = 0; t < tokens; t++) {
                float* of = w.angles + (r * tokens + t) * model.head_dim;
                for (int i = 0; i < rope.dim / 2; i++) {
                    const float angle = (float)step.positions[t] * rope.frequencies[i];
                    of[i] = __builtin_cosf(angle) * rope.amplitude;
                    of[rope.dim / 2 + i] = __builtin_sinf(angle) * rope.amplitude;
                }
            }
        }
        const Run run{&model, &step, made.data(), plan_of_layer.data(), w, pool.count()};
        together(run, kernels.forward);
    }

    void head(const float* hidden, int count, const uint32_t* const* masks, int mask_words, float* logits) {
        together(HeadRun{&model, hidden, masks, mask_words, logits, count, inputs(count, 2), pool.count()}, kernels.head);
    }

    void choose(Choice* choices, int count) {
        const int64_t padded = (model.vocab + 255) / 256 * 256;
        float* memory = weights.of(2 * padded * pool.count());
        together(ChoiceRun{choices, count, model.vocab, memory, padded, inputs(1, 1), pool.count()}, kernels.choose);
    }

    void survey(const float* logits, int count, int largest_only, double* norms) {
        together(SurveyRun{logits, count, model.vocab, norms, largest_only, inputs(1, 1), pool.count()}, kernels.survey);
    }

    // Call function(run, thread) on every thread.
    template <class Of>
    void together(const Of& run, void (*function)(const Of&, int)) {
        const std::pair<const Of*, void (*)(const Of&, int)> call{&run, function};
        pool.run(
            [](const void* argument, int thread) {
                const auto& [of, with] = *(decltype(&call))argument;
                with(*of, thread);
            },
            &call
        );
    }

    Model model;
    std::vector<Layer> layers;
    const Kernels& kernels;
    Threads pool;
    std::vector<PlanMemory> plans;
    Buffer<float> residual, branch, q, angles, x, x2, scales, sums, scales2, sums2, partials, scratch, weights;
    Buffer<int8_t> codes, codes2;
    Buffer<int32_t> counters;
};

extern "C" {

#define EXPORT __attribute__((visibility("default")))

enum { DONE = 0, NO_MEMORY = 1, FAILED = 2 };

// Of this interface. Counted up, here and in library.py, with every change of a function or a struct.
EXPORT int32_t palmette_version() { return 2; }

// The name of the i-th instruction set that runs on this CPU, best first; null behind the last one.
EXPORT const char* palmette_instruction_set(int32_t i) {
    for (const Kernels* kernels : ALL) {
        if (kernels != nullptr && kernels->runs_here() && i-- == 0) return kernels->name;
    }
    return nullptr;
}

// A decoder with `threads` threads; null where the instruction set is not to be had or threads cannot be started. The
// model's arrays stay the caller's and must outlive it.
EXPORT void* palmette_new(const Model* model, int32_t threads, const char* instruction_set) {
    const Kernels* kernels = find(instruction_set);
    if (kernels == nullptr) return nullptr;
    try {
        return new Decoder(*model, threads, *kernels);
    } catch (const std::exception&) {
        return nullptr;
    }
}

EXPORT void palmette_free(void* decoder) { delete (Decoder*)decoder; }

}  // extern "C"

// What a call says besides its results.
template <class Call>
static int32_t attempt(Call call) {
    try {
        call();
        return DONE;
    } catch (const std::bad_alloc&) {
        return NO_MEMORY;
    } catch (const std::exception&) {
        return FAILED;
    }
}

extern "C" {

// Compute a step: its keys and values into the pool, and the hidden states that it asks for.
EXPORT int32_t palmette_forward(void* decoder, const Step* step) {
    return attempt([&] { ((Decoder*)decoder)->forward(*step); });
}

// logits (count, vocab) of hidden (count, hidden). With masks, logits of left-out tokens may be minus infinity.
EXPORT int32_t palmette_head(
    void* decoder, const float* hidden, int32_t count, const uint32_t* const* masks, int32_t mask_words, float* logits
) {
    return attempt([&] { ((Decoder*)decoder)->head(hidden, count, masks, mask_words, logits); });
}

// Write each choice's token.
EXPORT int32_t palmette_choose(void* decoder, Choice* choices, int32_t count) {
    return attempt([&] { ((Decoder*)decoder)->choose(choices, count); });
}

// norms (count,) of logits (count, vocab): log sum exp, or only the largest; NaN where a logit is NaN or plus infinity.
EXPORT int32_t palmette_survey(void* decoder, const float* logits, int32_t count, int32_t largest_only, double* norms) {
    return attempt([&] { ((Decoder*)decoder)->survey(logits, count, largest_only, norms); });
}

}  // extern "C"

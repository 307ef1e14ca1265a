// What crosses between Python and the compiled decoder, and between its files. Plain structs, no ownership: whoever
// made an array keeps it alive. Mirrored field by field in library.py.
#pragma once

#include <cstdint>

extern "C" {

// A matrix of the model, (rows, cols), as tiles of 16 rows; see pack.cpp for the layouts.
enum Format : int32_t {
    F32 = 0,  // float
    U4 = 1,   // blocks of 32 columns: w = d u + m, u in 0..15
    U8 = 2,   // the same with u in 0..255
};

struct Matrix {
    int32_t format;
    int32_t rows;  // as the model has them; the last tile is padded with zeros
    int32_t cols;  // a multiple of 32
    int32_t unused;
    const uint8_t* data;
    const float* bias;  // (rows,) or null
};

struct Rope {
    int32_t dim;  // leading dimensions of a head that rotate
    float amplitude;
    const float* frequencies;  // (dim / 2,)
};

struct Layer {
    Matrix q, k, v, out, gate, up, down;
    const float *attention_norm, *mlp_norm;            // (hidden,)
    const float *q_norm, *k_norm;                      // (head_dim,) or null
    const float *post_attention_norm, *post_mlp_norm;  // (hidden,) or null
    void *keys, *values;                               // (slots, kv_heads, head_dim), float or half
    int32_t window;                                    // 0 = none
    int32_t rope;                                      // index
};

struct Model {
    int32_t num_layers, hidden, inner, heads, kv_heads, head_dim, vocab;
    int32_t gelu;     // 1: gelu (tanh) instead of silu
    int32_t kv_half;  // 1: keys and values are stored as IEEE half
    int32_t num_ropes;
    float eps, embedding_scale, score_scale;
    float attention_cap, logit_cap;  // 0 = none
    int32_t unused;
    const Layer* layers;
    const Rope* ropes;
    Matrix embedding, head;
    const float* final_norm;
};

// What a matrix is made of.
enum Source : int32_t {
    FLOATS = 0,    // (rows, cols) float, kept: F32
    ROUNDED = 1,   // (rows, cols) float, rounded: U8
    FROM_Q4_0 = 2,  // ggml's blocks: U4, U4 and U8
    FROM_Q4_1 = 3,
    FROM_Q8_0 = 4,
};

// A matrix to lay out.
struct Packing {
    int32_t source, rows, cols;
    int32_t finite;        // written: are all scales of the blocks finite?
    const void* data;
    const int64_t* order;  // of blocks: the file's row for each row, or null
    uint8_t* out;          // whole tiles, zeroed; at a cache line
};

// One request's share of a step.
struct Row {
    int32_t first_token, num_tokens;
    int32_t start;           // page-table index of its first token
    int32_t prefix_len;      // of a tree row; -1 = no tree
    const int32_t* table;    // page-table index -> slot, up to its last token
    const uint8_t* visible;  // tree: (num_tokens, num_nodes) bytes
    const int32_t* node_positions;  // tree: (num_nodes,)
    int64_t num_nodes;       // tree: nodes up to the last one computed here
};

struct Step {
    int32_t num_tokens, num_rows, num_wanted, unused;
    const int32_t *ids, *positions, *slots;  // (num_tokens,)
    const int32_t* wanted;                   // (num_wanted,) tokens whose hidden states are asked for, ascending
    const Row* rows;
    float* hidden;  // (num_wanted, hidden), behind the final norm; written
};

// One row's choice of a token; palmette/runtime/sampler.py says what it means.
struct Choice {
    const float* logits;   // (vocab,)
    const uint32_t* mask;  // bit i: may token i come? null = all may
    int32_t mask_words;    // tokens behind them may not come
    int32_t top_k;         // 0 = all
    float temperature;     // 0 = the best one
    float min_p;
    int32_t token;         // written; -1 = no token weighs anything
    int32_t unused;
    double top_p;
    double at;             // in [0, 1): where the cumulative distribution is cut
};

}  // extern "C"

// -- attention's plan of a step; made by plan.cpp, executed by attention.h --

constexpr int CHUNK = 64;    // keys that are gathered together; sharing is found at this grain
constexpr int SPAN = 256;    // keys whose softmax is one partial result
constexpr int MAX_TILE = 32; // tokens of one item at most

struct Query {
    int32_t token, row;  // of the step
    int32_t index;       // page-table index: it sees keys up to here
    int32_t partial;     // where the partial result of this item goes
};

// Queries that share (at least) the first chunk of a span, in an order in which sharers of any later chunk are neighbours.
struct Item {
    int32_t span, first, count;  // keys span * SPAN ...; queries first .. first + count
};

struct Partials {
    int32_t first, count;  // of a token, in position order
};

struct Plan {
    const Item* items;
    const Query* queries;
    const Partials* partials;  // (num_tokens,)
    int32_t num_items, num_partials;
};

// Scratch memory of a step, one for all layers.
struct Workspace {
    float* residual;  // (tokens, hidden)
    float* branch;    // (tokens, hidden): what attention or MLP put out
    float* q;         // (tokens, heads * head_dim)
    float* angles;    // (ropes, tokens, head_dim): cosines, then sines
    float* x;         // (tokens, widest): input of a float product
    int8_t* codes;    // (tokens, widest): input of a quantised one
    float *scales, *sums;  // (tokens, widest / 32)
    float* x2;        // a second set: the MLP's inner activations
    int8_t* codes2;
    float *scales2, *sums2;
    float* partials;  // (num_partials, heads, head_dim + 2): maximum, sum, weighted values
    float* scratch;   // (threads, scratch_floats)
    int64_t scratch_floats;
    int32_t* counters;  // one cache line each
};

void rest(int times);  // threads.cpp: called again and again by who waits

struct Run {
    const Model* model;
    const Step* step;
    const Plan* plans;            // by layer kind
    const int32_t* plan_of_layer; // (num_layers,)
    Workspace work;
    int32_t num_threads;
};

struct HeadRun {
    const Model* model;
    const float* hidden;     // (count, hidden)
    const uint32_t* const* masks;  // (count,) of packed bits or null: which logits are wanted; null = all of all rows
    int32_t mask_words;      // of every mask; logits behind them are not wanted
    float* logits;           // (count, vocab)
    int32_t count;
    Workspace work;
    int32_t num_threads;
};

struct ChoiceRun {
    Choice* choices;
    int32_t count, vocab;
    float* weights;  // (threads, 2 * padded)
    int64_t padded;  // vocab rounded up to whole blocks
    Workspace work;
    int32_t num_threads;
};

struct SurveyRun {
    const float* logits;  // (count, vocab)
    int32_t count, vocab;
    double* norms;        // (count,): log of the sum of exponentials; NaN where a logit is NaN or plus infinity
    int32_t largest_only; // 1: the largest logit instead, which costs less
    Workspace work;
    int32_t num_threads;
};

// sampling.cpp, which no instruction set compiles anew
float kth_largest(const float* weights, int32_t count, int32_t k, float* memory);
float top_p_threshold(const float* weights, int32_t count, float least, double top_p, float* memory);

// What one instruction set offers. `forward` and `head` are run by every thread at once.
struct Kernels {
    const char* name;
    bool (*runs_here)();
    void (*forward)(const Run&, int thread);
    void (*head)(const HeadRun&, int thread);
    void (*choose)(const ChoiceRun&, int thread);
    void (*survey)(const SurveyRun&, int thread);
    int64_t (*scratch_floats)(const Model&);
};

extern const Kernels portable_kernels;
extern const Kernels* const avx2_kernels;    // null where the compiler does not know them
extern const Kernels* const avx512_kernels;

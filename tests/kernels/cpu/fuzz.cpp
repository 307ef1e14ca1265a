// Random models, steps and masks through the decoder's C interface, for the sanitizers. Every array has exactly the size
// that core.h promises. Also checks what needs no oracle: a row alone, and with one thread, gives the same bits.
//
//     fuzz SEED ROUNDS INSTRUCTION_SET      prints "done" if nothing was found
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "core.h"
#include "half.h"

extern "C" {
const char* palmette_instruction_set(int32_t);
void* palmette_new(const Model*, int32_t, const char*);
void palmette_free(void*);
int32_t palmette_forward(void*, const Step*);
int32_t palmette_head(void*, const float*, int32_t, const uint32_t* const*, int32_t, float*);
int32_t palmette_choose(void*, Choice*, int32_t);
int32_t palmette_survey(void*, const float*, int32_t, int32_t, double*);
void palmette_pack(Packing*, int64_t, int32_t);
}

static std::mt19937 rng;

static int below(int n) { return (int)(rng() % (unsigned)n); }
static int from_to(int low, int high) { return low + below(high - low + 1); }
static float normal() { return std::normal_distribution<float>()(rng); }
template <class T>
static T one_of(std::initializer_list<T> all) { return *(all.begin() + below((int)all.size())); }

// Arrays on the heap, each of its own size, that live as long as this does.
struct Arrays {
    template <class T>
    T* of(size_t count) {
        std::shared_ptr<T[]> memory(new T[count]());  // of zero elements too: an address that nobody may read
        held.push_back(memory);
        return memory.get();
    }
    float* normals(size_t count, float scale, float middle = 0) {
        float* x = of<float>(count);
        for (size_t i = 0; i < count; i++) x[i] = middle + scale * normal();
        return x;
    }
    std::vector<std::shared_ptr<void>> held;
};

static void check(bool ok, const char* what) {
    if (ok) return;
    std::fprintf(stderr, "wrong: %s\n", what);
    std::exit(1);
}

static int64_t* random_order(Arrays& arrays, int rows) {
    if (below(2)) return nullptr;
    int64_t* order = arrays.of<int64_t>(rows);
    for (int i = 0; i < rows; i++) order[i] = i;
    std::shuffle(order, order + rows, rng);
    return order;
}

static Matrix matrix(Arrays& arrays, int rows, int cols, bool biased) {
    const int tiles = (rows + 15) / 16, blocks = cols / 32;
    const float scale = 1.0f / std::sqrt((float)cols);
    Matrix m{};
    m.rows = rows, m.cols = cols;
    Packing p{};
    p.source = below(5), p.rows = rows, p.cols = cols;
    if (p.source == FLOATS || p.source == ROUNDED) {
        p.data = arrays.normals((size_t)rows * cols, scale);
        m.format = p.source == FLOATS ? F32 : U8;
    } else {
        const bool four = p.source != FROM_Q8_0, has_min = p.source == FROM_Q4_1;
        const size_t size = !four ? 34 : has_min ? 20 : 18, bytes = (size_t)rows * blocks * size;
        uint8_t* data = arrays.of<uint8_t>(bytes);
        for (size_t i = 0; i < bytes; i++) data[i] = (uint8_t)rng();
        for (size_t i = 0; i < bytes; i += size) {
            const uint16_t d = to_half(scale * normal() / (four ? 8 : 100)), min = to_half(scale * normal());
            std::memcpy(data + i, &d, 2);
            if (has_min) std::memcpy(data + i + 2, &min, 2);
        }
        p.data = data, p.order = random_order(arrays, rows);
        m.format = four ? U4 : U8;
    }
    const size_t tile = m.format == F32 ? 2048 : m.format == U4 ? 64 + 256 : 64 + 512;
    p.out = arrays.of<uint8_t>((size_t)tiles * blocks * tile);
    palmette_pack(&p, 1, from_to(1, 3));
    check(p.finite == 1, "finite scales");
    m.data = p.out;
    if (biased) m.bias = arrays.normals((size_t)tiles * 16, 0.1f);
    return m;
}

static Model random_model(Arrays& arrays, int slots) {
    Model m{};
    m.num_layers = from_to(1, 3);
    m.hidden = 32 * from_to(1, 4), m.inner = 32 * from_to(1, 5), m.vocab = from_to(1, 100);
    m.kv_heads = from_to(1, 3);
    m.heads = m.kv_heads * from_to(1, 9);
    m.head_dim = 16 * from_to(1, 5);
    if (m.heads * m.head_dim % 32) m.head_dim *= 2;
    m.gelu = below(2), m.kv_half = below(2), m.num_ropes = from_to(1, 2);
    m.eps = 1e-5f, m.embedding_scale = 1 + below(3), m.score_scale = 1.0f / std::sqrt((float)m.head_dim);
    m.attention_cap = one_of({0.0f, 0.0f, 20.0f}), m.logit_cap = one_of({0.0f, 0.0f, 5.0f});
    Rope* ropes = arrays.of<Rope>(m.num_ropes);
    for (int r = 0; r < m.num_ropes; r++) {
        ropes[r].dim = 2 * from_to(1, m.head_dim / 2);
        ropes[r].amplitude = 1.0f + 0.1f * r;
        float* frequencies = arrays.of<float>(ropes[r].dim / 2);
        for (int i = 0; i < ropes[r].dim / 2; i++) frequencies[i] = std::pow(1e4f, -2.0f * i / ropes[r].dim);
        ropes[r].frequencies = frequencies;
    }
    m.ropes = ropes;
    const int attended = m.heads * m.head_dim, kv = m.kv_heads * m.head_dim;
    const bool biased = below(2), normed = below(2), sandwich = below(2);
    const size_t cache = (size_t)slots * kv;
    Layer* layers = arrays.of<Layer>(m.num_layers);
    for (int l = 0; l < m.num_layers; l++) {
        Layer& layer = layers[l];
        layer.q = matrix(arrays, attended, m.hidden, biased), layer.k = matrix(arrays, kv, m.hidden, biased);
        layer.v = matrix(arrays, kv, m.hidden, biased), layer.out = matrix(arrays, m.hidden, attended, biased);
        layer.gate = matrix(arrays, m.inner, m.hidden, biased), layer.up = matrix(arrays, m.inner, m.hidden, biased);
        layer.down = matrix(arrays, m.hidden, m.inner, biased);
        layer.attention_norm = arrays.normals(m.hidden, 0.1f, 1), layer.mlp_norm = arrays.normals(m.hidden, 0.1f, 1);
        if (normed) layer.q_norm = arrays.normals(m.head_dim, 0.1f, 1), layer.k_norm = arrays.normals(m.head_dim, 0.1f, 1);
        if (sandwich) {
            layer.post_attention_norm = arrays.normals(m.hidden, 0.1f, 1);
            layer.post_mlp_norm = arrays.normals(m.hidden, 0.1f, 1);
        }
        layer.keys = m.kv_half ? (void*)arrays.of<uint16_t>(cache) : arrays.of<float>(cache);
        layer.values = m.kv_half ? (void*)arrays.of<uint16_t>(cache) : arrays.of<float>(cache);
        layer.window = one_of({0, 0, 1, 30, 100});
        layer.rope = below(m.num_ropes);
    }
    m.layers = layers;
    m.embedding = matrix(arrays, m.vocab, m.hidden, false);
    m.head = below(2) ? m.embedding : matrix(arrays, m.vocab, m.hidden, false);
    m.final_norm = arrays.normals(m.hidden, 0.1f, 1);
    return m;
}

// Rows of one step; `slots` are handed out once, so nothing is computed twice.
struct Batch {
    Arrays arrays;
    std::vector<Row> rows;
    std::vector<int32_t> ids, positions, slots, wanted;

    void add(const Model& m, std::vector<int32_t>& free, bool is_prefill, int longest) {
        Row row{};
        row.first_token = (int32_t)ids.size();
        const Row* other = rows.empty() || below(3) == 0 ? nullptr : &rows[below((int)rows.size())];
        const bool is_tree = below(4) == 0;
        row.num_tokens = is_prefill ? from_to(1, longest) : from_to(1, 3);
        row.prefix_len = -1;
        std::vector<int32_t> table;
        if (other != nullptr && other->prefix_len < 0) table.assign(other->table, other->table + from_to(0, other->start + other->num_tokens));
        else for (int i = is_prefill ? 0 : below(300); i > 0; i--) table.push_back(below(64));  // of any content
        row.start = (int32_t)table.size();
        for (int i = 0; i < row.num_tokens; i++) {
            table.push_back(free.back());
            ids.push_back(below(m.vocab)), positions.push_back(row.start + i), slots.push_back(free.back());
            if (below(2)) wanted.push_back(row.first_token + i);
            free.pop_back();
        }
        int32_t* into = arrays.of<int32_t>(table.size());
        std::copy(table.begin(), table.end(), into);
        row.table = into;
        if (is_tree) {
            const int before = below(row.start + 1);  // nodes of earlier pieces
            const int nodes = before + row.num_tokens;
            row.prefix_len = row.start - before, row.num_nodes = nodes;
            uint8_t* visible = arrays.of<uint8_t>((size_t)row.num_tokens * nodes);
            int32_t* at = arrays.of<int32_t>(nodes);
            for (int i = 0; i < nodes; i++) at[i] = row.prefix_len + (i ? below(i) : 0);
            for (int i = 0; i < row.num_tokens; i++) {
                for (int n = 0; n < before + i; n++) visible[i * nodes + n] = below(2);
                visible[i * nodes + before + i] = 1;
                positions[row.first_token + i] = at[before + i];
            }
            row.visible = visible, row.node_positions = at;
        }
        rows.push_back(row);
    }

    // Hidden states of the wanted tokens, of all rows or of one.
    std::vector<float> run(const Model& m, void* decoder, int only = -1) {
        Arrays own;
        std::vector<Row> some(rows);
        int first = 0, tokens = (int)ids.size();
        if (only >= 0) {
            some = {rows[only]};
            first = some[0].first_token, tokens = some[0].num_tokens, some[0].first_token = 0;
        }
        std::vector<int32_t> asked;
        for (int32_t token : wanted) {
            if (token >= first && token < first + tokens) asked.push_back(token - first);
        }
        const auto copy = [&](const std::vector<int32_t>& from, int begin, int count) {
            int32_t* to = own.of<int32_t>(count);
            std::copy(from.begin() + begin, from.begin() + begin + count, to);
            return to;
        };
        Step step{};
        step.num_tokens = tokens, step.num_rows = (int)some.size(), step.num_wanted = (int)asked.size();
        step.ids = copy(ids, first, tokens), step.positions = copy(positions, first, tokens), step.slots = copy(slots, first, tokens);
        step.wanted = copy(asked, 0, (int)asked.size());
        Row* into = own.of<Row>(some.size());
        std::copy(some.begin(), some.end(), into);
        step.rows = into;
        step.hidden = own.of<float>(asked.size() * m.hidden);
        check(palmette_forward(decoder, &step) == 0, "forward fails");
        return {step.hidden, step.hidden + asked.size() * m.hidden};
    }
};

static bool same(const std::vector<float>& a, const float* b, size_t count) {
    return a.size() == count && (count == 0 || std::memcmp(a.data(), b, count * 4) == 0);
}

static std::vector<float> run_head(
    const Model& m, void* decoder, const std::vector<float>& hidden, const uint32_t* const* masks, int words
) {
    Arrays own;
    const int count = (int)(hidden.size() / m.hidden);
    float* copy = own.of<float>(hidden.size());
    std::copy(hidden.begin(), hidden.end(), copy);
    float* logits = own.of<float>((size_t)count * m.vocab);
    check(palmette_head(decoder, copy, count, masks, words, logits) == 0, "head fails");
    return {logits, logits + (size_t)count * m.vocab};
}

static void use_logits(const Model& m, void* decoder, const std::vector<float>& hidden) {
    Arrays arrays;
    const int count = (int)(hidden.size() / m.hidden), words = (m.vocab + 31) / 32;
    if (count == 0) return;
    const std::vector<float> plain = run_head(m, decoder, hidden, nullptr, 0);
    const uint32_t** masks = arrays.of<const uint32_t*>(count);
    for (int i = 0; i < count; i++) {
        uint32_t* mask = arrays.of<uint32_t>(words);
        for (int w = 0; w < words; w++) mask[w] = one_of({(uint32_t)0, (uint32_t)rng(), (uint32_t)(1u << below(32))});
        const int allowed = below(m.vocab);  // no mask is empty
        mask[allowed / 32] |= 1u << allowed % 32;
        masks[i] = below(4) ? mask : nullptr;
    }
    const std::vector<float> masked = run_head(m, decoder, hidden, masks, words);
    for (int i = 0; i < count; i++) {
        for (int t = 0; t < m.vocab; t++) {
            const size_t at = (size_t)i * m.vocab + t;
            const bool wanted = masks[i] == nullptr || (masks[i][t / 32] >> t % 32 & 1);
            check(masked[at] == plain[at] || (!wanted && masked[at] == -INFINITY), "a mask changes a logit");
        }
    }
    float* logits = arrays.of<float>(plain.size());
    std::copy(plain.begin(), plain.end(), logits);
    double* norms = arrays.of<double>(count);
    check(palmette_survey(decoder, logits, count, below(2), norms) == 0, "survey fails");
    for (int i = 0; i < count; i++) check(!std::isnan(norms[i]), "the survey finds NaN");
    Choice* choices = arrays.of<Choice>(count);
    for (int i = 0; i < count; i++) {
        Choice& c = choices[i];
        c.logits = logits + (size_t)i * m.vocab, c.mask = masks[i], c.mask_words = words;
        c.top_k = one_of({0, 0, 1, 5, 1000}), c.temperature = one_of({0.0f, 0.3f, 1.0f}), c.min_p = one_of({0.0f, 0.1f});
        c.top_p = one_of({1.0, 1.0, 0.9, 0.01}), c.at = std::uniform_real_distribution<double>(0, 1)(rng);
        c.token = -1;
    }
    check(palmette_choose(decoder, choices, count) == 0, "choose fails");
    for (int i = 0; i < count; i++) {
        const int t = choices[i].token;
        check(t >= 0 && t < m.vocab, "a token of no vocabulary");
        check(masks[i] == nullptr || (masks[i][t / 32] >> t % 32 & 1), "a token that may not come");
    }
}

static void play(const char* instruction_set) {
    Arrays arrays;
    const int num_slots = 64 + 700;
    const Model m = random_model(arrays, num_slots);
    const int threads = from_to(2, 4);
    void* many = palmette_new(&m, threads, instruction_set);
    void* single = palmette_new(&m, 1, instruction_set);
    check(many != nullptr && single != nullptr, "no decoder");
    std::vector<int32_t> free;
    for (int slot = 64; slot < num_slots; slot++) free.push_back(slot);
    std::shuffle(free.begin(), free.end(), rng);
    for (int step = 0; step < 3; step++) {
        Batch batch;
        const int rows = from_to(1, 7);
        for (int r = 0; r < rows && free.size() > 210; r++) batch.add(m, free, below(3) == 0, one_of({20, 200}));
        if (batch.rows.empty()) break;
        const std::vector<float> found = batch.run(m, many);
        for (float x : found) check(std::isfinite(x), "a number that is none");
        check(same(batch.run(m, single), found.data(), found.size()), "threads change a result");
        size_t at = 0;
        for (size_t r = 0; r < batch.rows.size(); r++) {
            const std::vector<float> alone = batch.run(m, below(2) ? single : many, (int)r);
            check(at + alone.size() <= found.size(), "too many hidden states");
            check(same(alone, found.data() + at, alone.size()), "the batch changes a result");
            at += alone.size();
        }
        use_logits(m, many, found);
    }
    palmette_free(many), palmette_free(single);
}

int main(int argc, char** argv) {
    if (argc != 4) return 2;
    const unsigned seed = (unsigned)std::atoi(argv[1]);
    const int rounds = std::atoi(argv[2]);
    for (int round = 0; round < rounds; round++) {
        rng.seed(seed + (unsigned)round);
        std::fprintf(stderr, "round %d\n", round);
        play(argv[3]);
    }
    Model nothing{};
    check(palmette_new(&nothing, 1, "abacus") == nullptr, "an instruction set that nobody knows");
    std::puts("done");
}

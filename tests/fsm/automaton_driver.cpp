// Runs automaton.cpp alone, under sanitizers: reads a dumped constraint (test_native_sanitized.py), prints a hash of the
// mask behind every prefix of some texts, then asks questions in a random order under small limits.

#include "../../palmette/fsm/automaton.cpp"

#include <cstdio>
#include <map>
#include <random>
#include <string>

using Ints = std::vector<int32_t>;

static FILE* input;

static Ints block() {
    int32_t n = 0;
    if (std::fread(&n, 4, 1, input) != 1) std::abort();
    Ints out(n);
    if (n && std::fread(out.data(), 4, n, input) != static_cast<size_t>(n)) std::abort();
    return out;
}

struct Row {
    bool accepts;
    Ints segments;
};

static std::map<std::pair<int32_t, int32_t>, Row> rows;
static Automaton* current;
static std::vector<Ints> kept;
static std::vector<std::vector<uint8_t>> kept_bytes;

static int32_t ask(int32_t machine, int32_t state) {
    const auto found = rows.find({machine, state});
    if (found == rows.end()) return 1;
    const Ints& s = found->second.segments;
    return pm_give_row(current, machine, state, s.data(), static_cast<int32_t>(s.size() / 3), found->second.accepts);
}

static const int32_t* keep() {
    kept.push_back(block());
    return kept.back().data();
}

static const uint8_t* keep_bytes() {
    const Ints data = block();
    kept_bytes.emplace_back(data.begin(), data.end());
    return kept_bytes.back().data();
}

int main(int argc, char** argv) {
    input = argc > 1 ? std::fopen(argv[1], "rb") : nullptr;
    if (!input) return 2;
    kept.reserve(1000);
    kept_bytes.reserve(1000);
    const Ints head = block();  // words, slices, saturate, start item, texts
    const int32_t words = head[0];
    const Ints ends = block();
    const int32_t* child_start = keep();
    const uint8_t* bytes = keep_bytes();
    const int32_t* ids = keep();
    Vocabulary* v = pm_vocabulary(words, ends.data(), static_cast<int32_t>(ends.size()), child_start, bytes, ids, keep());
    for (int32_t i = 0; i < head[1]; ++i) {
        const Ints sizes = block();  // graph nodes, turns, characters
        const int32_t* graph_start = keep();
        const int32_t* graph_edges = keep();
        const int32_t* up_to = keep();
        const int32_t* starts = keep();
        const uint8_t* letters = keep_bytes();
        const int32_t* tokens = keep();
        pm_add_slice(v, graph_start, graph_edges, sizes[0], sizes[1], sizes[2], reinterpret_cast<const uint32_t*>(up_to),
                     starts, letters, tokens, keep());
    }
    const Ints kinds = block(), starts = block(), code = block(), rules = block(), dead = block(), foreign = block();
    for (size_t i = 0; i < foreign.size();) {
        const int32_t* r = foreign.data() + i;  // machine, state, accepts, segments, then three for each
        rows[{r[0], r[1]}] = {r[2] != 0, Ints(r + 4, r + 4 + 3 * r[3])};
        i += 4 + 3 * static_cast<size_t>(r[3]);
    }
    const std::vector<uint8_t> kind_bytes(kinds.begin(), kinds.end());
    const auto make = [&](const Limits& limits) {
        current = pm_new(v, &limits, 0, head[2], static_cast<int32_t>(kinds.size()), kind_bytes.data(), starts.data(),
                         static_cast<int32_t>(code.size()), code.data(), static_cast<int32_t>(rules.size()), rules.data(),
                         static_cast<int32_t>(dead.size()), dead.data(), ask);
        return pm_start(current, head[3]);
    };
    std::vector<std::string> texts;
    for (int32_t i = 0; i < head[4]; ++i) {
        const Ints text = block();
        texts.emplace_back(text.begin(), text.end());
    }
    const auto fresh = [&] {  // exactly as large as a mask, so that every byte beyond it is noticed
        return static_cast<uint32_t*>(std::malloc(static_cast<size_t>(words) * 4));
    };

    const int32_t start = make({200000, 50000, 2000, 500000});
    std::vector<uint32_t*> masks;
    for (const std::string& text : texts) {
        for (size_t n = 0; n <= text.size(); ++n) {
            const int32_t state = pm_read(current, 1, start, text.data(), static_cast<int64_t>(n));
            uint32_t* out = fresh();
            int32_t number = pm_mask(current, 1, state, 0, out, 1);
            if (number == TOO_LONG) number = pm_mask(current, 1, state, 0, out, 0);
            if (number < 0) {
                std::printf("code %d\n", number);
                std::free(out);
                continue;
            }
            if (number == static_cast<int32_t>(masks.size()))
                masks.push_back(out);
            else
                std::free(out);
            uint64_t h = 0xCBF29CE484222325ull;
            for (int32_t i = 0; i < words; ++i) h = (h ^ masks[number][i]) * 0x100000001B3ull;
            std::printf("%016llx\n", static_cast<unsigned long long>(h));
        }
    }
    pm_free(current);
    for (uint32_t* mask : masks) std::free(mask);

    std::mt19937 random(1);
    for (int32_t round = 0; round < 6; ++round) {
        const int64_t few = 2 + static_cast<int64_t>(random() % 60);
        const int32_t first = make({20 * few, 10 * few, few, 5 * few});
        std::vector<uint32_t*> made;
        Ints states{std::max(first, 0)}, answers(std::max(words * 32, 1000));
        std::vector<uint8_t> forced(64);
        for (int64_t step = 1; step < 120; ++step) {
            const int32_t state = states[random() % states.size()];
            const std::string& text = texts[random() % texts.size()];
            int32_t to = 0;
            int64_t out[3];
            switch (random() % 8) {
                case 0:
                    states.push_back(std::max(0, pm_read(current, step, state, text.data(), random() % (text.size() + 1))));
                    break;
                case 1:
                    pm_segments(current, step, state, answers.data());
                    break;
                case 2:
                    if (pm_forced(current, step, state, forced.data(), 64, &to) >= 0) states.push_back(to);
                    break;
                case 3:
                    pm_behind_tokens(current, step, state, answers.data());
                    break;
                case 4: {
                    const int32_t saturated = pm_saturated(current, step, state);
                    if (saturated >= 0) pm_likely(current, step, saturated, 8, answers.data());
                    break;
                }
                case 5:
                    if (pm_members(current, state, out) == 0) {
                        const int32_t* told = reinterpret_cast<const int32_t*>(static_cast<intptr_t>(out[0])) + out[1];
                        for (int64_t i = 0; i < out[2]; ++i)
                            if (told[3 * i + 1] >= static_cast<int32_t>(kinds.size()))
                                pm_item(current, told[3 * i + 1], answers.data());
                    }
                    break;
                case 6:
                    if (random() % 10 == 0) {
                        pm_clear_masks(current);
                        for (uint32_t* mask : made) std::free(mask);
                        made.clear();
                    }
                    break;
                default: {
                    uint32_t* mask = fresh();
                    const int32_t number = pm_mask(current, step, state, 0, mask, static_cast<int32_t>(random() % 2));
                    if (number == static_cast<int32_t>(made.size()))
                        made.push_back(mask);
                    else
                        std::free(mask);
                }
            }
        }
        pm_free(current);
        for (uint32_t* mask : made) std::free(mask);
    }
    pm_free_vocabulary(v);
    std::puts("done");
    return 0;
}

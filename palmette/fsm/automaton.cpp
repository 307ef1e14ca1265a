// The automaton of one constraint, unfolded on demand, and the masks of its states: the compiled twin of nfa.py, dfa.py
// (Subset), slices.py (Absorber), walk.py and masks.py, which say what is computed and why. native.py calls it.
//
//   Program    the items that Python lowered, and the tails and lesser counts that unfolding makes of them
//   Nfa        (item, rest) states and their edges; with `saturate`, counts above it count no further
//   Subset     sets of Nfa states, their rows as byte ranges
//   Automaton  the exact Subset and the one that masks are computed on, which may be the same
//
// A row inside an intersection or complement is asked of Python, once each. What crosses a limit leaves as a negative
// code and leaves everything as it was, but for what was learnt. One thread at a time for each handle; a vocabulary is
// only read.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

#if defined(_WIN32)
#define API extern "C" __declspec(dllexport)
#else
#define API extern "C" __attribute__((visibility("default")))
#endif

namespace {

using std::vector;

enum Kind : uint8_t { EPS, BYTES, CAT, ALT, REP, CALL, RET, MACHINE, START, END, LINE_START, LINE_END, TEXT };

enum Code : int32_t {
    DFA_STATES = -1,
    DFA_STATES_PER_STEP = -2,
    MEMBERS_PER_STEP = -3,
    NFA_STATES = -4,
    ASKING_FAILED = -5,  // Python could not say what a row is
    NO_MEMORY = -6,
    TOO_LONG = -7,  // for a quick call: the same call without `quick` goes on from what was learnt
    BROKEN = -8,
};

constexpr int32_t DEAD = 0, DONE = 0, EMPTY = 0, NO_LIMIT = -1, FOREVER = 1 << 30, UNKNOWN = -1;
constexpr int64_t QUICK_WORK = 8000;  // trie nodes and edges, some tens of microseconds

struct Stop {
    Code code;
};

uint32_t mixed(uint64_t x) {
    x ^= x >> 32;
    x *= 0x9E3779B97F4A7C15ull;
    x ^= x >> 29;
    x *= 0xBF58476D1CE4E5B9ull;
    return static_cast<uint32_t>(x >> 32);
}

// Values (>= 0) by hash, open addressing. What equal means is the caller's.
class Index {
public:
    template <class Equal>
    int32_t find(uint32_t hash, Equal equal) const {
        if (slots_.empty()) return UNKNOWN;
        const size_t mask = slots_.size() - 1;
        for (size_t i = hash & mask; slots_[i].value != UNKNOWN; i = (i + 1) & mask)
            if (slots_[i].hash == hash && equal(slots_[i].value)) return slots_[i].value;
        return UNKNOWN;
    }

    void add(uint32_t hash, int32_t value) {
        if (2 * (used_ + 1) > slots_.size()) grow(slots_.empty() ? 64 : 2 * slots_.size());
        put(slots_, hash, value);
        ++used_;
    }

    void expect(size_t more) {
        size_t size = slots_.empty() ? 64 : slots_.size();
        while (2 * (used_ + more) > size) size *= 2;
        if (size > slots_.size()) grow(size);
    }

    void clear() {
        slots_.clear();
        used_ = 0;
    }

    size_t nbytes() const { return slots_.capacity() * sizeof(Slot); }

private:
    struct Slot {
        uint32_t hash;
        int32_t value;
    };

    static void put(vector<Slot>& slots, uint32_t hash, int32_t value) {
        const size_t mask = slots.size() - 1;
        size_t i = hash & mask;
        while (slots[i].value != UNKNOWN) i = (i + 1) & mask;
        slots[i] = {hash, value};
    }

    void grow(size_t size) {
        vector<Slot> slots(size, Slot{0, UNKNOWN});
        for (const Slot& slot : slots_)
            if (slot.value != UNKNOWN) put(slots, slot.hash, slot.value);
        slots_.swap(slots);
    }

    vector<Slot> slots_;
    size_t used_ = 0;
};

// -- the vocabulary: arrays that Python owns and keeps alive ----------------------------------------------------------

struct Trie {
    const int32_t* child_start;  // (nodes + 1): children of a node are neighbours, ascending by byte
    const uint8_t* bytes;        // (nodes) the byte that leads here
    const int32_t* ids;          // (nodes) the token that ends here, -1 = none, -2 - i = several, at several[i]
    const int32_t* several;      // how many, then their ids
};

struct Slice {
    const int32_t* graph_start;  // (nodes + 1) into graph_edges, in edges
    const int32_t* graph_edges;  // (first byte, last byte, node); node 0 ends a character, the last node begins it
    int32_t graph_nodes;
    int32_t max_turns;
    int32_t max_chars;
    const uint32_t* up_to;  // (max_chars + 1, words)
    Trie others;
};

struct Vocabulary {
    int32_t words;
    vector<int32_t> ends;
    Trie trie;
    vector<Slice> slices;
};

// -- items ------------------------------------------------------------------------------------------------------------

class Program {
public:
    vector<uint8_t> kinds;
    vector<int32_t> starts;  // into code
    vector<int32_t> code;    // BYTES final n (low high node)*  CAT, ALT n item*  REP item low high  CALL rule
                             // MACHINE machine state accepting  TEXT n byte*
    vector<int32_t> rules;
    vector<uint8_t> dead;  // items without words

    const int32_t* arg(int32_t item) const { return code.data() + starts[item]; }

    void index() {
        ids_.expect(kinds.size());
        for (int32_t i = 0; i < static_cast<int32_t>(kinds.size()); ++i)
            if (kinds[i] == TEXT || kinds[i] == REP || (kinds[i] == MACHINE && arg(i)[2])) ids_.add(hash_of(i), i);
    }

    int32_t tail_of_text(int32_t item) {
        const int32_t n = arg(item)[0] - 1;
        if (n == 0) return EMPTY;
        scratch_.assign(1, n);
        scratch_.insert(scratch_.end(), arg(item) + 2, arg(item) + 2 + n);
        return intern(TEXT);
    }

    int32_t rep(int32_t part, int32_t low, int32_t high) {  // of a part that is surely not empty, or not `nullable`
        if (high == 0) return EMPTY;
        if (low == 1 && high == 1) return part;
        scratch_ = {part, low, high};
        return intern(REP);
    }

    int32_t machine(int32_t machine, int32_t state) {
        scratch_ = {machine, state, 1};
        return intern(MACHINE);
    }

    size_t nbytes() const { return kinds.capacity() * 2 + (starts.capacity() + code.capacity()) * 4 + ids_.nbytes(); }

private:
    int32_t length(int32_t item) const { return kinds[item] == TEXT ? arg(item)[0] + 1 : 3; }

    static uint32_t hash(uint8_t kind, const int32_t* data, int32_t n) {
        uint64_t h = kind;
        for (int32_t i = 0; i < n; ++i) h = (h ^ static_cast<uint32_t>(data[i])) * 0x100000001B3ull + (h >> 47);
        return mixed(h);
    }

    uint32_t hash_of(int32_t item) const { return hash(kinds[item], arg(item), length(item)); }

    int32_t intern(Kind kind) {
        const int32_t n = static_cast<int32_t>(scratch_.size());
        const uint32_t h = hash(kind, scratch_.data(), n);
        const int32_t found = ids_.find(h, [&](int32_t i) {
            return kinds[i] == kind && length(i) == n && std::equal(scratch_.begin(), scratch_.end(), arg(i));
        });
        if (found != UNKNOWN) return found;
        const int32_t item = static_cast<int32_t>(kinds.size());
        starts.push_back(static_cast<int32_t>(code.size()));
        code.insert(code.end(), scratch_.begin(), scratch_.end());
        dead.push_back(0);
        kinds.push_back(kind);
        ids_.add(h, item);
        return item;
    }

    Index ids_;
    vector<int32_t> scratch_;
};

// Rows of Python's automata (dfa.Product) inside items, each asked for once.
class Foreign {
public:
    using Ask = int32_t (*)(int32_t machine, int32_t state);  // answers through `give`; not 0 = it could not

    struct Row {
        int32_t machine, state;
        uint32_t first, count;  // into segments, in (first byte, last byte, state)
        bool accepts;
    };

    Ask ask = nullptr;
    vector<int32_t> segments;

    Row row(int32_t machine, int32_t state) {
        int32_t found = find(machine, state);
        if (found == UNKNOWN) {
            if (!ask || ask(machine, state)) throw Stop{ASKING_FAILED};
            found = find(machine, state);
            if (found == UNKNOWN) throw Stop{ASKING_FAILED};
        }
        return rows_[found];
    }

    void give(int32_t machine, int32_t state, const int32_t* data, int32_t count, bool accepts) {
        if (find(machine, state) != UNKNOWN) return;
        rows_.push_back({machine, state, static_cast<uint32_t>(segments.size()), static_cast<uint32_t>(count), accepts});
        segments.insert(segments.end(), data, data + 3 * static_cast<size_t>(count));
        ids_.add(hash(machine, state), static_cast<int32_t>(rows_.size()) - 1);
    }

    size_t nbytes() const { return rows_.capacity() * sizeof(Row) + segments.capacity() * 4 + ids_.nbytes(); }

private:
    static uint32_t hash(int32_t machine, int32_t state) {
        return mixed(static_cast<uint64_t>(static_cast<uint32_t>(machine)) << 32 | static_cast<uint32_t>(state));
    }

    int32_t find(int32_t machine, int32_t state) const {
        return ids_.find(hash(machine, state),
                         [&](int32_t i) { return rows_[i].machine == machine && rows_[i].state == state; });
    }

    vector<Row> rows_;
    Index ids_;
};

// -- what may still be spent: budget.py -------------------------------------------------------------------------------

struct Limits {
    int64_t nfa_states, dfa_states, dfa_states_per_step, members_per_step;
};

struct Budget {
    Limits limits;
    int64_t step = 0;  // 0 = outside any step: then only the totals count
    int64_t states = 0, subsets_in_step = 0, members_in_step = 0;
    int64_t work = 0;  // since the call began
    bool quick = false;

    void begin(int64_t now, bool is_quick) {
        if (now != step) {
            step = now;
            subsets_in_step = members_in_step = 0;
        }
        work = 0;
        quick = is_quick;
    }

    void spend(int64_t more) {
        work += more;
        if (quick && work > QUICK_WORK) throw Stop{TOO_LONG};
    }

    void new_state(int64_t members) {
        if (states + 1 > limits.dfa_states) throw Stop{DFA_STATES};
        if (step) {
            members_in_step += members;
            if (members_in_step > limits.members_per_step) throw Stop{MEMBERS_PER_STEP};
            if (members > 1 && ++subsets_in_step > limits.dfa_states_per_step) throw Stop{DFA_STATES_PER_STEP};
        }
        ++states;
    }
};

// -- the NFA ----------------------------------------------------------------------------------------------------------

struct Range {
    uint8_t low, high;
    int32_t to;
};

class Nfa {
public:
    Nfa(Program& program, Foreign& foreign, Budget& budget, int32_t saturate)
        : items{0}, rests{0}, program_(program), foreign_(foreign), budget_(budget), saturate_(saturate) {
        expansions_.push_back({0, 0, false, false});
    }

    vector<int32_t> items, rests;  // state 0 = nothing left to match
    vector<Range> edges;

    struct Expansion {
        uint32_t first, count;  // into edges
        bool known, accepts;
    };

    int32_t size() const { return static_cast<int32_t>(items.size()); }

    int32_t state(int32_t item, int32_t rest) {
        if (item == EMPTY) return rest;
        const uint32_t h = mixed(static_cast<uint64_t>(static_cast<uint32_t>(item)) << 32 | static_cast<uint32_t>(rest));
        const int32_t found = ids_.find(h, [&](int32_t i) { return items[i] == item && rests[i] == rest; });
        if (found != UNKNOWN) return found;
        if (size() > budget_.limits.nfa_states) throw Stop{NFA_STATES};
        const int32_t made = size();
        rests.push_back(rest);
        expansions_.push_back({0, 0, false, false});
        items.push_back(item);
        ids_.add(h, made);
        return made;
    }

    Expansion expand(int32_t state) {
        if (!expansions_[state].known) make_expansion(state);
        return expansions_[state];
    }

    // The state of this NFA that stands for `state` of `other`, which counts further.
    int32_t translated(const Nfa& other, int32_t state) {
        if (static_cast<int32_t>(translations_.size()) < other.size()) translations_.resize(other.size(), UNKNOWN);
        vector<int32_t> path;
        while (state != DONE && translations_[state] == UNKNOWN) {
            path.push_back(state);
            state = other.rests[state];
        }
        int32_t result = state == DONE ? DONE : translations_[state];
        while (!path.empty()) {
            const int32_t above = path.back();
            path.pop_back();
            int32_t item = other.items[above];
            if (program_.kinds[item] == REP) {
                const int32_t* arg = program_.arg(item);
                item = saturated(arg[0], arg[1], arg[2]);
            }
            result = this->state(item, result);
            translations_[above] = result;
        }
        return result;
    }

    size_t nbytes() const {
        return (items.capacity() + rests.capacity() + translations_.capacity() + marks_.capacity()) * 4 +
               edges.capacity() * sizeof(Range) + expansions_.capacity() * sizeof(Expansion) + ids_.nbytes();
    }

private:
    int32_t saturated(int32_t part, int32_t low, int32_t high) {
        if (saturate_ >= 0) {
            if (high > saturate_) high = NO_LIMIT;
            if (low > saturate_) low = FOREVER;
        }
        return program_.rep(part, low, high);
    }

    void push(int32_t state) {
        if (static_cast<size_t>(state) >= marks_.size()) marks_.resize(std::max(items.size(), 2 * marks_.size()), 0);
        if (marks_[state] == stamp_) return;
        marks_[state] = stamp_;
        stack_.push_back(state);
    }

    void make_expansion(int32_t origin) {
        if (++stamp_ == 0) {
            std::fill(marks_.begin(), marks_.end(), 0);
            stamp_ = 1;
        }
        stack_.clear();
        found_.clear();
        bool accepts = false;
        push(origin);
        while (!stack_.empty()) {
            const int32_t at = stack_.back();
            stack_.pop_back();
            if (at == DONE) {
                accepts = true;
                continue;
            }
            const int32_t item = items[at], rest = rests[at];
            if (program_.dead[item]) continue;
            const int32_t* arg = program_.arg(item);
            switch (program_.kinds[item]) {
                case BYTES: {
                    for (int32_t i = 0; i < arg[1]; ++i) {
                        const int32_t* edge = arg + 2 + 3 * i;
                        found_.push_back(
                            {static_cast<uint8_t>(edge[0]), static_cast<uint8_t>(edge[1]), state(edge[2], rest)});
                    }
                    if (arg[0]) push(rest);
                    break;
                }
                case TEXT: {
                    const uint8_t byte = static_cast<uint8_t>(arg[1]);
                    found_.push_back({byte, byte, state(program_.tail_of_text(item), rest)});
                    break;
                }
                case CAT: {
                    int32_t top = rest;
                    for (int32_t i = arg[0]; i > 0; --i) top = state(arg[i], top);
                    push(top);
                    break;
                }
                case ALT:
                    for (int32_t i = 1; i <= arg[0]; ++i) push(state(arg[i], rest));
                    break;
                case REP: {
                    const int32_t part = arg[0], low = arg[1], high = arg[2];
                    if (low == 0) push(rest);
                    const int32_t more = saturated(part, low == FOREVER ? low : std::max(low - 1, 0),
                                                   high == NO_LIMIT ? high : high - 1);
                    push(state(part, state(more, rest)));
                    break;
                }
                case CALL:  // a tail call keeps its frame
                    push(state(program_.rules[arg[0]], items[rest] == RET_ITEM ? rest : state(RET_ITEM, rest)));
                    break;
                case EPS:
                case RET:
                    push(rest);
                    break;
                case MACHINE: {
                    const int32_t machine = arg[0];
                    const bool accepting = arg[2];
                    const Foreign::Row row = foreign_.row(machine, arg[1]);
                    for (uint32_t i = 0; i < row.count; ++i) {
                        const int32_t* s = foreign_.segments.data() + row.first + 3 * i;
                        const uint8_t low = static_cast<uint8_t>(s[0]), high = static_cast<uint8_t>(s[1]);
                        found_.push_back({low, high, state(program_.machine(machine, s[2]), rest)});
                    }
                    if (accepting && row.accepts) push(rest);
                    break;
                }
                default:  // anchors stand inside Python's automata only
                    throw Stop{BROKEN};
            }
        }
        budget_.spend(static_cast<int64_t>(found_.size()) + 1);
        const Expansion made = {static_cast<uint32_t>(edges.size()), static_cast<uint32_t>(found_.size()), true, accepts};
        edges.insert(edges.end(), found_.begin(), found_.end());
        expansions_[origin] = made;
    }

    static constexpr int32_t RET_ITEM = 2;

    Program& program_;
    Foreign& foreign_;
    Budget& budget_;
    const int32_t saturate_;
    Index ids_;
    vector<Expansion> expansions_;
    vector<int32_t> translations_;
    vector<uint32_t> marks_;
    uint32_t stamp_ = 0;
    vector<int32_t> stack_;
    vector<Range> found_;
};

// -- the lazy DFA -----------------------------------------------------------------------------------------------------

class Subset {
public:
    Subset(Nfa& nfa, Budget& budget) : nfa(nfa), budget_(budget) { states_.push_back({0, 0, 0, 0, true, 0}); }

    Nfa& nfa;
    vector<Range> segments;

    struct Row {
        uint32_t first, count;
    };

    int32_t size() const { return static_cast<int32_t>(states_.size()); }
    uint32_t num_members(int32_t state) const { return states_[state].num_members; }
    const int32_t* members(int32_t state) const { return members_.data() + states_[state].first_member; }

    // The state of a set of NFA states, which is sorted in place.
    int32_t state_of(vector<int32_t>& set) {
        if (set.size() > 1) {
            std::sort(set.begin(), set.end());
            set.erase(std::unique(set.begin(), set.end()), set.end());
        }
        if (set.empty()) return DEAD;
        if (set.size() == 1) {
            const size_t only = set[0];
            if (only >= singles_.size()) singles_.resize(std::max<size_t>(nfa.items.size(), 2 * singles_.size()), 0);
            if (singles_[only] == 0) singles_[only] = make(set);
            return singles_[only];
        }
        uint64_t h = set.size();
        for (const int32_t member : set) h = (h ^ static_cast<uint32_t>(member)) * 0x100000001B3ull + (h >> 47);
        const uint32_t hash = mixed(h);
        int32_t found = ids_.find(hash, [&](int32_t i) {
            return states_[i].num_members == set.size() && std::equal(set.begin(), set.end(), members(i));
        });
        if (found == UNKNOWN) {
            found = make(set);
            ids_.add(hash, found);
        }
        return found;
    }

    bool accepts(int32_t state) {
        if (states_[state].accepts < 0) {
            bool found = false;
            for (uint32_t i = 0; i < states_[state].num_members && !found; ++i)
                found = nfa.expand(members(state)[i]).accepts;
            states_[state].accepts = found;
        }
        return states_[state].accepts;
    }

    Row row(int32_t state) {
        if (!states_[state].has_row) make_row(state);
        return {states_[state].first_segment, states_[state].num_segments};
    }

    // The row as one entry per byte, where it leads on with many bytes and there is room; otherwise null.
    const int32_t* wide_row(int32_t state) {
        if (static_cast<size_t>(state) >= wide_.size()) wide_.resize(std::max(states_.size(), 2 * wide_.size()), UNKNOWN);
        if (wide_[state] == UNKNOWN) wide_[state] = make_wide(row(state));
        return wide_[state] == NARROW ? nullptr : wide_rows_.data() + 256 * static_cast<size_t>(wide_[state]);
    }

    int32_t step(int32_t state, uint8_t byte) {
        const Row r = row(state);
        for (uint32_t i = 0; i < r.count; ++i) {
            const Range& s = segments[r.first + i];
            if (s.low <= byte && byte <= s.high) return s.to;
        }
        return DEAD;
    }

    size_t nbytes() const {
        return states_.capacity() * sizeof(State) + (members_.capacity() + singles_.capacity()) * 4 +
               segments.capacity() * sizeof(Range) + (wide_.capacity() + wide_rows_.capacity()) * 4 + ids_.nbytes();
    }

private:
    struct State {
        uint32_t first_member, num_members;
        uint32_t first_segment, num_segments;
        bool has_row;
        int8_t accepts;  // -1 = not known yet
    };

    int32_t make(const vector<int32_t>& set) {
        budget_.new_state(static_cast<int64_t>(set.size()));
        const State made = {static_cast<uint32_t>(members_.size()), static_cast<uint32_t>(set.size()), 0, 0, false, -1};
        members_.insert(members_.end(), set.begin(), set.end());
        states_.push_back(made);
        return size() - 1;
    }

    int32_t make_wide(Row row) {
        int32_t bytes = 0;
        for (uint32_t i = 0; i < row.count; ++i) bytes += segments[row.first + i].high - segments[row.first + i].low + 1;
        const size_t at = wide_rows_.size();
        if (bytes < WIDE || at >= 256 * MOST_WIDE) return NARROW;
        wide_rows_.resize(at + 256, DEAD);
        for (uint32_t i = 0; i < row.count; ++i) {
            const Range& s = segments[row.first + i];
            std::fill(wide_rows_.begin() + at + s.low, wide_rows_.begin() + at + s.high + 1, s.to);
        }
        return static_cast<int32_t>(at / 256);
    }

    static constexpr int32_t NARROW = -2, WIDE = 20;
    static constexpr size_t MOST_WIDE = 256;

    void put(uint8_t low, uint8_t high, int32_t to) {
        if (!row_.empty() && row_.back().to == to && row_.back().high + 1 == low)
            row_.back().high = high;
        else
            row_.push_back({low, high, to});
    }

    void make_row(int32_t state) {
        sorted_.clear();
        for (uint32_t i = 0; i < states_[state].num_members; ++i) {
            const Nfa::Expansion e = nfa.expand(members(state)[i]);
            sorted_.insert(sorted_.end(), nfa.edges.begin() + e.first, nfa.edges.begin() + e.first + e.count);
        }
        budget_.spend(static_cast<int64_t>(sorted_.size()));
        row_.clear();
        const auto by_low = [](const Range& a, const Range& b) { return a.low < b.low; };
        if (!std::is_sorted(sorted_.begin(), sorted_.end(), by_low)) std::sort(sorted_.begin(), sorted_.end(), by_low);
        bool disjoint = true;
        for (size_t i = 1; i < sorted_.size() && disjoint; ++i) disjoint = sorted_[i - 1].high < sorted_[i].low;
        if (disjoint) {
            for (const Range& edge : sorted_) {
                set_.assign(1, edge.to);
                put(edge.low, edge.high, state_of(set_));
            }
        } else {
            sweep();
        }
        State& s = states_[state];
        s.first_segment = static_cast<uint32_t>(segments.size());
        segments.insert(segments.end(), row_.begin(), row_.end());
        s.num_segments = static_cast<uint32_t>(row_.size());
        s.has_row = true;
    }

    // Overlapping ranges, sorted by their first bytes, as disjoint ones.
    void sweep() {
        active_.clear();
        size_t next = 0;
        int32_t here = 0;
        while (true) {
            active_.erase(std::remove_if(active_.begin(), active_.end(), [&](const Range& r) { return r.high < here; }),
                          active_.end());
            if (active_.empty()) {
                if (next == sorted_.size()) break;
                here = sorted_[next].low;
            }
            while (next < sorted_.size() && sorted_[next].low <= here) active_.push_back(sorted_[next++]);
            int32_t last = next < sorted_.size() ? sorted_[next].low - 1 : 255;
            set_.clear();
            for (const Range& r : active_) {
                last = std::min<int32_t>(last, r.high);
                set_.push_back(r.to);
            }
            budget_.spend(static_cast<int64_t>(set_.size()));
            put(static_cast<uint8_t>(here), static_cast<uint8_t>(last), state_of(set_));
            here = last + 1;
        }
    }

    Budget& budget_;
    vector<State> states_;
    vector<int32_t> members_, singles_;  // singles_: by NFA state, 0 = not made
    vector<int32_t> wide_, wide_rows_;   // wide_: by state, into wide_rows_
    Index ids_;
    vector<Range> sorted_, active_, row_;
    vector<int32_t> set_;
};

// -- slices -----------------------------------------------------------------------------------------------------------

// How many characters of a slice any state lets pass, whichever they are: slices.Absorber.
class Absorber {
public:
    Absorber(const Slice& slice, Subset& machine) : slice_(slice), machine_(machine) {}

    // n >= 0: every text of up to n characters passes and no longer one does; NOT_ALIKE: it depends on the characters.
    int32_t room(int32_t state) {
        vector<int32_t> path;
        int32_t result;
        ++stamp_;
        while (true) {
            if (known(state) != NOT_KNOWN) {
                result = known(state);
                break;
            }
            if (is_marked(state)) {
                result = slice_.max_chars;
                break;
            }
            if (static_cast<int64_t>(path.size()) > slice_.max_turns) {
                known(path[0]) = NOT_ALIKE;
                return NOT_ALIKE;
            }
            path.push_back(state);
            marks_[state] = stamp_;
            const bool passes = one_character(state, targets_);
            if (!passes) {
                result = targets_.empty() ? 0 : NOT_ALIKE;
                known(path.back()) = result;
                path.pop_back();
                break;
            }
            if (targets_.size() != 1) {
                path.pop_back();
                const vector<int32_t> first = targets_;
                result = wide(state, first);
                break;
            }
            state = targets_[0];
        }
        while (!path.empty()) {
            if (result != NOT_ALIKE) result = std::min(result + 1, slice_.max_chars);
            known(path.back()) = result;
            path.pop_back();
        }
        return result;
    }

    const Slice& slice() const { return slice_; }
    size_t nbytes() const { return known_.capacity() * 8; }

    static constexpr int32_t NOT_ALIKE = -1;

private:
    static constexpr int32_t NOT_KNOWN = -2;

    int32_t& known(int32_t state) {
        if (static_cast<size_t>(state) >= known_.size()) {
            const size_t size = std::max<size_t>(machine_.size(), 2 * known_.size());
            known_.resize(size, NOT_KNOWN);
            marks_.resize(size, 0);
        }
        return known_[state];
    }

    bool is_marked(int32_t state) {
        known(state);
        return marks_[state] == stamp_;
    }

    // From a state from which characters lead to different states: all of them must have the same room.
    int32_t wide(int32_t state, vector<int32_t> current) {
        vector<int32_t> visited{state}, next;
        int32_t count = 1, result = slice_.max_chars;
        const auto has = [](const vector<int32_t>& all, int32_t one) {
            return std::find(all.begin(), all.end(), one) != all.end();
        };
        while (count < slice_.max_chars) {
            bool is_new = false;
            for (const int32_t s : current) is_new = is_new || !has(visited, s);
            if (!is_new) break;
            if (count > std::min(slice_.max_turns, 64)) {
                result = NOT_ALIKE;
                break;
            }
            for (const int32_t s : current)
                if (!has(visited, s)) visited.push_back(s);
            bool all_pass = true, some_lead = false;
            next.clear();
            for (const int32_t s : current) {
                all_pass = one_character(s, targets_) && all_pass;
                some_lead = some_lead || !targets_.empty();
                for (const int32_t to : targets_)
                    if (!has(next, to)) next.push_back(to);
            }
            if (!all_pass) {
                result = some_lead ? NOT_ALIKE : count;
                break;
            }
            current.swap(next);
            ++count;
        }
        known(state) = result;
        return result;
    }

    // Whether every character passes, and the states that some lead to. Where not all pass and one leads on, no more.
    bool one_character(int32_t state, vector<int32_t>& targets) {
        bool passes = true;
        targets.clear();
        pairs_.assign(1, {slice_.graph_nodes - 1, state});
        for (size_t next = 0; next < pairs_.size(); ++next) {
            const Pair pair = pairs_[next];
            const Subset::Row row = machine_.row(pair.state);
            const Range* const first = machine_.segments.data() + row.first;
            const Range* const last = first + row.count;
            const Range* segment = first;
            for (int32_t i = slice_.graph_start[pair.node]; i < slice_.graph_start[pair.node + 1]; ++i) {
                const int32_t low = slice_.graph_edges[3 * i], high = slice_.graph_edges[3 * i + 1];
                const int32_t child = slice_.graph_edges[3 * i + 2];
                while (segment != last && segment->high < low) ++segment;
                int32_t covered = low;
                for (const Range* s = segment; s != last && s->low <= high; ++s) {
                    if (s->low > covered) passes = false;
                    covered = s->high + 1;
                    if (child == 0)
                        add(targets, s->to);
                    else
                        add(pairs_, Pair{child, s->to});
                }
                if (covered <= high) passes = false;
            }
            if (!passes && !targets.empty()) break;
        }
        return passes;
    }

    struct Pair {
        int32_t node, state;
        bool operator==(const Pair& other) const { return node == other.node && state == other.state; }
    };

    template <class T>
    static void add(vector<T>& all, T one) {
        if (std::find(all.begin(), all.end(), one) == all.end()) all.push_back(one);
    }

    const Slice& slice_;
    Subset& machine_;
    vector<int32_t> known_;
    vector<uint32_t> marks_;
    uint32_t stamp_ = 0;
    vector<int32_t> targets_;
    vector<Pair> pairs_;
};

// -- everything of one constraint -------------------------------------------------------------------------------------

// What Python may read without a call. native.py has the same order.
struct Counters {
    int64_t states = 0, nfa_states = 0, nbytes = 0, masked_states = 0;
};

struct Automaton {
    Counters counters;
    const Vocabulary& vocabulary;
    Budget budget;
    Program program;
    Foreign foreign;
    Nfa exact_nfa, saturated_nfa;
    Subset exact, saturated;
    const bool is_saturated;
    int32_t start = DEAD;
    vector<Absorber> absorbers;
    vector<int32_t> to_saturated;              // by exact state
    vector<int32_t> mask_of;                   // by state of `masked`
    vector<const uint32_t*> masks;             // distinct ones; Python's memory
    Index mask_ids;
    vector<uint8_t> told;                      // by exact NFA state
    vector<int32_t> answer;
    bool is_broken = false;                    // memory ran out in the middle of something

    Automaton(const Vocabulary& vocabulary, const Limits& limits, int32_t saturate)
        : vocabulary(vocabulary),
          exact_nfa(program, foreign, budget, -1),
          saturated_nfa(program, foreign, budget, saturate),
          exact(exact_nfa, budget),
          saturated(saturated_nfa, budget),
          is_saturated(saturate >= 0) {
        budget.limits = limits;
        for (const Slice& slice : vocabulary.slices) absorbers.emplace_back(slice, masked());
    }
    Automaton(const Automaton&) = delete;

    Subset& masked() { return is_saturated ? saturated : exact; }

    int32_t saturated_state(int32_t state) {
        if (!is_saturated) return state;
        if (static_cast<int32_t>(to_saturated.size()) < exact.size()) to_saturated.resize(exact.size(), UNKNOWN);
        if (to_saturated[state] == UNKNOWN) {
            vector<int32_t> set;
            for (uint32_t i = 0; i < exact.num_members(state); ++i)
                set.push_back(saturated_nfa.translated(exact_nfa, exact.members(state)[i]));
            to_saturated[state] = saturated.state_of(set);
        }
        return to_saturated[state];
    }

    // Calls visit(node, state) for every node below the root of `trie` that `from` reaches alive; for others too, with
    // DEAD. Nodes are numbered level by level, and first in, first out reads them in that order: what is read lies side
    // by side. Where a state has a wide row, whether a child is alive decides no branch, since no branch could be
    // foretold.
    template <class Visit>
    void walk(Subset& machine, const Trie& trie, int32_t from, Visit visit) {
        struct Place {
            int32_t node, state;
        };
        static thread_local vector<Place> queue(1024);  // grows to the nodes of a whole trie at most
        const int32_t* const child_start = trie.child_start;
        queue[0] = {0, from};
        size_t tail = 1;
        int32_t state = UNKNOWN;
        Subset::Row row = {0, 0};
        const int32_t* wide = nullptr;
        for (size_t next = 0; next < tail; ++next) {
            const Place at = queue[next];
            if (at.state != state) {
                state = at.state;
                row = machine.row(state);
                wide = machine.wide_row(state);
            }
            int32_t child = child_start[at.node];
            const int32_t end = child_start[at.node + 1], first = child;
            if (queue.size() - tail < static_cast<size_t>(end - child)) queue.resize(2 * queue.size() + end - child);
            Place* const out = queue.data();
            if (wide) {
                for (; child < end; ++child) {
                    const int32_t to = wide[trie.bytes[child]];
                    visit(child, to);
                    out[tail] = {child, to};
                    tail += static_cast<size_t>((to != DEAD) & (child_start[child] != child_start[child + 1]));
                }
            } else {
                const Range* segment = machine.segments.data() + row.first;
                const Range* const last = segment + row.count;
                for (; segment != last && child < end; ++segment) {
                    if (trie.bytes[child] < segment->low) child = first_from(trie, child, end, segment->low);
                    for (; child < end && trie.bytes[child] <= segment->high; ++child) {
                        visit(child, segment->to);
                        out[tail] = {child, segment->to};
                        tail += static_cast<size_t>(child_start[child] != child_start[child + 1]);
                    }
                }
            }
            budget.spend(child - first + 1);
        }
    }

    static int32_t first_from(const Trie& trie, int32_t child, int32_t end, uint8_t low) {
        if (end - child > 8)
            return static_cast<int32_t>(std::lower_bound(trie.bytes + child, trie.bytes + end, low) - trie.bytes);
        while (child < end && trie.bytes[child] < low) ++child;
        return child;
    }

    static void mark(const Trie& trie, int32_t node, int32_t state, uint32_t* words) {
        const int32_t id = trie.ids[node];
        if (id < -1) {
            const int32_t* several = trie.several - 2 - id;
            for (int32_t i = 1; i <= several[0] && state != DEAD; ++i) words[several[i] >> 5] |= 1u << (several[i] & 31);
            return;
        }
        const uint32_t is_allowed = static_cast<uint32_t>((id >= 0) & (state != DEAD));
        words[(id & ~(id >> 31)) >> 5] |= is_allowed << (id & 31);
    }

    // The number of the mask of a state of `masked`. A new one is written to `out`, which stays the caller's to keep.
    int32_t mask(int32_t state, uint32_t* out) {
        Subset& machine = masked();
        if (static_cast<int32_t>(mask_of.size()) < machine.size())
            mask_of.resize(std::max<size_t>(machine.size(), mask_of.size() + mask_of.size() / 2), UNKNOWN);
        if (mask_of[state] != UNKNOWN) return mask_of[state];
        compute(machine, state, out);
        uint64_t h = 0;
        for (int32_t i = 0; i < vocabulary.words; ++i) h = (h ^ out[i]) * 0x100000001B3ull + (h >> 47);
        const uint32_t hash = mixed(h);
        const size_t size = static_cast<size_t>(vocabulary.words) * 4;
        int32_t found = mask_ids.find(hash, [&](int32_t i) { return std::memcmp(masks[i], out, size) == 0; });
        if (found == UNKNOWN) {
            found = static_cast<int32_t>(masks.size());
            masks.push_back(out);
            mask_ids.add(hash, found);
        }
        ++counters.masked_states;
        return mask_of[state] = found;
    }

    void compute(Subset& machine, int32_t state, uint32_t* out) {
        const Slice* slice = nullptr;
        const Subset::Row row = machine.row(state);
        bool letters = false;  // a to z are in every slice
        for (uint32_t i = 0; i < row.count; ++i) {
            const Range& s = machine.segments[row.first + i];
            letters = letters || (s.low <= 'a' && s.high >= 'z');
        }
        for (size_t i = 0; letters && i < absorbers.size() && !slice; ++i) {
            const int32_t room = absorbers[i].room(state);
            if (room <= 0) continue;
            slice = &absorbers[i].slice();
            const size_t n = std::min(room, slice->max_chars);
            std::memcpy(out, slice->up_to + n * vocabulary.words, static_cast<size_t>(vocabulary.words) * 4);
        }
        if (!slice) std::memset(out, 0, static_cast<size_t>(vocabulary.words) * 4);
        const Trie& trie = slice ? slice->others : vocabulary.trie;
        walk(machine, trie, state, [&](int32_t node, int32_t to) { mark(trie, node, to, out); });
        if (machine.accepts(state))
            for (const int32_t id : vocabulary.ends) out[id >> 5] |= 1u << (id & 31);
    }

    void count() {
        counters.states = budget.states;
        counters.nfa_states = std::max(exact_nfa.size(), saturated_nfa.size());
        size_t n = program.nbytes() + foreign.nbytes() + exact_nfa.nbytes() + saturated_nfa.nbytes() + exact.nbytes() +
                   saturated.nbytes() + (to_saturated.capacity() + mask_of.capacity()) * 4;
        for (const Absorber& absorber : absorbers) n += absorber.nbytes();
        counters.nbytes = static_cast<int64_t>(n);
    }
};

// A state of another automaton, or of this one before it was built anew, is a mistake and must not become a wild read.
void must_exist(const Subset& machine, int32_t state) {
    if (state < 0 || state >= machine.size()) throw Stop{BROKEN};
}

// Runs one call: limits and lack of memory become codes.
template <class Body>
int32_t guarded(Automaton* a, int64_t step, bool quick, Body body) {
    if (a->is_broken) return NO_MEMORY;
    int32_t result;
    try {
        a->budget.begin(step, quick);
        result = body();
    } catch (const Stop& stop) {
        result = stop.code;
    } catch (const std::bad_alloc&) {
        result = NO_MEMORY;
        a->is_broken = true;
    } catch (...) {
        result = BROKEN;
        a->is_broken = true;
    }
    a->count();
    return result;
}

}  // namespace

// -- what native.py calls ---------------------------------------------------------------------------------------------

API int32_t pm_version() { return 1; }

API Vocabulary* pm_vocabulary(int32_t words, const int32_t* ends, int32_t num_ends, const int32_t* child_start,
                              const uint8_t* bytes, const int32_t* ids, const int32_t* several) {
    try {
        return new Vocabulary{words, vector<int32_t>(ends, ends + num_ends), {child_start, bytes, ids, several}, {}};
    } catch (...) {
        return nullptr;
    }
}

// Before the vocabulary's first automaton.
API int32_t pm_add_slice(Vocabulary* v, const int32_t* graph_start, const int32_t* graph_edges, int32_t graph_nodes,
                         int32_t max_turns, int32_t max_chars, const uint32_t* up_to, const int32_t* child_start,
                         const uint8_t* bytes, const int32_t* ids, const int32_t* several) {
    try {
        v->slices.push_back({graph_start, graph_edges, graph_nodes, max_turns, max_chars, up_to,
                             {child_start, bytes, ids, several}});
        return 0;
    } catch (...) {
        return NO_MEMORY;
    }
}

API void pm_free_vocabulary(Vocabulary* v) { delete v; }

// `states`: those that Python has made already. `saturate`: -1 = counts need no bound. The vocabulary must outlive it.
API Automaton* pm_new(const Vocabulary* v, const Limits* limits, int64_t states, int32_t saturate, int32_t num_items,
                      const uint8_t* kinds, const int32_t* starts, int32_t num_code, const int32_t* code,
                      int32_t num_rules, const int32_t* rules, int32_t num_dead, const int32_t* dead, Foreign::Ask ask) {
    try {
        Automaton* a = new Automaton(*v, *limits, saturate);
        try {
            a->budget.states = states;
            a->program.kinds.assign(kinds, kinds + num_items);
            a->program.starts.assign(starts, starts + num_items);
            a->program.code.assign(code, code + num_code);
            a->program.rules.assign(rules, rules + num_rules);
            a->program.dead.assign(num_items, 0);
            for (int32_t i = 0; i < num_dead; ++i) a->program.dead[dead[i]] = 1;
            a->program.index();
            a->foreign.ask = ask;
            a->count();
        } catch (...) {
            delete a;
            return nullptr;
        }
        return a;
    } catch (...) {
        return nullptr;
    }
}

API void pm_free(Automaton* a) { delete a; }

API const Counters* pm_counters(const Automaton* a) { return &a->counters; }

// The state in which `item` is still to be matched: the start.
API int32_t pm_start(Automaton* a, int32_t item) {
    return guarded(a, 0, false, [&] {
        vector<int32_t> set{a->exact_nfa.state(item, DONE)};
        return a->exact.state_of(set);
    });
}

API int32_t pm_give_row(Automaton* a, int32_t machine, int32_t state, const int32_t* segments, int32_t count,
                        int32_t accepts) {
    try {
        a->foreign.give(machine, state, segments, count, accepts != 0);
        return 0;
    } catch (...) {
        return NO_MEMORY;
    }
}

API int32_t pm_accepts(Automaton* a, int64_t step, int32_t state) {
    return guarded(a, step, false, [&] {
        must_exist(a->exact, state);
        return static_cast<int32_t>(a->exact.accepts(state));
    });
}

// The state behind `size` bytes, DEAD where they cannot be read.
API int32_t pm_read(Automaton* a, int64_t step, int32_t state, const char* data, int64_t size) {
    return guarded(a, step, false, [&] {
        must_exist(a->exact, state);
        int32_t at = state;
        for (int64_t i = 0; i < size && at != DEAD; ++i) at = a->exact.step(at, static_cast<uint8_t>(data[i]));
        return at;
    });
}

// Up to 256 times (first byte, last byte, state) into `out`; how many.
API int32_t pm_segments(Automaton* a, int64_t step, int32_t state, int32_t* out) {
    return guarded(a, step, false, [&] {
        must_exist(a->exact, state);
        const Subset::Row row = a->exact.row(state);
        for (uint32_t i = 0; i < row.count; ++i) {
            const Range& s = a->exact.segments[row.first + i];
            out[3 * i] = s.low;
            out[3 * i + 1] = s.high;
            out[3 * i + 2] = s.to;
        }
        return static_cast<int32_t>(row.count);
    });
}

// Up to `most` bytes that every continuation begins with into `out`; how many. out_state[0] = the state behind them.
API int32_t pm_forced(Automaton* a, int64_t step, int32_t state, uint8_t* out, int32_t most, int32_t* out_state) {
    return guarded(a, step, false, [&] {
        must_exist(a->exact, state);
        int32_t n = 0, at = state;
        while (n < most && !a->exact.accepts(at)) {
            const Subset::Row row = a->exact.row(at);
            if (row.count != 1) break;
            const Range only = a->exact.segments[row.first];
            if (only.low != only.high) break;
            out[n++] = only.low;
            at = only.to;
        }
        *out_state = at;
        return n;
    });
}

// The state that masks of `state` are computed on.
API int32_t pm_saturated(Automaton* a, int64_t step, int32_t state) {
    return guarded(a, step, false, [&] {
        must_exist(a->exact, state);
        return a->saturated_state(state);
    });
}

// The number of the mask of an exact state, or of a saturated one. A new mask (its number is that of the masks before)
// is written to `out`, which must stay as it is until pm_clear_masks. A quick call may give up with TOO_LONG.
API int32_t pm_mask(Automaton* a, int64_t step, int32_t state, int32_t is_saturated, uint32_t* out, int32_t quick) {
    return guarded(a, step, quick != 0, [&] {
        must_exist(is_saturated ? a->masked() : a->exact, state);
        return a->mask(is_saturated ? state : a->saturated_state(state), out);
    });
}

API void pm_clear_masks(Automaton* a) {
    a->masks.clear();
    a->mask_ids.clear();
    a->counters.masked_states = 0;
    std::fill(a->mask_of.begin(), a->mask_of.end(), UNKNOWN);
}

// Per token id the exact state behind it; where there is none `out` is left as it is.
API int32_t pm_behind_tokens(Automaton* a, int64_t step, int32_t state, int32_t* out) {
    return guarded(a, step, false, [&] {
        must_exist(a->exact, state);
        const Trie& trie = a->vocabulary.trie;
        a->walk(a->exact, trie, state, [&](int32_t node, int32_t to) {
            const int32_t id = trie.ids[node];
            if (to == DEAD) {
                return;
            } else if (id >= 0) {
                out[id] = to;
            } else if (id < -1) {
                const int32_t* several = trie.several - 2 - id;
                for (int32_t i = 1; i <= several[0]; ++i) out[several[i]] = to;
            }
        });
        return 0;
    });
}

// Saturated states behind one token, those that most places with tokens lead to first, up to `most`; how many.
API int32_t pm_likely(Automaton* a, int64_t step, int32_t saturated_state, int32_t most, int32_t* out) {
    return guarded(a, step, false, [&] {
        must_exist(a->masked(), saturated_state);
        const Trie& trie = a->vocabulary.trie;
        vector<int32_t> tokens_to;
        a->walk(a->masked(), trie, saturated_state, [&](int32_t node, int32_t to) {
            if (to == DEAD || trie.ids[node] == -1) return;
            if (static_cast<size_t>(to) >= tokens_to.size()) tokens_to.resize(a->masked().size(), 0);
            ++tokens_to[to];
        });
        a->answer.clear();
        for (int32_t s = 0; s < static_cast<int32_t>(tokens_to.size()); ++s)
            if (tokens_to[s]) a->answer.push_back(s);
        std::stable_sort(a->answer.begin(), a->answer.end(),
                         [&](int32_t x, int32_t y) { return tokens_to[x] > tokens_to[y]; });
        const int32_t n = std::min(most, static_cast<int32_t>(a->answer.size()));
        std::copy(a->answer.begin(), a->answer.begin() + n, out);
        return n;
    });
}

// Of what a state is made, for bounds on costs: its NFA states, then (NFA state, item, rest) of those that were not
// told before, each behind its rest. out[0] points to it until the next call; out[1], out[2] = how many of either.
API int32_t pm_members(Automaton* a, int32_t state, int64_t* out) {
    return guarded(a, a->budget.step, false, [&] {
        must_exist(a->exact, state);
        const Nfa& nfa = a->exact_nfa;
        a->told.resize(nfa.size(), 0);
        a->answer.clear();
        const uint32_t n = a->exact.num_members(state);
        a->answer.insert(a->answer.end(), a->exact.members(state), a->exact.members(state) + n);
        vector<int32_t> path;
        for (uint32_t i = 0; i < n; ++i) {
            for (int32_t s = a->answer[i]; s != DONE && !a->told[s]; s = nfa.rests[s]) path.push_back(s);
            for (; !path.empty(); path.pop_back()) {
                const int32_t s = path.back();
                const int32_t told[] = {s, nfa.items[s], nfa.rests[s]};
                a->answer.insert(a->answer.end(), told, told + 3);
                a->told[s] = 1;
            }
        }
        out[0] = static_cast<int64_t>(reinterpret_cast<intptr_t>(a->answer.data()));
        out[1] = n;
        out[2] = static_cast<int64_t>((a->answer.size() - n) / 3);
        return 0;
    });
}

// An item that was made here: its kind; its argument as in `Program::code` into `out` (130 entries are enough).
API int32_t pm_item(const Automaton* a, int32_t item, int32_t* out) {
    const int32_t* arg = a->program.arg(item);
    const int32_t n = a->program.kinds[item] == TEXT ? arg[0] + 1 : 3;
    std::copy(arg, arg + n, out);
    return a->program.kinds[item];
}

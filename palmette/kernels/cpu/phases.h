// Work that several threads do together: phases, and within a phase units that threads take as they come. A phase is
// over when its units are done, not when all threads have come: where other programs take a processor away, the rest
// go on without the thread that ran there, which finds its way back past the phases that are over. Which thread
// computes a unit never shows in its result.
#pragma once

#include "core.h"

namespace {

struct Phases {
    const Workspace& work;
    int thread, num_threads, phase;

    // Call unit(i) for 0 <= i < count, each once, over all threads; returns when all are done. Each thread has a stretch
    // of neighbours, so that it reads weights in their order in memory, and then helps with what is left of the others'.
    template <class Unit>
    void each(int count, Unit unit) {
        int32_t* next = work.counters + (int64_t)(phase++) * (num_threads + 1) * 16;
        int32_t* done = next + (int64_t)num_threads * 16;
        int32_t mine = 0;
        for (int helped = 0; helped < num_threads; helped++) {
            const int whose = (thread + helped) % num_threads;
            const int first = (int)((int64_t)count * whose / num_threads);
            const int end = (int)((int64_t)count * (whose + 1) / num_threads);
            while (__atomic_load_n(next + 16 * whose, __ATOMIC_RELAXED) < end - first) {
                const int i = first + __atomic_fetch_add(next + 16 * whose, 1, __ATOMIC_RELAXED);
                if (i >= end) break;
                unit(i);
                mine++;
            }
        }
        if (mine) __atomic_fetch_add(done, mine, __ATOMIC_RELEASE);
        for (int times = 0; __atomic_load_n(done, __ATOMIC_ACQUIRE) != count; times++) rest(times);
    }
};

}  // namespace

#include "threads.h"

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

#include "core.h"

// Waits last microseconds, so a waiting thread spins; where the machine is shared it soon lets others run.
static constexpr int SPINS = 4000;

void rest(int times) {
    if (times >= SPINS) {
        std::this_thread::yield();
        return;
    }
#if defined(__x86_64__) || defined(__i386__)
    _mm_pause();
#endif
}

Threads::Threads(int count) : count_(count) {
    for (int i = 1; i < count; i++) workers_.emplace_back([this, i] { work(i); });
}

Threads::~Threads() {
    {
        std::lock_guard<std::mutex> lock(mutex_);
        stopping_ = true;
    }
    wake_.notify_all();
    for (std::thread& worker : workers_) worker.join();
}

void Threads::run(void (*function)(const void*, int), const void* argument) {
    if (count_ == 1) {
        function(argument, 0);
        return;
    }
    {
        std::lock_guard<std::mutex> lock(mutex_);
        function_ = function;
        argument_ = argument;
        job_++;
    }
    wake_.notify_all();
    function(argument, 0);
    {
        std::lock_guard<std::mutex> lock(mutex_);
        function_ = nullptr;  // who has not come by now need not come
    }
    for (int times = 0; helping_.load(std::memory_order_acquire) != 0; times++) rest(times);
}

void Threads::work(int thread) {
    uint64_t seen = 0;
    for (;;) {
        void (*function)(const void*, int);
        const void* argument;
        {
            std::unique_lock<std::mutex> lock(mutex_);
            wake_.wait(lock, [&] { return stopping_ || job_ != seen; });
            if (stopping_) return;
            seen = job_;
            if (function_ == nullptr) continue;
            function = function_;
            argument = argument_;
            helping_.fetch_add(1, std::memory_order_relaxed);
        }
        function(argument, thread);
        helping_.fetch_sub(1, std::memory_order_release);
    }
}

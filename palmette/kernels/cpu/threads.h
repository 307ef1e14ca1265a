// Threads that help with one function at a time. Nobody waits for a thread that has not come: see phases.h.
#pragma once

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

class Threads {
public:
    explicit Threads(int count);
    ~Threads();
    Threads(const Threads&) = delete;
    Threads& operator=(const Threads&) = delete;

    int count() const { return count_; }

    // Call function(argument, thread) on the caller, which is thread 0, and on those of the others that come in time;
    // returns when the caller's call has ended and nobody else is still in theirs. The function must be done with its
    // work when the first call of it returns.
    void run(void (*function)(const void*, int), const void* argument);

private:
    void work(int thread);

    const int count_;
    std::vector<std::thread> workers_;
    std::mutex mutex_;
    std::condition_variable wake_;
    void (*function_)(const void*, int) = nullptr;  // under the mutex, as the next three
    const void* argument_ = nullptr;
    uint64_t job_ = 0;
    bool stopping_ = false;
    std::atomic<int> helping_{0};
};

// Several threads run the same layers at once, each of which hands its tiles to further threads.
//
//     test_threads [ROUNDS]
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#include "naive.h"

namespace {

using namespace edgefold;

constexpr int kCallers = 6, kHelpers = 3;

// Tiles in no certain order, on threads that are new each time.
void run_on_threads(void*, void (*body)(void*, size_t), size_t count, void* data) {
    std::atomic<size_t> next{0};
    const auto work = [&] {
        for (size_t i = next++; i < count; i = next++) body(data, i);
    };
    std::vector<std::thread> helpers;
    for (int i = 0; i < kHelpers; ++i) helpers.emplace_back(work);
    work();
    for (std::thread& helper : helpers) helper.join();
}

// Large enough that a layer is cut into tiles, by rows, by blocks and by both.
Case large_case(Random& random, bool grid) {
    Case c;
    do {
        c = random_case(random, grid);
    } while (c.rows() * c.columns() * c.geometry.outputs * c.geometry.input_words() < 16 * 1024);
    return c;
}

}  // namespace

int main(int argc, char** argv) {
    const int rounds = argc > 1 ? std::atoi(argv[1]) : 4;
    Random random(1);
    size_t count = 0;
    const Kernels* const* kernels = available_kernels(&count);
    std::vector<Case> cases;
    std::vector<Outputs> expected;
    std::vector<AnyLayer> layers;
    for (int i = 0; i < 6; ++i) {
        cases.push_back(large_case(random, i % 2 != 0));
        expected.push_back(naive_outputs(cases.back()));
        layers.emplace_back(cases.back(), *kernels[static_cast<size_t>(i) % count]);
    }
    const ParallelFor parallel_for{run_on_threads, nullptr};
    std::vector<std::thread> callers;
    for (int caller = 0; caller < kCallers; ++caller)
        callers.emplace_back([&, caller] {
            for (int round = 0; round < rounds; ++round)
                for (size_t i = 0; i < cases.size(); ++i) {
                    const size_t at = (i + static_cast<size_t>(caller)) % cases.size();
                    compare(cases[at], expected[at], layers[at].run(cases[at], true, true, parallel_for), "threads");
                }
        });
    for (std::thread& caller : callers) caller.join();
    std::printf("%d threads of %d helpers, %d rounds: equal\n", kCallers, kHelpers, rounds);
}

// A layer that has run before allocates nothing when it runs again on an input of the same size.
#include <cstdio>
#include <cstdlib>
#include <new>

#include "naive.h"

namespace {

size_t allocations = 0;

}  // namespace

void* operator new(size_t size) {
    ++allocations;
    void* memory = std::malloc(size == 0 ? 1 : size);
    if (memory == nullptr) throw std::bad_alloc();
    return memory;
}

void* operator new(size_t size, std::align_val_t alignment) {
    ++allocations;
    const size_t line = static_cast<size_t>(alignment);
    void* memory = std::aligned_alloc(line, (size + line - 1) / line * line);
    if (memory == nullptr) throw std::bad_alloc();
    return memory;
}

void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, size_t, std::align_val_t) noexcept { std::free(memory); }

int main() {
    using namespace edgefold;
    Random random(0);
    for (int i = 0; i < 60; ++i) {
        const bool grid = i % 3 == 0;
        const Case c = random_case(random, grid);
        const Geometry& g = c.geometry;
        const size_t pixels = static_cast<size_t>(c.batch * c.rows() * c.columns());
        std::vector<float> y(pixels * static_cast<size_t>(g.outputs));
        std::vector<uint32_t> bits(pixels * static_cast<size_t>(g.output_words()));
        const float* residual = c.residual.empty() ? nullptr : c.residual.data();
        const Kernels& kernels = *chosen_kernels();
        const auto count = [&](const auto& layer, const auto* input) {
            layer.run(input, c.batch, c.height, c.width, residual, y.data(), bits.data(), {});
            const size_t before = allocations;
            layer.run(input, c.batch, c.height, c.width, residual, y.data(), bits.data(), {});
            layer.run(input, c.batch, c.height, c.width, residual, nullptr, bits.data(), {});
            layer.run(input, c.batch, c.height, c.width, residual, nullptr, bits.data(), {});
            return allocations - before;
        };
        const size_t more =
            grid ? count(GridLayer(g, c.factors.data(), c.input_scale, c.levels, c.channelwise, kernels), c.x.data())
                 : count(BinaryLayer(g, c.weights.data(), c.channelwise, kernels), c.bits.data());
        // One for the room that signs need which cannot be made in place, the first time that nobody wants Y.
        if (more > 1) {
            std::fprintf(stderr, "case %d: %zu allocations after the first run\n", i, more);
            return 1;
        }
    }
    std::printf("no allocations after the first run\n");
}

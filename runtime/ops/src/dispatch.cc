// Which kernels this processor can run, and which are used.
#include <cstdlib>
#include <cstring>

#include "kernels.h"

namespace edgefold {

extern const Kernels kPortable;
#if defined(EDGEFOLD_X86)
extern const Kernels kPopcnt;
extern const Kernels kAvx2;
extern const Kernels kAvx512;
extern const Kernels kAvx512Vpopcntdq;
#elif defined(EDGEFOLD_NEON)
extern const Kernels kNeon;
#endif

namespace {

struct Available {
    const Kernels* kernels[5];
    size_t count = 0;

    void add(const Kernels& each) { kernels[count++] = &each; }

    Available() {
#if defined(EDGEFOLD_X86)
        __builtin_cpu_init();
        const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                            __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
        if (avx512 && __builtin_cpu_supports("avx512vpopcntdq") && __builtin_cpu_supports("avx512vnni"))
            add(kAvx512Vpopcntdq);
        if (avx512) add(kAvx512);
        if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("popcnt")) add(kAvx2);
        if (__builtin_cpu_supports("popcnt")) add(kPopcnt);
#elif defined(EDGEFOLD_NEON)
        add(kNeon);
#endif
        add(kPortable);
    }
};

const Available& available() {
    static const Available found;
    return found;
}

}  // namespace

const Kernels* const* available_kernels(size_t* count) {
    *count = available().count;
    return available().kernels;
}

const Kernels* chosen_kernels() {
    const char* wanted = std::getenv("EDGEFOLD_ISA");
    if (wanted == nullptr || *wanted == '\0') return available().kernels[0];
    for (size_t i = 0; i < available().count; ++i)
        if (std::strcmp(available().kernels[i]->name, wanted) == 0) return available().kernels[i];
    return nullptr;
}

}  // namespace edgefold

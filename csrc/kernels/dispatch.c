/* Chooses the kernels for this processor. */
#include <string.h>

#include "kernels.h"

static int processor_has(const struct segloss_kernels* kernels) {
#ifdef SEGLOSS_X86
    if (kernels == &segloss_kernels_avx512) {
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("fma");
    }
    if (kernels == &segloss_kernels_avx2) {
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    }
#endif
    return kernels == &segloss_kernels_baseline;
}

const struct segloss_kernels* segloss_select_kernels(const char* isa) {
    static const struct segloss_kernels* const best_first[] = {
#ifdef SEGLOSS_X86
        &segloss_kernels_avx512,
        &segloss_kernels_avx2,
#endif
        &segloss_kernels_baseline,
    };
    for (size_t i = 0; i < sizeof best_first / sizeof best_first[0]; ++i) {
        const int wanted = !isa || !*isa || strcmp(isa, best_first[i]->isa) == 0;
        if (wanted && processor_has(best_first[i])) {
            return best_first[i];
        }
    }
    return NULL;
}

/* Chooses the kernels for this processor. */
#ifdef SEGLOSS_X86
#include <cpuid.h>
#endif
#include <string.h>

#include "kernels.h"

static const struct segloss_kernels* const best_first[] = {
#ifdef SEGLOSS_X86
    &segloss_kernels_avx512,
    &segloss_kernels_avx2,
#endif
#ifdef __aarch64__
    &segloss_kernels_neon,
#else
    &segloss_kernels_baseline,
#endif
};

enum { NUM_TABLES = sizeof best_first / sizeof best_first[0] };

#ifdef SEGLOSS_X86
/* __builtin_cpu_supports does not know it in every compiler. */
static int has_f16c(void) {
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

static int processor_has(const struct segloss_kernels* kernels) {
#ifdef SEGLOSS_X86
    if (kernels == &segloss_kernels_avx512) {
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("fma") && has_f16c();
    }
    if (kernels == &segloss_kernels_avx2) {
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
    }
#endif
    return kernels == best_first[NUM_TABLES - 1];
}

const struct segloss_kernels* segloss_usable_kernels(int k) {
    for (int i = 0; i < NUM_TABLES; ++i) {
        if (processor_has(best_first[i]) && k-- == 0) {
            return best_first[i];
        }
    }
    return NULL;
}

const struct segloss_kernels* segloss_select_kernels(const char* isa) {
    const struct segloss_kernels* kernels = NULL;
    for (int k = 0; (kernels = segloss_usable_kernels(k)); ++k) {
        if (!isa || !*isa || strcmp(isa, kernels->isa) == 0) {
            return kernels;
        }
    }
    return isa && strcmp(isa, "baseline") == 0 ? best_first[NUM_TABLES - 1] : NULL;
}

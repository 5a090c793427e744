/* The elementary functions and half conversions of one instruction set, each over an array. */
#ifndef SEGLOSS_TEST_ELEMENTARY_H
#define SEGLOSS_TEST_ELEMENTARY_H

#include <stdint.h>

struct elementary {
    const char* isa;
    void (*exp_float)(const float* x, float* y, int n);
    void (*exp_double)(const double* x, double* y, int n);
    void (*log1p_float)(const float* x, float* y, int n);
    void (*log1p_double)(const double* x, double* y, int n);
    void (*float_of_float16)(const uint16_t* x, float* y, int n);
    void (*float_of_bfloat16)(const uint16_t* x, float* y, int n);
    void (*float16_of_float)(const float* x, uint16_t* y, int n);
    void (*bfloat16_of_float)(const float* x, uint16_t* y, int n);
};

extern const struct elementary elementary_baseline;
#ifdef SEGLOSS_X86
extern const struct elementary elementary_avx2;
extern const struct elementary elementary_avx512;
#endif

#endif

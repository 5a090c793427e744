/* The elementary functions and half conversions of one instruction set, each over an array. */
#ifndef SEGLOSS_TEST_ELEMENTARY_H
#define SEGLOSS_TEST_ELEMENTARY_H

#include <stdint.h>

enum function { EXP, LOG, LOG1P, LOG1P_OF_FRACTION, NUM_FUNCTIONS };

struct elementary {
    const char* isa;
    void (*of_float[NUM_FUNCTIONS])(const float* x, float* y, int n);
    void (*of_double[NUM_FUNCTIONS])(const double* x, double* y, int n);
    void (*float_of_float16)(const uint16_t* x, float* y, int n);
    void (*row_of_float16)(const uint16_t* x, float* y, int n); /* by instructions, where there are any */
    void (*float_of_bfloat16)(const uint16_t* x, float* y, int n);
    void (*float16_of_float)(const float* x, uint16_t* y, int n);
    void (*float16_of_row)(const float* x, uint16_t* y, int n);
    void (*bfloat16_of_float)(const float* x, uint16_t* y, int n);
};

extern const struct elementary elementary_baseline;
extern const struct elementary elementary_avx2;
extern const struct elementary elementary_avx512;
extern const struct elementary elementary_neon;

#endif

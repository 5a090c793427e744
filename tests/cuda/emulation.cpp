// What the kernels' tests, in C, need of the emulation.

#include <cuda_runtime.h>

unsigned emulation::order;

extern "C" void set_order(unsigned order) { emulation::order = order; }

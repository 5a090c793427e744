#define SEGLOSS_ISA_NAME "avx512"
#define SEGLOSS_KERNELS segloss_kernels_avx512
#include "kernels_tmpl.h"

#define SEGLOSS_ISA_NAME "avx2"
#define SEGLOSS_KERNELS segloss_kernels_avx2
#include "kernels_tmpl.h"

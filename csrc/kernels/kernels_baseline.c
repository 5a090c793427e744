#define SEGLOSS_ISA_NAME "baseline"
#define SEGLOSS_KERNELS segloss_kernels_baseline
#include "kernels_tmpl.h"

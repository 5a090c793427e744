/* NEON, which every 64-bit ARM processor has. The compiler maps vector comparisons and bit operations to its
 * instructions, and a selection to a single one, so no macros are needed. */
#define SEGLOSS_ISA_NAME "neon"
#define SEGLOSS_KERNELS segloss_kernels_neon
#define SEGLOSS_VECTOR_BYTES 16
#include "kernels_tmpl.h"

/* What every 64-bit ARM processor has. The vectors' own comparisons and bit operations become its instructions, a
 * selection a single one: nothing is left to name. */
#define SEGLOSS_ISA_NAME "neon"
#define SEGLOSS_KERNELS segloss_kernels_neon
#define SEGLOSS_VECTOR_BYTES 16
#include "kernels_tmpl.h"

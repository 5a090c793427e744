/* The mathematics of one voxel, class after class, for kernels in which a thread owns a voxel.
 *
 * C and CUDA both compile it. Each function exists for float and for double: in C as name_float and name_double, in C++
 * as overloads of one name. The vector kernels, which process blocks of voxels, have their own templates. */
#ifndef SEGLOSS_VOXEL_H
#define SEGLOSS_VOXEL_H

#include <float.h>
#include <math.h>

#ifdef __CUDACC__
#define VOXEL_FUNCTION __host__ __device__ static inline
#else
#define VOXEL_FUNCTION static inline
#endif

enum { VOXEL_GROUP = 32 }; /* classes that are summed without compensation */

#define REAL float
#define STRUCT(name) name##_float
#ifdef __cplusplus
#define FN(name) name
#else
#define FN(name) name##_float
#endif
#define MATH(name) name##f
#define REAL_LOWEST (-FLT_MAX)
#include "voxel_tmpl.h"

#define REAL double
#define STRUCT(name) name##_double
#ifdef __cplusplus
#define FN(name) name
#else
#define FN(name) name##_double
#endif
#define MATH(name) name
#define REAL_LOWEST (-DBL_MAX)
#include "voxel_tmpl.h"

#endif

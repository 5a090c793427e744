/* The mathematics of one voxel, its classes one after the other: for kernels where a thread owns a voxel.
 *
 * C and CUDA both compile it. Each function is there for float and for double: in C as name_float and name_double, in
 * C++ as overloads of one name. The blocks of voxels of the vector kernels have templates of their own. */
#ifndef SEGLOSS_VOXEL_H
#define SEGLOSS_VOXEL_H

#include <float.h>
#include <math.h>

#ifdef __CUDACC__
#define VOXEL_FUNCTION __host__ __device__ static inline
#else
#define VOXEL_FUNCTION static inline
#endif

enum { VOXEL_GROUP = 32 }; /* of classes, summed plainly */

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

"""The area of the surface in each of the 256 neighbourhoods of 2x2x2 voxels, or its length in the 16 of 2x2.

The surface is that of marching cubes whose vertices are in the middle of the edges between a voxel inside and one
outside (Lorensen and Cline 1987, "Marching Cubes: A High Resolution 3D Surface Construction Algorithm", SIGGRAPH). What
that leaves open is chosen such that the areas are those of DeepMind's surface-distance:

* Of a neighbourhood and its complement, the one with fewer voxels inside counts: both have one surface.
* Voxels inside that touch only diagonally are cut off from each other.
* A contour of more than three vertices is a fan of triangles around the vertex that gives the largest area, with a
  spacing of 1.
"""

import math
from collections.abc import Sequence
from functools import cache
from itertools import pairwise, product

import torch
from torch import Tensor

_Edge = frozenset[int]  # the numbers of the two voxels at its ends
_Vector = tuple[float, ...]

# Of the voxels of a neighbourhood, number 0 has the highest bit of a code, and the last axis is the fastest.
_SQUARE = (0, 1, 3, 2)  # around it


def measures(spacing: Sequence[float]) -> Tensor:
    """Area or length of the surface, by code, float64 [256] or [16]."""
    if len(spacing) == 3:
        z, y, x = spacing
        spacing = (y * x, z * x, z * y)  # by which the spacing stretches the components of a normal
    stretched = _elements(len(spacing)) * torch.tensor(spacing, dtype=torch.float64)
    areas: Tensor = torch.linalg.vector_norm(stretched, dim=-1).sum(-1)
    return areas


@cache
def _elements(num_axes: int) -> Tensor:
    """For each code the vectors of its segments, or the normals of its triangles, as long as their areas."""
    num_voxels = 2**num_axes
    vectors_of = _segment_vectors if num_axes == 2 else _normals
    rows = [vectors_of(_voxels_inside(code, num_voxels)) for code in range(2**num_voxels)]
    longest = max(map(len, rows))
    padded = [row + [(0.0,) * num_axes] * (longest - len(row)) for row in rows]
    return torch.tensor(padded, dtype=torch.float64)


def _voxels_inside(code: int, num_voxels: int) -> frozenset[int]:
    inside = frozenset(k for k in range(num_voxels) if code >> (num_voxels - 1 - k) & 1)
    return inside if 2 * len(inside) <= num_voxels else frozenset(range(num_voxels)) - inside


def _segments(inside: frozenset[int], around: Sequence[int]) -> list[tuple[_Edge, _Edge]]:
    """Where the surface crosses a square, whose four voxels are given in the order around it."""
    edges = [frozenset((around[k - 1], around[k])) for k in range(4)]
    crossed = [edge for edge in edges if len(edge & inside) == 1]
    if len(crossed) == 2:
        return [(crossed[0], crossed[1])]
    return [(edges[k], edges[(k + 1) % 4]) for k in range(4) if crossed and around[k] in inside]


def _segment_vectors(inside: frozenset[int]) -> list[_Vector]:
    return [_difference(_middle(a, 2), _middle(b, 2)) for a, b in _segments(inside, _SQUARE)]


def _normals(inside: frozenset[int]) -> list[_Vector]:
    return [normal for contour in _contours(inside) for normal in max(_fans(contour), key=_area)]


def _contours(inside: frozenset[int]) -> list[list[_Edge]]:
    """The closed lines in which the surface crosses the six squares of the neighbourhood."""
    neighbours: dict[_Edge, list[_Edge]] = {}
    for axis, side in product((4, 2, 1), (0, 1)):
        first, second = (step for step in (4, 2, 1) if step != axis)
        around = [axis * side + first * (k >> 1) + second * (k & 1) for k in _SQUARE]
        for a, b in _segments(inside, around):
            neighbours.setdefault(a, []).append(b)
            neighbours.setdefault(b, []).append(a)
    contours = []
    while neighbours:
        contour = [next(iter(neighbours))]
        while following := [edge for edge in neighbours.pop(contour[-1]) if edge in neighbours]:
            contour.append(following[0])
        contours.append(contour)
    return contours


def _fans(contour: list[_Edge]) -> list[list[_Vector]]:
    """The normals of the triangles, for each vertex that all of them may share."""
    middles = [_middle(edge, 3) for edge in contour]
    turned = [middles[k:] + middles[:k] for k in range(len(middles))]
    return [[_normal(a, b, c) for b, c in pairwise(rest)] for a, *rest in turned]


def _area(normals: list[_Vector]) -> float:
    """Rounded, so that the first of equal fans is taken whatever the processor."""
    return round(sum(math.hypot(*normal) for normal in normals), 9)


def _middle(edge: _Edge, num_axes: int) -> _Vector:
    return tuple(sum(voxel >> axis & 1 for voxel in edge) / 2 for axis in reversed(range(num_axes)))


def _difference(a: _Vector, b: _Vector) -> _Vector:
    return tuple(x - y for x, y in zip(a, b, strict=True))


def _normal(a: _Vector, b: _Vector, c: _Vector) -> _Vector:
    (p, q, r), (u, v, w) = _difference(b, a), _difference(c, a)
    return (q * w - r * v) / 2, (r * u - p * w) / 2, (p * v - q * u) / 2

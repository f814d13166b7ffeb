"""Rotations as 3x3 matrices and rotation vectors (axis times angle, rad): pure functions of numpy arrays.

Special about this file: written with scalars where that is quicker than numpy, since a control step calls them several
times. It must not know MuJoCo.
"""

from __future__ import annotations

import math

import numpy as np

__all__ = ["clip_norm", "matrix_from_vector", "vector_from_matrix"]


def matrix_from_vector(vector: np.ndarray) -> np.ndarray:
    """Returns the rotation matrix, shape (3, 3), of a rotation vector, shape (3,), in rad (Rodrigues' formula)."""
    x, y, z = vector.tolist()
    angle = math.sqrt(x * x + y * y + z * z)
    if angle < 1e-12:
        return np.eye(3)
    x, y, z = x / angle, y / angle, z / angle
    s, c = math.sin(angle), math.cos(angle)
    v = 1.0 - c
    return np.array(
        [
            [c + x * x * v, x * y * v - z * s, x * z * v + y * s],
            [x * y * v + z * s, c + y * y * v, y * z * v - x * s],
            [x * z * v - y * s, y * z * v + x * s, c + z * z * v],
        ]
    )


def vector_from_matrix(matrix: np.ndarray) -> np.ndarray:
    """Returns the rotation vector, shape (3,), of angle in [0, pi] rad, of a rotation matrix, shape (3, 3)."""
    (a, b, c), (d, e, f), (g, h, i) = matrix.tolist()
    axis = np.array([h - f, c - g, d - b])  # 2 sin(angle) times the unit axis
    sine, cosine = 0.5 * math.sqrt(axis @ axis), 0.5 * (a + e + i - 1.0)
    angle = math.atan2(sine, cosine)
    if sine > 1e-6:
        return axis * (0.5 * angle / sine)
    if cosine > 0.0:
        return 0.5 * axis
    column = (matrix + np.eye(3))[:, int(np.argmax((a, e, i)))]  # half a turn: R = 2 n n^T - I
    return math.pi * column / np.linalg.norm(column)


def clip_norm(vector: np.ndarray, limit: float) -> np.ndarray:
    """Returns `vector`, shortened to length `limit` if it is longer."""
    length = math.sqrt(float(vector @ vector))
    return vector * (limit / length) if length > limit else vector

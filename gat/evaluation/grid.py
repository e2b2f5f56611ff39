"""Grids of images."""

import numpy as np


def image_grid(images: np.ndarray, columns: int) -> np.ndarray:
    """Images uint8 (N, H, W, 3) edge to edge in rows of `columns`: uint8 (rows · H, columns · W, 3), full rows only."""
    rows, (height, width) = len(images) // columns, images.shape[1:3]
    grid = images[: rows * columns].reshape(rows, columns, height, width, 3)
    return grid.swapaxes(1, 2).reshape(rows * height, columns * width, 3)

"""Grids of images."""

import numpy as np


def image_grid(images: np.ndarray, columns: int) -> np.ndarray:
    """Tile images uint8 (N, H, W, 3) in full rows of `columns` images: uint8 (rows · H, columns · W, 3)."""
    rows, (height, width) = len(images) // columns, images.shape[1:3]
    grid = images[: rows * columns].reshape(rows, columns, height, width, 3)
    return grid.swapaxes(1, 2).reshape(rows * height, columns * width, 3)

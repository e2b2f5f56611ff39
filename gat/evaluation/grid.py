"""Grids of images, for people to look at."""

import numpy as np


def image_grid(images: np.ndarray, columns: int) -> np.ndarray:
    """Images uint8 (N, H, W, 3) in rows of `columns`, as one uint8 (rows·H, columns·W, 3)."""
    rows = len(images) // columns
    height, width = images.shape[1:3]
    grid = images[: rows * columns].reshape(rows, columns, height, width, 3)
    return grid.swapaxes(1, 2).reshape(rows * height, columns * width, 3)

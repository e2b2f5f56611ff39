"""What ADM's evaluation takes from Inception besides FID's features: spatial features for sFID, class probabilities.

The network is clean-fid's, NVIDIA's TorchScript translation of the original `inception-2015-12-05`.
"""

import numpy as np
import torch
import torch.nn.functional as F
from cleanfid.inception_torchscript import InceptionV3W
from torch import Tensor, nn

SIDE = 299  # of the network's input
SPATIAL = (
    7 * 17 * 17
)  # sFID's features: the first 7 channels of the convolution of the block mixed_6, on 17 × 17 places
FEATURES = 2048


class InceptionOutputs(nn.Module):
    """All outputs of Inception: (B, 2048 + 2023 + classes) of images (B, 3, H, W) in 0–255; `split` takes them apart.

    Args:
        inception: clean-fid's; with its `resize_inside`, images are resized as TensorFlow did, otherwise they have 299
            pixels.
    """

    def __init__(self, inception: InceptionV3W) -> None:
        super().__init__()
        self.inception = inception
        layers = inception.base.layers
        names = ("conv", "conv_1", "conv_2", "pool0", "conv_3", "conv_4", "pool1")
        blocks = ("mixed", "mixed_1", "mixed_2", "mixed_3", "mixed_4", "mixed_5")
        self._spatial = nn.Sequential(*(getattr(layers, name) for name in (*names, *blocks)), layers.mixed_6.conv)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        features = self.inception(images)
        resized = tensorflow_resize(images) if self.inception.resize_inside else images
        spatial = self._spatial((resized - 128) / 128)[:, :7].permute(0, 2, 3, 1).flatten(1)  # in the order of mu_s
        probabilities = self.inception.base(images, no_output_bias=True)  # as ADM's evaluation: without the biases
        return torch.cat([features, spatial, probabilities], dim=1)


def split(outputs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """FID's features (N, 2048), sFID's (N, 2023), and class probabilities (N, classes) of the outputs."""
    first, second, third = np.split(outputs, [FEATURES, FEATURES + SPATIAL], axis=1)
    return first, second, third


def tensorflow_resize(images: Tensor) -> Tensor:
    """Images (B, 3, H, W) resized bilinearly to 299 pixels as by TensorFlow 1, where pixel i comes from i · H / 299."""
    height, width = images.shape[-2:]
    theta = torch.eye(2, 3, dtype=images.dtype, device=images.device)
    theta[0, 2], theta[1, 2] = 1 / width - 1 / SIDE, 1 / height - 1 / SIDE
    grid = F.affine_grid(theta.expand(len(images), 2, 3), [len(images), 3, SIDE, SIDE], align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def inception_score(probabilities: np.ndarray, part: int = 5000) -> float:
    """Inception score of class probabilities (N, classes), the mean over parts of 5,000 samples, as ADM's.

    Salimans et al., "Improved techniques for training GANs", 2016: exp of the mean KL divergence of each sample's
    probabilities from the mean probabilities.
    """
    scores = []
    for start in range(0, len(probabilities), part):
        own = probabilities[start : start + part].astype(np.float64)
        divergences = own * (np.log(own) - np.log(own.mean(axis=0, keepdims=True)))
        scores.append(np.exp(divergences.sum(axis=1).mean()))
    return float(np.mean(scores))

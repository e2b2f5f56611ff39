"""A self-supervised encoder, whose features no label has trained: pretrained as DINOv2, or a small one trained here.

Its features are those of `gat.data.vision.features_of`: of DINOv2 the [cls] token, as in FD-DINOv2 (Stein et al.,
"Exposing flaws of generative model evaluation metrics", 2023); of a ResNet the mean over its last feature map.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import trange
from transformers import ResNetConfig, ResNetModel
from transformers.image_processing_base import ImageProcessingMixin

from gat.data.images import Images
from gat.data.pixels import to_model_range
from gat.data.vision import VisionModel, features_of

PROJECTED = 64  # dimensions in which views are compared


class Encoder:
    """Features float32 (B, d) of images uint8 (B, H, W, 3).

    Images are resized to the input size of the model, bicubically and with antialiasing, and normalized as its
    `preprocessor_config.json` says.

    Args:
        folder: written by `gat.data.vision.fetch_vision_model` or `train_encoder`.
        device: where it runs.

    Attributes:
        width: number of features.
    """

    def __init__(self, folder: str | Path, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self._network = VisionModel(folder, self.device)
        self.width = self._network.width

    @torch.no_grad()
    def __call__(self, images: np.ndarray) -> np.ndarray:
        network = self._network
        pixels = torch.tensor(images, device=self.device).permute(0, 3, 1, 2).float() / 255
        if pixels.shape[-1] != network.size:
            size = (network.size, network.size)
            pixels = F.interpolate(pixels, size, mode="bicubic", antialias=True).clamp(0, 1)
        return features_of(network.model, (pixels - network.mean) / network.std)[0].float().cpu().numpy()


def train_encoder(
    images: Images,
    folder: Path,
    width: int,
    depth: int,
    steps: int,
    batch_size: int,
    learning_rate: float,
    temperature: float,
    seed: int,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> None:
    """Train a small encoder without labels, and save it in a folder.

    The loss is that of SimCLR (Chen et al., "A simple framework for contrastive learning", 2020): of two random views
    of each image, each one's nearest among all views of the batch should be the other. Features are then scaled to a
    variance of 1, on average over the images, since distances depend on their scale.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    widths = [width // 2, width]
    config = ResNetConfig(embedding_size=width // 2, hidden_sizes=widths, depths=[depth, 1], layer_type="basic")
    model: Any = ResNetModel(config)
    model.to(device)
    head = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, PROJECTED)).to(device)
    parameters = [*model.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.1)
    bar = trange(steps, desc="encoder", unit="step", disable=not progress)
    for _ in bar:
        batch = to_model_range(images[np.sort(rng.choice(len(images), min(batch_size, len(images)), replace=False))])
        views = torch.cat([random_view(batch), random_view(batch)]).to(device)
        loss = contrastive_loss(head(features_of(model, views)[0]), temperature)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    side = {"height": images.size, "width": images.size}
    folder.mkdir(parents=True, exist_ok=True)
    ImageProcessingMixin(size=side, image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(folder)
    model.save_pretrained(folder)
    encoder = Encoder(folder, device)
    features = np.concatenate([encoder(batch) for batch in images.batches(256)])
    last = model.encoder.stages[-1].layers[-1]  # the rectified sum of two normalized maps
    with torch.no_grad():
        for norm in (last.shortcut.normalization, last.layer[-1].normalization):
            norm.weight /= float(features.var(0).mean() ** 0.5)
            norm.bias /= float(features.var(0).mean() ** 0.5)
    model.save_pretrained(folder)


def random_view(images: Tensor) -> Tensor:
    """Images (B, 3, H, W) in [−1, 1], each cropped, rotated, stretched, and changed in brightness and contrast."""

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(len(images))

    side, stretch, angle = uniform(0.6, 1.05), uniform(-0.15, 0.15).exp(), uniform(-0.25, 0.25)
    horizontal, vertical = side * stretch, side / stretch
    row = torch.stack([horizontal * angle.cos(), -vertical * angle.sin(), (1 - side) * uniform(-1, 1)], dim=1)
    other = torch.stack([horizontal * angle.sin(), vertical * angle.cos(), (1 - side) * uniform(-1, 1)], dim=1)
    grid = F.affine_grid(torch.stack([row, other], dim=1), list(images.shape), align_corners=False)
    views = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    contrast, brightness = uniform(0.6, 1.4), uniform(-0.4, 0.4)
    return (views * contrast[:, None, None, None] + brightness[:, None, None, None]).clamp(-1, 1)


def contrastive_loss(projected: Tensor, temperature: float) -> Tensor:
    """SimCLR's loss of projected views (2B, d), of which i and B + i are of the same image."""
    similarity = F.normalize(projected, dim=1) @ F.normalize(projected, dim=1).T / temperature
    similarity.fill_diagonal_(-torch.inf)
    count = len(projected) // 2
    return F.cross_entropy(similarity, torch.arange(2 * count, device=projected.device).roll(count))

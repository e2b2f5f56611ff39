"""Optimization: the width-aware learning rate, and AdamW."""

import torch
from torch import nn

from gat.config import Optimization

BASE_WIDTH, BASE_BATCH = 768, 512  # at which the paper gives the learning rate
ADAM_EPS = 1e-8


def width_aware_learning_rate(train: Optimization, width: int) -> float:
    """The paper's rule: learning_rate × 768 / width × √(batch_size / 512)."""
    width_factor = BASE_WIDTH / width if train.scale_lr_by_width else 1.0
    return train.learning_rate * width_factor * (train.batch_size / BASE_BATCH) ** 0.5


def make_optimizer(network: nn.Module, learning_rate: float, train: Optimization) -> torch.optim.AdamW:
    """AdamW without weight decay."""
    betas = train.betas[0], train.betas[1]
    return torch.optim.AdamW(
        network.parameters(), learning_rate, betas=betas, eps=ADAM_EPS, weight_decay=0.0, fused=True
    )

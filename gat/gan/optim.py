"""Optimization: the width-aware learning rate, and AdamW."""

from typing import Any

import torch
from torch import nn

from gat.config import Optimization

BASE_WIDTH, BASE_BATCH = 768, 512  # at which the paper gives the learning rate
ADAM_EPS = 1e-8


def width_aware_learning_rate(train: Optimization, width: int) -> float:
    """The paper's rule: learning_rate × 768 / width × √(batch_size / 512)."""
    width_factor = BASE_WIDTH / width if train.scale_lr_by_width else 1.0
    return train.learning_rate * width_factor * (train.batch_size / BASE_BATCH) ** 0.5


class MomentumFreeAdamW(torch.optim.AdamW):
    """AdamW for β₁ = 0, whose first moment is the gradient, and takes no memory and no place in checkpoints."""

    def step(self, closure: Any = None) -> Any:
        """Perform one step."""
        for parameter, state in self.state.items():
            state["exp_avg"] = parameter.grad
        loss = super().step(closure)
        for state in self.state.values():
            state.pop("exp_avg", None)
        return loss


def make_optimizer(network: nn.Module, learning_rate: float, train: Optimization) -> torch.optim.AdamW:
    """AdamW without weight decay."""
    betas = train.betas[0], train.betas[1]
    return (MomentumFreeAdamW if betas[0] == 0 else torch.optim.AdamW)(
        network.parameters(), learning_rate, betas=betas, eps=ADAM_EPS, weight_decay=0.0, fused=True
    )

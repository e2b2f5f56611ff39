"""Optimization: the width-aware learning rate, AdamW, and gradient clipping with it in one pass."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gat.config import Train

BASE_WIDTH, BASE_BATCH = 768, 512  # at which the paper gives the learning rate
ADAM_EPS = 1e-8


def width_aware_learning_rate(train: Train, width: int) -> float:
    """The paper's rule: the base rate at width 768 and batch 512, × 768 / width × √(batch / 512)."""
    width_factor = BASE_WIDTH / width if train.scale_lr_by_width else 1.0
    return train.learning_rate * width_factor * (train.batch_size / BASE_BATCH) ** 0.5


def make_optimizer(network: nn.Module, learning_rate: float, train: Train) -> torch.optim.AdamW:
    """AdamW without weight decay."""
    betas = train.betas[0], train.betas[1]
    return torch.optim.AdamW(
        network.parameters(), learning_rate, betas=betas, eps=ADAM_EPS, weight_decay=0.0, fused=True
    )


def clip_and_step(
    weights: list[Tensor],
    gradients: list[Tensor],
    exp_avg_sq: list[Tensor],
    step: Tensor,
    learning_rate: float,
    beta2: float,
    max_grad_norm: float,
) -> Tensor:
    """Clip the gradients and take AdamW's step for β₁ = 0; where compiled, one pass over the memory.

    Args:
        weights: changed in place.
        gradients: of the weights; not changed.
        exp_avg_sq: running means of the squared gradients; changed in place.
        step: number of the step from 1, a scalar tensor.
        learning_rate: step size.
        beta2: β₂.
        max_grad_norm: the largest norm of all gradients together.

    Returns:
        That norm before clipping, a scalar tensor.
    """
    norm = nn.utils.get_total_norm(gradients)
    scale = (max_grad_norm / (norm + 1e-6)).clamp(max=1)
    correction = (1 - beta2**step).sqrt()
    for weight, gradient, square in zip(weights, gradients, exp_avg_sq, strict=True):
        gradient = scale * gradient
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        weight.sub_(learning_rate * gradient / (square.sqrt() / correction + ADAM_EPS))
    return norm


class FusedStep:
    """`clip_and_step`, compiled, on the state of an AdamW with β₁ = 0, whose unused `exp_avg` stays as it is.

    Args:
        max_grad_norm: the largest norm of all gradients together.
    """

    def __init__(self, max_grad_norm: float) -> None:
        self.max_grad_norm = max_grad_norm
        self._clip_and_step: Callable[..., Tensor] = torch.compile(clip_and_step, dynamic=False)

    @torch.no_grad()
    def __call__(self, optimizer: Any) -> Tensor:
        """Step an optimizer that has stepped before (its state exists); returns the gradients' norm."""
        (group,) = optimizer.param_groups
        weights = [weight for weight in group["params"] if weight.grad is not None]
        states = [optimizer.state[weight] for weight in weights]
        torch._foreach_add_([state["step"] for state in states], 1)
        return self._clip_and_step(
            weights,
            [weight.grad for weight in weights],
            [state["exp_avg_sq"] for state in states],
            states[0]["step"],
            group["lr"],
            group["betas"][1],
            self.max_grad_norm,
        )

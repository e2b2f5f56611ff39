"""Fast versions of the layers' operations, each next to the plain version (`plain_…`) that it is equivalent to.

`gat.gan.networks` calls the fast versions; `tests/test_ops.py` compares both, forward and backward. Most of them help
on a CPU without torch.compile, where operations are not fused.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

RMS_EPS = 1e-6
FEW_TOKENS = 64  # up to which attention is computed with two matrix products


# RMS normalization


def plain_rms_norm(x: Tensor, weight: Tensor | None = None) -> Tensor:
    """RMSNorm over the last dimension, weight · x / sqrt(mean(x²) + 1e-6): (..., C), (C,) -> (..., C)."""
    return F.rms_norm(x, x.shape[-1:], weight, eps=RMS_EPS)


def rms_norm(x: Tensor, weight: Tensor | None = None) -> Tensor:
    """`plain_rms_norm` with fewer passes over memory.

    On a CPU `F.rms_norm` is composed of several operations, forward and backward, and takes about twice as long.
    """
    if x.device.type != "cpu" or x.dtype in (torch.bfloat16, torch.float16) or torch.compiler.is_compiling():
        return plain_rms_norm(x, weight)
    normalized = _RMSNorm.apply(x)
    return normalized if weight is None else normalized * weight


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inverse_rms = norm.square_().div_(x.shape[-1]).add_(RMS_EPS).rsqrt_()
        normalized = x * inverse_rms
        ctx.save_for_backward(normalized, inverse_rms)
        return normalized

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        normalized, inverse_rms = ctx.saved_tensors
        radial = (gradient * normalized).mean(-1, keepdim=True)
        return torch.addcmul(gradient, normalized, radial, value=-1).mul_(inverse_rms)


# Attention


def plain_rotate(x: Tensor, rotary: Tensor) -> Tensor:
    """Rotate interleaved channel pairs by the angles of a rotary embedding.

    Args:
        x: (B, T, ..., D) queries or keys.
        rotary: (T, D / 2, 2) cosines and sines.
    """
    cos, sin = _per_token(rotary, x).to(x.dtype).unbind(-1)
    real, imaginary = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([real * cos - imaginary * sin, real * sin + imaginary * cos], dim=-1).flatten(-2)


def rotate(x: Tensor, rotary: Tensor) -> Tensor:
    """`plain_rotate` as one complex multiplication, which is fastest if operations are not fused."""
    if x.dtype != torch.float32 or torch.compiler.is_compiling():
        return plain_rotate(x, rotary)
    pairs, rotations = x.unflatten(-1, (-1, 2)), _per_token(rotary, x)
    return torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(rotations)).flatten(-2)


def _per_token(rotary: Tensor, x: Tensor) -> Tensor:
    """(T, D / 2, 2) as (T, 1, …, D / 2, 2), to broadcast over the dimensions of x between tokens and channels."""
    return rotary.view(len(rotary), *(1,) * (x.ndim - 3), -1, 2)


def plain_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q·kᵀ / √D)·v, each (B, heads, T, D)."""
    return F.scaled_dot_product_attention(q, k, v)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`plain_attention`, as matrix products and a softmax for few tokens: twice as fast on a CPU."""
    if q.device.type == "cpu" and q.shape[2] <= FEW_TOKENS:
        return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1) @ v
    return plain_attention(q, k, v)


def plain_qk_norm(qk: Tensor, q_weight: Tensor, k_weight: Tensor) -> Tensor:
    """RMS-normalize queries and keys (B, T, 2, heads, D) per head, with a weight (D,) each."""
    q, k = qk.unbind(2)
    return torch.stack([plain_rms_norm(q, q_weight), plain_rms_norm(k, k_weight)], dim=2)


def qk_norm(qk: Tensor, q_weight: Tensor, k_weight: Tensor) -> Tensor:
    """`plain_qk_norm` of both at once, with weights repeated per head.

    The gradient of the weights is then one contiguous sum, which is five times faster on a CPU than a strided sum.
    """
    weight = torch.stack([q_weight, k_weight])[:, None].repeat(1, qk.shape[3], 1)  # (2, heads, D)
    return rms_norm(qk) * weight


# SwiGLU


def plain_swiglu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """silu(a) * b, where [a, b] is a linear layer of x: (..., C), (2H, C), (2H,) -> (..., H)."""
    a, b = F.linear(x, weight, bias).chunk(2, dim=-1)
    return F.silu(a) * b


def swiglu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`plain_swiglu` as two products, whose backward does not concatenate the gradients of both halves."""
    (weight_a, weight_b), (bias_a, bias_b) = weight.unflatten(0, (2, -1)).unbind(), bias.unflatten(0, (2, -1)).unbind()
    return F.silu(F.linear(x, weight_a, bias_a)) * F.linear(x, weight_b, bias_b)

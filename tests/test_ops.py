"""Fast forms against the plain ones, forward and backward, in float64 where both are there."""

import pytest
import torch

from gat.gan import ops
from gat.gan.networks import MappingLinear, axial_rope


def assert_same(fast, plain, inputs: tuple[torch.Tensor, ...]) -> None:
    """Values, and gradients with respect to all inputs."""
    got, want = fast(*inputs), plain(*inputs)
    torch.testing.assert_close(got, want)
    direction = torch.randn_like(got)
    ours, theirs = (torch.autograd.grad((y * direction).sum(), inputs) for y in (got, want))
    torch.testing.assert_close(ours, theirs)


def normal(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, dtype=dtype, requires_grad=True)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def test_rms_norm():
    assert_same(ops.rms_norm, ops.plain_rms_norm, (normal(3, 5, 8),))
    assert_same(ops.rms_norm, ops.plain_rms_norm, (normal(3, 5, 8), normal(8)))
    zero = torch.zeros(1, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(ops.rms_norm(zero).sum(), zero)
    assert torch.equal(ops.rms_norm(zero), zero)
    torch.testing.assert_close(gradient, torch.full_like(zero, 1e3))


@pytest.mark.parametrize("prefix", [0, 1])
def test_rotate(prefix):
    """float32, where the complex multiplication is used."""
    rotary = axial_rope(3, 8, prefix)
    x = normal(2, 9 + prefix, 2, 3, 8, dtype=torch.float32)
    assert_same(lambda x: ops.rotate(x, rotary), lambda x: ops.plain_rotate(x, rotary), (x,))
    assert torch.equal(ops.rotate(x, rotary)[:, :prefix], x[:, :prefix])
    torch.testing.assert_close(ops.rotate(x, rotary).norm(dim=-1), x.norm(dim=-1))


@pytest.mark.parametrize("tokens", [ops.FEW_TOKENS, ops.FEW_TOKENS + 1])
def test_attention(tokens):
    q, k, v = (normal(2, 3, tokens, 8) for _ in range(3))
    assert_same(ops.attention, ops.plain_attention, (q, k, v))
    assert_same(ops.attention, ops.plain_attention, (q[:, :, :1], k, v))


def test_qk_norm():
    assert_same(ops.qk_norm, ops.plain_qk_norm, (normal(2, 5, 2, 3, 8), normal(8), normal(8)))


def test_swiglu():
    assert_same(ops.swiglu, ops.plain_swiglu, (normal(2, 5, 8), normal(12, 8), normal(12)))


def test_mapping_layer_is_a_hundredth_of_what_it_stores():
    layer = MappingLinear(6, 4)
    x = torch.randn(3, 6)
    torch.testing.assert_close(layer(x), torch.nn.functional.linear(x, layer.weight, layer.bias) / 100)

"""GAT's generator and discriminator, in the order data meets them (paper, sections 3 and 4).

`SIZES` is the paper's table; any other width, depth and head count works alike.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Size(NamedTuple):
    """One row of the paper's table of sizes (DiT's): a model is a size and a patch, such as XL/2."""

    depth: int
    width: int
    heads: int


SIZES = {"S": Size(12, 384, 6), "B": Size(12, 768, 12), "L": Size(24, 1024, 16), "XL": Size(28, 1152, 16)}

Z_DIM = 64  # of the noise z, and of the class embedding beside it
EQUALIZED_GAIN = 0.01
CLASS_MEAN_DECAY = 0.995
FEW_TOKENS = 64
FEW_ROWS, LARGE_WEIGHT, WEIGHT_PARTS = 64, 2**20, 8


def rms_normalize(x: Tensor) -> Tensor:
    """Divide the last dimension by its root mean square: (..., C) -> (..., C)."""
    return x * (x.square().mean(-1, keepdim=True) + 1e-8).rsqrt()


class RMSNormFunction(torch.autograd.Function):
    """RMS normalization in the fewest passes over the memory: (..., C), eps -> (..., C).

    On a CPU `F.rms_norm` is put together from single operations, forward and back, and takes about twice as long.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inverse = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        normalized = x * inverse
        ctx.save_for_backward(normalized, inverse)
        return normalized

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        normalized, inverse = ctx.saved_tensors
        along = (gradient * normalized).mean(-1, keepdim=True)
        return torch.addcmul(gradient, normalized, along, value=-1).mul_(inverse), None


def rms_norm(x: Tensor, weight: Tensor | None = None) -> Tensor:
    """Divide (..., C) by its root mean square over C, eps 1e-6, then multiply by a weight (C,) where there is one."""
    if x.device.type != "cpu" or x.dtype == torch.bfloat16 or torch.compiler.is_compiling():
        return F.rms_norm(x, x.shape[-1:], weight, eps=1e-6)
    normalized = RMSNormFunction.apply(x, 1e-6)
    return normalized if weight is None else normalized * weight


class RMSNorm(nn.RMSNorm):
    """RMS normalization with a weight."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight)


def sincos_table(grid: int, width: int) -> Tensor:
    """Fixed 2-D sin-cos position table (grid², width): first half of the channels column, second half row."""
    frequency = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    angle = torch.arange(grid, dtype=torch.float64)[:, None] * frequency
    axis = torch.cat([angle.sin(), angle.cos()], dim=1)
    column, row = axis.repeat(grid, 1), axis.repeat_interleave(grid, 0)
    return torch.cat([column, row], dim=1).to(torch.get_default_dtype())


def rotary_table(grid: int, head_dim: int, prefix: int = 0) -> Tensor:
    """Rotations e^{iθ} of the axial rotary embedding as (prefix + grid², head_dim / 2, 2) cosines and sines.

    The first half of the pairs turns with the row, the second half with the column; the `prefix` tokens
    in front do not turn at all.
    """
    frequency = 10000.0 ** -(torch.arange(head_dim // 4, dtype=torch.float64) / (head_dim / 4))
    angle = torch.arange(grid, dtype=torch.float64)[:, None] * frequency
    angles = torch.cat([angle.repeat_interleave(grid, 0), angle.repeat(grid, 1)], dim=1)
    angles = torch.cat([angles.new_zeros(prefix, head_dim // 2), angles])
    return torch.stack([angles.cos(), angles.sin()], dim=-1).to(torch.get_default_dtype())


def rotate(x: Tensor, rotary: Tensor) -> Tensor:
    """Turn interleaved channel pairs: x (B, T, ..., head_dim) by `rotary` (T, head_dim / 2, 2)."""
    rotary = rotary.view(len(rotary), *(1,) * (x.ndim - 3), -1, 2)
    pairs = x.unflatten(-1, (-1, 2))
    if x.dtype == torch.float32 and not torch.compiler.is_compiling():  # fastest where nothing fuses
        return torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(rotary)).flatten(-2)
    real, imaginary = pairs.unbind(-1)
    cos, sin = rotary.to(x.dtype).unbind(-1)
    return torch.stack([real * cos - imaginary * sin, real * sin + imaginary * cos], dim=-1).flatten(-2)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention of (B, heads, T, head_dim) each; written out where tokens are few, twice as fast on a CPU."""
    if q.device.type == "cpu" and q.shape[2] <= FEW_TOKENS:
        return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1) @ v
    return F.scaled_dot_product_attention(q, k, v)


class Attention(nn.Module):
    """Self-attention with RMS-normalized queries and keys and rotary positions: (B, T, C) -> (B, T, C).

    With `first`, the first so many tokens alone attend to all: (B, T, C) -> (B, first, C).
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = RMSNorm(width // heads)
        self.k_norm = RMSNorm(width // heads)
        self.out = nn.Linear(width, width)

    def forward(self, h: Tensor, rotary: Tensor, first: int | None = None) -> Tensor:
        qkv = self.qkv(h).unflatten(-1, (3, self.heads, -1))  # (B, T, 3, heads, head_dim)
        qk, v = qkv.split([2, 1], dim=2)
        # One weight a head, repeated: its gradient is then one contiguous sum, five times faster on a CPU.
        weight = torch.stack([self.q_norm.weight, self.k_norm.weight])[:, None].repeat(1, self.heads, 1)
        qk = rotate(rms_norm(qk) * weight, rotary).to(v.dtype)
        q, k, v = (x.transpose(1, 2) for x in (*qk.unbind(2), v[:, :, 0]))
        h = attend(q[:, :, :first], k, v)
        return self.out(h.transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    """Gated feed-forward layer of hidden size int(8/3 · width): (B, T, C) -> (B, T, C)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = int(2 / 3 * 4 * width)
        self.w_in = nn.Linear(width, 2 * hidden)
        self.w_out = nn.Linear(hidden, width)

    def forward(self, h: Tensor) -> Tensor:
        # Two products: halving one would have its backward join two large gradients, not two small ones of weights.
        weights, biases = self.w_in.weight.unflatten(0, (2, -1)), self.w_in.bias.unflatten(0, (2, -1))
        gate, value = (
            F.linear(h, weight, bias) for weight, bias in zip(weights.unbind(), biases.unbind(), strict=True)
        )
        return self.w_out(F.silu(gate) * value)


class LinearInParts(torch.autograd.Function):
    """Linear layer of a large weight for few rows: (R, C), (D, C), (D,) -> (R, D).

    A CPU's BLAS takes nearly twice as long for one such product as for the same in parts of the weight.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        parts = weight.unflatten(0, (WEIGHT_PARTS, -1)).transpose(1, 2)
        return torch.bmm(x.expand(WEIGHT_PARTS, -1, -1), parts).transpose(0, 1).flatten(1) + bias

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        parts = weight.unflatten(1, (WEIGHT_PARTS, -1)).transpose(0, 1)
        of_x = torch.bmm(gradient.expand(WEIGHT_PARTS, -1, -1), parts).transpose(0, 1).flatten(1)
        return of_x, gradient.t() @ x, gradient.sum(0)

    @staticmethod
    def pays(x: Tensor, weight: Tensor) -> bool:
        """Whether it is the faster way, and a possible one."""
        return (
            x.device.type == "cpu"
            and len(x) <= FEW_ROWS
            and weight.numel() >= LARGE_WEIGHT
            and all(side % WEIGHT_PARTS == 0 for side in weight.shape)
            and not torch.is_autocast_enabled("cpu")
        )


class EqualizedLinear(nn.Linear):
    """Linear layer stored 100 times too large, so that Adam changes it 100 times more slowly (StyleGAN)."""

    def forward(self, x: Tensor) -> Tensor:
        linear = LinearInParts.apply if LinearInParts.pays(x, self.weight) else F.linear
        return linear(x, self.weight, self.bias) * EQUALIZED_GAIN


def equalized_mlp(dim_in: int, dim: int) -> nn.Sequential:
    """Two equalized layers with a SiLU between: (B, dim_in) -> (B, dim)."""
    return nn.Sequential(EqualizedLinear(dim_in, dim), nn.SiLU(), EqualizedLinear(dim, dim))


def initialize(network: nn.Module, style_gain: float = 0.1) -> None:
    """Xavier-uniform weights, zero biases, N(0, 0.02²) embeddings; gains: mapping 100, style layers `style_gain`."""
    styles = {module.style for module in network.modules() if isinstance(module, StyledBlock | ImageHead)}
    for module in network.modules():
        if isinstance(module, nn.Linear):
            gain = 1 / EQUALIZED_GAIN if isinstance(module, EqualizedLinear) else 1.0
            gain = style_gain if module in styles else gain
            nn.init.xavier_uniform_(module.weight, gain=gain)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            nn.init.xavier_uniform_(module.weight.data.flatten(1))
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)


class StyledBlock(nn.Module):
    """Generator block: attention and SwiGLU, each scaled and gated by the style."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.style = nn.Linear(width, 4 * width)
        self.attention = Attention(width, heads)
        self.mlp = SwiGLU(width)

    def forward(self, h: Tensor, style: Tensor, rotary: Tensor) -> Tensor:
        scale1, gate1, scale2, gate2 = self.style(F.silu(style))[:, None].chunk(4, dim=-1)
        h = torch.addcmul(h, gate1, self.attention((1 + scale1) * rms_norm(h), rotary))
        return torch.addcmul(h, gate2, self.mlp((1 + scale2) * rms_norm(h)))


class ImageHead(nn.Module):
    """Reads an image off the tokens: (B, T, C) -> (B, channels, H, W)."""

    def __init__(self, width: int, patch: int, channels: int) -> None:
        super().__init__()
        self.patch = patch
        self.style = nn.Linear(width, width)
        self.linear = nn.Linear(width, patch * patch * channels)

    def forward(self, h: Tensor, style: Tensor) -> Tensor:
        scale = self.style(F.silu(style))[:, None]
        h = self.linear((1 + scale) * rms_norm(h))
        grid, p = int(h.shape[1] ** 0.5), self.patch
        h = h.unflatten(2, (p, p, -1)).unflatten(1, (grid, grid))  # (B, row, column, p, p, channels)
        return h.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


class Generator(ModelMixin, ConfigMixin):
    """One-step class-conditional generator of latents; a hierarchy of `levels` images guides its blocks.

    Args:
        width, depth, heads: size of the transformer; `SIZES` holds the paper's.
        patch: side of a token in latent pixels.
        latent_size, channels: the latents are (channels, latent_size, latent_size).
        classes: number of classes.
        levels: images read off after block depth/levels, 2·depth/levels, …; depth is a multiple of it.
        style_gain: gain of the style layers' first weights (paper: 0.1); the larger, the more a block does at first.
    """

    _repeated_blocks = ("StyledBlock",)  # what `compile_repeated_blocks` compiles

    @register_to_config
    def __init__(
        self,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        patch: int = 2,
        latent_size: int = 32,
        channels: int = 4,
        classes: int = 1000,
        levels: int = 4,
        style_gain: float = 0.1,
    ) -> None:
        super().__init__()
        grid = latent_size // patch
        self.activation_checkpointing = False
        self.class_embedding = nn.Embedding(classes, Z_DIM)
        self.mapping = equalized_mlp(2 * Z_DIM, width)
        self.blocks = nn.ModuleList(StyledBlock(width, heads) for _ in range(depth))
        self.image_heads = nn.ModuleList(ImageHead(width, patch, channels) for _ in range(levels))
        self.register_buffer("class_means", torch.zeros(classes, width))
        self.register_buffer("positions", sincos_table(grid, width))  # saved, since the release trains it
        self.register_buffer("rotary", rotary_table(grid, width // heads), persistent=False)
        initialize(self, style_gain)

    def style(
        self, z: Tensor, class_labels: Tensor, truncation_psi: float = 0.0, guidance_scale: float = 1.0
    ) -> Tensor:
        """Style w (B, width) of noise z (B, 64) and integer labels (B,).

        `truncation_psi` moves w towards the mean style of its class (0: off, 1: the mean itself);
        `guidance_scale` s gives w̄ + s·(w − w̄), w̄ being the mean over all classes for the same z (1: off).
        """
        embedding = rms_normalize(self.class_embedding(class_labels))
        w = self.mapping(torch.cat([embedding, rms_normalize(z)], dim=1))
        if truncation_psi != 0:
            w = w.lerp(self.class_means[class_labels].to(w.dtype), truncation_psi)
        if guidance_scale != 1:
            mean = self._mean_style(z)
            w = mean + guidance_scale * (w - mean)
        return w

    def _mean_style(self, z: Tensor) -> Tensor:
        """Mean style (B, width) over all classes, as the release computes it.

        The release normalizes both halves along the class axis here, not along the channels, so that an
        embedding is relative to the other classes' and z is left with its signs; its published samples
        and weights go with that.
        """
        every = rms_normalize(self.class_embedding.weight.T).T
        signs = rms_normalize(z[..., None])[..., 0]
        return torch.stack([self.mapping(torch.cat([every, s.expand(len(every), -1)], dim=1)).mean(0) for s in signs])

    def synthesize(self, w: Tensor) -> Tensor:
        """Level images (K, B, C, H, W) of styles w (B, width); the last level is the finished latent."""
        h = self.positions.expand(len(w), -1, -1)
        image: Tensor | None = None
        levels = []
        every = len(self.blocks) // len(self.image_heads)
        for i, block in enumerate(self.blocks, start=1):
            if self.activation_checkpointing and torch.is_grad_enabled():
                h = checkpoint(block, h, w, self.rotary, use_reentrant=False)
            else:
                h = block(h, w, self.rotary)
            if i % every == 0:
                detail = self.image_heads[i // every - 1](h, w)
                image = detail if image is None else image + detail
                levels.append(image)
        return torch.stack(levels)

    def forward(
        self,
        z: Tensor,
        class_labels: Tensor,
        truncation_psi: float = 0.0,
        guidance_scale: float = 1.0,
        return_levels: bool = False,
        return_style: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Latents (B, C, H, W) of noise z (B, 64) and integer labels (B,).

        With `return_levels` all level images (K, B, C, H, W); with `return_style` also the styles (B, width).
        """
        w = self.style(z, class_labels, truncation_psi, guidance_scale)
        levels = self.synthesize(w)
        images = levels if return_levels else levels[-1]
        return (images, w) if return_style else images

    @torch.no_grad()
    def update_class_means(self, style_sums: Tensor, counts: Tensor) -> None:
        """Move the running mean of each class that occurs towards its batch mean.

        Args:
            style_sums: (classes, width) sums of w over the global batch, by class.
            counts: (classes,) how many samples of each class.
        """
        mean = style_sums / counts.clamp(min=1)[:, None]
        weight = torch.where(counts > 0, 1 - CLASS_MEAN_DECAY, 0.0)[:, None]
        self.class_means.lerp_(mean.to(self.class_means.dtype), weight.to(self.class_means.dtype))


class DiscriminatorBlock(nn.Module):
    """Transformer block whose branches start at a tenth of their strength (LayerScale); `first` as in `Attention`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = RMSNorm(width)
        self.attention = Attention(width, heads)
        self.scale1 = nn.Parameter(torch.full((width,), 0.1))
        self.norm2 = RMSNorm(width)
        self.mlp = SwiGLU(width)
        self.scale2 = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, h: Tensor, rotary: Tensor, first: int | None = None) -> Tensor:
        h = torch.addcmul(h[:, :first], self.scale1, self.attention(self.norm1(h), rotary, first))
        return torch.addcmul(h, self.scale2, self.mlp(self.norm2(h)))


class Discriminator(ModelMixin, ConfigMixin):
    """Judges all level images of a sample at once, given its class.

    Args:
        width, depth, heads, patch, latent_size, channels, classes, levels: as for `Generator`.
        class_map_dim: dimensions in which [cls] meets the class embedding (paper: 2048).
        repa_dim: width of the teacher whose features the REPA head predicts; None: no such head.
        projector_dim: hidden width of the REPA head (paper: 2048).
    """

    _repeated_blocks = ("DiscriminatorBlock",)

    @register_to_config
    def __init__(
        self,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        patch: int = 2,
        latent_size: int = 32,
        channels: int = 4,
        classes: int = 1000,
        levels: int = 4,
        class_map_dim: int = 2048,
        repa_dim: int | None = None,
        projector_dim: int = 2048,
    ) -> None:
        super().__init__()
        grid = latent_size // patch
        self.activation_checkpointing = False
        self.patchify = nn.Conv2d(levels * channels, width, patch, stride=patch)
        self.cls_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.blocks = nn.ModuleList(DiscriminatorBlock(width, heads) for _ in range(depth))
        self.norm = RMSNorm(width)
        self.to_class_map = nn.Linear(width, class_map_dim)
        self.class_embedding = nn.Embedding(classes, class_map_dim)
        self.class_mapping = equalized_mlp(class_map_dim, class_map_dim)
        self.repa_head: nn.Sequential | None = None
        if repa_dim is not None:
            self.repa_head = nn.Sequential(
                nn.Linear(width, projector_dim),
                nn.SiLU(),
                nn.Linear(projector_dim, projector_dim),
                nn.SiLU(),
                nn.Linear(projector_dim, repa_dim),
            )
        self.register_buffer("positions", sincos_table(grid, width))
        self.register_buffer("rotary", rotary_table(grid, width // heads, prefix=1), persistent=False)
        initialize(self)

    def map_classes(self, class_labels: Tensor) -> Tensor:
        """Where classes are in the space in which [cls] meets them: integers (b,) -> (b, class_map_dim)."""
        table = self.class_embedding.weight
        if len(table) <= len(class_labels):  # then each class once is less work than each sample
            return F.embedding(class_labels, self.class_mapping(table))
        return self.class_mapping(self.class_embedding(class_labels))

    def forward(
        self, levels: Tensor, class_labels: Tensor, return_features: bool = False, feature_count: int | None = None
    ) -> Tensor | tuple[Tensor, tuple[Tensor, Tensor]]:
        """Logits (B,) of level images (K, B, C, H, W) and integer labels (b,), which repeat if B is a multiple of b.

        In the labels' place, what `map_classes` made of them serves several calls. With `return_features` also the
        REPA head's ([cls] (n, d), patches (n, T, d)) of the first `feature_count` samples, n = B where that is None.
        """
        images = levels.transpose(0, 1).flatten(1, 2)  # (B, K·C, H, W)
        h = self.patchify(images).flatten(2).transpose(1, 2)
        h = torch.cat([self.cls_token.expand(len(h), -1, -1), h + self.positions], dim=1)
        for i, block in enumerate(self.blocks, start=1):
            # Of the last block, the logit reads [cls] alone.
            first = 1 if i == len(self.blocks) and not return_features else None
            if self.activation_checkpointing and torch.is_grad_enabled():
                h = checkpoint(block, h, self.rotary, first, use_reentrant=False)
            else:
                h = block(h, self.rotary, first)
        class_map = class_labels if class_labels.is_floating_point() else self.map_classes(class_labels)
        class_map = class_map.repeat(len(h) // len(class_map), 1)
        logits = (self.to_class_map(self.norm(h[:, 0])) * class_map).sum(-1)
        if not return_features:
            return logits
        if self.repa_head is None:
            raise ValueError("return_features=True needs a discriminator made with repa_dim=")
        features = self.repa_head(h[:feature_count])
        return logits, (features[:, 0], features[:, 1:])

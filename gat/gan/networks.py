"""GAT's generator and discriminator (paper, section 3; levels, section 4.1).

Modules and parameters have the same names as in the paper's release, so that its checkpoints load without renaming
(`gat.official`). `gat.sizes.SIZES` has the paper's sizes; other widths, depths and numbers of heads also work.
Shapes: B samples, T tokens, C channels of the transformer (its width), K levels; latents are (B, channels, H, W).
"""

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gat.gan.ops import RMS_EPS, attention, qk_norm, rms_norm, rotate, swiglu

Z_DIM = 64  # dimensions of the noise z, and of the generator's class embedding
LR_MULTIPLIER = 0.01  # learning rate multiplier of the mapping layers (StyleGAN)
W_AVG_DECAY = 0.995


# Building blocks of both networks


def normalize_2nd_moment(x: Tensor, dim: int = -1) -> Tensor:
    """Divide by the root mean square along a dimension: x / sqrt(mean(x²) + 1e-8), as in StyleGAN."""
    return x * (x.square().mean(dim, keepdim=True) + 1e-8).rsqrt()


def sincos_pos_embed(grid: int, width: int) -> Tensor:
    """Fixed 2-D sin-cos position embedding (1, grid², width): column in the first half of channels, then row."""
    frequency = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    angle = torch.arange(grid, dtype=torch.float64)[:, None] * frequency
    axis = torch.cat([angle.sin(), angle.cos()], dim=1)
    column, row = axis.repeat(grid, 1), axis.repeat_interleave(grid, 0)
    return torch.cat([column, row], dim=1)[None].to(torch.get_default_dtype())


def axial_rope(grid: int, head_dim: int, prefix: int = 0) -> Tensor:
    """Cosines and sines of the axial rotary embedding: (prefix + grid², head_dim / 2, 2).

    The first half of the channel pairs is rotated by the row, the second half by the column. The first `prefix` tokens
    ([cls]) are not rotated.
    """
    frequency = 10000.0 ** -(torch.arange(head_dim // 4, dtype=torch.float64) / (head_dim / 4))
    angle = torch.arange(grid, dtype=torch.float64)[:, None] * frequency
    angles = torch.cat([angle.repeat_interleave(grid, 0), angle.repeat(grid, 1)], dim=1)
    angles = torch.cat([angles.new_zeros(prefix, head_dim // 2), angles])
    return torch.stack([angles.cos(), angles.sin()], dim=-1).to(torch.get_default_dtype())


class RMSNorm(nn.RMSNorm):
    """RMS normalization with a weight and eps 1e-6."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, eps=RMS_EPS)

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight)


class Attention(nn.Module):
    """Self-attention with RMS-normalized queries and keys and rotary embedding: (B, T, C) -> (B, T, C).

    With `queries`, only that many first tokens attend, to all tokens: (B, T, C) -> (B, queries, C).
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = RMSNorm(width // num_heads)
        self.k_norm = RMSNorm(width // num_heads)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, rope: Tensor, queries: int | None = None) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))  # (B, T, 3, heads, head_dim)
        qk, v = qkv.split([2, 1], dim=2)
        qk = rotate(qk_norm(qk, self.q_norm.weight, self.k_norm.weight), rope).to(v.dtype)
        q, k, v = (t.transpose(1, 2) for t in (*qk.unbind(2), v[:, :, 0]))  # (B, heads, T, head_dim)
        x = attention(q[:, :, :queries], k, v)
        return self.proj(x.transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    """Gated feed-forward layer of hidden size int(8/3 · width): (B, T, C) -> (B, T, C)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = int(2 / 3 * 4 * width)
        self.w12 = nn.Linear(width, 2 * hidden)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.w3(swiglu(x, self.w12.weight, self.w12.bias))


class MappingLinear(nn.Linear):
    """Linear layer with weights stored 100 times larger, which Adam changes 100 times more slowly (StyleGAN)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * LR_MULTIPLIER


def mapping_network(dim_in: int, dim: int) -> nn.Sequential:
    """Two mapping layers with a SiLU between them: (B, dim_in) -> (B, dim)."""
    return nn.Sequential(MappingLinear(dim_in, dim), nn.SiLU(), MappingLinear(dim, dim))


def initialize_weights(network: nn.Module, style_gain: float = 0.1) -> None:
    """Initialize the weights (paper, appendix).

    linear, patch embedding   Xavier-uniform, bias 0
    mapping layers            Xavier-uniform with gain 100, which LR_MULTIPLIER cancels
    adaLN modulation          Xavier-uniform with gain `style_gain`
    class embeddings          N(0, 0.02²)
    """
    modulations = {module[1] for name, module in network.named_modules() if name.endswith("adaLN_modulation")}
    for module in network.modules():
        if isinstance(module, nn.Linear):
            gain = 1 / LR_MULTIPLIER if isinstance(module, MappingLinear) else 1.0
            gain = style_gain if module in modulations else gain
            nn.init.xavier_uniform_(module.weight, gain=gain)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            nn.init.xavier_uniform_(module.weight.data.flatten(1))
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)


def require_finite(network: nn.Module, name: str) -> None:
    """Check that all weights are finite.

    Raises:
        FloatingPointError: a weight is infinite or NaN.
    """
    for key, tensor in network.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise FloatingPointError(f"the weights {key} of {name} are not finite")


# Generator


class LabelEmbedder(nn.Module):
    """A learned embedding per class: integers (B,) -> (B, dim)."""

    def __init__(self, classes: int, dim: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(classes, dim)

    def forward(self, class_labels: Tensor) -> Tensor:
        return self.embedding_table(class_labels)


class GeneratorBlock(nn.Module):
    """h + gate₁·Attn((1 + scale₁)·RMSNorm(h)), then the same with SwiGLU; scales and gates depend on the style w."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 4 * width))
        self.attn = Attention(width, num_heads)
        self.mlp = SwiGLU(width)

    def forward(self, h: Tensor, w: Tensor, rope: Tensor) -> Tensor:
        scale1, gate1, scale2, gate2 = self.adaLN_modulation(w)[:, None].chunk(4, dim=-1)
        h = torch.addcmul(h, gate1, self.attn((1 + scale1) * rms_norm(h), rope))
        return torch.addcmul(h, gate2, self.mlp((1 + scale2) * rms_norm(h)))


class FinalLayer(nn.Module):
    """Output head that maps tokens to an image: (B, T, C) -> (B, channels, H, W)."""

    def __init__(self, width: int, patch: int, channels: int) -> None:
        super().__init__()
        self.patch = patch
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, width))
        self.linear = nn.Linear(width, patch * patch * channels)

    def forward(self, h: Tensor, w: Tensor) -> Tensor:
        scale = self.adaLN_modulation(w)[:, None]
        return self.unpatchify(self.linear((1 + scale) * rms_norm(h)))

    def unpatchify(self, x: Tensor) -> Tensor:
        """(B, T, patch² · channels) -> (B, channels, H, W)."""
        grid, p = int(x.shape[1] ** 0.5), self.patch
        x = x.unflatten(2, (p, p, -1)).unflatten(1, (grid, grid))  # (B, row, column, p, p, channels)
        return x.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


class Generator(ModelMixin, ConfigMixin):
    """One-step class-conditional generator of latents, with `levels` output images for multi-level noise guidance.

    Args:
        width, depth, heads: size of the transformer; `gat.sizes.SIZES` has the paper's sizes.
        patch: side of a token in latent pixels.
        latent_size, channels: the latents are (channels, latent_size, latent_size).
        classes: number of classes.
        levels: K, with output heads after blocks depth/K, 2·depth/K, …; must divide depth.
        style_gain: gain of the initial weights of the adaLN modulation (paper: 0.1).
    """

    _repeated_blocks = ("GeneratorBlock",)  # what `compile_repeated_blocks` compiles

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
        self.y_embedder = LabelEmbedder(classes, Z_DIM)
        self.latent_embedder = mapping_network(2 * Z_DIM, width)
        self.blocks = nn.ModuleList(GeneratorBlock(width, heads) for _ in range(depth))
        self.final_layers = nn.ModuleList(FinalLayer(width, patch, channels) for _ in range(levels))
        self.register_buffer("w_avg", torch.zeros(classes, width))  # mean style of each class
        self.register_buffer("pos_embed", sincos_pos_embed(grid, width))  # saved, because the release trains it
        self.register_buffer("rope", axial_rope(grid, width // heads), persistent=False)
        initialize_weights(self, style_gain)

    def mapping(
        self, z: Tensor, class_labels: Tensor, truncation_psi: float = 0.0, guidance_scale: float = 1.0
    ) -> Tensor:
        """Style w (B, width) of noise z (B, 64) and integer labels (B,).

        `truncation_psi` moves w towards the mean style of its class (0: off, 1: the mean; in StyleGAN it is the other
        way round). `guidance_scale` s gives w̄ + s·(w − w̄), where w̄ is the mean over all classes for this z (1: off).
        """
        y = normalize_2nd_moment(self.y_embedder(class_labels))
        w = self.latent_embedder(torch.cat([y, normalize_2nd_moment(z)], dim=1))
        if truncation_psi != 0:
            w = w.lerp(self.w_avg[class_labels].to(w.dtype), truncation_psi)
        if guidance_scale != 1:
            mean = self._mean_over_classes(z)
            w = mean + guidance_scale * (w - mean)
        return w

    def _mean_over_classes(self, z: Tensor) -> Tensor:
        """Mean style (B, width) over all classes, as the release computes it.

        Here the release normalizes along the class axis instead of the channels: each embedding is divided by the root
        mean square over classes, and z is reduced to its signs. Its published samples and weights assume this.
        """
        y = normalize_2nd_moment(self.y_embedder.embedding_table.weight, dim=0)
        signs = normalize_2nd_moment(z[..., None])[..., 0]
        return torch.stack([self.latent_embedder(torch.cat([y, s.expand(len(y), -1)], dim=1)).mean(0) for s in signs])

    def synthesis(self, w: Tensor) -> Tensor:
        """Level images (K, B, channels, H, W) of styles w (B, width); the last level is the final latent."""
        h = self.pos_embed.to(self.y_embedder.embedding_table.weight.dtype).expand(len(w), -1, -1)
        image: Tensor | None = None
        levels = []
        blocks_per_level = len(self.blocks) // len(self.final_layers)
        for i, block in enumerate(self.blocks, start=1):
            if self.activation_checkpointing and torch.is_grad_enabled():
                h = checkpoint(block, h, w, self.rope, use_reentrant=False)
            else:
                h = block(h, w, self.rope)
            if i % blocks_per_level == 0:
                residual = self.final_layers[i // blocks_per_level - 1](h, w)
                image = residual if image is None else image + residual
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
        """Latents (B, channels, H, W) of noise z (B, 64) and integer labels (B,).

        With `return_levels`, all level images (K, B, channels, H, W); with `return_style`, also the styles (B, width).
        """
        w = self.mapping(z, class_labels, truncation_psi, guidance_scale)
        levels = self.synthesis(w)
        images = levels if return_levels else levels[-1]
        return (images, w) if return_style else images

    @torch.no_grad()
    def update_w_avg(self, style_sums: Tensor, counts: Tensor) -> None:
        """Update the running mean style of each class in the batch with decay 0.995.

        Args:
            style_sums: (classes, width) sums of w over the global batch per class.
            counts: (classes,) number of samples per class.
        """
        mean = style_sums / counts.clamp(min=1)[:, None]
        weight = torch.where(counts > 0, 1 - W_AVG_DECAY, 0.0)[:, None]
        self.w_avg.lerp_(mean.to(self.w_avg.dtype), weight.to(self.w_avg.dtype))


# Discriminator: a projection discriminator


class PatchEmbed(nn.Module):
    """Linear embedding of patches: (B, channels, H, W) -> (B, T, C)."""

    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class ProjectedLabelEmbedder(LabelEmbedder):
    """Class embeddings e(y) for the projection, through a mapping network: integers (B,) -> (B, cmap_dim)."""

    def __init__(self, classes: int, dim: int) -> None:
        super().__init__(classes, dim)
        self.latent_embedder = mapping_network(dim, dim)

    def forward(self, class_labels: Tensor) -> Tensor:
        table = self.embedding_table.weight
        if len(table) <= len(class_labels):  # map each class once instead of each sample
            return F.embedding(class_labels, self.latent_embedder(table))
        return self.latent_embedder(self.embedding_table(class_labels))


class DiscriminatorBlock(nn.Module):
    """h + λ₁·Attn(RMSNorm(h)), then the same with SwiGLU; λ (LayerScale) starts at 0.1. `queries` as in `Attention`."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = RMSNorm(width)
        self.attn = Attention(width, num_heads)
        self.ls_attn = nn.Parameter(torch.full((width,), 0.1))
        self.norm2 = RMSNorm(width)
        self.mlp = SwiGLU(width)
        self.ls_mlp = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, h: Tensor, rope: Tensor, queries: int | None = None) -> Tensor:
        h = torch.addcmul(h[:, :queries], self.ls_attn, self.attn(self.norm1(h), rope, queries))
        return torch.addcmul(h, self.ls_mlp, self.mlp(self.norm2(h)))


class Discriminator(ModelMixin, ConfigMixin):
    """Projection discriminator of all level images of a sample together.

    Args:
        width, depth, heads, patch, latent_size, channels, classes, levels: as for `Generator`.
        cmap_dim: dimensions of the projection of [cls] onto the class embedding (paper: 2048).
        repa_dim: width of the teacher whose features the REPA head predicts; None: no REPA head.
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
        cmap_dim: int = 2048,
        repa_dim: int | None = None,
        projector_dim: int = 2048,
    ) -> None:
        super().__init__()
        grid = latent_size // patch
        self.activation_checkpointing = False
        self.x_embedder = PatchEmbed(levels * channels, width, patch)
        self.cls_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.blocks = nn.ModuleList(DiscriminatorBlock(width, heads) for _ in range(depth))
        self.final_layer = nn.Sequential(RMSNorm(width), nn.Linear(width, cmap_dim))
        self.y_embedder = ProjectedLabelEmbedder(classes, cmap_dim)
        self.proj: nn.Sequential | None = None  # the REPA head
        if repa_dim is not None:
            self.proj = nn.Sequential(
                nn.Linear(width, projector_dim),
                nn.SiLU(),
                nn.Linear(projector_dim, projector_dim),
                nn.SiLU(),
                nn.Linear(projector_dim, repa_dim),
            )
        self.register_buffer("pos_embed", sincos_pos_embed(grid, width))
        self.register_buffer("rope", axial_rope(grid, width // heads, prefix=1), persistent=False)
        initialize_weights(self)

    def forward(
        self, levels: Tensor, class_labels: Tensor, return_features: bool = False, feature_count: int | None = None
    ) -> Tensor | tuple[Tensor, tuple[Tensor, Tensor]]:
        """Logits (B,) of level images (K, B, channels, H, W) and integer labels (b,), repeated if B is a multiple of b.

        Labels may also be class embeddings (b, cmap_dim), computed once by `y_embedder` for several calls. With
        `return_features`, also the REPA head's output for the first `feature_count` samples (None: all): [cls] (n, d)
        and patches (n, T, d).
        """
        images = levels.transpose(0, 1).flatten(1, 2)  # (B, K·channels, H, W)
        h = self.x_embedder(images)
        h = torch.cat([self.cls_token.expand(len(h), -1, -1), h + self.pos_embed], dim=1)
        for i, block in enumerate(self.blocks, start=1):
            # The logit needs only [cls] of the last block's output.
            queries = 1 if i == len(self.blocks) and not return_features else None
            if self.activation_checkpointing and torch.is_grad_enabled():
                h = checkpoint(block, h, self.rope, queries, use_reentrant=False)
            else:
                h = block(h, self.rope, queries)
        y = class_labels if class_labels.is_floating_point() else self.y_embedder(class_labels)
        y = y.repeat(len(h) // len(y), 1)
        logits = (self.final_layer(h[:, 0]) * y).sum(-1)
        if not return_features:
            return logits
        if self.proj is None:
            raise ValueError("return_features=True needs a discriminator made with repa_dim=")
        features = self.proj(h[:feature_count])
        return logits, (features[:, 0], features[:, 1:])

"""The autoencoder in whose latent space the GAN works: diffusers' `AutoencoderKL`, pretrained or a small one."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import PartialState
from diffusers import AutoencoderKL
from torch import Tensor
from tqdm import trange

from gat.data.images import Images
from gat.data.pixels import decode, to_model_range
from gat.sizes import norm_groups


def downsampling_factor(vae: AutoencoderKL) -> int:
    """Side of images / side of their latents."""
    return 2 ** (len(vae.config["block_out_channels"]) - 1)


def load_vae(source: str | Path, device: torch.device | str = "cpu") -> AutoencoderKL:
    """Load an autoencoder in diffusers' format from a folder or a hub; in bfloat16 on a GPU, otherwise in float32."""
    device = torch.device(device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with PartialState().main_process_first():  # one process downloads for all
        vae = AutoencoderKL.from_pretrained(source, torch_dtype=dtype)
    return vae.to(device).eval().requires_grad_(False)


def train_vae(
    images: Images,
    channels: Sequence[int],
    latent_channels: int,
    steps: int,
    batch_size: int,
    learning_rate: float,
    kl_weight: float,
    seed: int,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> AutoencoderKL:
    """Train a small autoencoder on images; the side is halved between two entries of `channels`.

    The loss is the L1 error of pixels in [−1, 1] plus `kl_weight` times the KL divergence per latent element. The
    optimizer is Adam with a warm-up over 5% of the steps and cosine decay. The scaling factor normalizes the latents of
    about 2,000 evenly spaced images to a standard deviation of 1.
    """
    torch.manual_seed(seed)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=tuple(channels),
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=norm_groups(channels),
        mid_block_add_attention=False,
        sample_size=images.size,
    ).to(device)
    optimizer = torch.optim.Adam(vae.parameters(), lr=learning_rate, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.05)
    rng = np.random.default_rng(seed)
    noise = torch.Generator().manual_seed(seed)
    bar = trange(steps, desc="vae", unit="step", disable=not progress)
    for _ in bar:
        batch = to_model_range(images[np.sort(rng.integers(len(images), size=batch_size))], device)
        posterior = vae.encode(batch).latent_dist
        error = F.l1_loss(vae.decode(posterior.sample(noise)).sample, batch)
        loss = error + kl_weight * posterior.kl().mean() / posterior.mean[0].numel()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        bar.set_postfix(l1=f"{error.item():.4f}", refresh=False)
    vae.eval().requires_grad_(False)
    some = np.arange(0, len(images), max(1, len(images) // 2000))
    means = [encode(vae, images[some[i : i + 100]])[0] for i in range(0, len(some), 100)]
    vae.register_to_config(scaling_factor=1 / torch.cat(means).std().item())
    return vae


@torch.no_grad()
def encode(vae: AutoencoderKL, images: np.ndarray) -> tuple[Tensor, Tensor]:
    """Posterior mean and standard deviation of images uint8 (B, H, W, 3), each float (B, C, h, w) and unscaled."""
    posterior = vae.encode(to_model_range(images, vae.device).to(vae.dtype)).latent_dist
    return posterior.mean.float(), posterior.std.float()


def reconstruct(vae: AutoencoderKL, images: np.ndarray, batch_size: int = 64) -> np.ndarray:
    """Encode images uint8 (B, H, W, 3) to the posterior mean and decode them again."""
    return decode(vae, encode(vae, images)[0] * vae.config["scaling_factor"], batch_size).cpu().numpy()


def psnr(vae: AutoencoderKL, images: Images, batch_size: int = 64, count: int = 1000) -> float:
    """Peak signal-to-noise ratio in dB of reconstructions of the first `count` images."""
    errors = []
    for batch in images.batches(batch_size, stop=min(count, len(images))):
        rebuilt = reconstruct(vae, batch, batch_size).astype(float)
        errors.append(np.square(rebuilt - batch).mean((1, 2, 3)))
    return float(10 * np.log10(255**2 / np.concatenate(errors).mean()))

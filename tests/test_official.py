"""Checkpoints of the release, in the layout that its training saves."""

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file

from gat.data.pixels import decode
from gat.gan.networks import Z_DIM, Generator
from gat.official import convert, head_count, load_discriminator, load_generator, read_checkpoint, size_name
from gat.release.pipeline import GATPipeline
from gat.sizes import SIZES

FIXTURE = load_file(ROOT / "tests/data/release.safetensors")


def part(prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in FIXTURE.items() if name.startswith(prefix)}


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    path = tmp_path / "0050000.pt"
    content = {
        "generator": {name: torch.zeros_like(tensor) for name, tensor in part("generator.").items()},
        "discriminator": part("discriminator."),
        "ema": part("generator."),
        "optG": {"state": {0: {"step": torch.tensor(5.0)}}, "param_groups": [{"lr": 1e-4, "params": [0]}]},
        "optD": {"state": {}, "param_groups": []},
        "args": argparse.Namespace(model="GAT-S/2", resolution=256, fused_attn=True),
        "steps": 50000,
        "wallclock_time": 12.5,
        "wandb_run_id": "abc",
    }
    torch.save(content, path)
    return path


def test_converted_checkpoint_makes_the_networks_own_images(checkpoint, vae, tmp_path):
    vae.save_pretrained(tmp_path / "vae")
    command = [sys.executable, "-m", "gat.official", checkpoint, tmp_path / "out", "--vae", tmp_path / "vae"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    weights = part("generator.")
    generator = load_generator(weights, head_count(weights)).eval()
    assert size_name(generator) in done.stdout
    made = GATPipeline.from_pretrained(tmp_path / "out")([1, 0], 0.3, generator=torch.Generator().manual_seed(5)).images
    z = torch.randn(2, Z_DIM, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        want = decode(vae, generator(z, torch.tensor([1, 0]), truncation_psi=0.3)).numpy()
    assert np.array_equal(np.stack([np.asarray(image) for image in made]), want)
    assert want.std() > 0


def test_position_tables_of_a_checkpoint_are_loaded_and_saved(tmp_path):
    """The release trains them, although its paper calls them fixed."""
    weights = part("generator.")
    z, labels = torch.randn(2, Z_DIM), torch.tensor([0, 1])
    generator = load_generator(weights, head_count(weights)).eval()
    weights["pos_embed"] = weights["pos_embed"] + 0.1 * torch.randn_like(weights["pos_embed"])
    trained = load_generator(weights, head_count(weights)).eval()
    assert torch.equal(trained.pos_embed, weights["pos_embed"])
    assert not trained.pos_embed.requires_grad
    trained.save_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(Generator.from_pretrained(tmp_path)(z, labels), trained(z, labels))
        assert not torch.allclose(trained(z, labels), generator(z, labels), rtol=0.01)
    weights = part("discriminator.")
    weights["pos_embed"] = weights["pos_embed"] + 1
    assert torch.equal(load_discriminator(weights, head_count(weights)).pos_embed, weights["pos_embed"])


def test_weights_before_averaging_can_be_converted(checkpoint, vae, tmp_path):
    vae.save_pretrained(tmp_path / "vae")
    raw = convert(checkpoint, tmp_path / "raw", tmp_path / "vae", weights="generator")
    assert not raw.generator.blocks[0].attn.qkv.weight.any()


@pytest.mark.parametrize("missing", ["w_avg", "x_embedder.proj.weight", "blocks.0.attn.q_norm.weight"])
def test_missing_weights_are_named(missing, checkpoint, tmp_path):
    content = torch.load(checkpoint, weights_only=False)
    del content["ema"][missing]
    torch.save(content, checkpoint)
    with pytest.raises(ValueError, match=rf"0050000\.pt .*{missing.removesuffix('.weight').split('.')[-1]}"):
        convert(checkpoint, tmp_path / "out", tmp_path / "vae")


def test_broken_and_harmful_files_are_refused(checkpoint, tmp_path):
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "sprung",)

    with pytest.raises(ValueError, match=r"'model'.*generator, discriminator, ema"):
        read_checkpoint(checkpoint, "model")
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"0050000\.pt is broken"):
        read_checkpoint(checkpoint)
    torch.save({"ema": Trap()}, tmp_path / "trap.pt")
    with pytest.raises(ValueError, match=r"trap\.pt holds more than weights"):
        read_checkpoint(tmp_path / "trap.pt")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("patch", [2, 4, 8])
def test_all_twelve_sizes_are_recognized_from_their_shapes(name, patch):
    size = SIZES[name]
    with torch.device("meta"):
        weights = Generator(size.width, size.depth, size.heads, patch).state_dict()
        state = weights | {"x_embedder.proj.weight": torch.empty(size.width, 4, patch, patch)}  # unused, in the release
        generator = load_generator(state, head_count(state))
    assert size_name(generator) == f"{name}/{patch}"
    assert generator.config["latent_size"] == 32

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
from gat.gan.networks import SIZES, Generator
from gat.official import convert, head_count, load_discriminator, load_generator, read_checkpoint, size_name
from gat.release.pipeline import GATPipeline

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
    done = subprocess.run(
        [sys.executable, "-m", "gat.official", checkpoint, tmp_path / "out", "--vae", tmp_path / "vae"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    weights = part("generator.")
    generator = load_generator(weights, head_count(weights)).eval()
    config = generator.config
    assert f"width {config['width']}, depth {config['depth']}, {config['heads']} heads" in done.stdout
    pipeline = GATPipeline.from_pretrained(tmp_path / "out")
    labels = [1, 0]
    made = pipeline(labels, truncation_psi=0.3, generator=torch.Generator().manual_seed(5)).images
    z = torch.randn(2, 64, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        want = decode(vae, generator(z, torch.tensor(labels), truncation_psi=0.3)).numpy()
    assert np.array_equal(np.stack([np.asarray(image) for image in made]), want)
    assert want.std() > 0


def test_position_tables_of_a_checkpoint_are_taken_over_and_saved(tmp_path):
    """The release trains them, whatever its paper says."""
    weights = part("generator.")
    z, labels = torch.randn(2, 64), torch.tensor([0, 1])
    generator = load_generator(weights, head_count(weights)).eval()
    weights["pos_embed"] = weights["pos_embed"] + 0.1 * torch.randn_like(weights["pos_embed"])
    trained = load_generator(weights, head_count(weights)).eval()
    assert torch.equal(trained.pos_embed, weights["pos_embed"])
    trained.save_pretrained(tmp_path)
    again = Generator.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(z, labels), trained(z, labels))
        assert not torch.allclose(trained(z, labels), generator(z, labels), rtol=0.01)
    assert not trained.pos_embed.requires_grad

    weights = part("discriminator.")
    weights["pos_embed"] = weights["pos_embed"] + 1
    assert torch.equal(load_discriminator(weights, head_count(weights)).pos_embed, weights["pos_embed"])


def test_other_weights_can_be_asked_for_and_wrong_ones_are_named(checkpoint, vae, tmp_path):
    vae.save_pretrained(tmp_path / "vae")
    raw = convert(checkpoint, tmp_path / "raw", tmp_path / "vae", weights="generator")
    assert not raw.generator.blocks[0].attn.qkv.weight.any()
    with pytest.raises(ValueError, match="has no 'model'; it has generator, discriminator, ema"):
        read_checkpoint(checkpoint, "model")
    with pytest.raises(ValueError, match=r"blocks\.0\.attn\.q_norm and \.proj are missing"):
        head_count({})


@pytest.mark.parametrize("missing", ["w_avg", "x_embedder.proj.weight", "blocks.0.attn.q_norm.weight"])
def test_checkpoint_without_some_weights_is_named_with_them(missing, checkpoint, vae, tmp_path):
    content = torch.load(checkpoint, weights_only=False)
    del content["ema"][missing]
    torch.save(content, checkpoint)
    with pytest.raises(
        ValueError, match=rf"0050000\.pt is no generator of the release: .*{missing.split('.weight')[0]}"
    ):
        convert(checkpoint, tmp_path / "out", tmp_path / "vae")


def test_half_a_checkpoint_is_said_to_be_broken(checkpoint):
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"0050000\.pt is broken"):
        read_checkpoint(checkpoint)


def test_nothing_in_a_checkpoint_is_executed(tmp_path):
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "sprung",)

    torch.save({"ema": Trap()}, tmp_path / "trap.pt")
    with pytest.raises(ValueError, match="holds more than weights"):
        read_checkpoint(tmp_path / "trap.pt")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("patch", [2, 4, 8])
def test_all_twelve_sizes_are_recognized_from_their_shapes(name, patch):
    """Shapes alone, under the release's names: a generator on the meta device, renamed backwards."""
    size = SIZES[name]
    with torch.device("meta"):
        state = release_names(Generator(size.width, size.depth, size.heads, patch))
        generator = load_generator(state, head_count(state))
    assert size_name(generator) == f"{name}/{patch}"
    assert generator.config["latent_size"] == 32


def release_names(generator: Generator) -> dict[str, torch.Tensor]:
    """Its weights with the ones that the release has besides."""
    config = generator.config
    width, patch = config["width"], config["patch"]
    unused = {"x_embedder.proj.weight": (width, config["channels"], patch, patch), "x_embedder.proj.bias": (width,)}
    return generator.state_dict() | {name: torch.empty(shape) for name, shape in unused.items()}

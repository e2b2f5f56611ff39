"""Small real things that many tests need."""

import os

os.environ |= {"MPLBACKEND": "agg", "MATPLOTLIBRC": os.devnull}  # before matplotlib is imported, as stages do

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL
from filelock import FileLock
from hypothesis import HealthCheck, settings
from project import ROOT as ROOT
from project import Project

from gat.data.crop import write_images
from gat.data.encode import write_latents
from gat.data.images import Images
from gat.data.latents import Latents
from gat.data.sources import load_source
from gat.data.vae import encode
from gat.gan.networks import Generator
from gat.release.pipeline import GATPipeline

FUZZ: dict[str, Any] = {"deadline": None, "suppress_health_check": list(HealthCheck), "print_blob": True}
settings.register_profile("default", max_examples=60, derandomize=True, **FUZZ)
settings.register_profile("thorough", max_examples=2000, **FUZZ)
settings.load_profile("default")

TINY = {"width": 16, "depth": 4, "heads": 2, "patch": 2, "latent_size": 8, "classes": 10}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=2, help="how often each stage is killed at a random moment")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """First a file that makes the finished project, last the others that copy it: no process waits for it."""
    copying = sorted({item.path for item in items if "finished" in item.fixturenames})
    items.sort(key=lambda item: (item.path in copying) - 2 * (item.path in copying[:1]))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """In each test, whatever stage an earlier one has run here: with more threads, sums differ in their last bits."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> Images:
    folder = tmp_path_factory.mktemp("images")
    source = load_source("mnist5k")
    some = source._replace(data=source.data.shuffle(seed=0).select(range(300)))
    write_images(some, folder, 32, progress=False)
    return Images(folder)


@pytest.fixture(scope="session")
def vae() -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
        latent_channels=4,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=32,
    ).eval()


@pytest.fixture(scope="session")
def pipeline(vae) -> GATPipeline:
    """Of an untrained generator whose images differ."""
    torch.manual_seed(0)
    generator = Generator(**TINY, style_gain=1.0).eval()
    generator.w_avg.normal_()
    for layer in generator.final_layers:  # which start at zero
        torch.nn.init.normal_(layer.linear.weight, std=0.5)
    return GATPipeline(generator, vae)


@pytest.fixture(scope="session")
def latents(digits, vae, tmp_path_factory) -> Latents:
    folder = tmp_path_factory.mktemp("latents")
    write_latents(digits, lambda batch: encode(vae, batch), folder, 0.5, mirror=True, batch_size=64, progress=False)
    return Latents(folder)


@pytest.fixture
def float64() -> Iterator[None]:
    """Networks are made in float64, so that what should be equal differs by 1e-15 and not by what float32 amplifies."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Project:
    """The project after `make claims` on the smoke profile, committed; to copy, not to change.

    All of pytest-xdist's processes share it.
    """
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "finished"
    with FileLock(folder.with_suffix(".lock")):
        if (folder / "output.txt").exists():
            return Project(folder)
        recorder = {"PYTHONPATH": f"{ROOT / 'tests/recorder'}:.", "READS": str(Project(folder).reads)}
        project = Project.copy(folder, "smoke.yaml", **recorder)
        noise = np.random.default_rng(0).integers(0, 256, (120, 32, 32, 3), dtype=np.uint8)
        np.savez(folder / "noise.npz", noise)
        project.replace(samples={"noise": {"path": "noise.npz", "gmacs": 1e-4}})
        project.commit()
        project.reads.mkdir()
        output = project.type("python", "-m", "stages.repro", "--jobs", "2", "--claims").stdout
        project.commit()
        (folder / "output.txt").write_text(output)
        return project

"""The paper's scale in small: profiles/imagenet256.yaml with real formats, odd files, REPA and two processes."""

import json
import os
import shutil
import sys
import time
from contextlib import chdir
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import PartialState
from conftest import ROOT
from diffusers import AutoencoderKL
from dvc.repo import Repo
from helpers import on_processes
from project import ALWAYS, SHARED, Project, ran
from sklearn.datasets import load_sample_images
from transformers import Dinov2Config, Dinov2Model
from transformers.image_processing_base import ImageProcessingMixin

from gat.config import load_params
from gat.data.images import Images
from gat.data.latents import Latents
from gat.release.pipeline import GATPipeline
from gat.runtime import publish

PROFILES = sorted(path.name for path in (ROOT / "profiles").glob("*.yaml"))


def photographs(folder: Path, classes: int, each: int) -> None:
    """Crops of two photographs, as JPEGs of several kinds and sizes, one of them broken."""
    from PIL import Image

    rng = np.random.default_rng(0)
    photos = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    for label in range(classes):
        (folder / f"class-{label}").mkdir(parents=True)
        for i in range(each):
            side = int(rng.integers(200, 400))
            left, top = rng.integers(0, 640 - side), rng.integers(0, 427 - side) if side < 427 else 0
            image = photos[label % 2].crop((left, top, left + side, top + side - i % 3))
            mode = ("RGB", "RGB", "L", "CMYK")[i % 4]
            image.convert(mode).save(folder / f"class-{label}/{i:03d}.jpg", quality=90)
    (folder / "class-1/999.jpg").write_bytes((folder / "class-1/000.jpg").read_bytes()[:3000])


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """Stable Diffusion's VAE and DINOv2 with small random weights, in their own formats."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=256,
        scaling_factor=0.18215,
    )
    vae.save_pretrained(folder / "vae")
    config = Dinov2Config(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=224, patch_size=14
    )
    statistics = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    for name in ("teacher", "encoder"):
        Dinov2Model(config).save_pretrained(folder / name)
        ImageProcessingMixin(crop_size=224, **statistics).save_pretrained(folder / name)
    return folder


@pytest.mark.thorough
def test_imagenet_in_small_runs_end_to_end_on_two_processes(models, tmp_path):
    photographs(tmp_path / "photographs", classes=4, each=60)
    torchrun = f"{Path(sys.executable).parent / 'torchrun'} --nproc_per_node 2"
    project = Project.copy(tmp_path / "project", "imagenet256.yaml", GAT_LAUNCH=torchrun, HF_HUB_OFFLINE="1")
    project.replace(
        data={"source": str(tmp_path / "photographs"), "on_error": "skip", "mirror": True},
        vae={"pretrained": str(models / "vae")},
        repa={"teacher": str(models / "teacher"), "projector_dim": 64},
        encoder={"pretrained": str(models / "encoder")},
        metrics={
            "extractor": "classifier",
            "reference": None,
            "classifier": {"steps": 5, "batch_size": 16, "learning_rate": 1e-3, "seed": 0},
        },
        model={"patch": 8},
        loss={"cmap_dim": 64},
        train={"steps": 4, "batch_size": 8, "eval_every": 4, "eval_samples": 100},
        evaluate={"samples": 100, "save_samples": str(tmp_path / "samples")},
        compute={"compile": False, "workers": 1, "vae_batch": 16, "sample_batch": 50},
        runs=[],
    )
    done = project.type("dvc", "repro")
    stages = [*SHARED, "train-model", "evaluate-model", "package-model"]
    assert sorted(ran(done.stdout)) == sorted(stages)
    assert "class-1/999.jpg" in done.stdout
    images, latents = Images(project.folder / "data/images"), Latents(project.folder / "data/latents")
    assert (len(images), images.size, len(latents), latents.flips) == (240, 256, 240, 2)
    assert (latents.size, latents.scaling_factor) == (32, 0.18215)
    run = json.loads((project.folder / "results/model/run.json").read_text())
    assert (run["width"], run["patch"], run["teacher"]) == (384, 8, str(models / "teacher"))
    curve = pd.read_csv(project.folder / "results/model/curves/plots/metrics/repa.tsv", sep="\t")
    assert curve.repa.between(0, 4).all()
    with np.load(tmp_path / "samples/model.npz") as file:
        assert file["arr_0"].shape == (100, 256, 256, 3)
    evaluation = json.loads((project.folder / "results/model/evaluation.json").read_text())
    assert (evaluation["extractor"], evaluation["mode"]) == ("classifier", "clean")

    # A file that is not what it was is noticed, and another time is nothing.
    file = tmp_path / "photographs/class-2/000.jpg"
    os.utime(file, (1, 1))
    project.type("dvc", "repro", "source")
    assert project.would_run() == []
    file.write_bytes(file.read_bytes() + b"\0")
    project.type("dvc", "repro", "source")
    assert project.would_run() == ["images"]
    project.type("dvc", "repro", "images")  # with the same pixels, so that nothing else has changed
    assert project.would_run() == []

    # A trained folder takes the place of training.
    folder = tmp_path / "pretrained"
    GATPipeline.from_pretrained(project.folder / "runs/model/pipeline").save_pretrained(folder)
    fid = json.loads((project.folder / "results/model/metrics.json").read_text())["fid"]
    project.replace(model={"pretrained": str(folder)}, evaluate={"save_samples": None})
    done = project.type("dvc", "repro")
    assert ran(done.stdout) == ["teachers", "train-model", "evaluate-model", "package-model", "report"]
    again = json.loads((project.folder / "results/model/metrics.json").read_text())
    assert again["fid"] == pytest.approx(fid, rel=1e-4)
    assert not list((project.folder / "results/model/curves").iterdir())

    # Its own VAE decodes it, in analyses as well.
    shutil.rmtree(project.folder / "data/vae")
    project.replace(analyze={"samples": 4})
    project.env["DVC_STAGE"] = "analyze"
    project.type("python", "-m", "stages", "analyze", "model")
    assert len(json.loads((project.folder / "analyses/model.json").read_text())["layers"]["skipped"]) == run["depth"]


@pytest.mark.parametrize("profile", PROFILES)
def test_each_profiles_graph_has_a_stage_for_each_training(profile, tmp_path):
    project = Project.copy(tmp_path / "project", profile)
    params = load_params(project.folder / "params.yaml")
    with chdir(project.folder), Repo() as repo:
        names = {stage.addressing for stage in repo.index.stages}
    stages = [*ALWAYS, *SHARED]
    stages += [training.stage(stage) for stage in ("train", "evaluate", "package") for training in params.trainings]
    stages += [f"showcase@{run}" for run in params.runs]
    assert {name for name in names if "/" not in name} == {*stages}


@pytest.mark.thorough
def test_folder_is_published_once_a_slow_process_has_read_it(tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work/images.json").write_text("[]")
    on_processes(2, __file__, tmp_path)
    assert (tmp_path / "out/images.json").read_text() == "[]"
    assert not (tmp_path / "work").exists()
    publish(tmp_path / "out", tmp_path / "copy", keep=True)
    assert [(tmp_path / name / "images.json").read_text() for name in ("out", "copy")] == ["[]", "[]"]


if __name__ == "__main__":  # one of two processes
    state, folder = PartialState(cpu=True), Path(sys.argv[1])
    assert state.num_processes == 2
    if not state.is_main_process:
        time.sleep(1)
    (folder / "work/images.json").read_text()
    publish(folder / "work", folder / "out")

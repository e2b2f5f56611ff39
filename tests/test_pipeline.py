"""A trained model as a diffusers pipeline: its arguments, its folder, the code that its folder carries."""

import ast
import copy
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from gat.data.pixels import decode
from gat.gan.networks import Z_DIM, Generator
from gat.release.pipeline import GATPipeline

NAMES = ["tench", "goldfish", "golden retriever", *"3456789"]
CODE = ("pipeline_*.py", "generator/networks_*.py")


@pytest.fixture
def pipeline(pipeline) -> GATPipeline:
    return GATPipeline(copy.deepcopy(pipeline.generator), pipeline.vae, NAMES)


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def arrays(pipeline: GATPipeline, labels, **options) -> np.ndarray:
    return pipeline(labels, **{"generator": seeded(), "output_type": "np"} | options).images


def test_pipeline_loads_from_disk_and_makes_the_networks_images(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    loaded = GATPipeline.from_pretrained(tmp_path)
    assert loaded.config.classes == NAMES
    with torch.no_grad():
        z = torch.randn(2, Z_DIM, generator=seeded())
        latents = pipeline.generator(z, torch.tensor([7, 2]), truncation_psi=0.3, guidance_scale=1.2)
    want = decode(pipeline.vae, latents).numpy()
    options = {"truncation_psi": 0.3, "guidance_scale": 1.2}
    made = loaded([7, 2], generator=seeded(), **options).images
    assert np.array_equal(np.stack([np.asarray(image) for image in made]), want)
    np.testing.assert_allclose(arrays(loaded, [7, 2], **options), want / 255, atol=1e-6)
    tensor = arrays(loaded, [7, 2], output_type="pt", **options)
    np.testing.assert_allclose(tensor.permute(0, 2, 3, 1), want / 255, atol=1e-6)
    assert torch.equal(arrays(loaded, [7, 2], output_type="latent", **options), latents)


def test_labels_are_numbers_or_names(pipeline):
    assert np.array_equal(arrays(pipeline, ["golden retriever", 1]), arrays(pipeline, [2, 1]))
    want = arrays(pipeline, 1)
    assert np.array_equal(arrays(pipeline, "goldfish"), want)
    again = GATPipeline(**pipeline.components)
    assert np.array_equal(arrays(again, ["goldfish"]), want)
    del pipeline.generator.class_names
    with pytest.raises(ValueError, match=r"'goldfish' .*integers"):
        GATPipeline(pipeline.generator, pipeline.vae)("goldfish")


def test_labels_can_have_several_images_and_images_their_own_generator(pipeline):
    assert np.array_equal(arrays(pipeline, [2, 1], num_images_per_label=2), arrays(pipeline, [2, 2, 1, 1]))
    single = arrays(pipeline, [1], generator=seeded(5), output_type="latent")
    both = arrays(pipeline, [2, 1], generator=[seeded(4), seeded(5)], output_type="latent")
    torch.testing.assert_close(both[1:], single)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"class_labels": [10]}, "class_labels: 10 .* 0 to 9"),
        ({"class_labels": ["goldenretriever"]}, "class_labels: 'goldenretriever' .*'golden retriever'"),
        ({"class_labels": []}, "class_labels"),
        ({"num_images_per_label": 0}, "num_images_per_label"),
        ({"output_type": "jpeg"}, "output_type: 'jpeg'"),
        ({"truncation_psi": 1.5}, "truncation_psi: 1.5"),
        ({"generator": [seeded()]}, "generator: .*1.* 2"),
    ],
)
def test_wrong_arguments_are_named(arguments, named, pipeline):
    with pytest.raises(ValueError, match=named):
        pipeline(**{"class_labels": [2, 1]} | arguments)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_makes_nearly_the_same_images(dtype, pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    half = GATPipeline.from_pretrained(tmp_path, torch_dtype=dtype)
    assert (half.generator.dtype, half.vae.dtype) == (dtype, dtype)
    z = torch.randn(4, Z_DIM, generator=seeded())
    with torch.no_grad():
        got = half.generator(z.to(dtype), torch.arange(4), truncation_psi=0.3, guidance_scale=1.2)
        want = pipeline.generator(z, torch.arange(4), truncation_psi=0.3, guidance_scale=1.2)
    assert got.dtype == dtype
    assert ((got - want).norm() / want.norm()).item() < 0.03
    assert half([1, 2], generator=seeded()).images[0].size == (32, 32)


ELSEWHERE = """
import sys
import numpy as np, torch
from diffusers import DiffusionPipeline

def load(folder):
    return DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)

def images(pipeline):
    options = {"generator": torch.Generator().manual_seed(3), "output_type": "np"}
    return pipeline(["golden retriever", "3"], **options).images

model = load("model")
model.save_pretrained("again")
mirrored, again = load("mirrored"), load("again")
np.savez("images.npz", model=images(model), again=images(again), mirrored=images(mirrored))
assert not any(name.split(".")[0] == "gat" for name in sys.modules)
"""


def test_folders_load_with_their_own_code_where_this_package_is_not_installed(pipeline, tmp_path):
    """One folder is saved over old code, one is saved by the loaded pipeline, one has code that mirrors the images."""
    model, again, mirrored = (tmp_path / name for name in ("model", "again", "mirrored"))
    pipeline.save_pretrained(model)
    (model / "pipeline_0123456789ab.py").write_text("")
    pipeline.save_pretrained(model)
    pipeline.save_pretrained(mirrored)
    (path,) = mirrored.glob("pipeline_*.py")
    path.write_text(path.read_text().replace(".permute(0, 2, 3, 1)", ".permute(0, 2, 3, 1).flip(2)", 1))
    path.rename(mirrored / "pipeline_0123456789ab.py")
    index = mirrored / "model_index.json"
    index.write_text(index.read_text().replace(path.stem, "pipeline_0123456789ab"))
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", ELSEWHERE]
    done = subprocess.run(command, cwd=tmp_path, env=env, check=True, stderr=subprocess.PIPE, text=True)
    assert "Expected types" not in done.stderr
    want = arrays(pipeline, ["golden retriever", "3"])
    with np.load(tmp_path / "images.npz") as images:
        assert np.array_equal(images["model"], want)
        assert np.array_equal(images["again"], want)
        assert np.array_equal(images["mirrored"], want[:, :, ::-1])
    for pattern in (*CODE, "model_index.json", "generator/config.json"):
        (path,) = model.glob(pattern)
        assert path.read_bytes() == (again / path.relative_to(model)).read_bytes()


def test_carried_code_needs_only_torch_diffusers_and_numpy(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    for pattern in CODE:
        (path,) = tmp_path.glob(pattern)
        tree = ast.parse(path.read_text())
        modules = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        modules += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
        assert {module.split(".")[0] for module in modules} - sys.stdlib_module_names <= {"torch", "diffusers", "numpy"}
        defined = [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
        assert len(defined) == len(set(defined))


def test_code_in_a_folder_is_not_run_by_our_own_class(pipeline, tmp_path):
    """And no folder names a path of this machine."""
    pipeline.save_pretrained(tmp_path)
    for pattern in CODE:
        (path,) = tmp_path.glob(pattern)
        path.write_text("raise SystemExit('ran')")
    loaded = GATPipeline.from_pretrained(tmp_path, trust_remote_code=True)
    assert type(loaded.generator) is Generator
    loaded.save_pretrained(tmp_path / "again")
    for path in (tmp_path / "again").rglob("*.json"):
        assert str(tmp_path) not in path.read_text()

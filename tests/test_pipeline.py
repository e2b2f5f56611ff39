"""A trained model as a diffusers pipeline: its arguments, its folder, the code that its folder carries."""

import ast
import copy
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from gat.data.pixels import decode
from gat.gan.networks import Generator
from gat.release.pipeline import GATPipeline

TINY = {"width": 16, "depth": 4, "heads": 2, "patch": 2, "latent_size": 8, "classes": 10}
CARRIED = ("pipeline_*.py", "generator/networks_*.py")


@pytest.fixture(scope="module")
def generator() -> Generator:
    torch.manual_seed(0)
    return Generator(**TINY).eval()


def test_pipeline_comes_back_from_disk_and_makes_the_networks_images(generator, vae, tmp_path):
    GATPipeline(generator, vae, [str(digit) for digit in range(10)]).save_pretrained(tmp_path)
    pipeline = GATPipeline.from_pretrained(tmp_path)
    assert pipeline.config.classes == [str(digit) for digit in range(10)]
    z = torch.randn(2, 64, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        want = decode(vae, generator(z, torch.tensor([7, 2]), truncation_psi=0.3))
    made = pipeline([7, 2], truncation_psi=0.3, generator=torch.Generator().manual_seed(3))
    assert np.array_equal(np.stack([np.asarray(image) for image in made.images]), want.numpy())
    with pytest.raises(ValueError, match="class_labels: 10 is not allowed; allowed: 0 to 9"):
        pipeline([10])
    with pytest.raises(ValueError, match="output_type"):
        pipeline([1], output_type="jpeg")


@pytest.fixture
def pipeline(generator, vae) -> GATPipeline:
    return GATPipeline(copy.deepcopy(generator), vae, ["tench", "goldfish", "golden retriever", *"3456789"])


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_labels_are_numbers_or_names(pipeline):
    want = pipeline([2, 1], generator=seeded(), output_type="np").images
    assert np.array_equal(pipeline(["golden retriever", 1], generator=seeded(), output_type="np").images, want)
    one = pipeline("goldfish", generator=seeded(), output_type="np").images
    assert np.array_equal(one, pipeline(1, generator=seeded(), output_type="np").images)
    with pytest.raises(ValueError, match=r"'goldenretriever' is not allowed; .* names such as \['golden retriever'"):
        pipeline(["goldenretriever"])
    again = GATPipeline(**pipeline.components)
    assert np.array_equal(again(["goldfish"], generator=seeded(), output_type="np").images, one)
    with pytest.raises(ValueError, match="it has no names"):
        GATPipeline(Generator(**TINY), pipeline.vae)(["goldfish"])


def test_several_images_of_a_label_and_a_generator_for_each(pipeline):
    want = pipeline([2, 2, 1, 1], generator=seeded(), output_type="np").images
    got = pipeline([2, 1], num_images_per_label=2, generator=seeded(), output_type="np").images
    assert np.array_equal(got, want)
    single = pipeline([1], generator=seeded(5), output_type="latent").images
    both = pipeline([2, 1], generator=[seeded(4), seeded(5)], output_type="latent").images
    torch.testing.assert_close(both[1:], single)
    with pytest.raises(ValueError, match="generator: 1 of them are not one for each of 2 images"):
        pipeline([2, 1], generator=[seeded()])
    for labels, each in (([], 1), ([1], 0)):
        with pytest.raises(ValueError, match="at least one image"):
            pipeline(labels, num_images_per_label=each)
    with pytest.raises(ValueError, match=r"truncation_psi: 1\.5"):
        pipeline([1], truncation_psi=1.5)


def test_tensors_and_arrays_are_the_same_images(pipeline):
    array = pipeline([2, 1], generator=seeded(), output_type="np").images
    tensor = pipeline([2, 1], generator=seeded(), output_type="pt").images
    assert tensor.shape == (2, 3, 32, 32)
    np.testing.assert_allclose(tensor.permute(0, 2, 3, 1).numpy(), array, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_makes_nearly_the_same_images(dtype, pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    half = GATPipeline.from_pretrained(tmp_path, torch_dtype=dtype)
    assert (half.generator.dtype, half.vae.dtype) == (dtype, dtype)
    z = torch.randn(4, 64, generator=seeded())
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

folder, labels = sys.argv[1], ["golden retriever", "3"]
for again in range(2):
    pipeline = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    images = pipeline(labels, generator=torch.Generator().manual_seed(3), output_type="np").images
    np.save(f"{folder}/images-{again}.npy", images)
    folder = f"{folder}/again"
    pipeline.save_pretrained(folder)
assert not any(name.split(".")[0] == "gat" for name in sys.modules)
"""


def test_folder_loads_where_this_package_is_not_installed(pipeline, tmp_path):
    """And what is saved there does again: the same files."""
    folder = tmp_path / "model"
    pipeline.save_pretrained(folder)
    want = pipeline(["golden retriever", "3"], generator=seeded(), output_type="np").images
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, folder], cwd=tmp_path, env=env, check=True, capture_output=True, text=True
    )
    assert "Expected types" not in done.stderr
    for path in (folder / "images-0.npy", folder / "again/images-1.npy"):
        assert np.array_equal(np.load(path), want)
    for pattern in (*CARRIED, "model_index.json", "generator/config.json"):
        (path,) = folder.glob(pattern)
        assert path.read_bytes() == (folder / "again" / path.relative_to(folder)).read_bytes()


def test_carried_code_needs_torch_and_diffusers_alone(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    for name in CARRIED:
        (path,) = tmp_path.glob(name)
        tree = ast.parse(path.read_text())
        modules = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        modules += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
        needed = {module.split(".")[0] for module in modules} - sys.stdlib_module_names
        assert needed <= {"torch", "diffusers", "numpy"}
        defined = [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
        assert len(defined) == len(set(defined))


def test_code_in_a_folder_is_not_run_unless_it_is_trusted(pipeline, tmp_path):
    """And no folder says where on this machine it came from."""
    pipeline.save_pretrained(tmp_path)
    for name in CARRIED:
        (path,) = tmp_path.glob(name)
        path.write_text("raise SystemExit('ran')")
    loaded = GATPipeline.from_pretrained(tmp_path, trust_remote_code=True)
    assert type(loaded.generator) is Generator
    loaded.save_pretrained(tmp_path / "again")
    for path in (tmp_path / "again").rglob("*.json"):
        assert str(tmp_path) not in path.read_text()
        json.loads(path.read_text())


TWO_MODELS = """
import sys
import numpy as np, torch
from diffusers import DiffusionPipeline

def load(folder):
    return DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)

def image(pipeline):
    return pipeline("3", generator=torch.Generator().manual_seed(3), output_type="np").images

first = load(sys.argv[1])
before = image(first)
second = load(sys.argv[2])
assert np.array_equal(image(first), before)
assert not np.array_equal(image(second), before)
"""


def test_a_model_keeps_its_code_when_one_of_other_code_is_loaded(pipeline, tmp_path):
    """Of the second one the code was another: it mirrors its images."""
    pipeline.save_pretrained(tmp_path / "first")
    pipeline.save_pretrained(tmp_path / "second")
    (path,) = (tmp_path / "second").glob("pipeline_*.py")
    other = path.read_text().replace(".permute(0, 2, 3, 1)", ".permute(0, 2, 3, 1).flip(2)", 1)
    renamed = path.with_name("pipeline_0123456789ab.py")
    renamed.write_text(other)
    index = tmp_path / "second/model_index.json"
    index.write_text(index.read_text().replace(path.stem, renamed.stem))
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", TWO_MODELS, tmp_path / "first", tmp_path / "second"]
    subprocess.run(command, cwd=tmp_path, env=env, check=True)


def test_saving_again_leaves_no_code_of_before(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    (tmp_path / "pipeline_0123456789ab.py").write_text("")
    pipeline.save_pretrained(tmp_path)
    assert len(list(tmp_path.rglob("*.py"))) == 2

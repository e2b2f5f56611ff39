"""REPA against a slow, independent computation in float64, one sample at a time, and in training."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file, save_file
from scipy.interpolate import RectBivariateSpline
from test_training import RECIPE, SIZE, relative_error
from transformers import Dinov2Config, Dinov2Model

from gat.augment import Strength, draw_augmentation
from gat.images import Images
from gat.latents import Latents, TrainingBatches
from gat.losses import Features, Look, Objective, discriminator_loss, repa_loss
from gat.networks import Discriminator, Generator
from gat.noise import level_times
from gat.repa import Teacher
from gat.training import Plan, Trainer, fit


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory) -> Path:
    """A DINOv2 of random weights, in transformers' own format."""
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=70, patch_size=14
    )
    folder = tmp_path_factory.mktemp("teacher")
    Dinov2Model(config).save_pretrained(folder)
    return folder


def make_trainer(accelerator, latents, images, teacher_folder, recipe=RECIPE) -> tuple[Trainer, TrainingBatches]:
    torch.manual_seed(0)
    teacher = Teacher(str(teacher_folder), accelerator.device)
    discriminator = Discriminator(**SIZE, class_map_dim=32, repa_dim=teacher.width, projector_dim=32)
    trainer = Trainer(accelerator, Generator(**SIZE), discriminator, recipe, latents.scaling_factor, teacher)
    rank, processes = accelerator.process_index, accelerator.num_processes
    return trainer, TrainingBatches(latents, recipe.batch_size, 0, rank, processes, images)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b))


def test_loss_and_gradient_equal_a_slow_float64_computation(rng):
    """Equal grids; the gradient of 1 − cos(a, b) with respect to a is (cos·â − b̂)/|a|."""
    cls, patches = rng.normal(size=(3, 5)), rng.normal(size=(3, 16, 5))
    of_cls, of_patches = rng.normal(size=(3, 5)), rng.normal(size=(3, 16, 5))
    want, slope = 0.0, np.zeros_like(patches)
    for b in range(3):
        want += (1 - cosine(cls[b], of_cls[b])) / 3
        for t in range(16):
            ours, theirs = patches[b, t], of_patches[b, t]
            want += (1 - cosine(ours, theirs)) / 16 / 3
            unit, length = ours / np.linalg.norm(ours), np.linalg.norm(ours)
            slope[b, t] = (cosine(ours, theirs) * unit - theirs / np.linalg.norm(theirs)) / length / 16 / 3
    guess = Features(torch.tensor(cls), torch.tensor(patches, requires_grad=True))
    loss = repa_loss(guess, Features(torch.tensor(of_cls), torch.tensor(of_patches)))
    loss.backward()
    assert loss.item() == pytest.approx(want, rel=1e-6)
    np.testing.assert_allclose(guess.patches.grad.numpy(), slope, rtol=1e-5, atol=1e-7)


def test_teachers_patches_are_resized_to_the_discriminators_grid_by_row_and_column(rng):
    """A map that is a plane stays that plane, sampled at the centres of the new cells."""
    fine, coarse = 16, 8
    centers = (np.arange(fine) + 0.5) / fine
    plane = 2 * centers[:, None] + centers[None, :]
    target = Features(torch.ones(1, 2), torch.tensor(np.stack([plane.ravel(), np.ones(fine**2)], 1)[None]).float())
    middle = (np.arange(coarse) + 0.5) / coarse
    at_middle = RectBivariateSpline(centers, centers, plane)(middle, middle)
    guess = Features(torch.ones(1, 2), torch.tensor(np.stack([at_middle.ravel(), np.ones(coarse**2)], 1)[None]).float())
    assert repa_loss(guess, target).item() < 1e-4
    turned = guess.patches.unflatten(1, (coarse, coarse)).transpose(1, 2).flatten(1, 2)
    assert repa_loss(guess._replace(patches=turned), target).item() > 1e-2


def test_teacher_sees_the_image_move_as_the_latent_does(teacher_folder, digits):
    """Moving the image by hand, then the teacher's own model on it, one image at a time."""
    teacher = Teacher(str(teacher_folder))
    draw = draw_augmentation(6, 8, Strength(flip=0.5), torch.Generator().manual_seed(1))
    assert draw.flip.any()
    assert not draw.flip.all()
    assert draw.shift.abs().sum() > 0
    images = torch.from_numpy(digits[:6])
    cls, patches = teacher(images, draw, 8)
    model = Dinov2Model.from_pretrained(teacher_folder).eval()
    mean, std = (torch.tensor(s)[:, None, None] for s in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    for i in range(6):
        image = ((images[i].permute(2, 0, 1) / 255 - mean) / std)[None]
        image = torch.nn.functional.interpolate(image, 224, mode="bicubic")[0]
        moved = torch.zeros_like(image)
        down, right = (28 * draw.shift[i]).tolist()  # 224 / 8 pixels of the image to one of the latent
        rows = slice(max(0, down), 224 + min(0, down)), slice(max(0, -down), 224 + min(0, -down))
        columns = slice(max(0, right), 224 + min(0, right)), slice(max(0, -right), 224 + min(0, -right))
        moved[:, rows[0], columns[0]] = image[:, rows[1], columns[1]]
        moved = moved.flip(-1) if draw.flip[i] else moved
        with torch.no_grad():
            tokens = model(moved[None]).last_hidden_state[0]
        torch.testing.assert_close(cls[i], tokens[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(patches[i], tokens[1:], rtol=1e-4, atol=1e-4)
    assert patches.shape == (6, 256, 24)
    assert (teacher.width, teacher.grid) == (24, 16)


def test_discriminators_features_are_of_the_unperturbed_reals(digits):
    """The batched call with REPA equals one forward of the reals, one at a time."""
    torch.manual_seed(0)
    objective = Objective(tuple(level_times(4)), Strength(), 0.1, repa=0.7)
    discriminator = Discriminator(**SIZE, class_map_dim=16, repa_dim=6, projector_dim=8)
    real, fake, labels = torch.randn(3, 4, 8, 8), torch.randn(4, 3, 4, 8, 8), torch.tensor([0, 1, 2])
    generator = torch.Generator().manual_seed(0)
    looks = tuple(
        Look(draw_augmentation(3, 8, objective.augment, generator), torch.randn(4, 3, 4, 8, 8, generator=generator))
        for _ in range(2)
    )
    target = Features(torch.randn(3, 6), torch.randn(3, 16, 6))
    arguments = (discriminator, real, fake, labels, looks, (real, fake), objective)
    with_teacher, parts = discriminator_loss(*arguments, target)
    without, _ = discriminator_loss(*arguments)
    from gat.losses import seen

    shown = seen(real[None], looks[0], objective)
    singles = [discriminator(shown[:, i : i + 1], labels[i : i + 1], return_features=True)[1] for i in range(3)]
    want = (
        sum(repa_loss(Features(*one), Features(*(t[i : i + 1] for t in target))) for i, one in enumerate(singles)) / 3
    )
    torch.testing.assert_close(parts["repa"], want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(with_teacher, without + 0.7 * want, rtol=1e-4, atol=1e-4)


def test_loss_falls_in_training_with_a_random_teacher(accelerator, latents, digits, teacher_folder):
    trainer, batches = make_trainer(accelerator, latents, digits, teacher_folder)
    history = fit(trainer, batches, Plan(60, eval_every=1000, save_every=1000, log_every=5))
    losses = [row["repa"] for row in history]
    assert losses[-1] < 0.6 * losses[0]


def test_micro_batches_with_a_teacher_add_up_to_the_whole(accelerator, latents, digits, teacher_folder):
    states = []
    for size in (None, 4):
        trainer, batches = make_trainer(
            accelerator, latents, digits, teacher_folder, replace(RECIPE, micro_batch=size, learning_rate_d=1e-3)
        )
        fit(trainer, batches, Plan(5, eval_every=100, save_every=100))
        states.append(trainer.plain_discriminator.state_dict())
    assert relative_error(states[1], states[0]) < 1e-5


def test_two_processes_with_a_teacher_and_accumulation_equal_one(
    accelerator, latents, digits, teacher_folder, tmp_path
):
    trainer, batches = make_trainer(accelerator, latents, digits, teacher_folder, replace(RECIPE, micro_batch=4))
    fit(trainer, batches, Plan(20, eval_every=100, save_every=100))
    subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", __file__),
            *(latents.folder, digits.folder, teacher_folder, tmp_path),
        ],
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        check=True,
    )
    two = load_file(tmp_path / "two.safetensors")
    for part in ("generator.", "discriminator.", "ema."):
        got, want = ({k: t for k, t in s.items() if k.startswith(part)} for s in (two, trainer.state()))
        assert relative_error(got, want) < 1e-5, part


if __name__ == "__main__":  # one of two processes
    from accelerate import Accelerator

    torch.set_num_threads(1)
    distributed = Accelerator(cpu=True)
    latents_folder, images_folder, teacher, out = sys.argv[1:]
    trainer, batches = make_trainer(
        distributed, Latents(latents_folder), Images(images_folder), Path(teacher), replace(RECIPE, micro_batch=4)
    )
    fit(trainer, batches, Plan(20, eval_every=100, save_every=100))
    if distributed.is_main_process:
        tensors = {name: tensor.contiguous() for name, tensor in trainer.state().items()}
        save_file(tensors, Path(out) / "two.safetensors")

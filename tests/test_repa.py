"""REPA against a slow, independent computation in float64, one sample at a time, and in training."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import SIZE, make_trainer, save_teacher
from scipy.interpolate import RectBivariateSpline
from transformers import Dinov2Model

from gat.config import Augment, Loss
from gat.gan.augment import AugmentParams, sample_augment_params
from gat.gan.losses import Features, Perturbation, augment_and_noise, discriminator_loss, repa_loss
from gat.gan.networks import Discriminator
from gat.gan.repa import Teacher
from gat.gan.training import fit


@pytest.fixture(scope="module")
def teacher_folder(tmp_path_factory) -> Path:
    return save_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def teacher(teacher_folder) -> Teacher:
    return Teacher(str(teacher_folder))


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


def test_teacher_sees_the_image_move_as_the_latent_does(teacher, teacher_folder, digits):
    """Moving the image by hand, then the teacher's own model on it, one image at a time."""
    params = sample_augment_params(6, 8, Augment(flip=0.5), torch.Generator().manual_seed(1))
    assert params.flip.any()
    assert not params.flip.all()
    assert params.shift.abs().sum() > 0
    images = torch.from_numpy(digits[:6])
    cls, patches = teacher(images, params, 8)
    model = Dinov2Model.from_pretrained(teacher_folder).eval()
    mean, std = (torch.tensor(s)[:, None, None] for s in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    for i in range(6):
        image = ((images[i].permute(2, 0, 1) / 255 - mean) / std)[None]
        image = torch.nn.functional.interpolate(image, 224, mode="bicubic")[0]
        moved = torch.zeros_like(image)
        down, right = (28 * params.shift[i]).tolist()  # 224 / 8 pixels of the image to one of the latent
        rows = slice(max(0, down), 224 + min(0, down)), slice(max(0, -down), 224 + min(0, -down))
        columns = slice(max(0, right), 224 + min(0, right)), slice(max(0, -right), 224 + min(0, -right))
        moved[:, rows[0], columns[0]] = image[:, rows[1], columns[1]]
        moved = moved.flip(-1) if params.flip[i] else moved
        with torch.no_grad():
            tokens = model(moved[None]).last_hidden_state[0]
        torch.testing.assert_close(cls[i], tokens[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(patches[i], tokens[1:], rtol=1e-4, atol=1e-4)
    assert patches.shape == (6, 256, 24)
    assert (teacher.width, teacher.grid) == (24, 16)


def test_discriminators_features_are_of_the_unperturbed_reals():
    """The batched call with REPA equals one forward of the reals, one at a time."""
    torch.manual_seed(0)
    loss, rng = Loss(), torch.Generator().manual_seed(0)
    discriminator = Discriminator(**SIZE, cmap_dim=16, repa_dim=6, projector_dim=8)
    real, fake, labels = torch.randn(3, 4, 8, 8), torch.randn(4, 3, 4, 8, 8), torch.tensor([0, 1, 2])
    perturbations = tuple(
        Perturbation(sample_augment_params(3, 8, loss.augment, rng), torch.randn(4, 3, 4, 8, 8, generator=rng))
        for _ in range(2)
    )
    target = Features(torch.randn(3, 6), torch.randn(3, 16, 6))
    arguments = (discriminator, real, fake, labels, perturbations, (real, fake), loss)
    with_teacher, terms = discriminator_loss(*arguments, target, 0.7)
    without, _ = discriminator_loss(*arguments)
    inputs = augment_and_noise(real[None], perturbations[0], loss)
    singles = [discriminator(inputs[:, i : i + 1], labels[i : i + 1], return_features=True)[1] for i in range(3)]
    want = (
        sum(repa_loss(Features(*one), Features(*(t[i : i + 1] for t in target))) for i, one in enumerate(singles)) / 3
    )
    torch.testing.assert_close(terms["repa"], want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(with_teacher, without + 0.7 * want, rtol=1e-4, atol=1e-4)


def test_teacher_sees_the_augmentation_of_the_reals(accelerator, latents, digits, teacher):
    """The one that the discriminator's reals have in the same step, and not the fakes'."""
    seen: list[AugmentParams] = []

    class Watched:
        width = teacher.width

        def __call__(self, images: torch.Tensor, augment: AugmentParams, latent_size: int) -> Features:
            seen.append(augment)
            return teacher(images, augment, latent_size)

    trainer, batches = make_trainer(accelerator, latents, teacher=Watched(), images=digits)
    trainer.step(batches[0])
    of_reals, of_fakes = (part.augment for part in trainer.sample_random_numbers(0).perturb_d)
    assert torch.equal(seen[0].shift, of_reals.shift)
    assert not torch.equal(seen[0].shift, of_fakes.shift)


def test_loss_falls_in_training_with_a_random_teacher(accelerator, latents, digits, teacher):
    trainer, batches = make_trainer(accelerator, latents, teacher=teacher, images=digits, steps=40)
    losses = [row["repa"] for row in fit(trainer, batches)]
    assert losses[-1] < 0.8 * losses[0]

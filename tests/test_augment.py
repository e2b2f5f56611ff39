import pytest
import torch

from gat.config import Augment
from gat.gan.augment import AugmentParams, augment, sample_augment_params, translate_and_flip

OFF = {"color": 0.0, "translation": 0.0, "cutout": 0.0, "flip": 0.0}


def only(**strengths: float) -> Augment:
    return Augment(**(OFF | strengths))


def draw(count: int = 1, **changes) -> AugmentParams:
    neutral = AugmentParams(
        brightness=torch.zeros(count),
        saturation=torch.ones(count),
        contrast=torch.ones(count),
        shift=torch.zeros(count, 2, dtype=torch.long),
        cutout=torch.full((count, 2), 4),
        flip=torch.zeros(count, dtype=torch.bool),
    )
    return neutral._replace(**changes)


@pytest.fixture
def levels():
    torch.manual_seed(0)
    return torch.randn(3, 2, 4, 8, 8)


def test_off_changes_nothing(levels):
    rng = torch.Generator().manual_seed(0)
    assert torch.equal(augment(levels, sample_augment_params(2, 8, only(), rng), only()), levels)


def test_translation_moves_down_and_right_and_fills_with_zeros(levels):
    moved = augment(levels, draw(2, shift=torch.tensor([[1, -2], [0, 0]])), only(translation=0.25))
    assert torch.equal(moved[:, 0, :, 1:, :-2], levels[:, 0, :, :-1, 2:])
    assert not moved[:, 0, :, 0].any()
    assert not moved[:, 0, :, :, -2:].any()
    assert torch.equal(moved[:, 1], levels[:, 1])


def test_moved_pixels_are_the_same_bits_where_products_are_rounded(levels):
    """As a GPU's TF32 rounds what goes into a matrix product, so does bfloat16 here."""
    draws = draw(2, shift=torch.tensor([[1, 0], [-1, 2]]), flip=torch.tensor([True, False]))
    exact = translate_and_flip(levels[0], draws)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(translate_and_flip(levels[0], draws), exact)


def test_cutout_blanks_half_the_side_around_its_centre(levels):
    cut = augment(levels, draw(2, cutout=torch.tensor([[4, 2], [0, 8]])), only(cutout=0.5))
    assert not cut[:, 0, :, 2:6, 0:4].any()
    assert not cut[:, 1, :, :2, 6:].any()
    assert int((cut[:, 0] == 0).sum()) == 3 * 4 * 16
    assert int((cut[:, 1] == 0).sum()) == 3 * 4 * 4


def test_colour_turns_about_the_means_of_the_last_level(levels):
    draws = draw(
        2, brightness=torch.tensor([0.3, 0.0]), saturation=torch.tensor([0.5, 1]), contrast=torch.tensor([1.2, 1])
    )
    colored = augment(levels, draws, only(color=0.5))
    last = levels[-1, 0]
    mean = last.mean(0, keepdim=True)
    want = (levels[0, 0] + 0.3 - mean) * 0.5 + mean
    want = (want - last.mean()) * 1.2 + last.mean()
    torch.testing.assert_close(colored[0, 0], want)
    torch.testing.assert_close(colored[:, 1], levels[:, 1])


def test_draws_stay_in_the_papers_ranges():
    draws = sample_augment_params(20_000, 8, Augment(), torch.Generator().manual_seed(0))
    colored = (draws.brightness != 0).float().mean().item()
    assert colored == pytest.approx(0.5, abs=0.02)
    assert draws.flip.float().mean().item() == pytest.approx(0.4, abs=0.02)
    assert draws.brightness.abs().max() <= 0.5
    assert 0 <= draws.saturation.min() < 0.1
    assert 1.9 < draws.saturation.max() <= 2
    assert draws.contrast.min() >= 0.5
    assert draws.contrast.max() <= 1.5
    assert set(draws.shift.unique().tolist()) == {-1, 0, 1}
    assert (draws.cutout.min(), draws.cutout.max()) == (0, 8)


def test_an_image_moves_as_its_latent_does():
    """The image of a latent moved by n latent pixels is the image moved by n times as many of its own."""
    torch.manual_seed(0)
    latent = torch.randn(1, 1, 4, 4)
    image = latent.repeat_interleave(3, 2).repeat_interleave(3, 3)
    draws = draw(shift=torch.tensor([[1, -1]]), flip=torch.tensor([True]))
    moved = translate_and_flip(latent, draws).repeat_interleave(3, 2).repeat_interleave(3, 3)
    assert torch.equal(translate_and_flip(image, draws, scale=3), moved)

import pytest
import torch

from gat.gan.noise import noise_levels, perturb, resize_levels


def test_schedules_have_the_papers_ends():
    assert noise_levels(4) == pytest.approx([0.885, 0.76, 0.51, 0.01])
    assert noise_levels(4, "linear") == pytest.approx([0.885, 0.885 - 0.875 / 3, 0.01 + 0.875 / 3, 0.01])
    assert noise_levels(4, "none") == [0.0]
    with pytest.raises(ValueError, match="cubic"):
        noise_levels(4, "cubic")


def test_noise_is_one_markov_chain_from_clean_to_noisy():
    """Each level has its own standard deviation, and neighbours the covariance r·t² of a chain."""
    times = tuple(noise_levels(4))
    torch.manual_seed(0)
    noise = torch.randn(4, 200_000, 1, 1, 1)
    seen = perturb(torch.zeros_like(noise), noise, times).flatten(1)
    torch.testing.assert_close(seen.std(1), torch.tensor(times), rtol=0.01, atol=1e-4)
    for level in range(3):
        ratio = (1 - times[level]) / (1 - times[level + 1])
        covariance = (seen[level] * seen[level + 1]).mean()
        torch.testing.assert_close(covariance, torch.tensor(ratio * times[level + 1] ** 2), rtol=0.03, atol=2e-4)


def test_image_is_kept_in_proportion():
    levels = torch.ones(4, 2, 3, 2, 2)
    seen = perturb(levels, torch.zeros_like(levels))
    torch.testing.assert_close(seen[:, 0, 0, 0, 0], 1 - torch.tensor(noise_levels(4)))


def test_resized_levels_are_means_of_squares_and_the_last_is_the_image():
    torch.manual_seed(0)
    images = torch.randn(1, 2, 3, 8, 8)
    levels = resize_levels(images, 3)
    assert levels.shape == (3, 2, 3, 8, 8)
    assert torch.equal(levels[2], images[0])
    for level, side in ((0, 2), (1, 4)):
        means = images[0].unflatten(3, (side, -1)).unflatten(2, (side, -1)).mean((3, 5))
        # Corners of an image enlarged bilinearly are the corners of the small one.
        assert torch.allclose(levels[level, :, :, ::7, ::7], means[:, :, :: side - 1, :: side - 1], atol=1e-6)
        assert torch.allclose(levels[level].mean((2, 3)), means.mean((2, 3)), atol=0.2)
    each = torch.randn(3, 2, 3, 8, 8)
    assert torch.equal(resize_levels(each, 3)[0], resize_levels(each[:1], 3)[0])
    assert resize_levels(images[..., :1, :1], 3).shape == (3, 2, 3, 1, 1)

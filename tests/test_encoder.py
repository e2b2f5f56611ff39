"""The second feature space: an encoder that no label has trained."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from gat.data.pixels import to_model_range
from gat.evaluation.encoder import Encoder, contrastive_loss, random_view, train_encoder
from gat.evaluation.metrics import neighbour_accuracy

RECIPE = {"width": 32, "depth": 1, "batch_size": 64, "learning_rate": 3e-3, "temperature": 0.2, "seed": 0}


def features(folder, images) -> np.ndarray:
    encoder = Encoder(folder)
    return np.concatenate([encoder(batch) for batch in images.batches(100)])


def test_classes_lie_together_without_any_label(digits, tmp_path):
    """Closer than in an encoder that has hardly been trained, and the same each time."""
    accuracies, found = {}, {}
    for name, steps in (("short", 1), ("again", 1), ("long", 40)):
        train_encoder(digits, tmp_path / name, steps=steps, progress=False, **RECIPE)
        own = found[name] = features(tmp_path / name, digits)
        assert own.shape == (300, Encoder(tmp_path / name).width)
        assert own.var(axis=0).mean() == pytest.approx(1, rel=1e-3)
        accuracies[name] = neighbour_accuracy(own[::2], digits.labels[::2], own[1::2], digits.labels[1::2])
    assert accuracies["long"] > accuracies["short"] + 0.1
    assert np.array_equal(found["short"], found["again"])


def test_loss_is_the_cross_entropy_of_the_other_view():
    torch.manual_seed(0)
    projected = torch.randn(6, 5)
    unit = F.normalize(projected, dim=1)
    losses = []
    for i in range(6):
        others = [j for j in range(6) if j != i]
        scores = torch.stack([unit[i] @ unit[j] / 0.3 for j in others])
        losses.append(torch.logsumexp(scores, 0) - unit[i] @ unit[(i + 3) % 6] / 0.3)
    torch.testing.assert_close(contrastive_loss(projected, 0.3), torch.stack(losses).mean())


def test_views_differ_and_stay_images(digits):
    torch.manual_seed(0)
    images = to_model_range(digits[:8])
    views = random_view(images)
    assert views.shape == images.shape
    assert views.abs().max() <= 1
    assert (views - random_view(images)).abs().mean() > 0.05
    one = random_view(images[:1].repeat(8, 1, 1, 1))  # each image has a view of its own
    assert all((one[i] - one[0]).abs().max() > 0.01 for i in range(1, 8))

"""The second feature space: an encoder that no label has trained."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import ConvNextConfig, ConvNextModel, Dinov2Config, Dinov2Model
from transformers.image_processing_base import ImageProcessingMixin

from gat.config import ParamsError
from gat.data.pixels import to_model_range
from gat.evaluation.encoder import Encoder, contrastive_loss, fetch_encoder, random_view, train_encoder
from gat.evaluation.metrics import neighbour_accuracy

RECIPE = {"width": 32, "depth": 1, "batch_size": 64, "learning_rate": 3e-3, "temperature": 0.2, "seed": 0}
STATISTICS = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.25, 0.2, 0.1]}


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


def save_dinov2(folder, **statistics) -> Dinov2Model:
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2}
    model = Dinov2Model(Dinov2Config(**sizes, image_size=28, patch_size=14)).eval()
    model.save_pretrained(folder)
    ImageProcessingMixin(
        size={"shortest_edge": 32}, crop_size={"height": 28, "width": 28}, **statistics
    ).save_pretrained(folder)
    return model


def test_pretrained_encoder_sees_images_as_its_preprocessor_says(digits, tmp_path):
    model = save_dinov2(tmp_path / "dinov2", **STATISTICS)
    fetch_encoder(str(tmp_path / "dinov2"), tmp_path / "encoder")
    pixels = torch.from_numpy(digits[:4]).permute(0, 3, 1, 2).float()
    resized = F.interpolate(pixels, (28, 28), mode="bicubic", antialias=True).clamp(0, 255) / 255
    mean, std = (torch.tensor(STATISTICS[name])[:, None, None] for name in ("image_mean", "image_std"))
    with torch.no_grad():
        want = model(pixel_values=(resized - mean) / std).pooler_output  # [cls] after the last normalization
    np.testing.assert_allclose(Encoder(tmp_path / "encoder")(digits[:4]), want.numpy(), atol=1e-5)


def test_encoders_without_cls_token_or_statistics_are_refused(tmp_path):
    ConvNextModel(ConvNextConfig(hidden_sizes=[8] * 4, depths=[1] * 4)).save_pretrained(tmp_path / "convnext")
    with pytest.raises(ParamsError, match=r"^encoder\.pretrained: .*convnext.* is a convnext; allowed: dinov2"):
        fetch_encoder(str(tmp_path / "convnext"), tmp_path / "encoder")
    save_dinov2(tmp_path / "dinov2")
    with pytest.raises(ParamsError, match=r"^encoder\.pretrained: .* has no image_mean and image_std"):
        fetch_encoder(str(tmp_path / "dinov2"), tmp_path / "encoder")

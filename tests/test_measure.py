"""All metrics of images: with Inception's further outputs and the encoder."""

import dataclasses
import io
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from cleanfid.inception_torchscript import InceptionV3W
from conftest import ROOT
from scipy.ndimage import map_coordinates
from torch import Tensor, nn

from gat.config import ParamsError, load_params
from gat.data.images import Images
from gat.evaluation.encoder import train_encoder
from gat.evaluation.extractor import save_extractor
from gat.evaluation.fid import fid
from gat.evaluation.inception import SIDE, InceptionOutputs, inception_score, split, tensorflow_resize
from gat.evaluation.measure import Measure, References
from gat.report.columns import METRICS
from stages.extractor import main

CLASSES = 6


class _Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x))


class _Layers(nn.Module):
    """The names and sizes of NVIDIA's `inception-2015-12-05.pt` up to mixed_6, with few channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.conv_1 = nn.Conv2d(3, 4, 3, stride=2), nn.Conv2d(4, 4, 3)
        self.conv_2, self.pool0 = nn.Conv2d(4, 4, 3, padding=1), nn.MaxPool2d(3, 2)
        self.conv_3, self.conv_4, self.pool1 = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3), nn.MaxPool2d(3, 2)
        self.mixed, self.mixed_1, self.mixed_2 = nn.Conv2d(4, 4, 1), nn.Tanh(), nn.Conv2d(4, 4, 1)
        self.mixed_3, self.mixed_4, self.mixed_5 = nn.Conv2d(4, 4, 3, stride=2), nn.Tanh(), nn.Conv2d(4, 4, 1)
        self.mixed_6 = _Mixed()
        self.last = nn.Sequential(nn.AdaptiveAvgPool2d(16), nn.Flatten())  # 8 · 16² = 2048

    def until_mixed_6(self, x: Tensor) -> Tensor:
        x = self.pool1(self.conv_4(self.conv_3(self.pool0(self.conv_2(self.conv_1(self.conv(x)))))))
        return self.mixed_5(self.mixed_4(self.mixed_3(self.mixed_2(self.mixed_1(self.mixed(x))))))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.mixed_6(self.until_mixed_6(x)))


class _Inception(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers, self.output = _Layers(), nn.Linear(2048, CLASSES)

    def forward(self, x: Tensor, return_features: bool = False, no_output_bias: bool = False) -> Tensor:
        if x.shape[2] != 299:
            x = nn.functional.interpolate(x, [299, 299])
        features = self.layers((x - 128) / 128)
        if return_features:
            return features
        logits = features @ self.output.weight.T
        return (logits if no_output_bias else logits + self.output.bias).softmax(1)


@pytest.fixture(scope="module")
def inception() -> _Inception:
    torch.manual_seed(0)
    return _Inception().eval()


@pytest.fixture(scope="module")
def folder(inception, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("inception")
    torch.jit.save(torch.jit.script(inception), folder / "inception-2015-12-05.pt")
    save_extractor(folder, "inception", "clean")
    return folder


@pytest.fixture(scope="module")
def encoder(digits, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("encoder") / "encoder"
    recipe = {"width": 16, "depth": 1, "steps": 2, "batch_size": 8, "learning_rate": 1e-3, "temperature": 0.2}
    train_encoder(digits, folder, seed=0, progress=False, **recipe)
    return folder


def test_tensorflows_resizing_takes_pixel_i_from_i_times_the_ratio(rng):
    images = torch.from_numpy(rng.random((2, 3, 40, 25)))
    places = [np.minimum(np.arange(SIDE) * size / SIDE, size - 1) for size in (40, 25)]
    for got, image in zip(tensorflow_resize(images).flatten(0, 1), images.flatten(0, 1), strict=True):
        want = map_coordinates(image.numpy(), np.meshgrid(*places, indexing="ij"), order=1)
        np.testing.assert_allclose(got.numpy(), want, atol=1e-9)


def test_outputs_are_those_of_the_layers_that_adms_evaluation_reads(inception, folder):
    images = 255 * torch.rand(2, 3, SIDE, SIDE)
    outputs = InceptionOutputs(InceptionV3W(str(folder), download=False))(images).numpy()
    features, spatial, probabilities = split(outputs)
    with torch.no_grad():
        inner = inception.layers.until_mixed_6((images - 128) / 128)
        want = inception.layers.mixed_6.conv(inner)[:, :7]
        logits = inception.layers((images - 128) / 128) @ inception.output.weight.T
    assert (features.shape, spatial.shape, probabilities.shape) == ((2, 2048), (2, 2023), (2, CLASSES))
    np.testing.assert_allclose(spatial.reshape(2, 17, 17, 7), want.movedim(1, 3).numpy(), atol=1e-5)  # as mu_s
    np.testing.assert_allclose(probabilities, logits.softmax(1).numpy(), atol=1e-5)


def test_inception_score_is_one_for_one_class_and_their_number_for_all(rng):
    assert inception_score(np.tile([[0.7, 0.2, 0.1]], (50, 1))) == pytest.approx(1)
    sure = np.full((60, 6), 1e-12)
    sure[np.arange(60), np.arange(60) % 6] = 1
    assert inception_score(sure) == pytest.approx(6)
    some = rng.dirichlet(np.ones(4), 12000)  # in parts of 5,000, 5,000 and 2,000
    parts = [some[:5000], some[5000:10000], some[10000:]]
    assert inception_score(some) == pytest.approx(np.mean([inception_score(part) for part in parts]))


def measured(measure: Measure, images: Images, count: int = 60) -> tuple:
    return measure.features(lambda start, stop: images[start:stop], count, 25, progress=False)


def test_each_network_adds_its_metrics(digits, folder, encoder, tmp_path, monkeypatch):
    monkeypatch.setattr("gat.evaluation.measure.compute_metrics", lambda features, *_: {"fid": 0.0})  # 2,048 are slow
    measure = Measure(folder, encoder)
    features = measured(measure, digits)
    few = References.of(features, digits.labels[:60])
    assert {*measure.metrics(features, None, few, 0)} == {"fid", "inception_score", "fd_encoder"}  # 60 images for sFID
    small = features._replace(spatial=features.spatial[:, :8])
    metrics = measure.metrics(small, None, References.of(small, digits.labels[:60]), 0)
    assert metrics.keys() == {"fid", "inception_score", "fd_encoder", "sfid"}
    assert metrics["fd_encoder"] == pytest.approx(0, abs=1e-3)
    assert metrics["sfid"] == pytest.approx(0, abs=1e-3)
    assert metrics["inception_score"] == pytest.approx(inception_score(features.probabilities))
    assert {*metrics} <= {column.key for column in METRICS}
    np.testing.assert_allclose(measure.main(digits[:25]), features.main[:25], atol=1e-5)
    (tmp_path / "none").mkdir()
    assert Measure(folder, tmp_path / "none").encoder is None


def test_references_come_back_from_their_files(digits, folder, encoder, tmp_path):
    features = measured(Measure(folder, encoder), digits)
    references = References.of(features, digits.labels[:60])
    references.main.save(tmp_path / "main.npz")
    references.encoder.save(tmp_path / "encoder.npz")
    loaded = References.load(tmp_path / "main.npz", tmp_path)
    assert loaded.spatial is None
    assert np.array_equal(loaded.encoder.sigma, references.encoder.sigma)
    assert np.array_equal(loaded.main.labels, digits.labels[:60])
    assert dataclasses.replace(loaded.encoder, features=None).features is None
    assert fid(features.encoder, loaded.encoder) == pytest.approx(0, abs=1e-3)


class Other(nn.Module):
    """A model that PyTorch can read, but no Inception."""

    def forward(self, images: Tensor) -> Tensor:
        return images


def scripted(model: nn.Module) -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(model), buffer)
    return buffer.getvalue()


DOWNLOADED = {
    "cut short": b"PK\x03\x04 and no more",
    "empty": b"",
    "a page": b"<html>quota exceeded</html>",
    "another model": scripted(Other()),
}


@pytest.mark.parametrize("content", DOWNLOADED.values(), ids=DOWNLOADED)
def test_what_was_downloaded_in_place_of_weights_is_no_extractor(content, tmp_path, monkeypatch):
    def download(folder: str) -> None:
        (Path(folder) / "inception-2015-12-05.pt").write_bytes(content)

    monkeypatch.setattr("gat.evaluation.extractor.check_download_inception", download)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ParamsError, match=r"^metrics\.extractor: its weights cannot be read .* run again to download"):
        main(load_params(ROOT / "profiles/cifar10.yaml"))
    assert not [*Path("data").iterdir()]


def test_without_a_network_inception_is_one_line(tmp_path, monkeypatch):
    def fail(_) -> None:
        raise URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", fail)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ParamsError, match=r"^metrics\.extractor: 'inception' cannot be read \(URLError: .*no network"):
        main(load_params(ROOT / "profiles/cifar10.yaml"))
    assert not [*Path("data").iterdir()]

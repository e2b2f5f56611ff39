import copy
import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cleanfid import fid as cleanfid
from PIL import Image

from gat.config import ParamsError
from gat.evaluation.extractor import Extractor, TrainedClassifier, save_extractor, train_classifier
from gat.evaluation.features import compute_reference
from gat.evaluation.fid import Reference, evenly_spaced, fid, read_reference
from gat.evaluation.grid import image_grid
from gat.evaluation.metrics import (
    compute_metrics,
    density_coverage,
    kid,
    nearest_in_training,
    precision_recall,
    within_class_variance,
)
from gat.evaluation.sampling import Sampler, label_cycle, sample_inputs
from gat.evaluation.warnings import diverging_fid, few_for_fid, flat_discriminator, warnings_of
from gat.gan.networks import Generator, require_finite
from gat.release.pipeline import GATPipeline
from gat.report.columns import METRICS

TINY = {"width": 16, "depth": 4, "heads": 2, "patch": 2, "latent_size": 8, "classes": 10}


@pytest.fixture(scope="module")
def trained(digits) -> TrainedClassifier:
    return train_classifier(digits, steps=60, batch_size=64, learning_rate=3e-3, seed=0, progress=False)


@pytest.fixture(scope="module")
def extractor(trained, tmp_path_factory) -> Extractor:
    folder = tmp_path_factory.mktemp("extractor")
    save_extractor(folder, "classifier", "clean", trained)
    return Extractor(folder)


@pytest.fixture(scope="module")
def generator() -> Generator:
    torch.manual_seed(0)
    return Generator(**TINY).eval()


def test_features_have_mean_0_and_variance_1_and_the_logits_stay(digits, trained, extractor):
    """FID and KID are in the features' unit; a FID in the classifier's own is scale² times as large."""
    assert trained.accuracy > 0.5  # of ten classes
    features = extractor(digits[:])
    assert features.var(0).mean() == pytest.approx(1, abs=0.05)
    assert np.abs(features.mean(0)).max() < 0.3
    classifier, scale = copy.deepcopy(trained.classifier), float(trained.classifier.scale)
    classifier.standardize(torch.tensor([[-(0.5**0.5)], [0.5**0.5]]).expand(2, 64))  # as it came out of training
    raw = classifier(torch.from_numpy(digits[:]).permute(0, 3, 1, 2).float()).numpy()
    np.testing.assert_allclose(raw - raw.mean(0), scale * (features - features.mean(0)), rtol=1e-3, atol=1e-3)
    assert np.array_equal(classifier.logits(torch.from_numpy(raw)).argmax(1), extractor.classify(features))
    assert (extractor.classify(features) == digits.labels).mean() > 0.5
    halves = features[::2], features[1::2]
    small, large = (fid(unit * halves[0], Reference.from_features(unit * halves[1])) for unit in (1.0, scale))
    assert large == pytest.approx(scale**2 * small, rel=1e-3)


def test_too_few_classes_and_images_are_refused_with_their_key():
    one = SimpleNamespace(classes=["all"])
    five = type("Five", (list,), {"classes": ["a", "b"]})(range(5))
    for images, message in ((one, "two classes"), (five, "5")):
        with pytest.raises(ParamsError, match=rf"^metrics\.extractor: .*{message}"):
            train_classifier(images, 1, 1, 1e-3, 0)
    with pytest.raises(ParamsError, match=r"^data\.source: .*two images"):
        compute_reference(lambda start, stop: np.zeros((1, 8, 8, 3)), lambda images: np.zeros((1, 4)), 1, 1, 1)


def test_spread_within_classes_is_the_closed_form_and_tells_collapse(rng):
    labels = np.arange(3000) % 3
    features = 50.0 * labels[:, None] + rng.normal(0, [1.0, 2.0], (3000, 2))
    assert within_class_variance(features, labels, 3) == pytest.approx(5, rel=0.1)
    assert within_class_variance(features[labels < 2], labels[labels < 2], 3) == pytest.approx(10 / 3, rel=0.1)
    assert within_class_variance(50.0 * labels[:, None] + np.zeros((1, 2)), labels, 3) == 0


def test_misread_samples_are_no_diversity(rng):
    """Each class one point, but for three in ten samples that are another class's."""
    labels = np.arange(3000) % 3
    real = 50.0 * labels[:, None] + rng.normal(size=(3000, 2))
    shown = np.where(rng.random(3000) < 0.3, (labels + 1) % 3, labels)
    reference = dataclasses.replace(Reference.from_features(real), labels=labels)
    assert compute_metrics(50.0 * shown[:, None] + np.zeros((1, 2)), labels, reference, shown)["spread"] == 0
    assert compute_metrics(real, labels, reference, labels)["spread"] == pytest.approx(1)


def test_density_and_coverage_by_hand():
    """Reals on a line at 0, 1, …, 9, whose balls reach 3 or, at the ends, up to 5; samples in some of them."""
    real = np.arange(10.0)[:, None]
    radii = [5, 4, 3, 3, 3, 3, 3, 3, 4, 5]
    samples = np.array([[-3.5], [0.4], [40.0]])
    inside = np.abs(real - samples.T) <= np.array(radii)[:, None]
    density, coverage = density_coverage(samples, real)
    assert density == pytest.approx(inside.sum() / (5 * 3))
    assert coverage == pytest.approx(inside.any(1).mean())
    assert coverage < 1


def test_copies_are_nearest_to_what_they_copy(rng):
    training, held = rng.normal(size=(2000, 8)), rng.normal(size=(500, 8))
    assert nearest_in_training(rng.normal(size=(2000, 8)), training, held) == pytest.approx(0.5, abs=0.05)
    copies = training[evenly_spaced(2000, 500)] + rng.normal(0, 0.01, (500, 8))
    assert nearest_in_training(copies, training, held) > 0.99
    assert nearest_in_training(held, training, held) < 0.01


def save_pngs(images: np.ndarray, folder: Path) -> str:
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i:05d}.png")
    return str(folder)


@pytest.mark.parametrize("size", [32, 48])
def test_fid_and_kid_equal_clean_fids_on_the_same_files(size, digits, extractor, rng, tmp_path):
    """At the extractor's own size, where resizing is the identity, and at another."""
    resized = [np.asarray(Image.fromarray(image).resize((size, size))) for image in digits[:]]
    real, fake = np.stack(resized[:120]), np.stack(resized[120:200])  # subsets of KID are random
    fake = np.clip(fake + rng.normal(0, 40, fake.shape), 0, 255).astype(np.uint8)
    folders = [save_pngs(images, tmp_path / name) for name, images in (("fake", fake), ("real", real))]
    options = {
        "mode": "clean",
        "device": torch.device("cpu"),
        "num_workers": 0,
        "verbose": False,
        "custom_fn_resize": extractor.resize,
    }
    want = cleanfid.compute_fid(*folders, custom_feat_extractor=extractor.model, **options)
    reference = Reference.from_features(extractor(real))
    assert fid(extractor(fake), reference) == pytest.approx(want, rel=1e-5)
    features = [cleanfid.get_folder_features(folder, extractor.model, **options) for folder in folders]
    np.random.seed(5)
    want = cleanfid.kernel_distance(features[1], features[0])
    assert kid(extractor(fake), reference.features, seed=5) == pytest.approx(want, rel=1e-5)


def test_kid_leaves_numpys_random_state_alone(rng):
    features = rng.normal(size=(50, 4))
    np.random.seed(1)
    kid(features, features + 1)
    after = np.random.random()
    np.random.seed(1)
    assert after == np.random.random()


def test_reference_comes_back_from_disk(rng, tmp_path):
    reference = Reference.from_features(rng.normal(size=(40, 5)))
    reference.save(tmp_path / "reference.npz")
    again = Reference.load(tmp_path / "reference.npz")
    assert again.features.shape == (40, 5)
    assert fid(rng.normal(size=(40, 5)), again) > 0
    np.savez(tmp_path / "adm.npz", mu=reference.mu, sigma=reference.sigma)
    assert Reference.load(tmp_path / "adm.npz").features is None


class _Layers(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)[:, :2048]


class _ScriptedInception(torch.nn.Module):
    """Has the interface of the file that clean-fid fetches, not its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = _Layers()

    def forward(self, x: torch.Tensor, return_features: bool) -> torch.Tensor:
        return self.layers(x)


@pytest.mark.parametrize("mode", ["clean", "legacy_tensorflow"])
def test_inception_comes_out_of_the_extractors_folder(mode, digits, tmp_path):
    """So that it is cached with the stage, and is there where nothing can be fetched."""
    weights = tmp_path / "inception-2015-12-05.pt"
    torch.jit.save(torch.jit.script(_ScriptedInception()), weights)
    before = weights.read_bytes()
    save_extractor(tmp_path, "inception", mode)
    assert weights.read_bytes() == before
    extractor = Extractor(tmp_path)
    assert (extractor.name, extractor.mode) == ("inception", mode)
    assert extractor(digits[:2]).shape == (2, 2048)


def test_precision_falls_with_bad_samples_and_recall_with_missing_modes(rng):
    real = np.concatenate([rng.normal(0, 1, (300, 3)), rng.normal(50, 1, (300, 3))])
    one_mode = rng.normal(0, 1, (300, 3))
    half_bad = np.concatenate([rng.normal(0, 1, (300, 3)), rng.normal(-50, 1, (300, 3))])
    precision, recall = precision_recall(one_mode, real)
    assert precision > 0.9
    assert 0.4 < recall < 0.55
    assert 0.4 < precision_recall(half_bad, real)[0] < 0.55
    assert precision_recall(real, real) == (1.0, 1.0)
    line = np.arange(6.0)[:, None]  # the third neighbour of 5 is 2
    assert precision_recall(np.array([[7.9], [7.9], [8.1], [8.1]]), line)[0] == 0.5


def test_sample_depends_on_the_seed_and_its_number_alone(generator, vae):
    cycle = torch.arange(10)
    z, labels = sample_inputs(0, 0, 3000, cycle)
    part, part_labels = sample_inputs(0, 1500, 2500, cycle)
    assert torch.equal(z[1500:2500], part)
    assert torch.equal(labels[1500:2500], part_labels)
    assert not torch.equal(sample_inputs(1, 0, 10, cycle)[0], z[:10])
    assert len(z.unique(dim=0)) == 3000
    sampler = Sampler(generator, vae, 0)
    whole = sampler(0, 24)
    pieces = np.concatenate([sampler(start, start + 8) for start in (0, 8, 16)])
    pieces = np.stack([pieces, Sampler(generator, vae, 0, vae_batch=5)(0, 24)]).astype(int)
    assert np.abs(whole - pieces).max() <= 1  # matrix products of other shapes round differently


def test_labels_come_in_the_reals_proportions_at_any_number_of_samples(generator, vae):
    assert label_cycle(np.array([500] * 10)).tolist() == 500 * list(range(10))
    counts = np.array([1, 6, 0, 30, 63])  # the third class has lost its images to `data.on_error: skip`
    cycle = label_cycle(counts)
    assert np.bincount(cycle).tolist() == counts.tolist()
    for length in (20, 50, 77):
        assert np.abs(np.bincount(cycle[:length], minlength=5) - length * counts / 100).max() <= 1
    sampler = Sampler(generator, vae, 0, class_counts=np.arange(1, 11))
    assert np.bincount(sample_inputs(0, 0, 550, sampler.cycle)[1]).tolist() == [10 * count for count in range(1, 11)]
    with pytest.raises(ParamsError, match=r"^metrics\.labels: .*10 classes.* 3"):
        Sampler(generator, vae, 0, class_counts=np.array([5, 5, 5]))


def test_samples_and_features_that_are_not_finite_are_refused(generator, vae, rng):
    features = rng.normal(size=(100, 3))
    reference = Reference.from_features(features)
    features[4, 1] = np.inf
    with pytest.raises(FloatingPointError, match="finite"):
        fid(features, reference)
    broken = copy.deepcopy(generator)
    broken.blocks[0].attn.proj.weight.data[0, 0] = np.nan
    with pytest.raises(FloatingPointError, match="finite"):
        Sampler(broken, vae, 0)(0, 2)
    with pytest.raises(FloatingPointError, match=r"blocks\.0\.attn\.proj\.weight .*finite"):
        require_finite(broken, "it")
    require_finite(generator, "it")


def test_metrics_go_by_their_names(rng):
    features, labels = rng.normal(size=(100, 3)), np.arange(100) % 4
    reference = Reference.from_features(rng.normal(size=(200, 3)))
    predicted = np.where(np.arange(100) < 70, labels, labels + 1)
    assert compute_metrics(features, labels, reference, predicted)["recognized"] == pytest.approx(0.7)
    metrics = compute_metrics(features, labels, reference, seed=5)
    assert "recognized" not in metrics
    assert metrics["kid"] == kid(features, reference.features, seed=5) != kid(features, reference.features)
    assert (metrics["precision"], metrics["recall"]) == precision_recall(features, reference.features)
    assert metrics["precision"] != metrics["recall"]
    assert "kid" not in compute_metrics(features, labels, Reference(reference.mu, reference.sigma))
    labelled = Reference(reference.mu, reference.sigma, features, labels, held=features)
    metrics = compute_metrics(2 * features, labels, labelled, labels)
    assert metrics["spread"] == pytest.approx(4)
    assert metrics["fid_held"] == fid(2 * features, Reference.from_features(features)) != metrics["fid"]
    of_other_networks = {"fd_encoder", "sfid", "inception_score"}  # see tests/test_measure.py
    assert metrics.keys() == {column.key for column in METRICS} - of_other_networks
    assert "spread" not in compute_metrics(features, None, labelled, labels)


def test_a_flat_discriminator_and_a_rising_fid_have_a_warning():
    steps = np.arange(20, 2001, 20.0)
    gap = np.stack([steps, np.full(100, 0.3)], axis=1)
    assert flat_discriminator(gap) == []
    gap[40:49, 1] = 0.0  # nine of the ten rows of a tenth, which an hour of 0.3 ends
    assert flat_discriminator(gap) == []
    gap[49, 1] = 0.005
    (warning,) = flat_discriminator(gap)
    assert "mean gap 0.001" in warning
    assert "800 to 1000" in warning
    gap[:12, 1], gap[40:50, 1] = 0.0, 0.3
    assert "0 to 200" in flat_discriminator(gap)[0]
    gap[:, 1] = -0.3
    assert "-0.300" in flat_discriminator(gap)[0]
    assert flat_discriminator(np.array([[7.0, 0.5]])) == []  # of a training shorter than a row
    curve = np.array([[500.0, 9.0], [1000, 3.0], [1500, 5.9]])
    assert diverging_fid(curve) == []
    curve[2, 1] = 6.1
    (warning,) = diverging_fid(curve)
    assert "3 at step 1000" in warning
    assert few_for_fid(65, None, 64) == few_for_fid(65, 65, 64) == []
    for samples, reals, images in ((64, 65, "64 samples"), (65, 64, "64 reals")):
        (warning,) = few_for_fid(samples, reals, 64)
        assert images in warning
    reference = Reference(np.zeros(64), np.eye(64), class_counts=np.array([30, 34]))
    assert len(warnings_of({"gap": gap, "fid": curve}, 64, reference, own_reals=True)) == 4
    assert len(warnings_of({}, 64, reference, own_reals=False)) == 1  # a pretrained model's, against ADM's reference


def test_adms_reference_is_read_as_it_is(rng, tmp_path):
    """mu and sigma are the file's own, whatever they are; its images serve KID, precision and recall."""
    mu, sigma = rng.normal(size=5), np.cov(rng.normal(size=(30, 5)), rowvar=False)
    pixels = rng.integers(0, 256, (7, 8, 8, 3), dtype=np.uint8)
    spatial = {"mu_s": mu, "sigma_s": sigma}
    np.savez(tmp_path / "VIRTUAL.npz", pixels, mu=mu, sigma=sigma, **spatial)
    reference, images = read_reference(tmp_path / "VIRTUAL.npz", "inception", 5)
    assert np.array_equal(images, pixels)
    assert np.array_equal(reference.mu, mu)
    assert np.array_equal(reference.sigma, sigma)
    np.savez(tmp_path / "bare.npz", mu=mu, sigma=sigma)
    assert read_reference(tmp_path / "bare.npz", "inception", 5)[1] is None
    np.savez(tmp_path / "wrong.npz", mu=mu)
    with pytest.raises(ValueError, match=r"^metrics\.reference: .*wrong\.npz .* sigma"):
        read_reference(tmp_path / "wrong.npz", "inception", 5)
    with pytest.raises(ValueError, match=r"^metrics\.reference: .*bare\.npz .* 5 features.* 64"):
        read_reference(tmp_path / "bare.npz", "classifier", 64)


def test_a_reference_with_code_in_it_is_not_run(tmp_path):
    class Code:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    np.savez(tmp_path / "adm.npz", mu=np.array([Code()], dtype=object), sigma=np.eye(2))
    with pytest.raises(ValueError, match="allow_pickle"):
        read_reference(tmp_path / "adm.npz", "inception", 2)
    assert not (tmp_path / "ran").exists()


def test_picture_of_samples_has_a_row_a_class_and_a_column_a_seed_of_the_pipeline(generator, vae):
    picture = image_grid(Sampler(generator, vae, seed=5).class_examples(classes=3, each=2), 2)
    assert picture.shape == (3 * 32, 2 * 32, 3)
    pipeline = GATPipeline(generator, vae)
    for label, seed in ((0, 0), (2, 1)):
        tile = picture[label * 32 : label * 32 + 32, 32 * seed : 32 * seed + 32]
        own = np.asarray(pipeline(label, generator=torch.Generator().manual_seed(seed)).images[0])
        assert np.abs(tile.astype(int) - own).max() <= 1

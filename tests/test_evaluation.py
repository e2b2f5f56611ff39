from pathlib import Path

import numpy as np
import pytest
import torch
from cleanfid import fid as cleanfid
from PIL import Image

from gat.extractor import Extractor, save_extractor, train_classifier
from gat.metrics import Reference, fid, kid, precision_recall
from gat.networks import Generator
from gat.pipeline import GATPipeline
from gat.sampling import Sampler, image_grid, sample_features, sample_inputs, save_npz
from gat.vae import decode


@pytest.fixture(scope="module")
def extractor(digits, tmp_path_factory) -> Extractor:
    folder = tmp_path_factory.mktemp("extractor")
    classifier, accuracy = train_classifier(digits, steps=60, batch_size=64, learning_rate=3e-3, seed=0, progress=False)
    assert accuracy > 0.5  # of ten classes
    save_extractor(folder, "classifier", "clean", classifier, accuracy)
    return Extractor(folder)


@pytest.fixture(scope="module")
def generator() -> Generator:
    torch.manual_seed(0)
    return Generator(width=16, depth=4, heads=2, patch=2, latent_size=8, classes=10).eval()


def save_pngs(images: np.ndarray, folder: Path) -> str:
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i:05d}.png")
    return str(folder)


@pytest.mark.parametrize("size", [32, 48])
def test_fid_and_kid_equal_clean_fids_on_the_same_files(size, digits, extractor, rng, tmp_path):
    """At the extractor's own size, where resizing is the identity, and at another."""
    resized = [np.asarray(Image.fromarray(image).resize((size, size))) for image in digits[:]]
    real, fake = np.stack(resized[:150]), np.stack(resized[150:])
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
    reference = Reference.of(extractor(real))
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
    reference = Reference.of(rng.normal(size=(40, 5)), keep=10)
    reference.save(tmp_path / "reference.npz")
    again = Reference.load(tmp_path / "reference.npz")
    assert again.features.shape == (10, 5)
    assert fid(rng.normal(size=(40, 5)), again) > 0
    np.savez(tmp_path / "adm.npz", mu=reference.mu, sigma=reference.sigma)
    assert Reference.load(tmp_path / "adm.npz").features is None


def test_fid_of_shifted_gaussians_is_the_squared_distance(rng):
    features = rng.normal(size=(500, 6))
    assert fid(features + 2.0, Reference.of(features)) == pytest.approx(6 * 4)


def test_precision_falls_with_bad_samples_and_recall_with_missing_modes(rng):
    real = np.concatenate([rng.normal(0, 1, (300, 3)), rng.normal(50, 1, (300, 3))])
    one_mode = rng.normal(0, 1, (300, 3))
    half_bad = np.concatenate([rng.normal(0, 1, (300, 3)), rng.normal(-50, 1, (300, 3))])
    precision, recall = precision_recall(one_mode, real)
    assert precision > 0.9
    assert 0.4 < recall < 0.55
    precision, _ = precision_recall(half_bad, real)
    assert 0.4 < precision < 0.55
    assert precision_recall(real, real) == (1.0, 1.0)


def test_sample_depends_on_the_seed_and_its_number_alone(generator, vae):
    z, labels = sample_inputs(0, 0, 3000, 10)
    part, part_labels = sample_inputs(0, 1500, 2500, 10)
    assert torch.equal(z[1500:2500], part)
    assert torch.equal(labels[1500:2500], part_labels)
    assert not torch.equal(sample_inputs(1, 0, 10, 10)[0], z[:10])
    sampler = Sampler(generator, vae, 0)
    whole = sampler(0, 24)
    pieces = np.concatenate([sampler(start, start + 8) for start in (0, 8, 16)])
    assert np.abs(whole.astype(int) - pieces).max() <= 1  # matrix products of other shapes round differently


def test_features_come_in_the_order_of_the_samples(extractor, digits):
    features = sample_features(lambda start, stop: digits[start:stop], extractor, 130, 50, progress=False)
    np.testing.assert_allclose(features, extractor(digits[:130]), rtol=1e-4, atol=1e-4)


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


def test_truncation_leads_to_the_class_mean_and_guidance_away_from_all(generator):
    z, labels = torch.randn(3, 64), torch.tensor([1, 2, 3])
    generator.class_means.normal_()
    full = generator.style(z, labels, truncation_psi=1.0)
    torch.testing.assert_close(full, generator.class_means[labels])
    plain, away = generator.style(z, labels), generator.style(z, labels, guidance_scale=2.0)
    mean = generator.style(z, labels, guidance_scale=0.0)
    torch.testing.assert_close(away - mean, 2 * (plain - mean))


def test_grid_puts_images_in_rows(rng):
    images = rng.integers(0, 256, (6, 2, 2, 3), dtype=np.uint8)
    grid = image_grid(images, columns=3)
    assert grid.shape == (4, 6, 3)
    assert np.array_equal(grid[2:4, 2:4], images[4])

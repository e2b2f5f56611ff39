import copy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import PartialState
from cleanfid import fid as cleanfid
from conftest import ROOT
from PIL import Image

from gat.config import ParamsError
from gat.evaluation.extractor import Extractor, TrainedClassifier, save_extractor, train_classifier
from gat.evaluation.features import compute_features, compute_reference
from gat.evaluation.fid import Reference, evenly_spaced, fid, fid_of_halves, read_reference
from gat.evaluation.grid import image_grid
from gat.evaluation.metrics import (
    compute_metrics,
    diverging_fid,
    few_for_fid,
    flat_discriminator,
    kid,
    precision_recall,
    within_class_variance,
)
from gat.evaluation.sampling import Sampler, label_cycle, sample_inputs, save_npz
from gat.gan.networks import Generator, require_finite
from gat.release.pipeline import GATPipeline

TINY = {"width": 16, "depth": 4, "heads": 2, "patch": 2, "latent_size": 8, "classes": 10}


@pytest.fixture(scope="module")
def extractor(digits, tmp_path_factory) -> Extractor:
    folder = tmp_path_factory.mktemp("extractor")
    trained = train_classifier(digits, steps=60, batch_size=64, learning_rate=3e-3, seed=0, progress=False)
    assert trained.accuracy > 0.5  # of ten classes
    save_extractor(folder, "classifier", "clean", trained)
    return Extractor(folder)


@pytest.fixture(scope="module")
def generator() -> Generator:
    torch.manual_seed(0)
    return Generator(**TINY).eval()


def test_features_have_mean_0_and_variance_1_and_the_logits_stay(digits, extractor):
    """FID and KID are in the features' unit; a FID in the classifier's own is scale² times as large."""
    trained = train_classifier(digits, steps=60, batch_size=64, learning_rate=3e-3, seed=0, progress=False)
    features = extractor(digits[:])
    assert features.var(0).mean() == pytest.approx(1, abs=0.05)
    assert np.abs(features.mean(0)).max() < 0.3
    classifier, scale = trained.classifier, float(trained.classifier.scale)
    classifier.standardize(torch.tensor([[-(0.5**0.5)], [0.5**0.5]]).expand(2, 64))  # as it came out of training
    raw = classifier(torch.from_numpy(digits[:]).permute(0, 3, 1, 2).float()).numpy()
    np.testing.assert_allclose(raw - raw.mean(0), scale * (features - features.mean(0)), rtol=1e-3, atol=1e-3)
    assert np.array_equal(classifier.logits(torch.from_numpy(raw)).argmax(1), extractor.classify(features))
    assert (extractor.classify(features) == digits.labels).mean() > 0.5
    halves = features[::2], features[1::2]
    small, large = (fid(unit * halves[0], Reference.from_features(unit * halves[1])) for unit in (1.0, scale))
    assert large == pytest.approx(scale**2 * small, rel=1e-3)


def test_spread_within_classes_is_the_closed_form_and_tells_collapse(rng):
    labels = np.arange(3000) % 3
    features = 50.0 * labels[:, None] + rng.normal(0, [1.0, 2.0], (3000, 2))
    assert within_class_variance(features, labels) == pytest.approx(5, rel=0.1)
    assert within_class_variance(50.0 * labels[:, None] + np.zeros((1, 2)), labels) == 0


def test_one_half_of_the_same_images_is_near_the_other(rng):
    features = rng.normal(size=(4000, 8))
    assert fid_of_halves(features) == pytest.approx(0, abs=0.05)
    assert fid(features + 1, Reference.from_features(features)) == pytest.approx(8, rel=1e-6)


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


def test_reference_of_images_is_that_of_all_their_features_with_some_of_them_kept(extractor, digits):
    """The kept ones are spread over all images, which may lie in the order of their classes."""
    features = extractor(digits[:130])
    want = Reference.from_features(features)
    got = compute_reference(lambda start, stop: digits[start:stop], extractor, 130, 50, keep=40, progress=False)
    np.testing.assert_allclose(got.mu, want.mu, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(got.sigma, want.sigma, rtol=1e-4, atol=1e-4)
    kept = evenly_spaced(130, 40)
    assert (kept[0], kept[-1], len(kept)) == (0, 129, 40)
    assert set(np.diff(kept)) == {3, 4}
    np.testing.assert_allclose(got.features, features[kept], rtol=1e-4, atol=1e-4)
    assert np.array_equal(evenly_spaced(5, 9), np.arange(5))


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


def test_fid_of_shifted_gaussians_is_the_squared_distance(rng):
    features = rng.normal(size=(500, 6))
    assert fid(features + 2.0, Reference.from_features(features)) == pytest.approx(6 * 4)


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
    cycle = torch.arange(10)
    z, labels = sample_inputs(0, 0, 3000, cycle)
    part, part_labels = sample_inputs(0, 1500, 2500, cycle)
    assert torch.equal(z[1500:2500], part)
    assert torch.equal(labels[1500:2500], part_labels)
    assert not torch.equal(sample_inputs(1, 0, 10, cycle)[0], z[:10])
    sampler = Sampler(generator, vae, 0)
    assert sampler.images_per_second == 0  # of a process that had nothing to do
    whole = sampler(0, 24)
    assert sampler.images_per_second > 0
    pieces = np.concatenate([sampler(start, start + 8) for start in (0, 8, 16)])
    assert np.abs(whole.astype(int) - pieces).max() <= 1  # matrix products of other shapes round differently


def test_labels_come_in_the_reals_proportions_at_any_number_of_samples(generator, vae):
    assert label_cycle(np.array([500] * 10)).tolist() == 500 * list(range(10))
    counts = np.array([1, 6, 0, 30, 63])  # the third class has lost its images to `data.on_error: skip`
    cycle = label_cycle(counts)
    assert np.bincount(cycle).tolist() == counts.tolist()
    for length in (20, 50, 77):
        assert np.abs(np.bincount(cycle[:length], minlength=5) - length * counts / 100).max() <= 1
    sampler = Sampler(generator, vae, 0, class_counts=np.arange(1, 11))
    assert np.bincount(sample_inputs(0, 0, 550, sampler.cycle)[1]).tolist() == [10 * count for count in range(1, 11)]
    with pytest.raises(ParamsError, match=r"metrics\.labels: the generator has 10 classes, the images 3"):
        Sampler(generator, vae, 0, class_counts=np.array([5, 5, 5]))


def test_samples_and_features_that_are_not_finite_are_refused(generator, vae, rng):
    features = rng.normal(size=(100, 3))
    reference = Reference.from_features(features)
    features[4, 1] = np.inf
    with pytest.raises(FloatingPointError, match="features of the samples are not finite"):
        fid(features, reference)
    broken = copy.deepcopy(generator)
    broken.blocks[0].attn.proj.weight.data[0, 0] = np.nan
    with pytest.raises(FloatingPointError, match="samples are not finite"):
        Sampler(broken, vae, 0)(0, 2)
    with pytest.raises(FloatingPointError, match=r"the weights blocks\.0\.attn\.proj\.weight of it are not finite"):
        require_finite(broken, "it")
    require_finite(generator, "it")


def test_recognized_is_the_share_of_samples_taken_for_their_class(rng):
    features, labels = rng.normal(size=(100, 3)), np.arange(100) % 4
    reference = Reference.from_features(rng.normal(size=(200, 3)))
    predicted = np.where(np.arange(100) < 70, labels, labels + 1)
    assert compute_metrics(features, labels, reference, predicted)["recognized"] == pytest.approx(0.7)
    assert "recognized" not in compute_metrics(features, labels, reference)
    assert "kid" not in compute_metrics(features, labels, Reference(reference.mu, reference.sigma))
    labelled = Reference(reference.mu, reference.sigma, features, labels)
    assert compute_metrics(2 * features, labels, labelled)["spread"] == pytest.approx(4)


def test_a_flat_discriminator_and_a_rising_fid_have_a_warning():
    steps = np.arange(20, 2001, 20.0)
    gap = np.stack([steps, np.full(100, 0.3)], axis=1)
    assert flat_discriminator(gap) == []
    gap[40:49, 1] = 0.0  # nine of the ten rows of a tenth, which an hour of 0.3 ends
    assert flat_discriminator(gap) == []
    gap[49, 1] = 0.005
    assert flat_discriminator(gap) == ["discriminator flat: mean gap 0.001 over steps 800 to 1000"]
    gap[:12, 1], gap[40:50, 1] = 0.0, 0.3
    assert flat_discriminator(gap) == ["discriminator flat: mean gap 0.000 over steps 0 to 200"]
    gap[:, 1] = -0.3
    assert "mean gap -0.300" in flat_discriminator(gap)[0]
    assert flat_discriminator(np.array([[7.0, 0.5]])) == []  # of a training shorter than a row
    curve = np.array([[500.0, 9.0], [1000, 3.0], [1500, 5.9]])
    assert diverging_fid(curve) == []
    curve[2, 1] = 6.1
    assert diverging_fid(curve) == ["FID diverging: 3 at step 1000, 6.1 at the end"]


def test_a_fid_of_fewer_images_than_features_has_a_warning():
    assert few_for_fid(65, None, 64) == few_for_fid(65, 65, 64) == []
    assert few_for_fid(64, 65, 64) == ["FID of 64 samples, not more than the 64 features"]
    assert few_for_fid(65, 64, 64) == ["FID of 64 reals, not more than the 64 features"]


def test_features_come_in_the_order_of_the_samples(extractor, digits):
    features = compute_features(lambda start, stop: digits[start:stop], extractor, 130, 50, progress=False)
    np.testing.assert_allclose(features, extractor(digits[:130]), rtol=1e-4, atol=1e-4)


def test_truncation_leads_to_the_class_mean_and_guidance_away_from_all(generator):
    z, labels = torch.randn(3, 64), torch.tensor([1, 2, 3])
    generator.w_avg.normal_()
    full = generator.mapping(z, labels, truncation_psi=1.0)
    torch.testing.assert_close(full, generator.w_avg[labels])
    plain, away = generator.mapping(z, labels), generator.mapping(z, labels, guidance_scale=2.0)
    mean = generator.mapping(z, labels, guidance_scale=0.0)
    torch.testing.assert_close(away - mean, 2 * (plain - mean))


def test_grid_puts_images_in_rows(rng):
    images = rng.integers(0, 256, (6, 2, 2, 3), dtype=np.uint8)
    grid = image_grid(images, columns=3)
    assert grid.shape == (4, 6, 3)
    assert np.array_equal(grid[2:4, 2:4], images[4])


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
    with pytest.raises(ValueError, match=r"metrics\.reference: .*wrong\.npz has no sigma"):
        read_reference(tmp_path / "wrong.npz", "inception", 5)
    with pytest.raises(ValueError, match=r"bare\.npz is about 5 features, metrics\.extractor classifier has 64"):
        read_reference(tmp_path / "bare.npz", "classifier", 64)


def test_a_reference_with_code_in_it_is_not_run(tmp_path):
    class Code:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    np.savez(tmp_path / "adm.npz", mu=np.array([Code()], dtype=object), sigma=np.eye(2))
    with pytest.raises(ValueError, match="allow_pickle"):
        read_reference(tmp_path / "adm.npz", "inception", 2)
    assert not (tmp_path / "ran").exists()


def test_samples_can_be_saved_as_adm_does(generator, vae, tmp_path):
    sampler = Sampler(generator, vae, 0)
    save_npz(sampler, tmp_path / "out" / "model.npz", 21, 10)
    with np.load(tmp_path / "out/model.npz") as file:
        assert file.files == ["arr_0"]
        samples = file["arr_0"]
    assert samples.shape == (21, 32, 32, 3)
    assert samples.dtype == np.uint8
    assert np.array_equal(samples[10:20], sampler(10, 20))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.npz"]


def test_picture_of_samples_has_a_row_a_class_and_a_column_a_seed_of_the_pipeline(generator, vae):
    picture = image_grid(Sampler(generator, vae, seed=5).class_examples(classes=3, each=2), 2)
    assert picture.shape == (3 * 32, 2 * 32, 3)
    pipeline = GATPipeline(generator, vae)
    for label, seed in ((0, 0), (2, 1)):
        tile = picture[label * 32 : label * 32 + 32, 32 * seed : 32 * seed + 32]
        own = np.asarray(pipeline(label, generator=torch.Generator().manual_seed(seed)).images[0])
        assert np.abs(tile.astype(int) - own).max() <= 1


def test_small_batches_of_the_vae_make_the_same_images(generator, vae):
    whole, parts = Sampler(generator, vae, 0, vae_batch=64), Sampler(generator, vae, 0, vae_batch=5)
    assert np.abs(whole(0, 24).astype(int) - parts(0, 24)).max() <= 1


def test_two_processes_make_the_features_of_one(generator, vae, extractor, digits, tmp_path):
    """In order, and complete, though their shares are not equal."""
    GATPipeline(generator, vae).save_pretrained(tmp_path / "pipeline")
    save_extractor(tmp_path / "extractor", "classifier", "clean", TrainedClassifier(extractor.model, 0.5))
    want = compute_features(Sampler(generator, vae, 0), extractor, 130, 20, progress=False)
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", __file__, tmp_path],
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        check=True,
    )
    np.testing.assert_allclose(np.load(tmp_path / "features.npy"), want, rtol=1e-3, atol=1e-3)
    reference = Reference.load(tmp_path / "reference.npz")
    np.testing.assert_allclose(reference.mu, want.mean(0), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(reference.sigma, np.cov(want, rowvar=False), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(reference.features, want[evenly_spaced(130, 30)], rtol=1e-3, atol=1e-3)
    assert np.array_equal(reference.labels, (np.arange(130) % 7)[evenly_spaced(130, 30)])
    with np.load(tmp_path / "samples.npz") as file:
        assert np.abs(file["arr_0"].astype(int) - Sampler(generator, vae, 0)(0, 130)).max() <= 1


if __name__ == "__main__":  # one of two processes
    assert PartialState(cpu=True).num_processes == 2
    folder = Path(sys.argv[1])
    loaded = GATPipeline.from_pretrained(folder / "pipeline")
    one = Sampler(loaded.generator, loaded.vae, 0)
    got = compute_features(one, Extractor(folder / "extractor"), 130, 20, progress=False)
    labels = np.arange(130) % 7
    statistics = compute_reference(one, Extractor(folder / "extractor"), 130, 20, 30, labels, progress=False)
    save_npz(one, folder / "samples.npz", 130, 20)
    if PartialState().is_main_process:
        np.save(folder / "features.npy", got)
        statistics.save(folder / "reference.npz")

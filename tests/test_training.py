"""Training, and that neither processes, micro-batches nor interruptions change what comes of it, or of the data."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL
from helpers import SIZE, assert_states_equal, make_trainer, on_processes, save_teacher
from PIL import Image
from safetensors.torch import load_file

from gat.config import Compute, Optimization, ParamsError
from gat.data.crop import write_images
from gat.data.encode import write_latents
from gat.data.images import Images
from gat.data.latents import Latents, TrainingBatches
from gat.data.sources import load_source
from gat.data.vae import encode
from gat.evaluation.extractor import Classifier, Extractor, TrainedClassifier, save_extractor
from gat.evaluation.features import compute_features, compute_reference
from gat.evaluation.fid import Reference, evenly_spaced
from gat.evaluation.sampling import Sampler, save_npz
from gat.gan.networks import Discriminator, Generator
from gat.gan.optim import width_aware_learning_rate
from gat.gan.repa import Teacher
from gat.gan.training import Trainer, final_gap, fit, lack_of_shared_memory
from gat.release.pipeline import GATPipeline
from gat.runtime import make_accelerator
from gat.seeds import Purpose, seed_of

COUNT, LABELS = 130, np.arange(130) % 7


def everything(given: Path, out: Path, accelerator: Accelerator) -> None:
    """All that processes share: writing images and latents, features, a training with a teacher. Called on each."""
    write_images(load_source(str(given / "source")), out / "images", 32, shard=5, progress=False)
    vae, images = AutoencoderKL.from_pretrained(given / "pipeline/vae"), Images(given / "images")
    encoder = lambda batch: encode(vae, batch)  # noqa: E731
    write_latents(images, encoder, out / "latents", 0.5, True, 50, shard=50, progress=False)
    pipeline, extractor = GATPipeline.from_pretrained(given / "pipeline"), Extractor(given / "extractor")
    sampler = Sampler(pipeline.generator, pipeline.vae, 0)
    features = compute_features(sampler, extractor, COUNT, 20, progress=False)
    reference = compute_reference(sampler, extractor, COUNT, 20, 30, LABELS, progress=False)
    save_npz(sampler, out / "samples.npz", COUNT, 20)
    if accelerator.is_main_process:
        np.save(out / "features.npy", features)
        reference.save(out / "reference.npz")
    torch.set_default_dtype(torch.float64)
    alone = accelerator.num_processes == 1
    compute = Compute(micro_batch=None if alone else 4, save_minutes=0)
    teacher, latents = Teacher(str(given / "teacher")), Latents(given / "latents")
    trainer, batches = make_trainer(accelerator, latents, teacher=teacher, images=images, compute=compute, steps=12)
    fit(trainer, batches, out / "checkpoints")


@pytest.fixture(scope="module")
def given(digits, latents, pipeline, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("given")
    for i, image in enumerate(digits[:12]):
        (folder / f"source/{i % 2}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"source/{i % 2}/{i}.png")
    pipeline.save_pretrained(folder / "pipeline")
    torch.manual_seed(0)
    save_extractor(folder / "extractor", "classifier", "clean", TrainedClassifier(Classifier(32, 10), 0.5))
    save_teacher(folder / "teacher")
    (folder / "images").symlink_to(digits.folder)
    (folder / "latents").symlink_to(latents.folder)
    return folder


@pytest.fixture(scope="module")
def one_and_two(given, accelerator, tmp_path_factory) -> tuple[Path, Path]:
    """What one process makes, all at once, and what two make of micro-batches."""
    one, two = (tmp_path_factory.mktemp(name) for name in ("one", "two"))
    try:
        everything(given, one, accelerator)
    finally:
        torch.set_default_dtype(torch.float32)
    on_processes(2, __file__, given, two)
    return one, two


def test_any_number_of_processes_writes_the_same_images_and_latents(one_and_two):
    one, two = ({p.name: p.read_bytes() for p in (place / "images").iterdir()} for place in one_and_two)
    assert one == two
    assert len(one) == 4  # three files of images and the list
    one, two = (Latents(place / "latents") for place in one_and_two)
    assert len(list((one_and_two[1] / "latents").glob("moments-*"))) == 6
    assert np.array_equal(one.labels, two.labels)
    for flip in (0, 1):
        got, want = (each.moments(np.arange(300), np.full(300, flip)) for each in (two, one))
        np.testing.assert_allclose(got, want, rtol=2e-3, atol=1e-3)


def test_any_number_of_processes_makes_the_same_samples_and_features(one_and_two, given, pipeline):
    """In order, and complete, though the processes' shares are not equal."""
    samples = Sampler(pipeline.generator, pipeline.vae, 0)(0, COUNT)
    features, kept = Extractor(given / "extractor")(samples), evenly_spaced(COUNT, 30)
    near = {"rtol": 1e-2, "atol": 1e-2}  # pixels that round differently
    for place in one_and_two:
        with np.load(place / "samples.npz") as file:
            assert file.files == ["arr_0"]
            assert file["arr_0"].dtype == np.uint8
            assert np.abs(file["arr_0"] - samples.astype(int)).max() <= 1
        np.testing.assert_allclose(np.load(place / "features.npy"), features, **near)
        reference = Reference.load(place / "reference.npz")
        np.testing.assert_allclose(reference.mu, features.mean(0), **near)
        np.testing.assert_allclose(reference.sigma, np.cov(features, rowvar=False), **near)
        np.testing.assert_allclose(reference.features, features[kept], **near)
        assert np.array_equal(reference.labels, LABELS[kept])
        assert [path.suffix for path in place.glob("samples*")] == [".npz"]
    assert (kept[0], kept[-1], len(kept)) == (0, 129, 30)
    assert {*np.diff(kept)} == {4, 5}
    assert np.array_equal(evenly_spaced(5, 9), np.arange(5))


def last_checkpoint(place: Path) -> dict[str, torch.Tensor]:
    return load_file(place / "checkpoints/step-00000012.safetensors")


def test_two_processes_of_micro_batches_train_as_one_does_and_their_checkpoints_serve_it(
    one_and_two, given, accelerator, latents, digits, tmp_path, float64
):
    one, two = map(last_checkpoint, one_and_two)
    assert_states_equal(two, one, 1e-6)  # the teacher computes in float32
    half = one_and_two[1] / "checkpoints/step-00000011.safetensors"
    (tmp_path / half.name).write_bytes(half.read_bytes())
    teacher = Teacher(str(given / "teacher"))
    resumed, batches = make_trainer(accelerator, latents, teacher=teacher, images=digits, steps=12)
    history = fit(resumed, batches, tmp_path)
    assert [row["step"] for row in history] == [12]
    assert_states_equal(resumed.state(), one, 1e-6)


@pytest.mark.thorough
def test_four_processes_make_what_one_does(one_and_two, given, tmp_path):
    on_processes(4, __file__, given, tmp_path)
    assert_states_equal(last_checkpoint(tmp_path), last_checkpoint(one_and_two[0]), 1e-6)
    names = sorted(path.name for path in (tmp_path / "images").iterdir())
    assert names == sorted(path.name for path in (one_and_two[0] / "images").iterdir())
    for name in names:
        assert (tmp_path / "images" / name).read_bytes() == (one_and_two[0] / "images" / name).read_bytes()
    near = {"rtol": 1e-2, "atol": 1e-2}  # pixels that round differently
    np.testing.assert_allclose(np.load(tmp_path / "features.npy"), np.load(one_and_two[0] / "features.npy"), **near)


@pytest.mark.thorough
def test_two_processes_go_on_from_the_checkpoint_of_one(one_and_two, given, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    half = one_and_two[0] / "checkpoints/step-00000011.safetensors"
    (tmp_path / "checkpoints" / half.name).write_bytes(half.read_bytes())
    on_processes(2, __file__, given, tmp_path)
    assert_states_equal(last_checkpoint(tmp_path), last_checkpoint(one_and_two[0]), 1e-6)


def test_micro_batches_add_up_to_the_whole(accelerator, latents, float64):
    states = []
    for size in (None, 4):
        trainer, batches = make_trainer(accelerator, latents, compute=Compute(micro_batch=size), steps=3)
        fit(trainer, batches)
        states.append(trainer.state())
    assert_states_equal(*states, 1e-10)


@pytest.mark.parametrize("network", ["discriminator", "generator"])
def test_micro_batch_is_halved_until_a_step_fits_the_memory_and_changes_nothing_else(
    accelerator, latents, float64, monkeypatch, capsys, network
):
    """Whichever network's loss it is that runs out of memory, here twice."""
    want, batches = make_trainer(accelerator, latents, steps=3)
    fit(want, batches)
    seen, forward = [], Discriminator.forward

    def limited(self, levels, *args, **kwargs):
        trained = "discriminator" if self.cls_token.requires_grad else "generator"
        seen.append((trained, levels.shape[1]))
        if trained == network and levels.shape[1] > allowed[network]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(self, levels, *args, **kwargs)

    allowed = {"discriminator": 16, "generator": 4}  # images in a call with four samples
    monkeypatch.setattr(Discriminator, "forward", limited)
    got, batches = make_trainer(accelerator, latents, compute=Compute(micro_batch="auto"), steps=3)
    fit(got, batches)
    assert {*seen[-12:]} == {*allowed.items()}
    assert_states_equal(got.state(), want.state(), 1e-10)
    assert re.findall(r"trying (\d+)", capsys.readouterr().out) == ["8", "4"]
    allowed[network] = 0
    got, batches = make_trainer(accelerator, latents, compute=Compute(micro_batch="auto"), steps=3)
    with pytest.raises(ParamsError, match="not even 1 samples"):
        fit(got, batches)


def assert_same_bits(got: Trainer, want: Trainer) -> None:
    for name, tensor in want.state().items():
        assert torch.equal(tensor, got.state()[name]), name


def test_broken_checkpoint_is_reported_and_from_the_one_before_training_goes_on_to_the_same_end(
    accelerator, latents, tmp_path, capsys
):
    """Bit for bit: networks, optimizers and history. What was being written at a kill is no checkpoint."""

    def evaluate(generator: Generator) -> float:
        return generator.blocks[0].attn.qkv.weight.abs().sum().item()

    options = {"compute": Compute(save_minutes=0), "eval_every": 4, "steps": 23}
    whole, batches = make_trainer(accelerator, latents, **options)
    history = fit(whole, batches, tmp_path, evaluate)
    fids = {row["step"]: row["fid"] for row in history if "fid" in row}
    assert [*fids] == [4, 8, 12, 16, 20, 23]
    assert fids[23] == evaluate(whole.ema) != evaluate(whole.generator)
    last = tmp_path / "step-00000023.safetensors"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000022.safetensors", last.name]
    last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
    (tmp_path / ".step-00000012.safetensors.unfinished.safetensors").write_bytes(b"half")
    replayed: list = []
    again, batches = make_trainer(accelerator, latents, **options)
    assert fit(again, batches, tmp_path, evaluate, replayed.append) == replayed == history
    assert_same_bits(again, whole)
    output = capsys.readouterr().out
    assert last.name in output
    assert "step 22" in output


def test_a_training_told_to_stop_saves_and_resumes_to_the_same_end(accelerator, latents, tmp_path):
    whole, batches = make_trainer(accelerator, latents, steps=25)
    history = fit(whole, batches)
    for step in (7, 25):  # even at the end: nothing after it is to begin
        told, batches = make_trainer(accelerator, latents, steps=25)
        with pytest.raises(KeyboardInterrupt, match=f"stopped after step {step}"):
            fit(told, batches, tmp_path, stop=lambda told=told, step=step: told.steps_done == step)
    assert [path.name for path in sorted(tmp_path.iterdir())] == [f"step-000000{n:02}.safetensors" for n in (7, 25)]
    resumed, batches = make_trainer(accelerator, latents, steps=25)
    assert fit(resumed, batches, tmp_path, stop=lambda: False) == history
    assert_same_bits(resumed, whole)


def test_a_training_that_diverges_stops_and_leaves_what_it_saved_before(accelerator, latents, tmp_path):
    class Poisoned(TrainingBatches):
        def __getitem__(self, step):
            batch = super().__getitem__(step)
            return batch._replace(moments=batch.moments * float("nan")) if step == 5 else batch

    trainer, _ = make_trainer(accelerator, latents, compute=Compute(save_minutes=0), steps=8)
    with pytest.raises(FloatingPointError, match=r"of generator after step 6 are not finite"):
        fit(trainer, Poisoned(latents, 16, 0), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-{n:08d}.safetensors" for n in (4, 5)]
    trainer, _ = make_trainer(accelerator, latents, steps=8)
    with pytest.raises(FloatingPointError, match=r"diverged between steps 0 and 8: loss_d nan, "):
        fit(trainer, Poisoned(latents, 16, 0))


def test_weights_that_are_not_finite_are_not_saved(accelerator, latents, tmp_path):
    """The losses of the last step may be finite when the weights after it are not."""
    trainer, batches = make_trainer(accelerator, latents, steps=1)
    trainer.ema.blocks[0].attn.proj.weight.fill_(float("inf"))
    with pytest.raises(FloatingPointError, match=r"blocks\.0\.attn\.proj\.weight of ema after step 1 are not finite"):
        fit(trainer, batches, tmp_path)
    assert not list(tmp_path.iterdir())


def test_leftovers_of_accelerates_environment_change_nothing(accelerator, latents, monkeypatch):
    """What `accelerate launch --gradient_accumulation_steps 4` leaves; the steps are the trainer's own."""
    want, batches = make_trainer(accelerator, latents, steps=2)
    fit(want, batches)
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    got, batches = make_trainer(make_accelerator(Compute(threads=1)), latents, steps=2)
    fit(got, batches)
    assert_same_bits(got, want)


def test_a_cpu_does_not_compute_in_tf32(monkeypatch):
    """As newer ones would where this is set for GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    torch.set_float32_matmul_precision("highest")
    make_accelerator(Compute(threads=1))
    assert torch.get_float32_matmul_precision() == "highest"


def test_networks_learn_to_fool_and_to_tell(accelerator, latents):
    """The discriminator finds a gap, and the generator's latents take on the data's scale."""
    trainer, batches = make_trainer(accelerator, latents, style_gain=1.0, steps=150, learning_rate=0.0283)
    history = fit(trainer, batches)
    assert max(row["gap"] for row in history) > 0.3
    moments = torch.from_numpy(latents.moments(np.arange(300), np.zeros(300, int))).float() * latents.scaling_factor
    real = moments[:, :4].mean((0, 2, 3))
    with torch.no_grad():
        fake = trainer.ema(torch.randn(200, 64), torch.arange(200) % 10).mean((0, 2, 3))
    assert (fake - real).norm() < 0.5 * real.norm()


def test_averages_are_the_closed_forms(accelerator, latents):
    """Of weights with `ema_decay`, and of each class's styles with 0.995, from the first batch on."""
    trainer, batches = make_trainer(accelerator, latents, ema_decay=0.5)
    generator, labels = trainer.generator, batches[0].labels
    weight = generator.latent_embedder[0].weight
    seen = [weight.detach().clone()]
    with torch.no_grad():
        w = generator.mapping(trainer.sample_random_numbers(0).z, labels)
    for step in range(2):
        trainer.step(batches[step])
        seen.append(weight.detach().clone())
        if step == 0:
            for label in labels.unique():
                torch.testing.assert_close(generator.w_avg[label], w[labels == label].mean(0) * 0.005)
            assert not generator.w_avg[[label not in labels for label in range(10)]].any()
            assert torch.equal(trainer.ema.w_avg, generator.w_avg)
    torch.testing.assert_close(trainer.ema.latent_embedder[0].weight, seen[0] / 4 + seen[1] / 4 + seen[2] / 2)


def test_random_numbers_of_a_step_are_its_own_and_the_same_at_any_time(accelerator, latents):
    trainer, _ = make_trainer(accelerator, latents)
    first, second, again = (trainer.sample_random_numbers(step) for step in (0, 1, 0))
    assert torch.equal(first.z, again.z)
    assert not torch.equal(first.z, second.z)
    noises = [p.noise for p in (*first.perturb_d, *first.perturb_g)]
    assert not any(torch.equal(a, b) for i, a in enumerate(noises) for b in noises[:i])


def test_seeds_stay_what_they_were():
    """All numbers of the study hang on them."""
    assert seed_of(1, Purpose.STEP, 3) == 6498626229777268288
    assert (Purpose.ORDER, Purpose.MIRROR, Purpose.STEP, Purpose.SAMPLES, Purpose.WEIGHTS) == (0, 1, 2, 3, 4)


def test_learning_rate_is_the_papers_at_its_own_size_and_follows_width_and_batch():
    assert width_aware_learning_rate(Optimization(), 768) == pytest.approx(2e-4)
    assert width_aware_learning_rate(Optimization(), 384) == pytest.approx(4e-4)
    assert width_aware_learning_rate(Optimization(batch_size=128), 1152) == pytest.approx(2e-4 * 768 / 1152 / 2)
    assert width_aware_learning_rate(Optimization(scale_lr_by_width=False), 384) == pytest.approx(2e-4)


def test_gap_of_a_training_is_that_of_its_last_tenth():
    history = [{"step": step, "gap": float(step)} for step in range(10, 101, 5)] + [{"step": 100, "fid": 3.0}]
    assert final_gap(history, 100) == pytest.approx(97.5)


def test_batch_that_does_not_divide_and_networks_of_other_levels_are_refused(accelerator, latents):
    with pytest.raises(ValueError, match=r"train\.batch_size: 16 .*compute\.micro_batch"):
        make_trainer(accelerator, latents, compute=Compute(micro_batch=5))
    networks = [network(**SIZE, levels=2) for network in (Generator, Discriminator)]
    with pytest.raises(ValueError, match="levels"):
        Trainer(accelerator, *networks, 1.0)


if __name__ == "__main__":  # one of two processes
    torch.set_num_threads(1)
    distributed = Accelerator(cpu=True)
    assert distributed.num_processes > 1
    everything(Path(sys.argv[1]), Path(sys.argv[2]), distributed)


def test_data_loading_processes_need_shared_memory(accelerator, latents, tmp_path, monkeypatch, capsys):
    """With too little of it, as in Docker by default, the training loads its data itself, and says so."""
    compute = Compute(workers=2)
    trainer, batches = make_trainer(accelerator, latents, compute=compute, steps=2)
    batch = batches[0]
    size = sum(tensor.nbytes for tensor in batch if tensor is not None)
    for free, enough in ((5 * size, True), (5 * size - 1, False)):
        monkeypatch.setattr("shutil.disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        assert (lack_of_shared_memory(batch, 2, str(tmp_path)) is None) == enough
    assert lack_of_shared_memory(batch, 2, str(tmp_path / "nowhere")) is None
    fit(trainer, batches)
    if Path("/dev/shm").is_dir():
        assert "compute.workers: 2 processes need" in capsys.readouterr().out

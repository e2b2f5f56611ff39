import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file, save_file

from gat.augment import Strength
from gat.latents import TrainingBatches
from gat.losses import Objective
from gat.networks import Discriminator, Generator
from gat.noise import level_times
from gat.training import Plan, Recipe, Trainer, clip_and_step, final_gap, fit, learning_rate

SIZE = {"width": 16, "depth": 4, "heads": 2, "patch": 2, "latent_size": 8, "classes": 10}
RECIPE = Recipe(
    objective=Objective(tuple(level_times(4)), Strength(), 0.1),
    batch_size=16,
    learning_rate_g=2e-3,
    learning_rate_d=2e-3,
    ema=0.9,
)


def make_trainer(accelerator, latents, recipe=RECIPE, style_gain=0.1) -> tuple[Trainer, TrainingBatches]:
    torch.manual_seed(0)
    generator, discriminator = Generator(**SIZE, style_gain=style_gain), Discriminator(**SIZE, class_map_dim=32)
    trainer = Trainer(accelerator, generator, discriminator, recipe, latents.scaling_factor)
    rank, processes = accelerator.process_index, accelerator.num_processes
    return trainer, TrainingBatches(latents, recipe.batch_size, 0, rank, processes)


def train(accelerator, latents, steps: int, recipe=RECIPE) -> Trainer:
    trainer, batches = make_trainer(accelerator, latents, recipe)
    fit(trainer, batches, Plan(steps, eval_every=100, save_every=100))
    return trainer


def relative_error(got: dict, want: dict) -> float:
    assert got.keys() == want.keys()
    flat_got, flat_want = (torch.cat([state[name].flatten().double() for name in want]) for state in (got, want))
    return ((flat_got - flat_want).norm() / flat_want.norm()).item()


def test_learning_rate_is_the_papers_at_its_own_size_and_follows_width_and_batch():
    assert learning_rate(2e-4, 768, 512) == pytest.approx(2e-4)
    assert learning_rate(2e-4, 384, 512) == pytest.approx(4e-4)
    assert learning_rate(2e-4, 1152, 128) == pytest.approx(2e-4 * 768 / 1152 / 2)
    assert learning_rate(2e-4, 384, 512, scale_by_width=False) == pytest.approx(2e-4)


def test_gap_of_a_training_is_that_of_its_last_tenth():
    history = [{"step": step, "gap": float(step)} for step in range(10, 101, 5)] + [{"step": 100, "fid": 3.0}]
    assert final_gap(history, 100) == pytest.approx(97.5)


def test_update_in_one_pass_is_clipping_and_adam():
    torch.manual_seed(0)
    weights = [torch.randn(3, 5), torch.randn(7)]
    theirs = [torch.nn.Parameter(weight.clone()) for weight in weights]
    squares = [torch.zeros_like(weight) for weight in weights]
    adam = torch.optim.AdamW(theirs, 1e-2, betas=(0.0, 0.99), weight_decay=0.0)
    for step, size in enumerate([0.1, 3.0, 0.01], start=1):  # the second is clipped
        gradients = [size * torch.randn_like(weight) for weight in weights]
        for weight, gradient in zip(theirs, gradients, strict=True):
            weight.grad = gradient.clone()
        want = torch.nn.utils.clip_grad_norm_(theirs, 1.0)
        adam.step()
        got = clip_and_step(weights, gradients, squares, torch.tensor(float(step)), 1e-2, 0.99, 1.0)
        torch.testing.assert_close(got, want)
        torch.testing.assert_close(weights, [weight.detach() for weight in theirs])


def test_resumed_run_equals_uninterrupted_run(accelerator, latents, tmp_path):
    """Bit for bit: all networks, both optimizers, and the history."""
    evaluate = lambda generator: generator.class_means.abs().sum().item()  # noqa: E731
    plan = Plan(9, eval_every=3, save_every=4, log_every=2)
    whole, batches = make_trainer(accelerator, latents)
    whole_history = fit(whole, batches, replace(plan, checkpoints=tmp_path / "whole"), evaluate)
    part, batches = make_trainer(accelerator, latents)
    fit(part, batches, replace(plan, steps=4, checkpoints=tmp_path / "part"), evaluate)
    rest, batches = make_trainer(accelerator, latents)
    told: list = []
    history = fit(rest, batches, replace(plan, checkpoints=tmp_path / "part"), evaluate, told.append)
    for name, tensor in whole.state().items():
        assert torch.equal(tensor, rest.state()[name]), name
    assert [row for row in history if row["step"] > 4] == [row for row in whole_history if row["step"] > 4]
    assert told == history


def test_broken_checkpoint_is_reported_and_the_one_before_it_used(accelerator, latents, tmp_path, capsys):
    plan = Plan(6, eval_every=100, save_every=2, checkpoints=tmp_path)
    whole, batches = make_trainer(accelerator, latents)
    fit(whole, batches, plan)
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["step-00000004.safetensors", "step-00000006.safetensors"]
    files[1].write_bytes(files[1].read_bytes()[: files[1].stat().st_size // 2])
    again, batches = make_trainer(accelerator, latents)
    fit(again, batches, plan)
    output = capsys.readouterr().out
    assert "step-00000006.safetensors is broken" in output
    assert "resuming at step 4" in output
    assert torch.equal(again.state()["ema.mapping.0.weight"], whole.state()["ema.mapping.0.weight"])


def test_unfinished_file_is_no_checkpoint(accelerator, latents, tmp_path):
    (tmp_path / "step-00000004.unfinished").write_bytes(b"half")
    trainer, batches = make_trainer(accelerator, latents)
    assert len(fit(trainer, batches, Plan(1, 100, 100, checkpoints=tmp_path))) == 1


def test_micro_batches_add_up_to_the_whole(accelerator, latents, float64):
    whole, parts = (train(accelerator, latents, 5, replace(RECIPE, micro_batch=size)) for size in (None, 4))
    assert relative_error(parts.plain_generator.state_dict(), whole.plain_generator.state_dict()) < 1e-10
    assert relative_error(parts.plain_discriminator.state_dict(), whole.plain_discriminator.state_dict()) < 1e-10


def test_two_processes_equal_one_and_their_checkpoints_serve_it(accelerator, latents, tmp_path, capfd, float64):
    one = train(accelerator, latents, 20)
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", __file__, latents.folder, tmp_path],
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        check=True,
    )
    two = load_file(tmp_path / "two.safetensors")
    for part in ("generator.", "discriminator.", "ema."):
        got, want = ({k: t for k, t in s.items() if k.startswith(part)} for s in (two, one.state()))
        assert relative_error(got, want) < 1e-10, part

    # What two processes saved half-way, one process finishes.
    (tmp_path / "step-00000020.safetensors").unlink()
    resumed, batches = make_trainer(accelerator, latents)
    fit(resumed, batches, Plan(20, eval_every=100, save_every=100, checkpoints=tmp_path))
    assert "resuming at step 10" in capfd.readouterr().out
    assert relative_error(resumed.plain_generator.state_dict(), one.plain_generator.state_dict()) < 1e-10


def test_batch_that_does_not_divide_is_refused(accelerator, latents):
    with pytest.raises(ValueError, match=r"train\.batch_size: 16 does not divide"):
        make_trainer(accelerator, latents, replace(RECIPE, micro_batch=5))


def test_ema_is_the_closed_form(accelerator, latents):
    trainer, batches = make_trainer(accelerator, latents, replace(RECIPE, ema=0.5))
    start = trainer.plain_generator.mapping[0].weight.detach().clone()
    trainer.step(batches[0])
    first = trainer.plain_generator.mapping[0].weight.detach().clone()
    trainer.step(batches[1])
    second = trainer.plain_generator.mapping[0].weight.detach()
    torch.testing.assert_close(trainer.ema.mapping[0].weight, start / 4 + first / 4 + second / 2)


def test_class_means_start_with_the_first_batch(accelerator, latents):
    trainer, batches = make_trainer(accelerator, latents)
    generator = trainer.plain_generator
    batch = batches[0]
    labels = batch.labels
    with torch.no_grad():
        styles = generator.style(trainer.draw(0).z, labels)
    trainer.step(batch)
    for label in labels.unique():
        torch.testing.assert_close(generator.class_means[label], styles[labels == label].mean(0) * 0.005)
    assert torch.equal(trainer.ema.class_means, generator.class_means)


def test_draws_of_a_step_are_its_own_and_the_same_at_any_time(accelerator, latents):
    trainer, _ = make_trainer(accelerator, latents)
    first, second, again = trainer.draw(0), trainer.draw(1), trainer.draw(0)
    assert torch.equal(first.z, again.z)
    assert not torch.equal(first.z, second.z)
    assert not torch.equal(first.looks_d[0].noise, first.looks_d[1].noise)
    assert not torch.equal(first.looks_d[0].noise, first.looks_g[0].noise)


def test_networks_learn_to_fool_and_to_tell(accelerator, latents):
    """The discriminator finds a gap, and the generator's latents take on the data's scale."""
    recipe = replace(RECIPE, learning_rate_g=5e-3, learning_rate_d=5e-3)
    trainer, batches = make_trainer(accelerator, latents, recipe, style_gain=1.0)  # which learns faster
    history = fit(trainer, batches, Plan(150, eval_every=1000, save_every=1000, log_every=10))
    assert max(row["gap"] for row in history) > 0.3
    moments = torch.from_numpy(latents.moments(np.arange(300), np.zeros(300, int))).float() * latents.scaling_factor
    real = moments[:, :4].mean((0, 2, 3))
    with torch.no_grad():
        fake = trainer.ema(torch.randn(200, 64), torch.arange(200) % 10).mean((0, 2, 3))
    assert (fake - real).norm() < 0.5 * real.norm()


if __name__ == "__main__":  # one of two processes
    from accelerate import Accelerator

    from gat.latents import Latents

    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    distributed = Accelerator(cpu=True)
    assert distributed.num_processes == 2
    trainer, batches = make_trainer(distributed, Latents(sys.argv[1]))
    fit(trainer, batches, Plan(20, eval_every=100, save_every=10, checkpoints=Path(sys.argv[2])))
    if distributed.is_main_process:
        tensors = {name: tensor.contiguous() for name, tensor in trainer.state().items()}
        save_file(tensors, Path(sys.argv[2]) / "two.safetensors")

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import SIZE, assert_states_equal, make_trainer, on_two_processes, relative_error
from safetensors.torch import load_file, save_file

from gat.config import Compute, Optimization
from gat.data.latents import TrainingBatches
from gat.gan.networks import Discriminator, Generator
from gat.gan.optim import FusedStep, clip_and_step, make_optimizer, width_aware_learning_rate
from gat.gan.training import Trainer, final_gap, fit
from gat.runtime import make_accelerator
from gat.seeds import seed_of


def train(accelerator, latents, steps: int, compute: Compute = Compute()) -> Trainer:  # noqa: B008
    trainer, batches = make_trainer(accelerator, latents, compute=compute, steps=steps)
    fit(trainer, batches)
    return trainer


def test_learning_rate_is_the_papers_at_its_own_size_and_follows_width_and_batch():
    assert width_aware_learning_rate(Optimization(), 768) == pytest.approx(2e-4)
    assert width_aware_learning_rate(Optimization(), 384) == pytest.approx(4e-4)
    assert width_aware_learning_rate(Optimization(batch_size=128), 1152) == pytest.approx(2e-4 * 768 / 1152 / 2)
    assert width_aware_learning_rate(Optimization(scale_lr_by_width=False), 384) == pytest.approx(2e-4)


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


def test_fused_step_passes_over_weights_without_gradient(monkeypatch):
    """As AdamW does: a weight that a loss does not reach stays, and the others are updated."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    states = []
    for fused in (False, True):
        torch.manual_seed(0)
        network = torch.nn.ModuleList(torch.nn.Linear(3, 3) for _ in range(2))
        optimizer = make_optimizer(network, 1e-2, Optimization())
        step = FusedStep(1.0)
        for i in range(3):
            optimizer.zero_grad()
            network[0](torch.full((2, 3), i + 1.0)).square().sum().backward()
            if fused and optimizer.state:
                step(optimizer)
            else:
                torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                optimizer.step()
        states.append(network.state_dict())
    torch.testing.assert_close(states[0], states[1])


def test_resumed_run_equals_uninterrupted_run(accelerator, latents, tmp_path):
    """Bit for bit: all networks, both optimizers, and the history."""
    evaluate = lambda generator: generator.w_avg.abs().sum().item()  # noqa: E731
    options = {"compute": Compute(save_every=4), "eval_every": 3}
    whole, batches = make_trainer(accelerator, latents, steps=9, **options)
    whole_history = fit(whole, batches, tmp_path / "whole", evaluate)
    part, batches = make_trainer(accelerator, latents, steps=4, **options)
    fit(part, batches, tmp_path / "part", evaluate)
    rest, batches = make_trainer(accelerator, latents, steps=9, **options)
    replayed: list = []
    history = fit(rest, batches, tmp_path / "part", evaluate, replayed.append)
    for name, tensor in whole.state().items():
        assert torch.equal(tensor, rest.state()[name]), name
    assert [row for row in history if row["step"] > 4] == [row for row in whole_history if row["step"] > 4]
    assert replayed == history


def test_broken_checkpoint_is_reported_and_the_one_before_it_used(accelerator, latents, tmp_path, capsys):
    options = {"compute": Compute(save_every=2), "steps": 6}
    whole, batches = make_trainer(accelerator, latents, **options)
    fit(whole, batches, tmp_path)
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["step-00000004.safetensors", "step-00000006.safetensors"]
    files[1].write_bytes(files[1].read_bytes()[: files[1].stat().st_size // 2])
    again, batches = make_trainer(accelerator, latents, **options)
    fit(again, batches, tmp_path)
    output = capsys.readouterr().out
    assert "step-00000006.safetensors is broken" in output
    assert "resuming at step 4" in output
    assert torch.equal(again.state()["ema.latent_embedder.0.weight"], whole.state()["ema.latent_embedder.0.weight"])


def test_unfinished_file_is_no_checkpoint(accelerator, latents, tmp_path):
    (tmp_path / ".step-00000004.safetensors.unfinished.safetensors").write_bytes(b"half")
    trainer, batches = make_trainer(accelerator, latents, steps=1)
    assert len(fit(trainer, batches, tmp_path)) == 1


def test_micro_batches_add_up_to_the_whole(accelerator, latents, float64):
    whole, parts = (train(accelerator, latents, 5, Compute(micro_batch=size)) for size in (None, 4))
    assert_states_equal(parts.state(), whole.state(), 1e-10)


def test_two_processes_equal_one_and_their_checkpoints_serve_it(accelerator, latents, tmp_path, capfd, float64):
    one = train(accelerator, latents, 20)
    on_two_processes(__file__, latents.folder, tmp_path)
    assert_states_equal(load_file(tmp_path / "two.safetensors"), one.state(), 1e-10)

    # What two processes saved half-way, one process finishes, and two do.
    (tmp_path / "step-00000020.safetensors").unlink()
    shutil.copytree(tmp_path, tmp_path / "again")
    resumed, batches = make_trainer(accelerator, latents)
    fit(resumed, batches, tmp_path)
    assert "resuming at step 10" in capfd.readouterr().out
    assert relative_error(resumed.generator.state_dict(), one.generator.state_dict()) < 1e-10
    on_two_processes(__file__, latents.folder, tmp_path / "again")
    assert "resuming at step 10" in capfd.readouterr().out
    assert_states_equal(load_file(tmp_path / "again/two.safetensors"), one.state(), 1e-10)

    # And what one process saved, two finish.
    saved, batches = make_trainer(accelerator, latents, compute=Compute(save_every=10))
    fit(saved, batches, tmp_path / "one")
    (tmp_path / "one/step-00000020.safetensors").unlink()
    on_two_processes(__file__, latents.folder, tmp_path / "one")
    assert "resuming at step 10" in capfd.readouterr().out
    assert_states_equal(load_file(tmp_path / "one/two.safetensors"), one.state(), 1e-10)


def test_seeds_stay_what_they_were():
    """All numbers of the study hang on them."""
    assert (seed_of(1, 2, 3), seed_of(0)) == (6498626229777268288, 7896617691693857887)
    assert seed_of(1, 2, 3) == int(np.random.SeedSequence((1, 2, 3)).generate_state(1, np.uint64)[0]) // 2


def test_fid_is_measured_at_its_interval_and_at_the_end(accelerator, latents):
    trainer, batches = make_trainer(accelerator, latents, steps=11, eval_every=4)
    history = fit(trainer, batches, evaluate=lambda ema: float(trainer.steps_done))
    assert [row["step"] for row in history if "fid" in row] == [4, 8, 11]
    assert [row["fid"] for row in history if "fid" in row] == [4, 8, 11]


def test_a_training_told_to_stop_saves_and_resumes_to_the_same_end(accelerator, latents, tmp_path):
    whole, batches = make_trainer(accelerator, latents, steps=50)
    history = fit(whole, batches)
    told, batches = make_trainer(accelerator, latents, steps=50)
    with pytest.raises(KeyboardInterrupt, match="stopped after step 20"):
        fit(told, batches, tmp_path, stop=lambda: told.steps_done > 7)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000020.safetensors"]
    late, batches = make_trainer(accelerator, latents, steps=50)
    with pytest.raises(KeyboardInterrupt, match="stopped after step 50"):  # nothing after it is to begin
        fit(late, batches, tmp_path, stop=lambda: late.steps_done > 47)
    resumed, batches = make_trainer(accelerator, latents, steps=50)
    assert fit(resumed, batches, tmp_path, stop=lambda: False) == history
    for name, tensor in whole.state().items():
        assert torch.equal(tensor, resumed.state()[name]), name


def test_leftovers_of_accelerates_environment_change_nothing(accelerator, latents, monkeypatch):
    """What `accelerate launch --gradient_accumulation_steps 4` leaves; the steps are the trainer's own."""
    want = train(accelerator, latents, 3)
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    got = train(make_accelerator(Compute(threads=1)), latents, 3)
    for name, tensor in want.state().items():
        assert torch.equal(tensor, got.state()[name]), name


def test_batch_that_does_not_divide_is_refused(accelerator, latents):
    with pytest.raises(ValueError, match=r"train\.batch_size: 16 does not divide"):
        make_trainer(accelerator, latents, compute=Compute(micro_batch=5))


def test_ema_is_the_closed_form(accelerator, latents):
    trainer, batches = make_trainer(accelerator, latents, ema_decay=0.5)
    weight = trainer.generator.latent_embedder[0].weight
    start = weight.detach().clone()
    trainer.step(batches[0])
    first = weight.detach().clone()
    trainer.step(batches[1])
    second = weight.detach()
    torch.testing.assert_close(trainer.ema.latent_embedder[0].weight, start / 4 + first / 4 + second / 2)


def test_mean_styles_start_with_the_first_batch(accelerator, latents):
    trainer, batches = make_trainer(accelerator, latents)
    generator, labels = trainer.generator, batches[0].labels
    with torch.no_grad():
        w = generator.mapping(trainer.sample_random_numbers(0).z, labels)
    trainer.step(batches[0])
    for label in labels.unique():
        torch.testing.assert_close(generator.w_avg[label], w[labels == label].mean(0) * 0.005)
    assert torch.equal(trainer.ema.w_avg, generator.w_avg)


def test_random_numbers_of_a_step_are_its_own_and_the_same_at_any_time(accelerator, latents):
    trainer, _ = make_trainer(accelerator, latents)
    first, second, again = (trainer.sample_random_numbers(step) for step in (0, 1, 0))
    assert torch.equal(first.z, again.z)
    assert not torch.equal(first.z, second.z)
    noises = [p.noise for p in (*first.perturb_d, *first.perturb_g)]
    assert not any(torch.equal(a, b) for i, a in enumerate(noises) for b in noises[:i])


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


def test_a_training_that_diverges_stops_and_leaves_what_it_saved_before(accelerator, latents, tmp_path):
    trainer, batches = make_trainer(accelerator, latents, compute=Compute(save_every=5), steps=20)

    def poisoned(self, step):
        batch = TrainingBatches.__getitem__(self, step)
        return batch._replace(moments=batch.moments * float("nan")) if step == 11 else batch

    poison = type("Poisoned", (TrainingBatches,), {"__getitem__": poisoned})
    batches.__class__ = poison
    with pytest.raises(FloatingPointError, match=r"^the training diverged in the 5 steps to 15: loss_d nan, "):
        fit(trainer, batches, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-{n:08d}.safetensors" for n in (5, 10)]


def test_weights_that_are_not_finite_are_not_saved(accelerator, latents, tmp_path):
    """The losses of the last step may be finite when the weights after it are not."""
    trainer, batches = make_trainer(accelerator, latents, compute=Compute(save_every=5), steps=5)
    step = trainer.step

    def last_overflows(batch):
        metrics = step(batch)
        if trainer.steps_done == 5:
            trainer.ema.blocks[0].attn.proj.weight.fill_(float("inf"))
        return metrics

    trainer.step = last_overflows
    with pytest.raises(FloatingPointError, match=r"blocks\.0\.attn\.proj\.weight of ema after step 5 are not finite"):
        fit(trainer, batches, tmp_path)
    assert not list(tmp_path.iterdir())


def test_networks_of_other_levels_than_the_loss_are_refused(accelerator):
    networks = [network(**SIZE, levels=2) for network in (Generator, Discriminator)]
    with pytest.raises(ValueError, match="levels: 2 of a network are not 4 of the loss"):
        Trainer(accelerator, *networks, 1.0)


if __name__ == "__main__":  # one of two processes
    from accelerate import Accelerator

    from gat.data.latents import Latents

    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    distributed = Accelerator(cpu=True)
    assert distributed.num_processes == 2
    trainer, batches = make_trainer(distributed, Latents(sys.argv[1]), compute=Compute(save_every=10))
    assert isinstance(batches, TrainingBatches)
    fit(trainer, batches, Path(sys.argv[2]))
    if distributed.is_main_process:
        tensors = {name: tensor.contiguous() for name, tensor in trainer.state().items()}
        save_file(tensors, Path(sys.argv[2]) / "two.safetensors")

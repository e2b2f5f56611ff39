"""Steps on tensors without data: what a GPU would run, and what it would need."""

import copy
import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from conftest import ROOT
from helpers import LOSS, SIZE, TRAIN, save_teacher
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from gat.config import Compute, Optimization, ParamsError, Recipe, load_params
from gat.data.latents import Batch
from gat.data.pixels import decode
from gat.evaluation.extractor import Classifier
from gat.gan import networks, ops, training
from gat.gan.networks import Discriminator, Generator
from gat.gan.repa import Teacher
from gat.gan.training import Trainer
from gat.study.networks import make_trainer as make_run_trainer
from gat.study.plan import DataSize, Machine, guess_data, plan_page, plan_run
from gat.study.planner import GIB, OUTSIDE, AsOnAGpu, MetaAccelerator, StepPlanner, as_on_a_gpu, find_card, load_cards

META = torch.device("meta")


class Strict(TorchDispatchMode):
    """Raises where a GPU would, or would be slow: at tensors on the CPU and in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.used: dict[str, set[torch.dtype]] = {}  # types of tensors that each operation took

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        self.used.setdefault(str(func), set()).update(part.dtype for part in args if isinstance(part, Tensor))
        tensors = [part for part in (*args, *(kwargs or {}).values(), output) if isinstance(part, Tensor)]
        if any(tensor.device == META for tensor in tensors):
            assert not any(tensor.device.type == "cpu" and tensor.ndim for tensor in tensors), f"{func}: on the CPU"
            assert not any(tensor.dtype == torch.float64 for tensor in tensors), f"{func}: in float64"
        return output


def step_on_a_gpu(
    compute: Compute, strict: Strict, teacher: Teacher | None = None
) -> tuple[Trainer, dict[str, Tensor]]:
    """A training's second step, of networks that were made on the CPU and then moved."""
    torch.manual_seed(0)
    head = {} if teacher is None else {"repa_dim": teacher.width, "projector_dim": 32}
    both = Generator(**SIZE), Discriminator(**SIZE, cmap_dim=32, **head)
    for network in both:
        network.activation_checkpointing = compute.activation_checkpointing
    accelerator: Any = MetaAccelerator(1, "bf16")
    trainer = Trainer(accelerator, *both, 1.0, Optimization(**TRAIN), LOSS, compute, teacher=teacher)
    count = TRAIN["batch_size"]
    images = None if teacher is None else torch.empty(count, 32, 32, 3, dtype=torch.uint8, device=META)
    moments = torch.empty(count, 8, 8, 8, dtype=torch.float16, device=META)
    with strict:
        for _ in range(2):
            metrics = trainer.step(Batch(moments, torch.empty(count, dtype=torch.int64, device=META), images))
    return trainer, metrics


FITS = Compute()
TIGHT = Compute(micro_batch=8, activation_checkpointing=True)


@pytest.fixture
def teacher(tmp_path) -> Teacher:
    """Made on the CPU, and moved."""
    teacher = Teacher(save_teacher(tmp_path / "teacher"))
    network = teacher._network
    network.model.to(META, torch.bfloat16)
    network.mean, network.std = network.mean.to(META), network.std.to(META)
    teacher.device, teacher._dtype = META, torch.bfloat16
    return teacher


@pytest.mark.parametrize("compute", [FITS, TIGHT])
def test_a_whole_step_runs_on_a_gpu_in_the_types_of_its_autocast(teacher, compute):
    """Both losses with penalties and REPA, clipping, both optimizers, averages of weights and of styles.

    What meta tensors do not show: numbers, kernels of CUDA and Triton, exchange between GPUs, copies from the host.
    """
    with as_on_a_gpu(AsOnAGpu()):
        trainer, metrics = step_on_a_gpu(compute, strict := Strict(), teacher)
    assert {name: tensor.device for name, tensor in metrics.items() if tensor.device != META} == {}
    assert metrics.keys() == {"loss_d", "loss_g", "gap", "r1", "r2", "repa", "grad_d", "grad_g"}
    assert {tensor.dtype for name, tensor in trainer.state().items() if "step" not in name} == {torch.float32}
    used = strict.used
    assert used["aten._scaled_dot_product_flash_attention.default"] == {torch.bfloat16}
    assert used["aten.addmm.default"] == {torch.bfloat16}


def cpu_tensor_in_the_loss(loss, *args):
    total, terms = loss(*args)
    return total + (torch.ones(4) * terms["gap"]).sum(), terms


def item_in_the_loop(loss, *args):
    total, terms = loss(*args)
    return total * (1 if terms["gap"].item() > 0 else 2), terms


def float64_leak(loss, *args):
    total, terms = loss(*args)
    return (total.double() * 2).float(), terms


@pytest.mark.parametrize(
    ("fault", "error"),
    [(cpu_tensor_in_the_loss, "cpu"), (item_in_the_loop, "item"), (float64_leak, "float64")],
)
def test_what_breaks_or_slows_a_step_on_a_gpu_is_found(monkeypatch, fault, error):
    monkeypatch.setattr(training, "discriminator_loss", partial(fault, training.discriminator_loss))
    with as_on_a_gpu(AsOnAGpu()), pytest.raises((RuntimeError, AssertionError), match=error):
        step_on_a_gpu(FITS, Strict())


def test_a_table_that_stays_behind_on_the_cpu_is_found(monkeypatch):
    """One that is an attribute of a network, and not a buffer."""
    register = nn.Module.register_buffer
    keep = lambda self, name, *args, **kwargs: (  # noqa: E731
        setattr(self, name, *args) if name == "rope" else register(self, name, *args, **kwargs)
    )
    monkeypatch.setattr(Generator, "register_buffer", keep)
    with as_on_a_gpu(AsOnAGpu()), pytest.raises((RuntimeError, AssertionError), match=r"(?i)cpu"):
        step_on_a_gpu(FITS, Strict())


def test_samples_run_on_a_gpu_up_to_their_copy_to_the_host(vae):
    """The generator with truncation and guidance, the autoencoder, and the classifier. Inception, a script, cannot."""
    vae, generator, classifier = copy.deepcopy(vae).to(META), Generator(**SIZE).to(META), Classifier(32, 10).to(META)
    with AsOnAGpu(), Strict(), torch.no_grad():
        z, labels = torch.empty(4, 64, device=META), torch.empty(4, dtype=torch.int64, device=META)
        latents = generator(z, labels, 0.5, 2.0)
        pixels = decode(vae, latents, 2)
        assert pixels.dtype == torch.uint8
        assert classifier(pixels.permute(0, 3, 1, 2).float()).shape[0] == 4


class AsOnTheCpu(TorchFunctionMode):
    """Has meta tensors use the operations of the CPU; `gat.gan.ops` asks tensors for their device only in these two."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*args)[0]
        return func(*args, **(kwargs or {}))

    @staticmethod
    def rms_norm(x: Tensor, weight: Tensor | None = None) -> Tensor:
        normalized = ops._RMSNorm.apply(x)
        return normalized if weight is None else normalized * weight

    @staticmethod
    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if q.shape[2] > ops.FEW_TOKENS:
            return ops.plain_attention(q, k, v)
        return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1) @ v


def peak_bytes(trace: Path) -> int:
    """The most that PyTorch's allocator on the CPU held, by a profiler's trace."""
    events = [event["args"] for event in json.loads(trace.read_text())["traceEvents"] if event["name"] == "[memory]"]
    held = [event["Total Allocated"] for event in events]
    return max(held) - (held[0] - events[0]["Bytes"])


def assert_planned_as_measured(recipe: Recipe, data: DataSize, batch: int, micro: int, path: Path) -> None:
    """A step of a real training on the CPU has the planned operations, and the planned memory at its peak."""
    settings = recipe.train.model_copy(update={"batch_size": batch})
    recipe = recipe._replace(train=settings, repa=recipe.repa.model_copy(update={"teacher": None}))
    with pytest.MonkeyPatch.context() as patch:
        for module, name in ((ops, "rms_norm"), (networks, "rms_norm"), (networks, "attention")):
            patch.setattr(module, name, getattr(AsOnTheCpu, name))
        planner = StepPlanner(recipe, data, 256, load_cards()["H100"], "fp32", mode=AsOnTheCpu())
        planned = planner.cost(micro)
    trainer = make_run_trainer(recipe, 0, data, Accelerator(cpu=True), compute=Compute(micro_batch=micro))
    moments = torch.zeros(batch, 2 * data.channels, data.size, data.size, dtype=torch.float16)
    some = Batch(moments, torch.zeros(batch, dtype=torch.int64))
    trainer.step(some)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        trainer.step(some)
    profiler.export_chrome_trace(str(path / "trace.json"))
    with FlopCounterMode(display=False) as counter:
        trainer.step(some)
    assert planned.tflop * 1e12 == pytest.approx(counter.get_total_flops(), rel=0.01)
    assert planned.gib * GIB == pytest.approx(planner.state_bytes + peak_bytes(path / "trace.json"), rel=0.1)


@pytest.mark.parametrize(("batch", "micro"), [(16, 16), (8, 4)])
def test_planned_memory_and_operations_are_those_of_a_real_step(tmp_path, batch, micro):
    params = load_params(ROOT / "params.yaml")
    assert_planned_as_measured(params.recipe("S-2"), DataSize(1000, list("0123456789"), 8, 4), batch, micro, tmp_path)


@pytest.mark.thorough
@pytest.mark.parametrize("batch", [4, 16])
def test_planned_memory_and_operations_of_the_papers_smallest_model_are_those_of_a_real_step(tmp_path, batch):
    params = load_params(ROOT / "profiles/imagenet256.yaml")
    data = guess_data(params, 1000, 1000)
    assert_planned_as_measured(params.recipe("S-2"), data, batch, batch, tmp_path)


def test_fastest_setting_that_fits_is_planned():
    """Less memory: smaller micro-batches, then checkpointing, then nothing; less memory never plans a faster step."""
    params = load_params(ROOT / "params.yaml")
    params = params.model_copy(update={"train": params.train.model_copy(update={"batch_size": 4})})
    data = DataSize(1000, list("0123456789"), 8, 4)
    card = load_cards()["H100"]
    by_memory = [card._replace(memory=OUTSIDE + gib) for gib in (78.0, 0.00306, 0.001)]
    plenty, little, least = (plan_run(params, "S-2", data, Machine("", each, 1)) for each in by_memory)
    assert plenty.best is not None
    assert (plenty.best.micro_batch, plenty.best.checkpointing) == (4, False)
    assert little.best is not None
    assert (little.best.micro_batch, little.best.checkpointing) == (2, False)
    assert little.gib is not None
    assert little.gib <= OUTSIDE + 0.00306
    assert little.hours(2) > plenty.hours(2) > 0
    assert least.best is None
    assert least.least_gib > OUTSIDE + 0.001
    page = plan_page(params, data, [plenty, little, least], Machine("", card, 1))
    assert [line.split(" | ")[2] for line in page.splitlines() if line.startswith("| S-2 × 5 |")] == [
        "4",
        str(little.best.micro_batch),
        "does not fit: at least 2 GiB",
    ]
    with pytest.raises(ParamsError, match=r"train\.batch_size"):
        plan_run(params, "S-2", data, Machine("", card, 7))


@pytest.mark.parametrize(
    ("name", "card"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100"),
        ("NVIDIA GeForce RTX 4090", "RTX4090"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA A100-SXM4-40GB", "A100-40"),
        ("A100-40", "A100-40"),
        ("NVIDIA RTX A1000", None),
        ("NVIDIA GH200 480GB", None),
        ("T4", None),
    ],
)
def test_gpu_is_found_by_the_name_that_pytorch_has_for_it(name, card):
    assert find_card(name) == (None if card is None else load_cards()[card])


def test_teacher_in_a_folder_is_planned_as_it_is(tmp_path):
    recipe = load_params(ROOT / "params.yaml").recipe("S-2")
    folder = str(save_teacher(tmp_path / "teacher"))  # tiny, of 256 patches
    plans = []
    for teacher in (folder, "facebook/dinov2-base"):
        settings = recipe.repa.model_copy(update={"teacher": teacher})
        train = recipe.train.model_copy(update={"batch_size": 2})
        data = DataSize(1000, list("0123456789"), 32, 4)
        planner = StepPlanner(recipe._replace(repa=settings, train=train), data, 256, load_cards()["H100"], "bf16")
        plans.append(planner.cost(2))
    assert plans[1].tflop - plans[0].tflop > 2 * 2 * 21e-3  # two images in 22 GMACs


def test_plan_needs_no_data(tmp_path):
    (tmp_path / "params.yaml").write_text((ROOT / "profiles/cifar10.yaml").read_text())
    command = [sys.executable, "-m", "stages", "plan", "S-2", "--gpu", "RTX4090", "--gpus", "2", "--json"]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["runs"][0]["best"]["micro_batch"] * 2 <= load_params(tmp_path / "params.yaml").train.batch_size
    assert found["gpu_hours"] == pytest.approx(found["runs"][0]["gpu_hours"])
    assert {*found["disk_bytes"]} == {"images", "latents", "checkpoints", "results"}

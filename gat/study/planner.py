"""Memory and time of a training step on a GPU, found without one.

A step of `gat.gan.training.Trainer` runs on meta tensors, which have types and shapes, but no data. `AsOnAGpu` calls
the operations that a GPU would use in their place, in the types of CUDA's autocast; `Tally` adds up the memory that is
alive, the operations of matrix products, and the bytes that all operations read and write.
"""

import math
import re
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F
import yaml
from accelerate.utils import convert_outputs_to_fp32
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakIdKeyDictionary

from gat.config import Compute, Optimization, Recipe
from gat.data.latents import Batch
from gat.data.vision import features_of, untrained_vision_model
from gat.gan.optim import make_optimizer
from gat.gan.repa import Teacher
from gat.study.networks import make_trainer

GIB = 2**30
BLOCK = 512  # bytes, to multiples of which CUDA's allocator rounds
OUTSIDE = 1.5  # GiB of CUDA's context and of NCCL
RESERVED = {False: 1.08, True: 1.22}  # times the allocated memory, of which pieces lie unused; with checkpointing
COMPILED = 0.57  # of the activations' memory that is left where blocks are compiled
UTILIZATION = 0.45  # of the peak, which well-tuned trainings of transformers reach
MATMUL, BANDWIDTH = 0.75, 0.85  # of the peaks, which single large kernels reach
LAUNCH = 10e-6  # seconds in which a CPU starts one operation


class Card(NamedTuple):
    """A GPU, by its maker's data sheet."""

    memory: float  # GiB that PyTorch sees
    bf16: float  # TFLOP/s of dense matrix products
    tf32: float
    bandwidth: float  # GB/s

    def tflops(self, precision: str) -> float:
        """TFLOP/s of matrix products in a precision."""
        return self.bf16 if precision == "bf16" else self.tf32


def load_cards() -> dict[str, Card]:
    """The GPUs of gpus.yaml, by name."""
    content = yaml.safe_load(Path(__file__).with_name("gpus.yaml").read_text())
    return {name: Card(**figures) for name, figures in content.items()}


def find_card(name: str) -> Card | None:
    """The GPU that PyTorch calls by this name, such as NVIDIA H100 80GB HBM3; None if gpus.yaml has none."""
    words = re.split("[ -]", name.upper().replace("GB", ""))  # such as NVIDIA, A100, SXM4, 40
    known, cards = {*words, *map("".join, pairwise(words))}, load_cards()
    found = [card for card in cards if known.issuperset(card.split("-"))]
    return cards[max(found, key=len)] if found else None


class StepCost(NamedTuple):
    """What one step takes of a GPU."""

    micro_batch: int
    checkpointing: bool
    gib: float  # allocated at the peak
    gib_compiled: float
    tflop: float
    matmul_seconds: float  # of matrix products alone
    eager_seconds: float

    def needs(self, compiled: bool) -> float:
        """GiB of a GPU's memory, with what its allocator and libraries take."""
        return (self.gib_compiled if compiled else self.gib) * RESERVED[self.checkpointing] + OUTSIDE

    def seconds(self, card: Card, precision: str) -> tuple[float, float, float]:
        """Seconds of matrix products alone, at the utilization that well-tuned trainings reach, and eager."""
        return self.matmul_seconds, self.tflop / (UTILIZATION * card.tflops(precision)), self.eager_seconds


class Tally(TorchDispatchMode):
    """Memory that is alive, and the work of operations, by a card's figures."""

    def __init__(self, card: Card, precision: str) -> None:
        super().__init__()
        self.live = self.peak = self.flops = self.operations = 0
        self.matmul_seconds = self.seconds = 0.0
        self._flops_a_second = card.tflops(precision) * 1e12 * MATMUL
        self._bytes_a_second = card.bandwidth * 1e9 * BANDWIDTH
        self._known = WeakIdKeyDictionary()
        self._outputs: dict[Any, Any] = {}  # of an operation with some inputs, all by their forms

    def reset(self) -> None:
        """Begin anew, with what is alive."""
        self.peak, self.flops, self.operations, self.matmul_seconds, self.seconds = self.live, 0, 0, 0.0, 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.is_view or func._schema.is_mutable:
            output = func(*args, **kwargs)
        else:
            output = self._run_once(func, args, kwargs)
        made = [tensor for tensor in _flat(output) if isinstance(tensor, Tensor)]
        for tensor in made:
            self._add(tensor.untyped_storage())
        if func is torch.ops.aten._scaled_dot_product_flash_attention_backward.default:
            self.peak = max(self.peak, self.live + _flash_workspace(args[1]))
        if made and not func.is_view:
            self._count(func, args, kwargs, output, made)
        return output

    def _run_once(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The output of an operation, computed once for each form of its inputs, since that takes most of the time."""
        key = (func, _form(args), _form(tuple(kwargs.items())))
        if key not in self._outputs:
            output = func(*args, **kwargs)
            if not all(part is None or isinstance(part, Tensor) for part in _flat(output)):
                return output
            self._outputs[key] = _form(output)
        return _made(self._outputs[key])

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage not in self._known:
            size = math.ceil(storage.nbytes() / BLOCK) * BLOCK
            self._known[storage] = weakref.finalize(storage, self._free, size)
            self._known[storage].atexit = False
            self.live += size
            self.peak = max(self.peak, self.live)

    def _free(self, size: int) -> None:
        self.live -= size

    def _count(self, func: Any, args: Any, kwargs: Any, output: Any, made: list[Tensor]) -> None:
        formula = flop_registry.get(func._overloadpacket)
        flops = formula(*args, **kwargs, out_val=output) if formula else 0
        moved = sum(_bytes(tensor) for tensor in (*_flat(args), *kwargs.values(), *made) if isinstance(tensor, Tensor))
        self.flops, self.operations = self.flops + flops, self.operations + 1
        self.matmul_seconds += flops / self._flops_a_second
        self.seconds += max(flops / self._flops_a_second, moved / self._bytes_a_second)


class _Form(NamedTuple):
    """A tensor without its data."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


def _form(value: Any) -> Any:
    """A value, with its tensors as `_Form`s and its lists as tuples."""
    if isinstance(value, Tensor):
        return _Form(value.shape, value.stride(), value.dtype)
    return tuple(map(_form, value)) if isinstance(value, list | tuple) else value


def _made(form: Any) -> Any:
    """New tensors of a form."""
    if isinstance(form, _Form):
        return torch.empty_strided(form.shape, form.stride, dtype=form.dtype, device="meta")
    return tuple(map(_made, form)) if isinstance(form, tuple) else form


def _flat(value: Any) -> Iterator[Any]:
    """The parts of nested lists and tuples."""
    if isinstance(value, list | tuple):
        for part in value:
            yield from _flat(part)
    else:
        yield value


def _flash_workspace(queries: Tensor) -> int:
    """Bytes that FlashAttention needs in the backward pass for queries (B, heads, T, D): their gradient in float32."""
    batch, heads, tokens, dim = queries.shape
    return 4 * batch * heads * math.ceil(tokens / 128) * 128 * (math.ceil(dim / 32) * 32 + 1)


def _bytes(tensor: Tensor) -> int:
    """Bytes of a tensor, of which expanded dimensions are read once."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return math.prod(size for size, stride in sizes if stride) * tensor.element_size()


class _RmsNorm(torch.autograd.Function):
    """What CUDA's kernel allocates and keeps: its input, and one number a row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, x[..., :1].contiguous(), weight)
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None]:
        x, _, weight = ctx.saved_tensors
        return torch.empty_like(x), None if weight is None else torch.empty_like(weight)


# CUDA's autocast (PyTorch's documentation, "CUDA Op-Specific Behavior"), as far as networks here use it.
LOW_PRECISION = {
    *(F.linear, F.conv2d, torch.conv2d, torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__),
    *(torch.Tensor.__rmatmul__, torch.bmm, torch.einsum, F.scaled_dot_product_attention),
}
FLOAT32 = {
    *(F.rms_norm, F.layer_norm, F.group_norm, F.softplus, F.softmax, torch.softmax, torch.Tensor.softmax),
    *(torch.sum, torch.Tensor.sum, torch.pow, torch.Tensor.pow, torch.Tensor.norm, torch.linalg.vector_norm),
}
WIDEST = {torch.addcmul, torch.addcdiv, F.grid_sample}


class AsOnAGpu(TorchFunctionMode):
    """Has meta tensors treated as a GPU treats its own: the types of autocast, and the kernels of CUDA.

    Where a CPU's autocast is enabled, a GPU's would be.
    """

    def __init__(self) -> None:
        super().__init__()
        self._cast: dict[int, Tensor] = {}  # weights in low precision, which autocast keeps

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if torch.is_autocast_enabled("cpu"):
            cast: Callable[[Any], Any] | None = None
            if func in LOW_PRECISION:
                cast = self._lower
            elif func in FLOAT32:
                cast = partial(_to, torch.float32)
            elif func in WIDEST:
                dtypes = [value.dtype for value in args if isinstance(value, Tensor)]
                cast = partial(_to, max(dtypes, key=lambda dtype: dtype.itemsize))
            if cast is not None:
                args, kwargs = tuple(map(cast, args)), {name: cast(value) for name, value in kwargs.items()}
        else:
            self._cast.clear()
        if func is F.rms_norm:
            return _RmsNorm.apply(args[0], kwargs.get("weight", args[2] if len(args) > 2 else None))
        if func is F.scaled_dot_product_attention:
            if args[0].dtype == torch.float32:
                return torch.ops.aten._scaled_dot_product_efficient_attention(*args[:3], None, True)[0]
            return torch.ops.aten._scaled_dot_product_flash_attention(*args[:3])[0]
        return func(*args, **kwargs)

    def _lower(self, x: Any) -> Any:
        if not (isinstance(x, Tensor) and x.dtype == torch.float32):
            return x
        if not (isinstance(x, nn.Parameter) and x.requires_grad):
            return x.to(torch.bfloat16)
        if id(x) not in self._cast:
            self._cast[id(x)] = x.to(torch.bfloat16)
        return self._cast[id(x)]


def _to(dtype: torch.dtype, value: Any) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


class MetaAccelerator:
    """What `Trainer` uses of Accelerate's `Accelerator`, for meta tensors, as one of several processes."""

    device, is_main_process, process_index = torch.device("meta"), True, 0

    def __init__(self, processes: int, precision: str) -> None:
        self.num_processes, self.mixed_precision = processes, precision

    def autocast(self) -> torch.autocast:
        """The CPU's; see `AsOnAGpu`."""
        return torch.autocast("cpu", torch.bfloat16, enabled=self.mixed_precision == "bf16")

    def prepare(self, *objects: Any) -> tuple[Any, ...]:
        """Run networks in autocast, with outputs in float32."""
        for network in objects:
            if isinstance(network, nn.Module):
                network.to(self.device)
                network.forward = convert_outputs_to_fp32(self.autocast()(network.forward))
        return objects

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def unwrap_model(self, network: nn.Module) -> nn.Module:
        return network

    def no_sync(self, _: nn.Module) -> AbstractContextManager[None]:
        return nullcontext()

    def reduce(self, tensor: Tensor, reduction: str) -> Tensor:
        return tensor

    def clip_grad_norm_(self, parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
        return nn.utils.clip_grad_norm_(parameters, max_norm)


class _Generator(torch.Generator):
    """A generator of random numbers that says it is one of meta tensors, of which PyTorch has none."""

    device = torch.device("meta")


class _Teacher(Teacher):
    """A teacher of meta tensors: like that in a folder or, for a hub id, DINOv2-base, the paper's."""

    def __init__(self, name: str) -> None:
        from transformers import Dinov2Config, Dinov2Model

        self.device, self._dtype = torch.device("meta"), torch.bfloat16
        with torch.device("meta"):
            model, size = untrained_vision_model(name) if Path(name).is_dir() else (Dinov2Model(Dinov2Config()), 224)
            model = model.to(self._dtype).eval().requires_grad_(False)
            cls, patches = features_of(model, torch.empty(1, 3, size, size, dtype=self._dtype))
            mean = torch.empty(1, 3, 1, 1)
        self.width, self.grid = cls.shape[1], round(patches.shape[1] ** 0.5)
        self._network = SimpleNamespace(model=model, mean=mean, std=mean, size=size)  # type: ignore[assignment]


@contextmanager
def as_on_a_gpu(mode: TorchFunctionMode) -> Iterator[None]:
    """Trainings run on meta tensors, in this mode."""

    def checkpoint_in_mode(block: nn.Module, *args: Any, use_reentrant: bool) -> Any:
        """PyTorch's `checkpoint`; in the backward pass, where modes are off, the block runs in the mode again."""

        def run(*args: Any) -> Any:
            with mode:
                return block(*args)

        return checkpoint(run, *args, use_reentrant=use_reentrant)

    with ExitStack() as stack:
        patches = {
            "gat.gan.training.generator_of": lambda *_, **__: _Generator(),
            "gat.gan.training.make_optimizer": _optimizer,
            "gat.gan.networks.checkpoint": checkpoint_in_mode,
        }
        for name, value in patches.items():
            stack.enter_context(mock.patch(name, value))
        stack.enter_context(mode)
        yield


class StepPlanner:
    """Runs steps of a recipe on meta tensors.

    Args:
        recipe: of the run.
        latents: what `make_trainer` needs to know of latents.
        resolution: of the images, for a teacher.
        card: the GPU.
        precision: bf16 or fp32.
        gpus: among which a batch is divided.
        checkpointing: of activations.
        mode: what meta tensors are treated as; by default `AsOnAGpu`.

    Attributes:
        parameters: of the generator and the discriminator.
        state_bytes: alive between two steps.
        checkpoint_bytes: of a saved training.
    """

    def __init__(
        self,
        recipe: Recipe,
        latents: Any,
        resolution: int,
        card: Card,
        precision: str,
        gpus: int = 1,
        checkpointing: bool = False,
        mode: TorchFunctionMode | None = None,
    ) -> None:
        self._tally, self._mode = Tally(card, precision), mode or AsOnAGpu()
        self._gpus, self._checkpointing, self._latents = gpus, checkpointing, latents
        self._resolution = resolution if recipe.repa.teacher else None
        compute = Compute(activation_checkpointing=checkpointing)
        with as_on_a_gpu(self._mode), self._tally:
            teacher = _Teacher(recipe.repa.teacher) if recipe.repa.teacher else None
            accelerator: Any = MetaAccelerator(gpus, precision)
            with torch.device("meta"):
                self._trainer = make_trainer(recipe, 0, latents, accelerator, teacher, compute)
        self.local = self._trainer.local_batch_size
        self._step(1)  # which makes the optimizers' states
        self.state_bytes = self._tally.live
        self.checkpoint_bytes = sum(tensor.nbytes for tensor in self._trainer.state().values())
        networks = self._trainer.generator, self._trainer.discriminator
        self.parameters = [sum(p.numel() for p in network.parameters()) for network in networks]

    def _step(self, micro_batch: int) -> float:
        """A step in micro-batches, of which more than two use as much memory as two; returns which part it was."""
        local = min(self.local, 2 * micro_batch)
        trainer, size, channels = self._trainer, self._latents.size, self._latents.channels
        trainer.micro_batch, trainer.local_batch_size = micro_batch, local
        with as_on_a_gpu(self._mode), self._tally:
            pixels = (local, self._resolution, self._resolution, 3) if self._resolution else None
            images = torch.empty(pixels, dtype=torch.uint8, device="meta") if pixels else None
            moments = torch.empty(local, 2 * channels, size, size, dtype=torch.float16, device="meta")
            batch = Batch(moments, torch.empty(local, dtype=torch.int64, device="meta"), images)
            self._tally.reset()
            trainer.step(batch)
        return local / self.local

    def cost(self, micro_batch: int) -> StepCost:
        """Of a step in micro-batches of this size, which divides the GPU's share of the batch."""
        state = self._tally.live
        part = self._step(micro_batch)
        tally, gradients = self._tally, 4 * max(self.parameters)
        exchanged = 4 * sum(self.parameters) if self._gpus > 1 else 0  # DistributedDataParallel's copy of the gradients
        activations = max(0, tally.peak - state - gradients)
        peak = tally.peak + exchanged
        return StepCost(
            micro_batch,
            self._checkpointing,
            peak / GIB,
            (peak - activations * (0 if self._checkpointing else 1 - COMPILED)) / GIB,
            tally.flops / 1e12 / part,
            tally.matmul_seconds / part,
            max(tally.seconds, tally.operations * LAUNCH) / part,
        )


def _optimizer(network: nn.Module, learning_rate: float, train: Optimization) -> torch.optim.AdamW:
    """As `gat.gan.optim.make_optimizer`, but not fused, which meta tensors cannot be."""
    optimizer = make_optimizer(network, learning_rate, train)
    for group in optimizer.param_groups:
        group |= {"fused": False, "foreach": False}
    return optimizer

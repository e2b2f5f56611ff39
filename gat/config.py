"""params.yaml as typed, validated objects. This module imports nothing heavy, so an invalid value fails immediately."""

import json
import re
from collections.abc import Container, Iterable
from operator import attrgetter
from os.path import expanduser
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from gat.sizes import discriminator_size, head_count, level_counts, norm_groups

MODEL = "model"  # the model under test
ADM_FILES = ", such as VIRTUAL_imagenet256_labeled.npz of github.com/openai/guided-diffusion, or null"
INCEPTION_FEATURES = 2048  # the covariance of fewer samples than features is singular

Dimension = Annotated[int, Field(gt=0, le=65536)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
UnitInterval = Annotated[float, Field(ge=0, le=1)]
PathOrHubId = Annotated[str, AfterValidator(expanduser)]
Color = Annotated[str, Field(pattern=r"^#[0-9a-fA-F]{6}$")]


class ParamsError(ValueError):
    """An invalid value in params.yaml; the message names the key, the value and what is allowed."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())


_SectionType = TypeVar("_SectionType", bound=_Section)


class Data(_Section):
    """Source and format of the images."""

    source: PathOrHubId
    split: str
    image_column: str
    label_column: str | None
    resolution: Dimension
    mirror: bool
    encoding: Literal["webp", "jpeg"]
    on_error: Literal["stop", "skip"]
    holdout: Annotated[float, Field(ge=0, le=0.5)]


class VaeRecipe(_Section):
    """Settings of a small autoencoder."""

    channels: Annotated[list[Dimension], Field(min_length=2, max_length=8)]
    latent_channels: Dimension
    steps: PositiveInt
    batch_size: PositiveInt
    learning_rate: PositiveFloat
    kl_weight: NonNegativeFloat
    seed: Seed

    @property
    def downsampling_factor(self) -> int:
        """Side of the images over the side of their latents."""
        return 2 ** (len(self.channels) - 1)


class Vae(_Section):
    """The autoencoder: a pretrained one, or one trained on the images."""

    pretrained: PathOrHubId | None
    recipe: VaeRecipe | None


class Classifier(_Section):
    """Settings of the classifier whose features replace Inception's."""

    steps: PositiveInt
    batch_size: PositiveInt
    learning_rate: PositiveFloat
    seed: Seed


class EncoderRecipe(_Section):
    """Settings of a small self-supervised encoder."""

    width: Annotated[int, Field(gt=0, le=4096, multiple_of=16)]
    depth: PositiveInt
    steps: Annotated[int, Field(gt=10)]
    batch_size: Annotated[int, Field(ge=2)]
    learning_rate: PositiveFloat
    temperature: PositiveFloat
    seed: Seed


class EncoderSettings(_Section):
    """The encoder of the second feature space: a pretrained one, one trained without labels on the images, or none."""

    pretrained: PathOrHubId | None
    recipe: EncoderRecipe | None


class Metrics(_Section):
    """Features, reference statistics and labels behind all metrics."""

    extractor: Literal["classifier", "inception"]
    mode: Literal["clean", "legacy_tensorflow"]
    labels: Literal["reals", "uniform"]
    classifier: Classifier | None
    reference: PathOrHubId | None
    reference_features: Annotated[int, Field(ge=100)]


class Evaluate(_Section):
    """Samples for the final metrics."""

    samples: Annotated[int, Field(ge=100)]
    sample_sets: PositiveInt
    seed: Seed
    truncation_psi: UnitInterval
    guidance_scale: NonNegativeFloat
    save_samples: PathOrHubId | None


class Samples(_Section):
    """Samples of another model, which are only evaluated: an `.npz` as ADM's, or a folder of images.

    `gmacs` and `params` are its cost, as the tables have it for generators; null: unknown.
    """

    path: Annotated[str, Field(pattern=r"^[^~]")]  # DVC does not expand ~
    gmacs: PositiveFloat | None = None
    params: PositiveInt | None = None


class Showcase(_Section):
    """Images and video of each run, from its first seed."""

    classes: Annotated[list[NonNegativeInt], Field(min_length=1)] | None
    seeds: PositiveInt
    truncation_psi: Annotated[list[UnitInterval], Field(min_length=1)]
    guidance_scale: Annotated[list[NonNegativeFloat], Field(min_length=1)]
    neighbours: PositiveInt
    walk_stops: Annotated[int, Field(ge=2)]
    walk_frames: PositiveInt
    live_megabytes: NonNegativeFloat


class Claim(_Section):
    """A claim of the paper: that a run, `arm`, has a higher or lower measure than another, `baseline`.

    Measures: `fid`; `early_movement` and `cknna`, see `gat.report.claims`.
    """

    text: str
    paper: str
    arm: str
    baseline: str
    measure: Literal["fid", "early_movement", "cknna"] = "fid"
    expected: Literal["higher", "lower"]


class Analyze(_Section):
    """Analyses of trained networks in `claims/dvc.yaml`."""

    runs: list[str]
    samples: Annotated[int, Field(ge=20)]
    reals: Annotated[int, Field(ge=20)]
    steps: PositiveInt
    window: PositiveInt


class NetworkOverride(_Section):
    """The size of a discriminator that differs from its generator's; null: the same."""

    width: Dimension | None = None
    depth: Dimension | None = None
    heads: Dimension | Literal["auto"] | None = None
    patch: Dimension | None = None


class Network(_Section):
    """The size of a transformer."""

    width: Dimension
    depth: Dimension
    heads: Dimension | Literal["auto"] = "auto"
    patch: Dimension

    @property
    def head_count(self) -> int:
        """See `gat.sizes.head_count`."""
        return head_count(self.width, self.heads)


class Run(Network):
    """A model: the sizes of its generator and discriminator, and its overrides of `train`, `loss` and `repa`.

    With `pretrained`, a pipeline folder, nothing is trained, and the size is that of the generator in the folder.
    """

    pretrained: PathOrHubId | None = None
    discriminator: NetworkOverride = NetworkOverride()
    train: dict[str, Any] = {}
    loss: dict[str, Any] = {}
    repa: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _size_of_pretrained(cls, values: Any) -> Any:
        folder = values.get("pretrained") if isinstance(values, dict) else None
        if not isinstance(folder, str):
            return values
        path = Path(folder).expanduser()
        try:
            if path.resolve().is_relative_to(Path("runs").resolve()):  # which DVC removes before it makes it again
                raise ValueError
            config = json.loads((path / "generator/config.json").read_text())
            return values | {key: config[key] for key in ("width", "depth", "heads", "patch")}
        except (OSError, ValueError, KeyError):
            allowed = "pipeline folders outside of runs/, such as those that `python -m stages export` makes"
            raise ParamsError(f"pretrained: {folder!r} is not allowed; allowed: {allowed}") from None

    @property
    def changes_recipe(self) -> bool:
        """Whether it overrides settings or is pretrained; the power law is fitted only to other runs."""
        sizes = self.discriminator.model_dump(exclude_none=True)
        return bool(self.train or self.loss or self.repa or self.pretrained or sizes)

    @property
    def discriminator_network(self) -> Network:
        """The discriminator's full size."""
        return Network(**discriminator_size(dict(self), dict(self.discriminator)))


class Rates(_Section):
    """Trainings of each width at each learning rate, the same for all widths; `run` has the rest of their settings."""

    run: dict[str, Any]
    widths: Annotated[list[Dimension], Field(min_length=1)]
    learning_rates: Annotated[list[PositiveFloat], Field(min_length=1)]
    seeds: Annotated[list[Seed], Field(min_length=1)]

    @property
    def names(self) -> list[str]:
        """The names of their runs, WIDTH-RATE."""
        return [f"{width}-{rate}" for width in self.widths for rate in self.learning_rates]

    def named(self, name: str) -> Run:
        """The run of a name.

        Raises:
            ParamsError: `run` is not a run without a width.
        """
        width, rate = name.split("-", 1)
        try:
            run = Run(**self.run | {"width": int(width)})
        except ValidationError as error:
            raise ParamsError(_first_error(error, "rates.run.")) from None
        changes = {"scale_lr_by_width": False, "learning_rate": float(rate)}
        return run.model_copy(update={"train": run.train | changes})


class ModelUnderTest(Run):
    """The run that experiments change; it is trained with one seed."""

    seed: Seed


class Levels(_Section):
    """Multi-level noise guidance (paper, section 4.1)."""

    schedule: Literal["exponential", "linear", "resized", "heads", "none"] = "exponential"
    count: Annotated[int, Field(ge=2)] = 4

    @property
    def made(self) -> int:
        """Number of the generator's levels, see `gat.sizes.level_counts`."""
        return level_counts(self.schedule, self.count)[0]

    @property
    def seen(self) -> int:
        """Number of levels that the discriminator sees."""
        return level_counts(self.schedule, self.count)[1]


class Augment(_Section):
    """Augmentation: `color` and `flip` are probabilities, `translation` and `cutout` fractions of the side; 0: off."""

    color: UnitInterval = 0.5
    translation: UnitInterval = 0.125
    cutout: UnitInterval = 0.5
    flip: UnitInterval = 0.4


class Loss(_Section):
    """The adversarial losses (paper, section 3.2); `Loss()` has the paper's values."""

    levels: Levels = Levels()
    augment: Augment = Augment()
    gamma: NonNegativeFloat = 0.1
    scale_gamma_by_pixels: bool = True
    cmap_dim: Dimension = 2048


class Repa(_Section):
    """Representation alignment (paper, section 3.2): D predicts a teacher's features of the real images."""

    teacher: PathOrHubId | None = "facebook/dinov2-base"
    random_weights: bool = False
    weight: NonNegativeFloat = 1.0
    projector_dim: Dimension = 2048


class Optimization(_Section):
    """Optimization (paper, section 5 and appendix); the defaults are those of the paper's scaling runs."""

    steps: PositiveInt = 50_000
    batch_size: PositiveInt = 512
    learning_rate: PositiveFloat = 2e-4
    scale_lr_by_width: bool = True
    betas: Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)] = [0.0, 0.99]
    max_grad_norm: PositiveFloat = 1.0
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.999
    style_gain: PositiveFloat = 0.1
    eval_every: PositiveInt = 2500
    eval_samples: Annotated[int, Field(ge=100)] = 5000


class Compute(_Section):
    """Settings of speed and memory, which change results only by rounding; dvc.yaml does not depend on them."""

    threads: PositiveInt | None = None
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    compile: bool = False
    activation_checkpointing: bool = False
    micro_batch: PositiveInt | Literal["auto"] | None = None
    vae_batch: PositiveInt = 64
    sample_batch: PositiveInt = 64
    workers: NonNegativeInt = 0
    save_minutes: NonNegativeFloat = 10.0


class Report(_Section):
    """Colors of the figures."""

    colors: Annotated[list[Color], Field(min_length=1)]
    highlight: Color


class Recipe(NamedTuple):
    """The settings of a run, including its overrides; with a seed they define a training."""

    run: Run
    loss: Loss
    train: Optimization
    repa: Repa


class Training(NamedTuple):
    """A run with a seed, or the model under test."""

    run: str
    seed: int

    @property
    def folder(self) -> str:
        """Its folder in `runs/` and `results/`."""
        return MODEL if self.run == MODEL else f"{self.run}/seed-{self.seed}"

    def stage(self, name: str) -> str:
        """The name of a stage of this training in dvc.yaml, such as `train@S-2-0`."""
        return f"{name}-{MODEL}" if self.run == MODEL else f"{name}@{self.run}-{self.seed}"


class Params(_Section):
    """All of params.yaml."""

    data: Data
    vae: Vae
    encoder: EncoderSettings
    metrics: Metrics
    model: ModelUnderTest
    loss: Loss
    repa: Repa
    train: Optimization
    evaluate: Evaluate
    study: dict[str, Run]
    runs: list[str]
    arms: list[str]
    seeds: Annotated[list[Seed], Field(min_length=1)]
    samples: dict[str, Samples]
    showcase: Showcase
    claims: dict[str, Claim]
    rates: Rates
    analyze: Analyze
    compute: Compute
    report: Report

    @model_validator(mode="after")
    def _complete(self) -> Self:
        """Check that every key is present: a params file does not rely on defaults."""
        for name in ("loss", "loss.levels", "loss.augment", "repa", "train", "compute"):
            section = attrgetter(name)(self)
            for key in sorted(type(section).model_fields.keys() - section.model_fields_set):
                raise ParamsError(f"{name}.{key}: missing")
        return self

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names: dict[str, list[Any]] = {"runs": self.runs, "arms": self.arms, "analyze.runs": self.analyze.runs}
        for key, values in {**names, "seeds": self.seeds}.items():
            _require(len({*values}) == len(values), key, values, "each once")
        for key, runs in names.items():
            for name in runs:
                _require(name in self.study, key, name, "entries of study: " + ", ".join(self.study))
        for name in self.arms:
            _require(name not in self.runs, "arms", name, "entries of study that are not in runs")
        for name, claim in self.claims.items():
            for side in ("arm", "baseline"):
                run = getattr(claim, side)
                _require(run in self.study, f"claims.{name}.{side}", run, "entries of study: " + ", ".join(self.study))
        for key, name in [("study", name) for name in self.study] + [("samples", name) for name in self.samples]:
            _require(name != MODEL, key, name, "other names, since model is the model under test")
            allowed = "letters, digits, - and _, starting with a letter or digit"
            _require(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name) is not None, key, name, allowed)
        for name in self.samples:
            _require(name not in self.study, "samples", name, "names that are not in study")
        if self.metrics.extractor == "classifier":
            _require(self.metrics.classifier is not None, "metrics.classifier", None, "a recipe")
        self._check_samples("evaluate.samples", self.evaluate.samples)
        for name in (MODEL, *self.trained_runs, *self.rates.names):
            self._check_run(name)
        if self.vae.pretrained is None:
            self._check_vae(self.vae.recipe)
        return self

    def _check_samples(self, key: str, count: int) -> None:
        """Check a number of samples from which a FID is computed."""
        enough = self.metrics.extractor != "inception" or count > INCEPTION_FEATURES
        _require(enough, key, count, f"more than {INCEPTION_FEATURES}, one per feature")

    def _check_vae(self, recipe: VaeRecipe | None) -> None:
        if recipe is None:
            raise ParamsError("vae.recipe: None is not allowed; allowed: a recipe, since vae.pretrained is null")
        groups, size, factor = norm_groups(recipe.channels), self.data.resolution, recipe.downsampling_factor
        fits = all(count % groups == 0 for count in recipe.channels)
        _require(fits, "vae.recipe.channels", recipe.channels, f"multiples of {groups}, the normalization groups")
        _require(size % factor == 0, "data.resolution", size, f"multiples of {factor}, the VAE's downsampling factor")
        self.check_latent_size(size // factor)

    def check_latent_size(self, latent_size: float) -> None:
        """Check that the side of latents is a multiple of every patch; with a pretrained VAE it is known only later.

        Raises:
            ParamsError: it is not.
        """
        _require(latent_size % 1 == 0, "data.resolution", self.data.resolution, "multiples of the VAE's factor")
        for name in (MODEL, *self.trained_runs, *self.rates.names):
            for key, network in self._networks(name):
                allowed = f"divisors of {latent_size:.0f}, the side of the latents"
                _require(latent_size % network.patch == 0, f"{key}.patch", network.patch, allowed)

    def _networks(self, name: str) -> list[tuple[str, Network]]:
        """Keys and sizes of the networks of a run that is trained."""
        run, key = self.run(name), self.key(name)
        own = [(key, run), (f"{key}.discriminator", run.discriminator_network)]
        return own if run.pretrained is None else []

    def _check_run(self, name: str) -> None:
        key, (run, loss, train, _) = self.key(name), self.recipe(name)
        if run.pretrained is not None:
            return
        self._check_samples(f"{key}." * ("eval_samples" in run.train) + "train.eval_samples", train.eval_samples)
        for where, network in self._networks(name):
            width, heads = network.width, network.head_count
            _require(width % heads == 0, f"{where}.width", width, f"multiples of {where}.heads ({heads})")
            if network.heads == "auto":
                _require(width % 4 == 0, f"{where}.width", width, "multiples of 4")
            _require(width // heads % 4 == 0, f"{where}.heads", heads, "any such that width/heads is a multiple of 4")
        levels = loss.levels.made
        _require(run.depth % levels == 0, f"{key}.depth", run.depth, f"multiples of loss.levels.count ({levels})")

    @property
    def trainings(self) -> list[Training]:
        """The trainings of `dvc.yaml`: the model under test, and every run of the study with every seed."""
        study = [Training(run, seed) for run in self.runs for seed in self.seeds]
        return [Training(MODEL, self.model.seed), *study]

    @property
    def arm_trainings(self) -> list[Training]:
        """Trainings of `claims/dvc.yaml` that are evaluated as those of the study are: every arm with every seed."""
        return [Training(run, seed) for run in self.arms for seed in self.seeds]

    @property
    def rate_trainings(self) -> list[Training]:
        """Trainings of `claims/dvc.yaml` at each of `rates.learning_rates`."""
        return [Training(run, seed) for run in self.rates.names for seed in self.rates.seeds]

    def check_files(self, known: Container[str] = ()) -> None:
        """Check that files and folders exist.

        Args:
            known: values that need not exist, such as those from which results were made on another machine.

        Raises:
            ParamsError: a value that is written as a path, and not known, does not exist.
        """
        values = {key: attrgetter(key)(self) for key in ("data.source", "vae.pretrained", "encoder.pretrained")}
        values |= {
            f"{self.key(name)}." * bool(self.run(name).repa) + "repa.teacher": self.repa_of(name).teacher
            for name in (MODEL, *self.trained_runs)
        }
        for key, value in values.items():
            if value is not None and value.startswith((".", "/", "~")) and value not in known:
                _require(Path(value).exists(), key, value, "a file or folder that exists")
        for name, samples in self.samples.items():
            exists = samples.path in known or Path(samples.path).exists()
            _require(exists, f"samples.{name}.path", samples.path, "a file or folder that exists")
        reference = self.metrics.reference
        if reference is not None and reference not in known:
            _require(Path(reference).exists(), "metrics.reference", reference, f"a file that exists{ADM_FILES}")

    def check_claims(self, names: Iterable[str]) -> None:
        """Check that `claims/dvc.yaml` trains and analyzes all that these claims need.

        Raises:
            ParamsError: it does not.
        """
        for name in self.analyze.runs:
            _require(name in self.trained_runs, "analyze.runs", name, "entries of runs and arms")
        for name in names:
            claim = self.claims[name]
            for side in ("arm", "baseline"):
                run, key = getattr(claim, side), f"claims.{name}.{side}"
                trained = run in self.trained_runs and self.run(run).pretrained is None
                _require(trained, key, run, "entries of runs and arms that are not pretrained")
                analyzed = claim.measure == "fid" or run in self.analyze.runs
                _require(analyzed, key, run, f"entries of analyze.runs, since its measure is {claim.measure}")

    @property
    def trained_runs(self) -> list[str]:
        """Entries of the study that `dvc.yaml` or `claims/dvc.yaml` trains."""
        return [*self.runs, *self.arms]

    def key(self, name: str) -> str:
        """The key of a run in params.yaml."""
        return name if name == MODEL else f"study.{name}" if name in self.study else "rates.run"

    def run(self, name: str) -> Run:
        """The run of this name.

        Raises:
            ParamsError: there is no such run.
        """
        if name == MODEL:
            return self.model
        if name in self.study:
            return self.study[name]
        is_rate = re.fullmatch(r"\d+-\d+(\.\d+)?(e-?\d+)?", name) is not None
        _require(is_rate, "run", name, ", ".join((MODEL, *self.study)))
        return self.rates.named(name)

    def recipe(self, name: str) -> Recipe:
        """The settings of a run, including its overrides.

        Raises:
            ParamsError: there is no such run, or an override is invalid.
        """
        key, run = self.key(name), self.run(name)
        return Recipe(
            run,
            _overridden(self.loss, run.loss, f"{key}.loss"),
            _overridden(self.train, run.train, f"{key}.train"),
            self.repa_of(name),
        )

    def repa_of(self, name: str) -> Repa:
        """The section `repa` of a run, including its overrides."""
        return _overridden(self.repa, self.run(name).repa, f"{self.key(name)}.repa")


def _require(condition: bool, key: str, value: object, allowed: str) -> None:
    if not condition:
        raise ParamsError(f"{key}: {value!r} is not allowed; allowed: {allowed}")


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        nested = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = _merged(base[key], value) if nested else value
    return merged


def _overridden(section: _SectionType, changes: dict[str, Any], key: str) -> _SectionType:
    try:
        return type(section).model_validate(_merged(section.model_dump(), changes)) if changes else section
    except ValidationError as error:
        raise ParamsError(_first_error(error, f"{key}.")) from None


def _first_error(error: ValidationError, prefix: str = "") -> str:
    """The first error in one line: key, value and what is allowed."""
    first = error.errors()[0]
    key = _key(first)
    if isinstance(cause := first.get("ctx", {}).get("error"), ParamsError):
        return f"{prefix}{key}.{cause}" if key else str(cause)
    same = [other["msg"][0].lower() + other["msg"][1:] for other in error.errors() if _key(other) == key]
    others = error.error_count() - len(same)
    more = f" (and {others} more)" if others else ""
    if first["type"] in ("extra_forbidden", "missing"):
        return f"{prefix}{key}: {'missing' if first['type'] == 'missing' else 'unknown key'}{more}"
    value = first["input"]
    return f"{prefix}{key}: {value!r} is not allowed; {' or '.join(same)}{more}"


def _key(error: Any) -> str:
    """The dotted key of a pydantic error, without the branches of unions."""
    return ".".join(str(part) for part in error["loc"] if not re.match(r"(constrained-|literal\[|int$)", str(part)))


def load_params(path: str | Path = "params.yaml") -> Params:
    """Read and validate a params file.

    Raises:
        ParamsError: the file is missing or not YAML, or a key is unknown, missing or invalid; the message is one line.
    """
    try:
        content = YAML(typ="safe", pure=True).load(Path(path).read_text(encoding="utf-8"))  # YAML 1.2, as DVC writes it
    except OSError as error:
        raise ParamsError(f"{error.strerror}; copy one from profiles/") from None
    except (YAMLError, ValueError, RecursionError) as error:  # ValueError: not UTF-8, or an invalid date
        raise ParamsError(f"not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ParamsError("not a mapping of keys to values; copy one from profiles/")
    try:
        return Params.model_validate(content)
    except ValidationError as error:
        raise ParamsError(_first_error(error)) from None

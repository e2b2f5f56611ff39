"""What is shown of a training: the one registry behind the tables, the page, the model card and the CSV's order."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class Column(NamedTuple):
    """One number or text of each training; `key` is its name in the files of results.

    `format` is Python's format specification of a number; None: text. `better` is "higher", "lower" or None.
    """

    key: str
    heading: str
    format: str | None
    better: str | None
    explanation: str
    logarithmic: bool = False  # scale of a curve

    @property
    def title(self) -> str:
        """The heading, with an arrow towards better values."""
        return self.heading + {"higher": " ↑", "lower": " ↓"}.get(self.better or "", "")

    def text(self, value: Any) -> str:
        """A value as tables show it; empty if it is missing."""
        if value is None or value != value:
            return ""
        return str(value) if self.format is None else f"{value:z{self.format}}"  # z: no −0


def mean_text(values: ArrayLike, format: str | None = ".2f") -> str:
    """Mean ± standard deviation of the values that are not NaN: of one value no deviation, of none the empty text."""
    numbers = np.asarray(values, float)
    numbers = numbers[~np.isnan(numbers)]
    shown = [numbers.mean()] if len(numbers) else []
    shown += [numbers.std(ddof=1)] if len(numbers) > 1 else []
    return " ± ".join(f"{number:z{format}}" for number in shown)


def range_text(values: ArrayLike) -> str:
    """The geometric mean, or the mean if not all are positive, with the lowest and the highest value in parentheses.

    Values that are NaN are left out: of one other value it is this value, of none the empty text.
    """
    numbers = np.asarray(values, float)
    numbers = numbers[~np.isnan(numbers)]
    if not len(numbers):
        return ""
    mean = np.exp(np.log(numbers).mean()) if numbers.min() > 0 else numbers.mean()
    return f"{mean:z.3g}" + (f" ({numbers.min():z.3g} to {numbers.max():z.3g})" if len(numbers) > 1 else "")


RUN = Column("run", "run", None, None, "name of the model in params.yaml")
SEED = Column("seed", "seed", ".0f", None, "random seed of the training")
SIZE = (  # the same for all seeds of a run
    Column("width", "width", ".0f", None, "channels of the transformer"),
    Column("depth", "depth", ".0f", None, "transformer blocks"),
    Column("patch", "patch", ".0f", None, "side of a token in latent pixels"),
    Column("params", "parameters", ",.0f", None, "weights of the generator, without the VAE"),
    Column("discriminator_params", "D parameters", ",.0f", None, "weights of the discriminator"),
    Column("gmacs", "GMACs", ".3g", None, "10⁹ multiply-adds of the generator per image, without the VAE"),
    Column("training_gmacs", "training GMACs", ".4g", None, "10⁹ multiply-adds of all steps, without a teacher"),
)
METRICS = (
    Column("fid", "FID", ".2f", "lower", "Fréchet distance of samples to training images, in features", True),
    Column("fid_held", "FID held-out", ".2f", "lower", "the same to images that were not trained on"),
    Column(
        "fd_encoder", "FD encoder", ".2f", "lower", "Fréchet distance to training images, in features of the encoder"
    ),
    Column("sfid", "sFID", ".2f", "lower", "Fréchet distance in spatial features of Inception"),
    Column("inception_score", "IS", ".1f", "higher", "Inception score, of parts of 5,000 samples"),
    Column("kid", "KID", ".3f", "lower", "kernel distance between features of samples and of training images"),
    Column("precision", "precision", ".3f", "higher", "share of samples inside the manifold of real images (k = 3)"),
    Column("recall", "recall", ".3f", "higher", "share of real images inside the manifold of samples (k = 3)"),
    Column("density", "density", ".3f", "higher", "real images in whose neighbourhood a sample lies, over k = 5"),
    Column(
        "coverage", "coverage", ".3f", "higher", "share of real images in whose neighbourhood a sample lies (k = 5)"
    ),
    Column(
        "spread", "spread", ".2f", None, "within-class variance of recognized samples over that of reals; 0: collapsed"
    ),
    Column("recognized", "recognized", ".3f", "higher", "share of samples that the classifier assigns to their class"),
    Column(
        "nearest_in_training",
        "nearest in training",
        ".3f",
        None,
        "share of samples whose nearest real is a training image, of as many held-out ones; 0.5: no sign of copying; "
        "copies would have the value of reconstructions of training images (floors)",
    ),
)
GAP = Column("gap", "gap", ".2f", None, "mean D(real) − D(fake) over the last tenth of training; near 0, D is flat")
WARNINGS = Column("warnings", "warnings", None, None, "reasons to doubt a training or its FID")
COLUMNS = (RUN, SEED, *SIZE, *METRICS, GAP, WARNINGS)

CURVES = (
    METRICS[0],
    Column("loss_d", "discriminator loss", ".4g", None, "adversarial term, without the penalties"),
    Column("loss_g", "generator loss", ".4g", None, "adversarial term"),
    Column("gap", "D(real) − D(fake)", ".4g", None, "mean over the batch; near 0, the discriminator is flat"),
    Column("r1", "approximate R1", ".4g", None, "squared slope of D around real latents, before the weight γ/2", True),
    Column("r2", "approximate R2", ".4g", None, "squared slope of D around generated latents, before γ/2", True),
    Column("repa", "REPA loss", ".4g", None, "1 − cosine similarity to the teacher's features, before the weight β"),
    Column("grad_d", "discriminator gradient norm", ".4g", None, "over all weights, before clipping", True),
    Column("grad_g", "generator gradient norm", ".4g", None, "over all weights, before clipping", True),
)

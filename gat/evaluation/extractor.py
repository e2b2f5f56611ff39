"""Feature extractors for FID: clean-fid's Inception, or a small classifier trained on the images.

An extractor is stored as a folder with `extractor.json` and weights: `classifier.safetensors`, or Inception's as
downloaded by clean-fid. It has clean-fid's interface: a resizing function for one image, and a model that maps
(B, 3, H, W) in 0–255 to (B, d).
"""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from cleanfid.downloads_helper import check_download_inception
from cleanfid.inception_torchscript import InceptionV3W
from cleanfid.resize import build_resizer, make_resizer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import trange

from gat.config import ParamsError
from gat.data.images import Images

FEATURES = 64


class Classifier(nn.Module):
    """Small convolutional classifier whose penultimate layer has 64 features; `standardize` normalizes them."""

    def __init__(self, size: int, classes: int, width: int = 32) -> None:
        super().__init__()
        self.config = {"size": size, "classes": classes, "width": width}
        self.body = nn.Sequential(
            nn.Conv2d(3, width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Linear(2 * width * 16, FEATURES),
        )
        self.head = nn.Linear(FEATURES, classes)
        self.mean: Tensor
        self.scale: Tensor
        self.register_buffer("mean", torch.zeros(FEATURES))
        self.register_buffer("scale", torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, 64) of images (B, 3, H, W) in 0–255."""
        return (self.body(images / 127.5 - 1) - self.mean) / self.scale

    def logits(self, features: Tensor) -> Tensor:
        """Class logits (B, classes) of features (B, 64)."""
        return self.head(F.relu(features * self.scale + self.mean))

    def standardize(self, features: Tensor) -> None:
        """Set shift and scale of all features such that these (N, 64) have mean 0 and, on average, variance 1."""
        self.mean = features.mean(0)
        self.scale = features.var(0).mean().sqrt()


class TrainedClassifier(NamedTuple):
    """A classifier and its accuracy (0–1) on held-out images."""

    classifier: Classifier
    accuracy: float


def train_classifier(
    images: Images, steps: int, batch_size: int, learning_rate: float, seed: int, progress: bool = True
) -> TrainedClassifier:
    """Train a classifier on nine tenths of the images, randomly shifted by up to two pixels.

    Its features are then standardized over these images, because FID and KID depend on the scale of the features.

    Raises:
        ParamsError: there is only one class, or there are fewer than ten images.
    """
    if len(images.classes) < 2:
        raise ParamsError("metrics.extractor: classifier needs at least two classes; use inception for one class")
    if len(images) < 10:
        raise ParamsError(
            f"metrics.extractor: classifier needs at least ten images, not {len(images)}; or use inception"
        )
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(images))
    held_out, train = np.sort(order[: len(images) // 10]), order[len(images) // 10 :]
    model = Classifier(images.size, len(images.classes))
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
    for _ in trange(steps, desc="extractor", unit="step", disable=not progress):
        index = np.sort(rng.choice(train, batch_size))
        batch = torch.from_numpy(images[index]).permute(0, 3, 1, 2).float()
        batch = torch.roll(batch, tuple(rng.integers(-2, 3, size=2)), dims=(2, 3))
        loss = F.cross_entropy(model.logits(model(batch)), torch.from_numpy(images.labels[index]), label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval().requires_grad_(False)
    features = torch.cat([model(torch.from_numpy(part).permute(0, 3, 1, 2).float()) for part in images.batches(256)])
    predicted = model.logits(features[held_out]).argmax(1)
    model.standardize(features[train])
    return TrainedClassifier(model, (predicted.numpy() == images.labels[held_out]).mean().item())


class Extractor:
    """Features of images by clean-fid's resizing and Inception, or by a trained classifier.

    Attributes:
        name: `inception` or `classifier`; recorded with every FID.
        mode: clean-fid's resizing, `clean` or `legacy_tensorflow`.
        resize: function of one image, (H, W, 3) in 0–255, as clean-fid's `custom_fn_resize`.
        model: function of (B, 3, H, W) in 0–255 to features (B, d), as clean-fid's `custom_feat_extractor`.
    """

    def __init__(self, folder: str | Path, device: torch.device | str = "cpu") -> None:
        folder = Path(folder)
        self.device = torch.device(device)
        config = json.loads((folder / "extractor.json").read_text())
        self.name: str = config["name"]
        self.mode: str = config["mode"]
        self.resize: Callable[[np.ndarray], np.ndarray]
        self.model: Callable[[Tensor], Tensor]
        self._native: int | None = None
        self._classifier: Classifier | None = None
        if self.name == "classifier":
            classifier = Classifier(**config["classifier"])
            classifier.load_state_dict(load_file(folder / "classifier.safetensors"))
            self.model = self._classifier = classifier.to(self.device).eval().requires_grad_(False)
            self._native = config["classifier"]["size"]
            self.resize = make_resizer("PIL", False, "bicubic", (self._native, self._native))
        else:
            inside = self.mode == "legacy_tensorflow"
            self.model = InceptionV3W(str(folder), download=False, resize_inside=inside).to(self.device).eval()
            self.resize = build_resizer(self.mode)

    @property
    def width(self) -> int:
        """Number of features."""
        return self(np.zeros((1, 32, 32, 3), np.uint8)).shape[1]

    @torch.no_grad()
    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Features float32 (B, d) of uint8 images (B, H, W, 3)."""
        if images.shape[1] != self._native:  # at this size clean-fid's resizing is the identity
            with ThreadPoolExecutor() as pool:  # Pillow releases the GIL while resizing
                images = np.stack(list(pool.map(self.resize, images)))
        batch = torch.tensor(images, device=self.device).permute(0, 3, 1, 2).float()
        return self.model(batch).float().cpu().numpy()

    def classify(self, features: np.ndarray) -> np.ndarray | None:
        """Predicted classes (B,) of features (B, d); None if the extractor is not a classifier."""
        if self._classifier is None:
            return None
        return self._classifier.logits(torch.from_numpy(features).to(self.device)).argmax(1).cpu().numpy()


def save_extractor(folder: Path, name: str, mode: str, trained: TrainedClassifier | None = None) -> None:
    """Write an extractor folder.

    With the name `classifier`, `trained` is saved; with `inception`, the weights are downloaded unless they exist.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = {"name": name, "mode": mode}
    if trained is not None:
        config |= {"accuracy": trained.accuracy, "classifier": trained.classifier.config}
        config["scale"] = float(trained.classifier.scale)  # by which features were divided, and FID by its square
        save_file(trained.classifier.state_dict(), folder / "classifier.safetensors")
    else:
        check_download_inception(str(folder))
    (folder / "extractor.json").write_text(json.dumps(config, indent=1) + "\n")

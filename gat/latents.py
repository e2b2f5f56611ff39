"""Latents as posterior moments: their folder on disk, and the order in which training reads them.

Folder: `moments.npy` float16 (N, M, 2C, H, W), mean then standard deviation, unscaled, of every image and, where
M = 2, of its mirror image; `labels.npy` int64 (N,); `latents.json`. `write_latents` and `Latents` are its only writer
and reader.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from gat.images import Images
from gat.seeds import seed_of

Encoder = Callable[[np.ndarray], tuple[Tensor, Tensor]]  # see gat.vae.encode


def write_latents(
    images: Images,
    encode: Encoder,
    folder: Path,
    scaling_factor: float,
    mirror: bool,
    batch_size: int,
    progress: bool = True,
) -> None:
    """Encode every image, and its mirror image where asked, into a latents folder."""
    folder.mkdir(parents=True, exist_ok=True)
    mean, _ = encode(images[:1])
    views = 2 if mirror else 1
    shape = (len(images), views, 2 * mean.shape[1], *mean.shape[2:])
    moments = np.lib.format.open_memmap(folder / "moments.npy", mode="w+", dtype=np.float16, shape=shape)
    with tqdm(total=len(images), desc="latents", unit="image", disable=not progress) as bar:
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size]
            for view, pixels in enumerate((batch, np.ascontiguousarray(batch[:, :, ::-1]))[:views]):
                moments[start : start + len(batch), view] = torch.cat(encode(pixels), dim=1).half().cpu().numpy()
            bar.update(len(batch))
    moments.flush()
    np.save(folder / "labels.npy", images.labels)
    digest = hashlib.blake2b(digest_size=16)
    for name in ("moments.npy", "labels.npy"):
        with (folder / name).open("rb") as file:
            while block := file.read(1 << 24):
                digest.update(block)
    info = {"scaling_factor": scaling_factor, "classes": images.classes, "digest": digest.hexdigest()}
    (folder / "latents.json").write_text(json.dumps(info, indent=1) + "\n")


class Latents:
    """A latents folder, memory-mapped.

    Attributes:
        moments: float16 (N, M, 2C, H, W).
        labels: int64 (N,).
        classes: names by label.
        scaling_factor: what makes the latents' standard deviation 1.
        digest: of the contents, to recognize them by.
    """

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        info = json.loads((folder / "latents.json").read_text())
        self.moments: np.ndarray = np.load(folder / "moments.npy", mmap_mode="r")
        self.labels: np.ndarray = np.load(folder / "labels.npy")
        self.classes: list[str] = info["classes"]
        self.scaling_factor: float = info["scaling_factor"]
        self.digest: str = info["digest"]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def channels(self) -> int:
        """Channels C of a latent."""
        return self.moments.shape[2] // 2

    @property
    def size(self) -> int:
        """Side of a latent."""
        return self.moments.shape[-1]


class TrainingBatches(Dataset[tuple[Tensor, Tensor]]):
    """This process's share of the batch of any step: item `step` is (moments (b, 2C, H, W) float16, labels (b,)).

    Samples are read in a stream of random permutations of the data, so that none is seen twice in an epoch, whatever
    the batch size, and any step can be asked for at once: that is how a run resumes.

    Args:
        latents: where to read.
        batch_size: of all processes together.
        seed: of the order and of the choice of mirror images.
        rank, processes: which share of each batch, and of how many.
    """

    def __init__(self, latents: Latents, batch_size: int, seed: int, rank: int = 0, processes: int = 1) -> None:
        self.latents, self.batch_size, self.seed = latents, batch_size, seed
        share = batch_size // processes
        self.share = slice(rank * share, (rank + 1) * share)
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def indices(self, step: int) -> np.ndarray:
        """Which samples the whole batch of a step holds, over all processes: int64 (batch_size,)."""
        count, parts = len(self.latents), []
        position, end = step * self.batch_size, (step + 1) * self.batch_size
        while position < end:
            epoch, offset = divmod(position, count)
            if epoch != self._epoch:
                self._epoch = epoch
                self._order = np.random.default_rng(seed_of(self.seed, 0, epoch)).permutation(count)
            parts.append(self._order[offset : offset + end - position])
            position += len(parts[-1])
        return np.concatenate(parts)

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        index = self.indices(step)
        views = self.latents.moments.shape[1]
        view = np.random.default_rng(seed_of(self.seed, 1, step)).integers(views, size=len(index))
        index, view = index[self.share], view[self.share]
        return torch.from_numpy(self.latents.moments[index, view]), torch.from_numpy(self.latents.labels[index])

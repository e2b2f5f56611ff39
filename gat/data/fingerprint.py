"""Identifies the files of a local source by their names, sizes and content."""

import hashlib
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from pyarrow import feather
from tqdm import tqdm

from gat.data.sources import files_in, unreadable
from gat.files import atomic_write

JUST_NOW = 2_000_000_000  # ns in which a file may change again without another time
THREADS = 32  # file servers are slow, but handle many requests at a time


class Stamp(NamedTuple):
    """A file by its name relative to the source, with what tells whether it has changed; a broken link has size −1."""

    name: str
    size: int
    time: int  # of modification, in ns
    changed: int  # when its content or attributes were last changed, in ns; programs cannot set it


def fingerprint(source: str, index: Path | None = None, progress: bool = True) -> dict[str, Any]:
    """Identifies the content of a local source: its number of files, and a hash of their names, sizes and content.

    For a hub id, and for the digits in a package, it has only the name.

    Args:
        source: see `gat.data.sources.load_source`.
        index: file with the hashes that the last call has computed. A file is read only if its size or one of its
            times is another.
        progress: show a progress bar.

    Raises:
        ParamsError: a folder or file in it cannot be read.
    """
    path = Path(source)
    if not path.exists():
        return {"source": source}
    base = path if path.is_dir() else path.parent
    known = {} if index is None else _read(index)
    try:
        stamps = _stamps(path)
        new = [stamp for stamp in stamps if stamp.size >= 0 and stamp not in known]
        with ThreadPoolExecutor(THREADS) as pool:
            hashes = pool.map(lambda stamp: _hash(base / stamp.name), new)
            hidden = not progress or len(new) < 1000
            known |= dict(zip(new, tqdm(hashes, "data.source", len(new), unit="file", disable=hidden), strict=True))
    except OSError as error:
        raise unreadable(error) from None
    if index is not None and new:
        old = time.time_ns() - JUST_NOW
        kept = [stamp for stamp in stamps if stamp in known and max(stamp.time, stamp.changed) < old]
        _write(index, {stamp: known[stamp] for stamp in kept})
    lines = sorted(f"{stamp.name}\0{stamp.size}\0{known.get(stamp, '')}" for stamp in stamps)
    digest = hashlib.blake2b("\0".join(lines).encode(errors="surrogateescape"), digest_size=16)
    return {"files": len(lines), "digest": digest.hexdigest()}


def _stamps(path: Path) -> list[Stamp]:
    """Stamps of a file, or of all files in a folder and its subfolders."""
    if not path.is_dir():
        return [_stamp(path, path.parent)]
    folders = [Path(entry.path) for entry in os.scandir(path) if entry.is_dir()]
    stamps = [_stamp(file, path) for file in path.iterdir() if not file.is_dir()]
    with ThreadPoolExecutor(THREADS) as pool:
        for part in pool.map(lambda folder: [_stamp(Path(file), path) for file in files_in(folder)], folders):
            stamps += part
    return stamps


def _stamp(file: Path, base: Path) -> Stamp:
    name = str(file.relative_to(base))
    try:
        status = file.stat()
    except OSError:  # a broken link
        return Stamp(name, -1, 0, 0)
    return Stamp(name, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _hash(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _read(index: Path) -> dict[Stamp, str]:
    """The hashes of an index; none if there is no readable one of these columns."""
    try:
        columns = feather.read_table(index, [*Stamp._fields, "hash"]).to_pydict()
    except (OSError, pa.ArrowInvalid):
        return {}
    columns["name"] = [name.decode(errors="surrogateescape") for name in columns["name"]]
    stamps = (Stamp(*stamp) for stamp in zip(*(columns[key] for key in Stamp._fields), strict=True))
    return dict(zip(stamps, columns["hash"], strict=True))


def _write(index: Path, hashes: dict[Stamp, str]) -> None:
    """Write an index, unless its folder cannot be written to."""
    columns: dict[str, Any] = {key: [getattr(stamp, key) for stamp in hashes] for key in Stamp._fields}
    columns["name"] = pa.array([name.encode(errors="surrogateescape") for name in columns["name"]], pa.binary())
    try:
        index.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(index) as temporary:
            feather.write_feather(pa.table(columns | {"hash": [*hashes.values()]}), temporary)
    except OSError:
        pass

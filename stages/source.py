"""Fingerprint of the files in data.source, and each run's teacher: params.yaml -> data/source.json, data/teachers.json.

python -m stages source

DVC cannot depend on a path from params.yaml, so this stage always runs. It reads the names, sizes and times of all
files, and the content of those that are new since the last time. If its out is unchanged, no other stage reruns. For a
hub id it reads only the name. Where the files are missing, as in a clone on another machine, the out stays as it is.
It also checks the configurations of pretrained models and, before images are cut, loads those that are new.
"""

import hashlib
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from platformdirs import user_cache_path

from gat.config import MODEL, Params, ParamsError
from gat.data.fingerprint import fingerprint
from gat.data.kinds import check_encoder, find_vae
from gat.files import json_text, write_json
from stages import (
    ANALYSES,
    ARMS,
    CHECKPOINTS,
    IMAGES,
    SHOWCASE,
    SOURCE,
    WANTED_TEACHERS,
    locked_md5,
    locked_param,
    locked_values,
    teacher_folder,
)


def main(params: Params) -> None:
    """Run the stage."""
    for folder, runs in ((SHOWCASE, params.runs), (ARMS, params.arms), (ANALYSES, params.analyze.runs)):
        if not runs:  # other stages depend on it
            folder.mkdir(parents=True, exist_ok=True)
    check_models(params)
    if not IMAGES.exists():
        load_models(params)
    write_json(WANTED_TEACHERS, teachers(params))
    source = params.data.source
    if not Path(source).exists() and (last := last_fingerprint(source)) is not None:
        write_json(SOURCE, last)
        print(f"data.source: {source} is not on this machine; using what was made from it")
        return
    name = hashlib.blake2b(str(Path(source).absolute()).encode(), digest_size=10).hexdigest()
    write_json(SOURCE, fingerprint(source, user_cache_path("gat-scaling") / f"sources/{name}.arrow"))


def teachers(params: Params) -> dict[str, dict[str, Any]]:
    """Each run's teacher and the key of params.yaml that names it, by the name of its folder in data/teachers."""
    wanted = {}
    for run in (MODEL, *params.trained_runs, *params.rates.names):
        repa, pretrained = params.repa_of(run), params.run(run).pretrained is not None
        wanted[teacher_folder(params, run).name] = {
            "teacher": None if pretrained else repa.teacher,
            "random_weights": repa.random_weights,
            "key": f"{params.key(run)}." * bool(params.run(run).repa) + "repa.teacher",
        }
    return wanted


class Model(NamedTuple):
    """A pretrained model that params.yaml names."""

    key: str
    name: str
    random_weights: bool | None  # of an encoder; None: it is an autoencoder


def models(params: Params) -> list[Model]:
    """The pretrained models, but for outs of this project and folders that are not on this machine."""
    named = [("vae.pretrained", params.vae.pretrained, None), ("encoder.pretrained", params.encoder.pretrained, False)]
    named += [(own["key"], own["teacher"], own["random_weights"]) for own in teachers(params).values()]
    return [
        Model(key, name, random)
        for key, name, random in named
        if name is not None and Path(name).parts[:1] != SOURCE.parts[:1] and (Path(name).exists() or not is_path(name))
    ]


def check_models(params: Params) -> None:
    """Check what the configurations of pretrained models say, before anything is computed for hours.

    Raises:
        ParamsError: a model cannot be used.
    """
    for model in models(params):
        try:
            if model.random_weights is None:
                find_vae(model.name, model.key)
            else:
                check_encoder(model.name, model.key)
        except ParamsError:
            raise
        except Exception:  # of the hub, if it has no such model or cannot be reached, which takes long to notice
            return


def load_models(params: Params) -> None:
    """Load each pretrained model once, as the stages that use it do; but not those that dvc.lock names.

    Raises:
        ParamsError: a model cannot be loaded, or has weights that cannot be used.
    """
    known = locked_values()
    new = {(model.name, model.random_weights): model for model in models(params) if model.name not in known}
    for key, name, random_weights in new.values():
        from gat.data.pretrained_vae import fetch_vae
        from gat.data.vision import fetch_vision_model

        print(f"{key}: loading {name}, to see whether it can be used", flush=True)
        CHECKPOINTS.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=CHECKPOINTS) as folder:
            if random_weights is None:
                fetch_vae(name, Path(folder), key)
            else:
                fetch_vision_model(name, Path(folder), key, random_weights)


def is_path(name: str) -> bool:
    """Whether a value of params.yaml can only be a path, not a hub id."""
    return name.startswith((".", "/", "~"))


def last_fingerprint(source: str) -> dict[str, Any] | None:
    """The out that dvc.lock has for a source that is not here; None if it is a hub id.

    Raises:
        ParamsError: it is a path, or dvc.lock has files for it, and neither DVC's cache nor a remote has the out.
    """
    digest = locked_md5("source", SOURCE) if locked_param("source", "data.source") == source else None
    of_hub = hashlib.md5(json_text(fingerprint(source)).encode()).hexdigest()
    if digest in (None, of_hub) and not is_path(source):
        return None
    try:
        if digest is None:
            raise FileNotFoundError(source)
        content: dict[str, Any] = json.loads(read_out(SOURCE, digest))
    except Exception:  # of DVC, if the cache has none and there is no remote, or it cannot be reached
        raise ParamsError(
            f"data.source: {source!r} is not allowed; allowed: a file or folder that exists, or one from which images "
            "were made on another machine (dvc pull)"
        ) from None
    return content if "files" in content or is_path(source) else None


def read_out(path: Path, digest: str) -> bytes:
    """The content of an out by its MD5 in dvc.lock: the file if it has it, else from DVC's cache or a remote.

    Raises:
        ValueError: what DVC has is another one, as a cache whose files were written to.
        Exception: of DVC, if it has none.
    """

    def fits(content: bytes) -> bool:
        return hashlib.md5(content).hexdigest() == digest

    if path.exists() and fits(content := path.read_bytes()):
        return content
    from dvc.repo import Repo

    with Repo() as repo:
        content = repo.datafs.cat_file(str(path))  # `dvc.api` would read the file
    if not fits(content):
        raise ValueError(path)
    return content

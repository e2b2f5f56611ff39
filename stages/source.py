"""Fingerprint of the files in data.source, and each run's teacher: params.yaml -> data/source.json, data/teachers.json.

python -m stages source

DVC cannot depend on a path from params.yaml, so this stage always runs. It reads the names, sizes and times of all
files, and the content of those that are new since the last time. If its out is unchanged, no other stage reruns. For a
hub id it reads only the name. Where the files are missing, as in a clone on another machine, the out stays as it is.
It also checks the configurations of pretrained models.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, try_to_load_from_cache
from platformdirs import user_cache_path

from gat.config import MODEL, Params, ParamsError
from gat.data.fingerprint import fingerprint
from gat.data.kinds import VAE_FOLDERS, encoder_problem, vae_problem
from gat.files import json_text, write_json
from stages import ANALYSES, ARMS, SHOWCASE, SOURCE, WANTED_TEACHERS, locked_md5, locked_param, teacher_folder

VAE_FILES = [f"{folder}/config.json".lstrip("/") for folder in VAE_FOLDERS]


def main(params: Params) -> None:
    """Run the stage."""
    for folder, runs in ((SHOWCASE, params.runs), (ARMS, params.arms), (ANALYSES, params.analyze.runs)):
        if not runs:  # other stages depend on it
            folder.mkdir(parents=True, exist_ok=True)
    check_models(params)
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


def check_models(params: Params) -> None:
    """Check what the configurations of pretrained models say, before anything is computed for hours.

    Raises:
        ParamsError: a model is of a kind that cannot be used.
    """
    encoders = {"encoder.pretrained": params.encoder.pretrained}
    encoders |= {own["key"]: own["teacher"] for own in teachers(params).values()}
    problems: dict[str, tuple[str, str | None]] = {}
    for key, name in encoders.items():
        if name is not None and (config := model_file(name, "config.json")) is not None:
            problems[key] = name, encoder_problem(config, model_file(name, "preprocessor_config.json"))
    vae = params.vae.pretrained
    found = [] if vae is None else [config for file in VAE_FILES if (config := model_file(vae, file)) is not None]
    if found and all(vae_problem(config) for config in found):
        problems["vae.pretrained"] = str(vae), vae_problem(found[0])
    for key, (name, problem) in problems.items():
        if problem is not None:
            raise ParamsError(f"{key}: {name!r} {problem}")


def model_file(name: str, file: str) -> dict[str, Any] | None:
    """A JSON file of a model in a folder or, if it can be reached, on a hub; None if it is not there."""
    path = Path(name) / file
    if not Path(name).is_dir() and not name.startswith((".", "/", "~", "data/")):
        try:
            path = Path(try_to_load_from_cache(name, file) or hf_hub_download(name, file))
        except Exception:  # no such repository or file, no network, …; the stage that loads the model says which
            return None
    return json.loads(path.read_text()) if path.is_file() else None


def last_fingerprint(source: str) -> dict[str, Any] | None:
    """The out that dvc.lock has for a source that is not here; None if it is a hub id.

    Raises:
        ParamsError: it is a path, or dvc.lock has files for it, and neither DVC's cache nor a remote has the out.
    """
    digest = locked_md5("source", SOURCE) if locked_param("source", "data.source") == source else None
    of_hub = hashlib.md5(json_text(fingerprint(source)).encode()).hexdigest()
    if digest in (None, of_hub) and not source.startswith((".", "/", "~")):
        return None
    try:
        content: dict[str, Any] = json.loads(read_out(SOURCE, digest))
    except Exception:  # of DVC, if the cache has none and there is no remote, or it cannot be reached
        raise ParamsError(
            f"data.source: {source!r} is not allowed; allowed: a file or folder that exists, or one from which images "
            "were made on another machine (dvc pull)"
        ) from None
    return content if "files" in content else None


def read_out(path: Path, digest: str | None) -> bytes:
    """The content of an out by its MD5 in dvc.lock: the file if it has it, else from DVC's cache or a remote.

    Raises:
        Exception: of DVC, if there is none.
    """
    if digest is None:
        raise FileNotFoundError(path)
    if path.exists() and hashlib.md5(content := path.read_bytes()).hexdigest() == digest:
        return content
    from dvc.repo import Repo

    with Repo() as repo:
        found: bytes = repo.datafs.cat_file(str(path))  # `dvc.api` would read the file
    return found

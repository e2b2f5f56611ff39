"""Fingerprint of the files in data.source: data.source -> data/source.json.

python -m stages source

DVC cannot depend on a path from params.yaml, so this stage always runs. It reads the names, sizes and times of all
files, and the content of those that are new since the last time. If its out is unchanged, no other stage reruns. For a
hub id it reads only the name. Where the files are missing, as in a clone on another machine, the out stays as it is.
"""

import hashlib
import json
from pathlib import Path

from platformdirs import user_cache_path

from gat.config import Params, ParamsError
from gat.data.fingerprint import fingerprint
from gat.files import write_json
from stages import ANALYSES, ARMS, SHOWCASE, SOURCE, locked_param


def main(params: Params) -> None:
    """Run the stage."""
    for folder, runs in ((SHOWCASE, params.runs), (ARMS, params.arms), (ANALYSES, params.analyze.runs)):
        if not runs:  # other stages depend on it
            folder.mkdir(parents=True, exist_ok=True)
    source = params.data.source
    if source.startswith((".", "/", "~")) and not Path(source).exists():
        write_json(SOURCE, last_fingerprint(source))
        print(f"data.source: {source} is not on this machine; using what was made from it")
        return
    name = hashlib.blake2b(str(Path(source).absolute()).encode(), digest_size=10).hexdigest()
    write_json(SOURCE, fingerprint(source, user_cache_path("gat-scaling") / f"sources/{name}.arrow"))


def last_fingerprint(source: str) -> dict[str, str]:
    """The out that dvc.lock has for this source, from DVC's cache or a remote.

    Raises:
        ParamsError: there is none.
    """
    from dvc.api import read

    try:
        if locked_param("source", "data.source") != source:
            raise FileNotFoundError
        content: dict[str, str] = json.loads(read(str(SOURCE)))
    except Exception:  # of DVC, if the cache has none and there is no remote, or it cannot be reached
        raise ParamsError(
            f"data.source: {source!r} is not allowed; allowed: a file or folder that exists, or one from which images "
            "were made on another machine (dvc pull)"
        ) from None
    return content

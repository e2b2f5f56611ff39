"""Fingerprint of the files in data.source: data.source -> data/source.json.

python -m stages source

DVC cannot depend on a path from params.yaml, so this stage always runs and reads the names, sizes and modification
times of all files. If its out is unchanged, no other stage reruns. For a hub id it reads only the name.
"""

from gat.config import Params
from gat.data.sources import fingerprint
from gat.files import write_json
from stages import ANALYSES, ARMS, SHOWCASE, SOURCE


def main(params: Params) -> None:
    """Run the stage."""
    for folder in (SHOWCASE, ARMS, ANALYSES):  # deps of other stages, which must exist even if empty
        folder.mkdir(parents=True, exist_ok=True)
    write_json(SOURCE, fingerprint(params.data.source))

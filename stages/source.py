"""What the files of data.source are: data.source -> data/source.json.

python -m stages source

DVC cannot depend on a place that params.yaml names, so this stage always runs, in the time that a look at all names,
sizes and times takes. Where its out is what it was, nothing else runs. Of a hub id only the name is looked at.
"""

from gat.config import Params
from gat.data.sources import fingerprint
from gat.files import write_json
from stages import ABLATIONS, ANALYSES, SHOWCASE, SOURCE


def main(params: Params) -> None:
    """Run the stage."""
    for folder in (SHOWCASE, ABLATIONS, ANALYSES):  # deps of others, also where nothing is to be shown or analysed
        folder.mkdir(parents=True, exist_ok=True)
    write_json(SOURCE, fingerprint(params.data.source))

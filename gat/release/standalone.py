"""The code that a model's folder carries, so that it loads where this package is not installed."""

import hashlib
import inspect
import re
import sys
from pathlib import Path

PACKAGE = __name__.partition(".")[0]
IMPORT = re.compile(rf"^from ({PACKAGE}\.[\w.]+) import (?:\([^)]*\)|[^(\n]*)\n", re.MULTILINE)


def standalone(cls: type) -> str:
    """The source of a class's module and, before it, of what that imports from this package: as one file.

    One, since diffusers fetches a single file of code for each component. Names must be imported one by one
    (`from gat.gan.ops import rotate`). Of a class that came out of such a file, it is that file again.
    """
    sources: dict[str, str] = {}

    def add(name: str) -> None:
        source = inspect.getsource(sys.modules[name])
        for needed in IMPORT.findall(source):
            if needed not in sources:
                add(needed)
        sources[name] = IMPORT.sub("", source)

    add(cls.__module__)
    if len(sources) == 1:
        return next(iter(sources.values()))
    return "\n\n".join(f"# {name}\n\n{source}" for name, source in sources.items())


def write_standalone(folder: Path, name: str, cls: type) -> list[str]:
    """Write a class's standalone code into a folder; returns what diffusers' indices say: the module, and the class.

    The file's name has a hash of its content: diffusers keeps the code of all folders under their files' names alone,
    and would give a model that was loaded before the code of one that is loaded after it.
    """
    source = standalone(cls).encode()
    module = f"{name}_{hashlib.blake2b(source, digest_size=6).hexdigest()}"
    for old in folder.glob(f"{name}_*.py"):
        old.unlink()
    (folder / f"{module}.py").write_bytes(source)
    return [module, cls.__name__]

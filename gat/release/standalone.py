"""Single-file copies of the code of a pipeline, for folders that load where this package is not installed."""

import hashlib
import inspect
import re
import sys
from pathlib import Path

PACKAGE = __name__.partition(".")[0]
IMPORT = re.compile(rf"^from ({PACKAGE}\.[\w.]+) import (?:\([^)]*\)|[^(\n]*)\n", re.MULTILINE)


def standalone(cls: type) -> str:
    """The source of a class's module, preceded by all modules of this package that it imports, as one file.

    diffusers fetches a single file of code for each component. The modules must import names, not modules
    (`from gat.gan.ops import rotate`). A class that was loaded from such a file gives that file again.
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
    """Write a class's standalone code into a folder and return [module, class], as diffusers' index files name it.

    The file's name has a hash of its content, because diffusers caches code by file name: the code of a folder would
    replace that of another one loaded before.
    """
    source = standalone(cls).encode()
    module = f"{name}_{hashlib.blake2b(source, digest_size=6).hexdigest()}"
    for old in folder.glob(f"{name}_*.py"):
        old.unlink()
    (folder / f"{module}.py").write_bytes(source)
    return [module, cls.__name__]

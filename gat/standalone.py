"""The code that a model's folder carries, so that it loads where this package is not installed."""

import inspect
import re
import sys

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

"""Hashes of the code of each stage: stages/, gat/ -> data/code/STAGE.

python -m stages code

Each file lists every module of the project that the stage imports, directly or indirectly, with a hash of its syntax
tree without docstrings, comments, formatting and the text of raised errors. The other stages depend on these files: a
changed constant reruns the stages that import it, a reworded comment reruns nothing.
"""

import ast
import hashlib
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any

from gat.config import Params
from gat.files import atomic_write
from stages import CODE

# Modules that decide no result. They are not hashed, but the modules that they import are.
DECIDE_NOTHING = {
    "gat.config": "validation of params.yaml; dvc.yaml lists the keys that a stage reads",
    "gat.files": "atomic writes and locks",
    "gat.gan.checkpoints": "file format of checkpoints",
    "gat.runtime": "devices, processes and threads",
    "gat.study.results": "file format of results",
    "stages": "paths",
    "stages.code": "this module",
}
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
STAGES = (
    *("source", "tidy", "images", "extractor", "encoder", "teachers", "reference", "statistics", "vae", "latents"),
    *("floors", "train", "evaluate", "samples", "package", "showcase", "analyze", "summary", "report"),
)


def main(params: Params) -> None:
    """Run the stage."""
    with atomic_write(CODE) as folder:
        folder.mkdir()
        for stage in STAGES:
            (folder / stage).write_text(code_of(stage), encoding="utf-8")


def code_of(stage: str) -> str:
    """The modules that decide a stage's result, with their hashes, one per line."""
    found: dict[str, str] = {}
    new = {f"stages.{stage}"}
    while new:
        module = new.pop()
        found[module], imports = syntax(module)
        new |= imports - found.keys()
    return "".join(f"{module} {found[module]}\n" for module in sorted(found.keys() - DECIDE_NOTHING.keys()))


@cache
def syntax(module: str) -> tuple[str, set[str]]:
    """Hash of a module's syntax tree, and the modules of the project that it imports, with their packages.

    The hash ignores docstrings, comments, formatting and the text of raised errors. It is the same in every version of
    Python.
    """
    imports: list[str] = []
    tree = _plain(ast.parse(_file(module).read_bytes()), imports)
    project = {name for name in imports if name.split(".")[0] in ("gat", "stages") and _file(name).exists()}
    packages = {parent for name in project for parent in accumulate(name.split("."), "{}.{}".format)}
    return hashlib.blake2b(repr(tree).encode(), digest_size=10).hexdigest(), packages


def _file(module: str) -> Path:
    """Path of a module of the project, which may not exist."""
    path = Path(module.replace(".", "/"))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _plain(node: Any, imports: list[str]) -> Any:
    """A syntax tree as nested lists without docstrings and the text of raised errors; adds imported names to `imports`.

    Empty fields are left out, since newer versions of Python have more of them.
    """
    if isinstance(node, list):
        return [_plain(item, imports) for item in node]
    if not isinstance(node, ast.AST):
        return node
    if isinstance(node, ast.ImportFrom) and node.module is not None:
        imports += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    elif isinstance(node, ast.Import):
        imports += [alias.name for alias in node.names]
    elif isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
        node.exc.args = []
    elif isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
        node.body = node.body[1:]
    fields = [(name, getattr(node, name, None)) for name in node._fields if name not in ("ctx", "kind")]
    return [
        type(node).__name__,
        *((name, _plain(value, imports)) for name, value in fields if value is not None and value != []),
    ]

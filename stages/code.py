"""What the code of each stage is, apart from its wording: stages/, gat/ -> data/code/STAGE.

python -m stages code

Each file names every module of the project that its stage imports, however deep, with a hash of the module's syntax
tree: without docstrings, comments and formatting. The other stages depend on these files, so that a changed constant
reruns what it decides, and a reworded comment nothing.
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

# Modules that decide no result. They are not hashed; what they import is.
DECIDE_NOTHING = {
    "gat.config": "checks params.yaml; dvc.yaml names the keys that a stage reads",
    "gat.files": "how files are written",
    "gat.gan.checkpoints": "how an interrupted training is stored",
    "gat.runtime": "devices, processes and threads",
    "gat.study.results": "how results are stored",
    "stages": "paths",
    "stages.code": "this module",
}
STAGES = (
    *("source", "tidy", "images", "extractor", "reference", "vae", "latents", "floors"),
    *("train", "evaluate", "package", "showcase", "analyze", "summary", "report"),
)


def main(params: Params) -> None:
    """Run the stage."""
    with atomic_write(CODE) as folder:
        folder.mkdir()
        for stage in STAGES:
            (folder / stage).write_text(code_of(stage), encoding="utf-8")


def code_of(stage: str) -> str:
    """The modules that decide a stage's result, with their hashes, a line each."""
    modules, new = set[str](), {f"stages.{stage}"}
    while new:
        modules |= new
        new = {other for module in new for other in imported(module)} - modules
    return "".join(f"{module} {syntax_hash(module)}\n" for module in sorted(modules - DECIDE_NOTHING.keys()))


def source_file(module: str) -> Path:
    """Where a module of the project is; there need not be one of this name."""
    path = Path(module.replace(".", "/"))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@cache
def syntax_tree(module: str) -> ast.Module:
    """What a module says."""
    return ast.parse(source_file(module).read_bytes())


@cache
def imported(module: str) -> set[str]:
    """The modules of the project that a module imports, at its top or inside a function, with their packages."""
    names = set()
    for node in ast.walk(syntax_tree(module)):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    project = {name for name in names if name.split(".")[0] in ("gat", "stages") and source_file(name).exists()}
    return {parent for name in project for parent in accumulate(name.split("."), "{}.{}".format)}


@cache
def syntax_hash(module: str) -> str:
    """Hash of a module's syntax tree without docstrings; the same under every version of Python."""
    return hashlib.blake2b(repr(_plain(syntax_tree(module))).encode(), digest_size=10).hexdigest()


def _plain(node: Any) -> Any:
    """A syntax tree as nested lists, without empty fields, which newer versions of Python have more of."""
    if isinstance(node, list):
        return [_plain(item) for item in node]
    if not isinstance(node, ast.AST):
        return node
    fields = {name: value for name, value in ast.iter_fields(node) if name not in ("ctx", "kind")}
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(node):
        fields["body"] = node.body[1:]
    return [type(node).__name__, *((name, _plain(value)) for name, value in fields.items() if value not in (None, []))]

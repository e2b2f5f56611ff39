"""Installs requirements.lock into .venv, for the Makefile.

python stages/install.py

It needs nothing but Python and pip. Of pip's settings, from pip.conf or the environment, it keeps only those that say
where packages come from: others would change what is installed (`PIP_CONSTRAINT`) or where (`PIP_USER`, `PIP_TARGET`).
"""

import ast
import os
import subprocess
import sys
import venv
from pathlib import Path

FOLDER = Path(".venv")
SOURCES = {
    *("index-url", "extra-index-url", "find-links", "no-index", "trusted-host", "keyring-provider"),
    *("cert", "client-cert", "proxy", "timeout", "default-timeout", "retries", "cache-dir", "no-cache-dir"),
}
IMPORTED = (
    "torch",
    "torchvision",
    "diffusers",
    "transformers",
    "accelerate",
    "dvc",
    "dvclive",
    "cleanfid",
    "matplotlib",
)


def settings(python: str, environment: dict[str, str]) -> str:
    """What `pip config list` prints of all of pip's files: lines such as global.index-url='https://…'."""
    shown = {name: value for name, value in environment.items() if not name.startswith(("PIP_", "PYTHON"))}
    shown |= {name: value for name, value in environment.items() if name == "PIP_CONFIG_FILE"}
    shown |= dict.fromkeys(("PIP_USER", "PIP_GLOBAL", "PIP_SITE", "PIP_ISOLATED", "PIP_QUIET"), "0")  # of `pip config`
    return subprocess.run([python, "-m", "pip", "config", "list"], env=shown, capture_output=True, text=True).stdout


def clean(environment: dict[str, str], listed: str) -> dict[str, str]:
    """An environment without Python's and pip's variables, but with the sources of packages.

    As in pip, variables take precedence over the section `install` of files, and that over `global`; other sections
    and empty values are ignored.

    Args:
        environment: as it is.
        listed: see `settings`.
    """
    lines = [line.partition("=") for line in listed.splitlines()]
    found = [
        (key.removeprefix(section), str(ast.literal_eval(value)))
        for section in ("global.", "install.")
        for key, _, value in lines
        if key.startswith(section)
    ]
    found += [(name.removeprefix("PIP_"), value) for name, value in environment.items() if name.startswith("PIP_")]
    kept = {name: value for name, value in environment.items() if not name.startswith(("PIP_", "PYTHON"))}
    kept["PIP_CONFIG_FILE"] = os.devnull
    for name, value in found:
        option = name.lower().replace("_", "-")
        if option in SOURCES and value:
            variable = f"PIP_{option.upper().replace('-', '_')}"
            kept.pop(variable, None)  # of timeout and default-timeout, for example, pip uses the last
            kept[variable] = value
    return kept


def is_writable(folder: Path) -> bool:
    """Whether files can be written in a folder, or in the one in which it would be made."""
    existing = next((path for path in (folder, *folder.parents) if path.exists()), Path())
    return os.access(existing, os.W_OK)


def main() -> None:
    """Command line."""
    if sys.version_info < (3, 11):  # noqa: UP036 (which comes before all else)
        sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.11")
    print(f"installing requirements.lock into {FOLDER}, a few minutes the first time", flush=True)
    venv.create(FOLDER, with_pip=True)
    python = str(FOLDER / "bin/python")
    environment = clean(dict(os.environ), settings(python, dict(os.environ)))
    cache = subprocess.run([python, "-m", "pip", "cache", "dir"], env=environment, capture_output=True, text=True)
    if not is_writable(Path(cache.stdout.strip())):  # pip could not keep the packages that it builds
        environment["PIP_NO_CACHE_DIR"] = "1"
    install = [python, "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    try:
        subprocess.run([*install, "--require-hashes", "-r", "requirements.lock"], check=True, env=environment)
        imports = [python, "-I", "-c", f"import {', '.join(IMPORTED)}"]
        subprocess.run(imports, check=True, env=environment | {"MPLBACKEND": "agg"})  # a notebook's is not installed
    except subprocess.CalledProcessError as error:
        sys.exit(f"the installation failed; `{' '.join(error.cmd)}` ended with {error.returncode}")
    (FOLDER / "installed").touch()


if __name__ == "__main__":
    main()

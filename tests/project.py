"""A copy of the project in which commands are typed."""

import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import chdir
from pathlib import Path

import psutil
import yaml
from dvc.repo import Repo

ROOT = Path(__file__).parent.parent
SOURCES = (
    ".dvc/config",
    ".dvc/.gitignore",
    ".dvcignore",
    ".gitignore",
    "dvc.yaml",
    "claims/dvc.yaml",
    "claims/summary.json",
    "gat",
    "stages",
    "profiles",
)

ALWAYS = ("source", "code")  # stages that always run
SHARED = (  # those that all trainings share
    *("tidy", "images", "extractor", "reference", "encoder", "teachers", "statistics", "vae", "latents"),
    *("floors", "report"),
)


class Project:
    """A copy of the project in which commands are typed."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder = folder
        self.prefix: tuple[str, ...] = ()  # of all commands
        venv = Path(sys.executable).parent
        self.env = {
            **os.environ,
            "PATH": f"{venv}:{os.environ['PATH']}",
            "GIT_AUTHOR_NAME": "t",
            "GIT_AUTHOR_EMAIL": "t",
        }
        self.env |= {"GIT_COMMITTER_NAME": "t", "GIT_COMMITTER_EMAIL": "t", "COLUMNS": "120"}
        for name in ("GAT_CHECKPOINTS", "GAT_LAUNCH"):
            self.env.pop(name, None)
        self.env |= environment

    @property
    def reads(self) -> Path:
        """Where tests/recorder writes which keys of params.yaml each stage reads."""
        return self.folder.with_name("reads")

    @classmethod
    def copy(cls, folder: Path, profile: str, **environment: str) -> "Project":
        """The project's sources, without results, on a profile, committed."""
        for name in SOURCES:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)
        shutil.copy(folder / "profiles" / profile, folder / "params.yaml")
        reference = yaml.safe_load((folder / "params.yaml").read_text())["metrics"]["reference"]
        if reference is not None:
            (folder / reference).touch()
        project = cls(folder, **environment)
        project.type("git", "init", "--quiet", "--initial-branch", "main")
        project.commit()
        return project

    def duplicate(self, folder: Path, **environment: str) -> "Project":
        """A copy with all results, in another folder."""
        shutil.copytree(self.folder, folder, symlinks=True)
        return Project(folder, **environment)

    def type(self, *command: str, check: bool = True) -> subprocess.CompletedProcess:
        command = (*self.prefix, *command)
        done = subprocess.run(command, cwd=self.folder, env=self.env, capture_output=True, text=True)
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def would_run(self, code: bool = False, graph: str = "dvc.yaml") -> list[str]:
        """The stages of a graph that DVC finds changed, but for those that always run; of changed code after `code`."""
        if code:
            self.type("python", "-m", "stages", "code")
        with chdir(self.folder), Repo() as repo:  # DVC names stages relative to where it is
            changed = repo.status(targets=[graph])
        return sorted(changed.keys() - {"source", "code", "claims/dvc.yaml:summary"})

    def params(self) -> dict:
        """The content of params.yaml."""
        return yaml.safe_load((self.folder / "params.yaml").read_text())

    def set(self, key: str, value: object) -> None:
        """Change one value of params.yaml."""
        params = place = self.params()
        *parents, last = key.split(".")
        for parent in parents:
            place = place[parent]
        place[last] = value
        (self.folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))

    def replace(self, **sections: dict | list) -> None:
        """Change keys of sections of params.yaml; lists as a whole."""
        params = self.params()
        for name, values in sections.items():
            params[name] = values if isinstance(values, list) else params[name] | values
        (self.folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))

    def commit(self) -> None:
        self.type("git", "add", "--all")
        self.type("git", "commit", "--quiet", "--message", "state")


def ran(output: str) -> list[str]:
    """The stages that ran, but for those that always do."""
    return [
        line.split("'")[1]
        for line in output.splitlines()
        if line.startswith("Running stage '") and line.split("'")[1] not in ("source", "code")
    ]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def cached_files(project: Project) -> dict[str, bytes]:
    """The files of DVC's cache, whose names are their hashes."""
    return contents(project.folder / ".dvc/cache/files/md5")


def without_commit(page: bytes) -> bytes:
    """A page but for the commit that it names."""
    return re.sub(rb"[0-9a-f]{40}(, with uncommitted changes)?", b"", page)


def running(folder: Path) -> list[str]:
    """Command lines of the processes that work in a folder."""
    found = []
    for process in psutil.process_iter(["cwd", "cmdline", "status"]):
        if process.info["cwd"] == str(folder) and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(" ".join(process.info["cmdline"]))
    return found


def wait_for_end(folder: Path) -> None:
    """Of all processes that work in a folder, within a minute."""
    deadline = time.monotonic() + 60
    while running(folder):
        assert time.monotonic() < deadline, running(folder)
        time.sleep(0.1)

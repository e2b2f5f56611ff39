"""`dvc repro` that keeps all of the machine busy: what all trainings share first, then the trainings side by side.

python -m stages.repro [--jobs N] [--ablations]

Each slot runs one training at a time and its evaluation, as `dvc repro` would; GPUs are dealt out to the slots. A plain
`dvc repro` at the end draws the report. `--ablations` goes on with what `ablations/dvc.yaml` has. The numbers are those
of `dvc repro` alone. Stopped at any moment, by Ctrl-C or kill, it stops everything that it started; run again, it
resumes.
"""

import argparse
import contextlib
import json
import os
import re
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import psutil
from rich.console import Console
from rich.live import Live
from rich.table import Table

from gat.config import Params, ParamsError, Training, load_params
from stages import address
from stages.processes import PATIENCE_SECONDS, SLOT, end_with_parent, lives

SHARED = ([["images"]], [["extractor", "reference"], ["vae", "latents"]])  # jobs that may run side by side, in turn
QUIET_SECONDS = 60  # between two lines of a job where there is no terminal
TAIL = 25  # lines of a failed job to show


@dataclass
class Job:
    """Stages that one `dvc repro` runs, one after the other."""

    stages: list[str]
    process: subprocess.Popen[bytes] | None = None
    begin: float = 0.0
    told: float = 0.0
    lines: deque[str] = field(default_factory=lambda: deque([""], maxlen=TAIL))

    @property
    def name(self) -> str:
        return re.sub("^(ablations/dvc.yaml:)?(train[@-])?", "", self.stages[0])

    def start(self, slot: int, devices: list[str]) -> None:
        """Run it in a slot, on some of the machine's GPUs."""
        environment = os.environ | {SLOT: str(slot), "PYTHONUNBUFFERED": "1"}
        if devices:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
        self.begin = self.told = time.monotonic()
        self.process = subprocess.Popen(
            ["dvc", "--wait-for-lock", "repro", "--single-item", *self.stages],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that it can be stopped with all that it started
            preexec_fn=end_with_parent,
        )

    def read(self, output: bytes) -> None:
        """Keep the last lines of what it prints; a progress bar overwrites its own."""
        for part in re.split("([\r\n])", output.decode(errors="replace")):
            if part == "\r":
                self.lines[-1] = ""
            elif part == "\n":
                if self.lines[-1].strip():
                    self.lines.append("")
            else:
                self.lines[-1] += part

    @property
    def state(self) -> str:
        """Its last line, without the picture of a progress bar."""
        last = next((line for line in reversed(self.lines) if line.strip()), "starting")
        return re.sub(r"\|[^|]*\|", "", last).strip()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.begin

    def stop(self, by: signal.Signals) -> None:
        """Send a signal to it and all that it started; launched processes, in sessions of their own, only SIGKILL."""
        if self.process is not None and self.process.poll() is None:
            launched = psutil.Process(self.process.pid).children(recursive=True) if by == signal.SIGKILL else []
            os.killpg(self.process.pid, by)
            for process in launched:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()


def training_stages(params: Params, trainings: list[Training]) -> list[list[str]]:
    """Training, evaluation and pictures of each, the longest first: so no slot is idle for long at the end."""

    def work(training: Training) -> float:
        run, _, train, _ = params.recipe(training.run)
        return 0.0 if run.pretrained else train.steps * run.depth * (run.width / run.patch) ** 2

    ordered = sorted(trainings, key=work, reverse=True)
    shown = {Training(run, params.seeds[0]): [f"showcase@{run}"] for run in params.runs}
    return [
        [address(params, training, "train"), address(params, training, "evaluate"), *shown.get(training, [])]
        for training in ordered
    ]


def phases(params: Params, changed: set[str], ablations: bool = False) -> list[list[Job]]:
    """Jobs in the order in which they must run, those of one phase side by side; what is up to date is left out."""
    jobs, stale = [], False
    others = training_stages(params, params.ablation_trainings) if ablations else []
    inside = [[f"ablations/dvc.yaml:analyze@{run}-{seed}"] for run in params.analyze.runs for seed in params.seeds]
    for phase in (
        *SHARED,
        [["floors"], *training_stages(params, params.trainings)],
        others,
        inside if ablations else [],
    ):
        wanted = [Job(stages) for stages in phase if stale or changed.intersection(stages)]
        stale = stale or bool(wanted)
        jobs.append(wanted)
    return jobs


def run_side_by_side(jobs: list[Job], slots: list[list[str]], console: Console) -> bool:
    """Run jobs in slots, each with its GPUs; after a failure no more are started. Returns whether all succeeded."""
    waiting, running, failed = deque(jobs), dict[int, Job](), False
    selector = selectors.DefaultSelector()

    def table() -> Table:
        grid = Table.grid(padding=(0, 2))
        for job in running.values():
            grid.add_row(job.name, f"{job.seconds:.0f} s", job.state)
        grid.add_row("", "", f"{len(waiting)} to come")
        return grid

    try:
        with Live(console=console, auto_refresh=False, transient=True) as live:  # no thread: processes are started
            while running or (waiting and not failed):
                for slot, devices in enumerate(slots):
                    if slot not in running and waiting and not failed:
                        job = running[slot] = waiting.popleft()
                        job.start(slot, devices)
                        selector.register(job.process.stdout, selectors.EVENT_READ, slot)  # type: ignore
                for key, _ in selector.select(timeout=0.5):
                    job = running[key.data]
                    if output := os.read(key.fd, 65536):
                        job.read(output)
                        continue
                    selector.unregister(key.fileobj)
                    del running[key.data]
                    if job.process.wait() != 0:  # type: ignore[union-attr]
                        failed = True
                        console.print(*job.lines, f"{job.name} failed", sep="\n", markup=False)
                    else:
                        console.print(f"{job.name}: {job.seconds:.0f} s", markup=False, highlight=False)
                live.update(table(), refresh=True)
                for job in running.values():
                    if not console.is_terminal and time.monotonic() - job.told > QUIET_SECONDS:
                        job.told = time.monotonic()
                        console.print(f"{job.name}: {job.state}", markup=False, highlight=False, soft_wrap=True)
    finally:
        end(list(running.values()), console)
    return not failed


def end(jobs: list[Job], console: Console) -> None:
    """Have jobs save what they have and end; after a while, or at another Ctrl-C, kill them."""
    selector = selectors.DefaultSelector()
    for job in jobs:
        selector.register(job.process.stdout, selectors.EVENT_READ)  # type: ignore

    def wait() -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline and any(job.process.poll() is None for job in jobs):  # type: ignore
            for key, _ in selector.select(timeout=0.1):  # a job that writes to a full pipe would wait
                if not os.read(key.fd, 65536):
                    selector.unregister(key.fileobj)

    if jobs:
        console.print("waiting for checkpoints; Ctrl-C again kills at once", highlight=False)
    for by in (signal.SIGINT, signal.SIGKILL):
        for job in jobs:
            job.stop(by)
        with contextlib.suppress(KeyboardInterrupt):
            wait()


def forget_dead_locks(path: Path = Path(".dvc/tmp/rwlock")) -> None:
    """Remove DVC's list of who reads and writes what, if all on it were killed: DVC waits for zombies, too."""
    if path.exists():
        pids = {int(pid) for pid in re.findall(r'"pid": *(\d+)', path.read_text())}
        if not any(map(lives, pids)):
            path.unlink()


def gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch  # takes seconds, before which params.yaml is checked

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(i) for i in range(torch.cuda.device_count())]


def make_slots(jobs: int | None, threads: int | None, devices: list[str]) -> list[list[str]]:
    """The GPUs of each slot: as many slots as asked for, or as there are GPUs, or as cores for so many threads each."""
    from gat.runtime import cores  # imports torch

    count = jobs or len(devices) or max(1, cores() // (threads or cores()))
    if count > len(devices):
        return [[devices[i % len(devices)]] if devices else [] for i in range(count)]
    return [devices[i * len(devices) // count : (i + 1) * len(devices) // count] for i in range(count)]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m stages.repro", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, help="slots (default: one for each GPU, or the cores / compute.threads)")
    parser.add_argument("--ablations", action="store_true", help="also what ablations/dvc.yaml has")
    parser.add_argument("--list", action="store_true", help="print the stages of each training, a line each, and stop")
    arguments = parser.parse_args()
    jobs = arguments.jobs
    if jobs is not None and jobs < 1:
        parser.error("argument --jobs: 1 or more")
    end_with_parent()

    def stop(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    console = Console()
    try:
        params = load_params()
        if arguments.list:
            print(*(" ".join(stages) for stages in training_stages(params, params.trainings)), sep="\n")
            return
        if arguments.ablations:
            for run in params.analyze.runs:
                params.recipe(run)  # that it is trained
        forget_dead_locks()
        subprocess.run(["dvc", "--wait-for-lock", "repro", "--quiet", "--single-item", "source"], check=True)
        changed = set(
            json.loads(subprocess.run(["dvc", "status", "--json"], check=True, stdout=subprocess.PIPE).stdout)
        )
        slots = make_slots(jobs, params.compute.threads, gpus())
        for phase in phases(params, changed, arguments.ablations):
            if not run_side_by_side(phase, slots, console):
                sys.exit(1)
        if arguments.ablations:
            subprocess.run(["dvc", "repro", "ablations/dvc.yaml"], check=True)
        sys.exit(subprocess.run(["dvc", "repro"]).returncode)
    except ParamsError as error:
        sys.exit(f"params.yaml: {error}")
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)
    except KeyboardInterrupt:
        print("\nstopped; run it again to resume from what it saved", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


if __name__ == "__main__":
    main()

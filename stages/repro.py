"""`dvc repro` with trainings side by side, for `make repro` and `make claims`.

python -m stages.repro [--jobs N] [--claims [NAME …]] [--list]

What all trainings share runs first; then the trainings, each with its evaluation, run in N slots that divide the
machine's GPUs among them; a plain `dvc repro` finishes. Results are the same as from `dvc repro` alone. Ctrl-C or
SIGTERM lets running trainings save a checkpoint; run again to resume.
"""

import argparse
import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from rich.console import Console
from rich.live import Live
from rich.table import Table

from gat.config import Params, ParamsError, Training
from stages import ANALYSES, ARMS, CLAIMS, RATES, RATES_CLAIM, address, is_arm, load_checked_params, runs_of
from stages.processes import PATIENCE_SECONDS, SLOT, check_user, end_with_parent, is_alive, wait_for_dvc

REFRESH_SECONDS, LOG_SECONDS = 0.5, 60  # between two tables on a terminal; elsewhere, between two lines of a job
TAIL_BYTES, TAIL_LINES = 65536, 25  # kept of a job's output; shown if it fails


@dataclass
class Job:
    """One `dvc repro`: of some stages, one after the other, or of a whole dvc.yaml."""

    targets: list[str]
    begin: float = 0.0
    output: bytes = b""

    @property
    def name(self) -> str:
        return re.sub("^(claims/dvc.yaml:)?(train[@-])?", "", self.targets[0])

    @property
    def seconds(self) -> str:
        return f"{time.monotonic() - self.begin:.0f} s"

    @property
    def lines(self) -> list[str]:
        """The last lines of output. A progress bar is the text after its last carriage return."""
        lines = self.output.decode(errors="replace").split("\n")
        lines = [line.rstrip("\r").rsplit("\r", 1)[-1] for line in lines]
        return [line for line in lines if line.strip()][-TAIL_LINES:]

    @property
    def status(self) -> str:
        """The last line of output, without the bar of a progress bar."""
        return re.sub(r"\|[^|]*\|", "", self.lines[-1]).strip() if self.lines else "starting"

    async def run(self, gpus: list[str]) -> bool:
        """Run it on some of the machine's GPUs; whether it succeeded."""
        self.begin = time.monotonic()
        whole = self.targets[0].endswith("dvc.yaml")
        process = await asyncio.create_subprocess_exec(
            *("dvc", "--wait-for-lock", "repro", *([] if whole else ["--single-item"]), *self.targets),
            env=os.environ | ({"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a process group, for `Scheduler.stop` to signal
            preexec_fn=end_with_parent,  # asyncio forks in the main thread, which lives as long as this program
        )
        assert process.stdout is not None
        while output := await process.stdout.read(TAIL_BYTES):
            self.output = (self.output + output)[-TAIL_BYTES:]
        return await process.wait() == 0


class Scheduler:
    """Runs jobs in up to `count` slots, one at a time in each, which divide `gpus` among them."""

    def __init__(self, count: int, gpus: list[str]) -> None:
        self.count, self.gpus = count, gpus
        self.waiting, self.running = deque[Job](), list[Job]()
        self.failed = self.stopped = False
        self.console = Console(markup=False, highlight=False, soft_wrap=not sys.stdout.isatty())

    async def run(self, phases: list[list[Job]]) -> None:
        """Run phase after phase, the jobs of each side by side, until one fails or a signal stops all."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, self.stop)
        loop.add_signal_handler(signal.SIGTERM, self.stop, False)  # make and Slurm may each send one
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as under nohup
            loop.add_signal_handler(signal.SIGHUP, self.stop, False)  # the terminal is gone
        progress = asyncio.create_task(self._show_progress())
        for phase in phases:
            if not (self.failed or self.stopped):
                self.waiting.extend(phase)
                slots = make_slots(min(self.count, len(phase)), self.gpus)
                await asyncio.gather(*(self._work(gpus) for gpus in slots))
        progress.cancel()

    async def _work(self, gpus: list[str]) -> None:
        """Run waiting jobs in one slot."""
        while self.waiting:
            job = self.waiting.popleft()
            self.running.append(job)
            succeeded = await job.run(gpus)
            self.running.remove(job)
            if succeeded:
                self.console.print(f"{job.name}: {job.seconds}")
            elif not self.stopped:
                self.console.print(*job.lines, f"{job.name} failed", sep="\n")
                self.failed = True
                self.waiting.clear()

    def stop(self, kill: bool = True) -> None:
        """Interrupt all jobs, which then save checkpoints; if called again with `kill`, or after a while, kill them."""
        if self.stopped and not kill:
            return
        self.waiting.clear()
        if not self.stopped:
            self.console.print(f"waiting up to {PATIENCE_SECONDS} s for jobs to save and exit; Ctrl-C again kills them")
            asyncio.get_running_loop().call_later(PATIENCE_SECONDS, self.stop)
        for process in psutil.Process().children(recursive=self.stopped):
            with suppress(psutil.NoSuchProcess, ProcessLookupError):
                if self.stopped:
                    process.kill()
                else:
                    os.killpg(process.pid, signal.SIGINT)  # launchers pass it on to their processes
        self.stopped = True

    async def _show_progress(self) -> None:
        """A table of running jobs on a terminal; elsewhere a line for each once a minute."""
        with Live(console=self.console, auto_refresh=False, transient=True) as display:  # no thread, as this one forks
            while True:
                await asyncio.sleep(REFRESH_SECONDS if self.console.is_terminal else LOG_SECONDS)
                if self.console.is_terminal:
                    display.update(self._table(), refresh=True)
                else:
                    self.console.print(*(f"{job.name}: {job.status}" for job in self.running), sep="\n")

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 2))
        for job in self.running:
            table.add_row(job.name, job.seconds, job.status)
        table.add_row("", "", f"{len(self.waiting)} more to run")
        return table


def training_stages(params: Params, trainings: list[Training]) -> list[list[str]]:
    """The stages of each training, the longest training first, so that no slot idles for long at the end."""

    def work(training: Training) -> float:
        run, _, train, _ = params.recipe(training.run)
        return 0.0 if run.pretrained else train.steps * run.depth * (run.width / run.patch) ** 2

    def stages(training: Training) -> list[str]:
        names = ["train"] if params.key(training.run) == RATES else ["train", "evaluate"]
        names += [] if is_arm(params, training.run) else ["package"]
        shown = training.run in params.runs and training.seed == params.seeds[0]
        return [address(params, training, name) for name in names] + [f"showcase@{training.run}"] * shown

    return [stages(training) for training in sorted(trainings, key=work, reverse=True)]


def make_phases(params: Params, changed: set[str], claims: Sequence[str] = ()) -> list[list[Job]]:
    """Jobs that may run side by side, phase after phase; with those that some claims need.

    Left out are those with no stage in `changed`, which `dvc status` names, unless a job of an earlier phase runs.
    """
    phases = [[["images"]], [["extractor", "reference"], ["vae", "latents"], ["encoder", "teachers"]], [["statistics"]]]
    samples = [[f"samples@{name}"] for name in params.samples]
    phases += [[["floors"], *training_stages(params, params.trainings), *samples]]
    if claims:
        runs, analyzed = runs_of(params, claims)
        trainings = [training for training in params.arm_trainings if training.run in runs]
        trainings += params.rate_trainings if RATES_CLAIM in claims else []
        analyses = [f"claims/dvc.yaml:analyze@{run}-{seed}" for run in analyzed for seed in params.seeds]
        phases += [training_stages(params, trainings), [[stage] for stage in analyses]]
    wanted: list[list[Job]] = []
    for phase in phases:
        wanted.append([Job(stages) for stages in phase if any(wanted) or changed.intersection(stages)])
    return wanted


def last_phases(params: Params, claims: Sequence[str]) -> list[list[Job]]:
    """The jobs after those of `make_phases`: reports, and what is not named there."""
    targets = ["dvc.yaml"]
    if claims:
        targets.insert(0, "claims/dvc.yaml" if {*claims} == {*all_claims(params)} else "claims/dvc.yaml:summary")
    return [[Job([target])] for target in targets]


def all_claims(params: Params) -> list[str]:
    """The names that `--claims` takes."""
    return [*params.claims, RATES_CLAIM]


def with_done(params: Params, changed: set[str], claims: Sequence[str]) -> list[str]:
    """Some claims, and those for which nothing would have to run, in the order of params.yaml."""
    return [name for name in all_claims(params) if name in claims or not any(make_phases(params, changed, [name]))]


def slot_count(jobs: int | None, threads: int | None, gpus: list[str]) -> int:
    """How many jobs may run at once: by default one per GPU or, on a machine without, one per `threads` cores."""
    from gat.runtime import cores  # imports torch

    return jobs or len(gpus) or max(1, cores() // (threads or cores()))


def make_slots(count: int, gpus: list[str]) -> list[list[str]]:
    """The GPUs of each of `count` slots; slots share GPUs if there are fewer."""
    if count > len(gpus):
        return [gpus[i % len(gpus) :][:1] if gpus else [] for i in range(count)]
    return [gpus[i * len(gpus) // count : (i + 1) * len(gpus) // count] for i in range(count)]


def find_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them.

    CUDA uses that list up to the first GPU that there is not, such as -1 or NoDevFiles.
    """
    import torch  # takes seconds, before which params.yaml is checked

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return [str(i) for i in range(count)] if named is None else [name.strip() for name in named.split(",")][:count]


def remove_stale_locks(path: Path = Path(".dvc/tmp/rwlock")) -> None:
    """Remove DVC's file of read and write locks if all their processes are dead; DVC would wait for zombies."""
    if path.exists() and not any(is_alive(int(pid)) for pid in re.findall(r'"pid": *(\d+)', path.read_text())):
        path.unlink()


def run_dvc(*command: str) -> bytes:
    """The output of a command of DVC's, which waits for its lock. Errors and progress are shown.

    Raises:
        SystemExit: it failed.
    """
    wait_for_dvc()
    done = subprocess.run(("dvc", "--wait-for-lock", *command), stdout=subprocess.PIPE, preexec_fn=end_with_parent)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m stages.repro", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, help="slots (default: one per GPU, or per compute.threads cores)")
    help_of_claims = f"also run claims/dvc.yaml, or only what these claims need ({RATES_CLAIM}: learning rates)"
    parser.add_argument("--claims", nargs="*", metavar="NAME", help=help_of_claims)
    parser.add_argument(
        "--list", action="store_true", help="print the stages of each training, one line each, and exit"
    )
    arguments = parser.parse_args()
    if arguments.jobs is not None and arguments.jobs < 1:
        parser.error("argument --jobs: must be at least 1")
    check_user()
    try:
        params = load_checked_params()
        if arguments.list:
            print(*(" ".join(stages) for stages in training_stages(params, params.trainings)), sep="\n")
            return
        chosen: list[str] = []
        if arguments.claims is not None:
            known = all_claims(params)
            for name in {*arguments.claims} - {*known}:
                parser.error(f"argument --claims: {name!r} is none of {', '.join(known)}")
            chosen = arguments.claims or known
            params.check_claims(name for name in chosen if name != RATES_CLAIM)
            for folder in (ARMS, ANALYSES):  # `summary` depends on both, also if these claims need only one
                folder.mkdir(parents=True, exist_ok=True)
        os.environ |= {SLOT: "1", "PYTHONUNBUFFERED": "1"}
        remove_stale_locks()
        run_dvc("repro", "--single-item", "code", "source", "tidy")
        changed = {*json.loads(run_dvc("status", "--json"))}
        reported = with_done(params, changed, chosen) if chosen else []
        if more := [name for name in reported if name not in chosen]:
            print(f"also reported, as their trainings are done: {' '.join(more)}")
        os.environ[CLAIMS] = " ".join(reported)
        phases = make_phases(params, changed, reported) + last_phases(params, reported)
        gpus = find_gpus()
        scheduler = Scheduler(slot_count(arguments.jobs, params.compute.threads, gpus), gpus)
        asyncio.run(scheduler.run(phases))
        if scheduler.stopped:
            raise KeyboardInterrupt
        sys.exit(scheduler.failed)
    except ParamsError as error:
        sys.exit(f"params.yaml: {error}")
    except KeyboardInterrupt:
        print("\ninterrupted; run again to resume from the last checkpoint", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


if __name__ == "__main__":
    main()

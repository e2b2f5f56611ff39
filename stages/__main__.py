"""Run one stage of dvc.yaml: python -m stages NAME [RUN SEED].

Checks params.yaml before importing the stage and torch, so that a wrong value fails within a second. On a machine with
several GPUs or an Accelerate configuration, stages that can use several processes relaunch themselves under
`accelerate launch`, or under the command in `GAT_LAUNCH`. The commands in dvc.yaml are thus the same on every machine.
"""

import importlib
import os
import shlex
import signal
import sys
from pathlib import Path

import yaml

from gat.config import MODEL, Params, ParamsError, load_params
from gat.files import is_disk_full
from stages import CODE, is_arm, load_checked_params
from stages.code import code_of
from stages.processes import (
    LAUNCHED,
    PATIENCE_SECONDS,
    SLOT,
    check_user,
    end_with_parent,
    launched_by_this,
    wait_for_dvc,
)

ON_ONE_PROCESS = (
    *("source", "code", "tidy", "extractor", "encoder", "teachers", "vae", "package", "showcase", "report"),
    *("analyze", "summary", "export", "plan"),
)
ACCELERATE = (sys.executable, "-m", "accelerate.commands.launch")
ANY_PORT = ("--main_process_port", "0")  # that is free, since another stage may be running on this machine
ON_ALL_PROCESSES = ("images", "reference", "statistics", "latents", "floors", "train", "evaluate", "samples")


def main() -> None:
    """Command line."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in ON_ONE_PROCESS + ON_ALL_PROCESSES:
        sys.exit(f"python -m stages NAME [RUN SEED], with NAME one of {', '.join(ON_ALL_PROCESSES + ON_ONE_PROCESS)}")
    check_user()
    try:
        params = load_params() if name == "plan" else load_checked_params()
        os.environ |= {"MPLBACKEND": "agg", "MATPLOTLIBRC": os.devnull}  # figures are the same on every machine
        if "DVC_STAGE" not in os.environ and (missing := missing_deps(params, name, *sys.argv[2:4])):
            sys.exit(f"{name}: {missing} is missing; `dvc repro` makes what a stage needs before it runs it")
        if SLOT in os.environ or LAUNCHED in os.environ:  # a dead parent's signals would not reach this process
            end_with_parent()
        if "DVC_STAGE" in os.environ and has_changed(name):
            sys.exit(f"{name}: its code has changed since `dvc repro` started; run it again")
        if name in ON_ALL_PROCESSES and should_relaunch():
            relaunch()
        del sys.argv[1]
        importlib.import_module(f"stages.{name}").main(params)
        if "DVC_STAGE" in os.environ:
            wait_for_dvc()
    except ParamsError as error:
        sys.exit(f"params.yaml: {error}")
    except FloatingPointError as error:  # training diverged
        sys.exit(f"{name}: {error}")
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":  # PyTorch's
            sys.exit(
                f"{name}: the GPU's memory is full: set compute.micro_batch: auto or a smaller one, or "
                "compute.activation_checkpointing: true, or smaller compute.vae_batch and compute.sample_batch; "
                f"`python -m stages plan` says what fits ({str(error).splitlines()[0]})"
            )
        if not is_disk_full(error):
            raise
        sys.exit(
            f"{name}: the disk is full: finished files are kept; free some space and run again to continue ({error})"
        )
    except KeyboardInterrupt:
        print("\ninterrupted; run again to resume from the last checkpoint", file=sys.stderr, flush=True)
        sys.exit(128 + signal.SIGINT)


def has_changed(name: str) -> bool:
    """Whether the code of a stage is not that of which stage `code` has written the hash, which DVC records."""
    path = CODE / name
    return path.exists() and code_of(name) != path.read_text(encoding="utf-8")


def missing_deps(params: Params, name: str, run: str = "", seed: str = "") -> str | None:
    """An input that does not exist, of a stage that is typed, not run by DVC, which checks this; None if all do.

    Raises:
        ParamsError: there is no such run.
    """
    key = f"{name}-{MODEL}" if run == MODEL else f"{name}-rates" if run in params.rates.names else name
    graphs = [Path("dvc.yaml"), Path("claims/dvc.yaml")]
    content = [yaml.load(graph.read_bytes(), yaml.CSafeLoader) for graph in graphs if graph.exists()]
    stages = [graph["stages"][key] for graph in content if key in graph["stages"]]
    if not stages:
        return None
    stage = stages[-1 if is_arm(params, run) else 0]  # some are in both
    deps = stage.get("do", stage).get("deps", [])
    if any("${item.run}" in dep for dep in deps):
        params.run(run)
    names = {"${item.run}": run, "${item.seed}": seed, "${seeds[0]}": seed}
    for old, new in names.items():
        deps = [dep.replace(old, new) for dep in deps]
    return next((dep for dep in deps if "$" not in dep and not Path(dep).exists()), None)


def should_relaunch() -> bool:
    """Whether to run on several processes; False in each of those."""
    if "LOCAL_RANK" in os.environ or LAUNCHED in os.environ:
        return False
    if os.environ.get("GAT_LAUNCH"):
        return True
    import torch
    from accelerate.commands.config.config_args import default_config_file

    configured = Path(default_config_file).exists() and SLOT not in os.environ  # it is of all GPUs, not of a slot's
    return configured or torch.cuda.device_count() > 1


def on_several_machines(config: Path) -> bool:
    """Whether a file of `accelerate config` names several machines, which then have to agree on a port."""
    content = yaml.safe_load(config.read_text()) if config.exists() else {}
    return int(content.get("num_machines") or 1) > 1


def relaunch() -> None:
    """Replace this process by a launcher, which runs the same stage on several processes."""
    from accelerate.commands.config.config_args import default_config_file

    os.environ[LAUNCHED] = launched_by_this()
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(PATIENCE_SECONDS))
    if launcher := os.environ.get("GAT_LAUNCH"):
        command = shlex.split(launcher)
    elif SLOT in os.environ:
        import torch

        command = [*ACCELERATE, *ANY_PORT, "--multi_gpu", "--gpu_ids", "all", "--num_machines", "1"]
        command += ["--num_processes", str(torch.cuda.device_count())]
    else:
        command, config = [*ACCELERATE], Path(default_config_file)
        if config.exists():  # the launcher's errors do not name this file
            message = f"launching as configured in {config}; change it with `accelerate config`"
            print(message, file=sys.stderr, flush=True)
        if not on_several_machines(config):
            command += ANY_PORT
    os.execvp(command[0], [*command, "-m", "stages", *sys.argv[1:]])


if __name__ == "__main__":
    main()

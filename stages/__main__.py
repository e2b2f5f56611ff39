"""Run one stage of dvc.yaml: python -m stages NAME [RUN SEED].

All of params.yaml is checked before the stage's module, and with it torch, is imported: a wrong value ends the program
with one line within a second. Stages that several processes share are started again under `accelerate launch` where
Accelerate is configured or there are several GPUs, or under the command in `GAT_LAUNCH`; so the commands in dvc.yaml
are the same on every machine.
"""

import errno
import importlib
import os
import shlex
import signal
import sys
from pathlib import Path

from gat.config import ParamsError, load_params
from stages.processes import LAUNCHED, PATIENCE_SECONDS, SLOT, end_with_parent, launched_by_this

ON_ONE_PROCESS = (
    "source",
    "code",
    "tidy",
    "extractor",
    "vae",
    "package",
    "showcase",
    "report",
    "export",
    "analyze",
    "summary",
)
ON_ALL_PROCESSES = ("images", "reference", "latents", "floors", "train", "evaluate")


def main() -> None:
    """Command line."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in ON_ONE_PROCESS + ON_ALL_PROCESSES:
        sys.exit(f"python -m stages NAME [RUN SEED], with NAME one of {', '.join(ON_ALL_PROCESSES + ON_ONE_PROCESS)}")
    try:
        params = load_params()
        if SLOT in os.environ or LAUNCHED in os.environ:  # launchers start each process in a session of its own
            end_with_parent()
        if name in ON_ALL_PROCESSES and should_relaunch():
            relaunch()
        del sys.argv[1]
        importlib.import_module(f"stages.{name}").main(params)
    except ParamsError as error:
        sys.exit(f"params.yaml: {error}")
    except FloatingPointError as error:  # of a training that diverged
        sys.exit(f"{name}: {error}")
    except Exception as error:
        # Whatever a library raises when it cannot write: OSError, SafetensorError, RuntimeError, …
        if getattr(error, "errno", None) != errno.ENOSPC and "No space left" not in str(error):
            raise
        sys.exit(f"{name}: the disk is full; what was complete stays, and the next run goes on ({error})")
    except KeyboardInterrupt:
        print("\ninterrupted; run it again to resume from what it saved", file=sys.stderr, flush=True)
        sys.exit(128 + signal.SIGINT)


def should_relaunch() -> bool:
    """Whether there is more than one process to run on, and this is not one of them."""
    if "LOCAL_RANK" in os.environ or LAUNCHED in os.environ:
        return False
    if os.environ.get("GAT_LAUNCH"):
        return True
    import torch
    from accelerate.commands.config.config_args import default_config_file

    return Path(default_config_file).exists() or torch.cuda.device_count() > 1


def relaunch() -> None:
    """Replace this process by the launcher of all of them."""
    from accelerate.commands.config.config_args import default_config_file

    os.environ[LAUNCHED] = launched_by_this()
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(PATIENCE_SECONDS))
    if launcher := os.environ.get("GAT_LAUNCH"):
        command = shlex.split(launcher)
    else:
        if Path(default_config_file).exists():  # an error of the launcher's does not name it
            print(
                f"processes as {default_config_file} says (`accelerate config` changes it)", file=sys.stderr, flush=True
            )
        command = ["accelerate", "launch"]
        if SLOT in os.environ:
            command += ["--main_process_port", "0"]  # a free one, since slots share the machine
        if precision := os.environ.get("ACCELERATE_MIXED_PRECISION"):  # `accelerate launch` would overwrite it
            command += ["--mixed_precision", precision]
    os.execvp(command[0], [*command, "-m", "stages", *sys.argv[1:]])


if __name__ == "__main__":
    main()

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from helpers import changed_params

from gat.config import Loss, Network, Optimization, Params, ParamsError, Repa, load_params
from gat.runtime import choose_precision
from stages import parse_training
from stages.__main__ import missing_deps, relaunch, should_relaunch
from stages.processes import LAUNCHED, launched_by_this

# What is changed, the key and the value that the error names, and what it allows.
WRONG = [
    ("model: {width: 50}", "model.width: 50", "multiples of 4"),
    ("model: {wdth: 3}", "model.wdth", "unknown key"),
    ("model: {width: wide}", "model.width: 'wide'", "integer"),
    ("model: {depth: 4}", "model.depth: 4", "multiples of loss.levels.count (3)"),
    ("model: {patch: 3}", "model.patch: 3", "divisors of 8"),
    ("model: {discriminator: {patch: 3}}", "model.discriminator.patch: 3", "divisors of 8"),
    ("study: {S-2: {heads: 5}}", "study.S-2.width: 12", "multiples of study.S-2.heads (5)"),
    ("study: {S-2: {heads: 2}}", "study.S-2.heads: 2", "width/heads is a multiple of 4"),
    ("runs: [S-2, S-3]", "runs: 'S-3'", "entries of study: B-2, L-2"),
    ("runs: [S-2, S-2]", "runs: ['S-2', 'S-2']", "each once"),
    ("arms: [S-2]", "arms: 'S-2'", "not in runs"),
    ("arms: [S-3]", "arms: 'S-3'", "entries of study"),
    ("claims: {teacher: {arm: S-3}}", "claims.teacher.arm: 'S-3'", "entries of study"),
    ("claims: {teacher: {expected: better}}", "claims.teacher.expected: 'better'", "'higher' or 'lower'"),
    ("rates: {run: {depth: 2}}", "rates.run.depth: 2", "multiples of loss.levels.count"),
    ("rates: {widths: []}", "rates.widths: []", "at least 1"),
    ("analyze: {runs: [S-3]}", "analyze.runs: 'S-3'", "entries of study"),
    ("seeds: [0, 1, 1]", "seeds: [0, 1, 1]", "each once"),
    ("seeds: []", "seeds: []", "at least 1"),
    ("seeds: 3", "seeds: 3", "list"),
    ("train: {betas: [0.0, 0.9, 0.99]}", "train.betas: [0.0, 0.9, 0.99]", "at most 2"),
    ("train: {learning_rate: fast}", "train.learning_rate: 'fast'", "number"),
    ("train: {learning_rate: .inf}", "train.learning_rate: inf", "finite"),
    ("train: {style_gain: 0.0}", "train.style_gain: 0.0", "greater than 0"),
    ("train: {ema_decay: null}", "train.ema_decay: None", "number"),
    ("study: {L-2: {train: {ema_decay: 3}}}", "study.L-2.train.ema_decay: 3", "less than 1"),
    ("study: {L-2: {pretrained: ./nowhere}}", "study.L-2.pretrained: './nowhere'", "pipeline folders"),
    ("study: {L-2: {pretrained: runs/L-2/seed-0/pipeline}}", "study.L-2.pretrained: 'runs/", "outside of runs/"),
    ("rates: {run: {depth: deep}}", "rates.run.depth: 'deep'", "integer"),
    ("rates: {run: {train: 5}}", "rates.run.train: 5", "dictionary"),
    ("study: {model: {width: 12, depth: 3, patch: 2}}", "study: 'model'", "other names"),
    ("study: {B 2: {width: 12, depth: 3, patch: 2}}", "study: 'B 2'", "letters"),
    ("study: {B.2: {width: 12, depth: 3, patch: 2}}", "study: 'B.2'", "letters"),
    ("study: {../B: {width: 12, depth: 3, patch: 2}}", "study: '../B'", "letters"),
    ("metrics: {reference_features: 3}", "metrics.reference_features: 3", "100"),
    ("encoder: {recipe: {width: 20}}", "encoder.recipe.width: 20", "multiple of 16"),
    ("samples: {S-2: {path: params.yaml}}", "samples: 'S-2'", "not in study"),
    ("samples: {a b: {path: params.yaml}}", "samples: 'a b'", "letters"),
    ("samples: {other: {path: ~/a.npz}}", "samples.other.path: '~/a.npz'", "pattern"),
    ("samples: {other: {path: params.yaml, gmacs: 0.0}}", "samples.other.gmacs: 0.0", "greater than 0"),
    ("metrics: {classifier: null}", "metrics.classifier: None", "recipe"),
    ("metrics: {extractor: inception}\nevaluate: {samples: 2048}", "evaluate.samples: 2048", "more than 2048"),
    ("metrics: {extractor: inception}", "train.eval_samples: 2000", "more than 2048"),
    ("showcase: {classes: []}", "showcase.classes: []", "at least 1"),
    ("showcase: {truncation_psi: [0.0, 1.5]}", "showcase.truncation_psi.1: 1.5", "1"),
    ("data: {resolution: 30}", "data.resolution: 30", "multiples of 4"),
    ("vae: {recipe: null}", "vae.recipe: None", "recipe"),
    ("vae: {recipe: {channels: [8, 12, 16]}}", "vae.recipe.channels: [8, 12, 16]", "multiples of 8"),
    ("loss: {levels: {schedule: cubic}}", "loss.levels.schedule: 'cubic'", "'exponential'"),
    ("report: {highlight: blurple}", "report.highlight: 'blurple'", "#"),
]

MISSING = [
    ("study: {L-2: {repa: {teacher: ./nowhere}}}", "study.L-2.repa.teacher: './nowhere'", "exists"),
    ("metrics: {reference: ./nowhere}", "metrics.reference: './nowhere'", "exists"),
    ("metrics: {reference: ./adm.npz}", "metrics.reference: './adm.npz'", "guided-diffusion, or null"),
    ("encoder: {pretrained: ./nowhere}", "encoder.pretrained: './nowhere'", "exists"),
    ("samples: {other: {path: nowhere.npz}}", "samples.other.path: 'nowhere.npz'", "exists"),
    ("data: {source: ./nowhere}", "data.source: './nowhere'", "exists"),
    ("vae: {pretrained: ./nowhere}", "vae.pretrained: './nowhere'", "exists"),
]


def params(changes: str = "", path: str = "params.yaml") -> Params:
    return Params.model_validate(changed_params(changes, path))


def write(folder, changes: str = "") -> str:
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump(changed_params(changes)))
    return str(path)


def run_stage(folder, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(folder)} | environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(("change", "start", "allowed"), WRONG, ids=[change for change, *_ in WRONG])
def test_wrong_value_is_named_with_its_key_and_what_is_allowed(change, start, allowed, tmp_path):
    with pytest.raises(ParamsError) as error:
        load_params(write(tmp_path, change))
    assert str(error.value).startswith(start)
    assert allowed in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("change", "start", "allowed"), MISSING, ids=[change for change, *_ in MISSING])
def test_a_file_that_is_missing_is_named_unless_results_were_made_from_it(change, start, allowed, tmp_path):
    loaded = load_params(write(tmp_path, change))
    with pytest.raises(ParamsError) as error:
        loaded.check_files()
    assert str(error.value).startswith(start)
    assert allowed in str(error.value)
    loaded.check_files(known={start.rsplit("'", 2)[1]})


@pytest.mark.parametrize("key", ["data.source", "loss.gamma", "loss.levels.count", "train.betas", "compute.threads"])
def test_missing_key_is_named(key, tmp_path):
    """Also of sections that have the paper's values as defaults in Python."""
    content = section = changed_params("")
    *sections, last = key.split(".")
    for name in sections:
        section = section[name]
    del section[last]
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ParamsError, match=f"^{re.escape(key)}: missing$"):
        load_params(tmp_path / "params.yaml")


def test_sections_have_the_papers_values_as_defaults():
    """Those of the profile of its scaling study, but for what the paper does not say."""
    paper = load_params(ROOT / "profiles/imagenet256.yaml")
    assert (paper.loss, paper.train, paper.repa) == (Loss(), Optimization(), Repa())


@pytest.mark.parametrize("profile", ["params.yaml", *sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("profiles/*"))])
def test_every_profile_is_valid(profile):
    load_params(ROOT / profile)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        (b"", "copy one from profiles/"),
        *(
            (text, "YAML|keys")
            for text in (b"\xff\xfe", b"a: \0", b"a: 2026-99-99", b"[" * 1000, b"? {a: 1}\n: 2", b"a: *b")
        ),
    ],
)
def test_what_is_no_file_of_params_is_one_line(content, message, tmp_path):
    if content is not None:
        (tmp_path / "params.yaml").write_bytes(content)
    with pytest.raises(ParamsError, match=message) as error:
        load_params(tmp_path / "params.yaml")
    assert "\n" not in str(error.value)


def test_params_are_read_as_dvc_writes_them(tmp_path):
    """YAML 1.2, in which 5e-05 is a number, `no` a word, and a key occurs once."""
    text, path = (ROOT / "params.yaml").read_text(), tmp_path / "params.yaml"
    path.write_text(text.replace("learning_rate: 7.0e-4", "learning_rate: 5e-05"))
    assert load_params(path).train.learning_rate == 5e-5
    path.write_text(text.replace("mirror: false", "mirror: no"))
    with pytest.raises(ParamsError, match=r"data\.mirror: 'no' is not allowed"):
        load_params(path)
    path.write_text(text + "\nruns: [S-2]\n")
    with pytest.raises(ParamsError, match='duplicate key "runs"'):
        load_params(path)


def test_home_is_written_with_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "photographs").mkdir()
    assert params("data: {source: ~/photographs}").data.source == str(tmp_path / "photographs")


def test_patches_are_checked_against_the_latents_of_a_pretrained_vae_once_it_is_there():
    loaded = params("vae: {pretrained: some/hub-id}\nstudy: {XL-2: {patch: 3}}")
    loaded.check_latent_size(12)
    with pytest.raises(ParamsError, match=r"study\.XL-2\.patch: 3 is not allowed; allowed: divisors of 8"):
        loaded.check_latent_size(8)
    with pytest.raises(ParamsError, match=r"data\.resolution: 32 is not allowed; allowed: multiples of the VAE's"):
        loaded.check_latent_size(31 / 8)


@pytest.mark.parametrize(("width", "heads"), [(1152, 18), (1024, 16), (768, 12), (384, 6), (96, 2), (64, 1), (16, 1)])
def test_auto_heads_are_about_64_wide(width, heads):
    assert Network(width=width, depth=4, patch=2).head_count == heads
    for any_width in range(4, width, 4):
        head_size, rest = divmod(any_width, Network(width=any_width, depth=4, patch=2).head_count)
        assert (head_size % 4, rest) == (0, 0)


def test_discriminator_defaults_to_the_generators_size_and_can_differ():
    loaded = params("model: {width: 32, heads: 2, discriminator: {width: 64}}\nstudy: {L-2: {width: 40, heads: 2}}")
    assert loaded.recipe("model").run.discriminator_network == Network(width=64, depth=3, heads="auto", patch=2)
    assert loaded.recipe("L-2").run.discriminator_network == Network(width=40, depth=3, heads=2, patch=2)
    assert loaded.run("model").changes_recipe
    assert not loaded.run("L-2").changes_recipe


def test_study_entry_overrides_training_and_loss():
    own = "study: {L-2: {loss: {levels: {schedule: none}, gamma: 0.0}, train: {scale_lr_by_width: false}}}"
    loaded = params(own)
    run, loss, train, _ = loaded.recipe("L-2")
    assert run.changes_recipe
    assert (loss.levels.schedule, loss.levels.made, loss.gamma) == ("none", 1, 0.0)
    assert loss.augment == loaded.loss.augment
    assert not train.scale_lr_by_width
    assert loaded.recipe("B-2").train.scale_lr_by_width


def test_each_run_is_trained_once_for_each_seed_and_the_model_under_test_once():
    trainings = params("runs: [S-2, S-1]\nseeds: [0, 7]").trainings
    names = ["train-model", "train@S-2-0", "train@S-2-7", "train@S-1-0", "train@S-1-7"]
    assert [training.stage("train") for training in trainings] == names
    assert [training.folder for training in trainings][::4] == ["model", "S-1/seed-7"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ("runs: [S-2]", "analyze.runs: 'B-2' is not allowed; allowed: entries of runs and arms"),
        ("arms: []\nanalyze: {runs: []}", "claims.teacher.arm: 'taught' is not allowed; allowed: entries of runs"),
        ("claims: {teacher: {measure: cknna}}\nanalyze: {runs: []}", "entries of analyze.runs, since its measure is"),
    ],
)
def test_runs_of_claims_are_checked_once_claims_are_tested(changes, message):
    loaded = params(changes)
    with pytest.raises(ParamsError, match=message):
        loaded.check_claims(["teacher"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("M-2", "0"), "run: 'M-2' is not allowed; allowed: model, S-2, "),
        (("",), "run: '' is not allowed"),
        (("S-2",), "seed: '' is not allowed; allowed: a number"),
        (("S-2", "first"), "seed: 'first' is not allowed; allowed: a number"),
    ],
)
def test_a_training_is_named_by_its_run_and_seed(arguments, message):
    assert parse_training(params(), "S-2", "3") == ("S-2", 3)
    assert parse_training(params("model: {seed: 5}"), "model") == ("model", 5)
    with pytest.raises(ParamsError, match=f"^{message}"):
        parse_training(params(), *arguments)


@pytest.mark.parametrize("command", [("stages", "train", "model"), ("stages.repro",)])
def test_wrong_value_stops_before_torch_is_imported_and_writes_nothing(command, tmp_path):
    write(tmp_path, "model: {width: 50}")
    (tmp_path / "torch.py").write_text("raise AssertionError('imported')")
    done = run_stage(tmp_path, *command)
    assert done.returncode == 1
    assert re.fullmatch(r"params\.yaml: model\.width: 50 is not allowed; [^\n]+\n", done.stderr)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["params.yaml", "torch.py"]


def test_unknown_stage_is_named(tmp_path):
    done = run_stage(tmp_path, "stages", "trian")
    assert done.returncode == 1
    assert re.match(r"python -m stages NAME .* images, [^\n]*train[^\n]*\n$", done.stderr)


LAUNCHER = "-m accelerate.commands.launch"
ANY_PORT = "--main_process_port 0"
IN_A_SLOT = f"{LAUNCHER} {ANY_PORT} --multi_gpu --gpu_ids all --num_machines 1 --num_processes 3"


@pytest.mark.parametrize(
    ("gpus", "machines", "environment", "command"),
    [
        (0, 1, {"GAT_LAUNCH": "srun torchrun"}, "torchrun"),
        (0, 1, {}, f"{LAUNCHER} {ANY_PORT}"),
        (0, 2, {}, LAUNCHER),  # several machines have to agree on a port
        (3, None, {}, f"{LAUNCHER} {ANY_PORT}"),
        (3, 1, {"GAT_SLOT": "1"}, IN_A_SLOT),  # whatever is configured for all GPUs of the machine
        (1, 1, {"GAT_SLOT": "1"}, None),
        (1, None, {}, None),
    ],
)
def test_stage_starts_itself_on_all_processes(gpus, machines, environment, command, tmp_path, monkeypatch):
    """Where Accelerate is configured, there are several GPUs, or by a launcher of another name."""
    config, launched = tmp_path / "default_config.yaml", []
    if machines is not None:
        config.write_text(f"num_machines: {machines}\nmain_process_port: 29500\ngpu_ids: 0,1,2\n")
    for name in ("GAT_LAUNCH", "GAT_LAUNCHED", "GAT_SLOT", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("os.environ", {**os.environ})  # `relaunch` adds to it
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    monkeypatch.setattr("accelerate.commands.config.config_args.default_config_file", str(config))
    monkeypatch.setattr("os.execvp", lambda program, arguments: launched.append(arguments))
    monkeypatch.setattr("sys.argv", ["stages", "train", "S-2", "0"])
    if should_relaunch():
        relaunch()
    assert [" ".join(own[1:]) for own in launched] == ([] if command is None else [f"{command} -m stages train S-2 0"])


def test_a_full_gpu_is_one_line_that_says_what_to_change(tmp_path):
    write(tmp_path)
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib\n"
        "find = importlib.import_module\n"
        "def full(name, package=None):\n"
        "    if name == 'stages.vae':\n"
        "        import torch\n"
        "        raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2 GiB.\\nGPU 0 has …')\n"
        "    return find(name, package)\n"
        "importlib.import_module = full\n"
    )
    done = run_stage(tmp_path, "stages", "vae", DVC_STAGE="vae", PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert done.returncode == 1
    assert re.fullmatch(r"vae: the GPU's memory is full: set compute\.micro_batch: auto [^\n]+2 GiB\.\)\n", done.stderr)


@pytest.mark.parametrize(
    ("wanted", "gpu", "chosen"),
    [
        ("auto", None, "fp32"),
        ("auto", False, "fp32"),  # which only emulates bf16
        ("auto", True, "bf16"),
        ("fp32", True, "fp32"),
        ("bf16", None, "bf16"),
        ("bf16", False, None),
    ],
)
def test_precision_is_bf16_where_the_gpu_computes_in_it(wanted, gpu, chosen, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu is not None)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bool(gpu))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    if chosen is None:
        with pytest.raises(ParamsError, match=r"compute\.precision: Tesla T4 has no bf16"):
            choose_precision(wanted)
    else:
        assert choose_precision(wanted) == chosen


def test_a_process_whose_launcher_is_dead_ends_instead_of_waiting_for_it(tmp_path):
    """As one does that was about to ask the system for a signal when the launcher was killed."""
    write(tmp_path)
    gone = subprocess.Popen(["true"])
    gone.wait()
    alive = launched_by_this()
    dead = alive.replace(f":{os.getpid()}", f":{gone.pid}")
    for launcher, code in ((dead, 1), (alive, 0), (f"another-node::{gone.pid}", 0)):
        done = run_stage(tmp_path, "stages", "source", **{LAUNCHED: launcher})
        assert done.returncode == code, done.stderr
        assert ("killed" in done.stderr) == (code == 1)


@pytest.mark.parametrize(
    ("command", "missing"),
    [
        (("images",), "data/code/images"),
        (("train", "S-2", "0"), "data/code/train"),
        (("train", "model"), "data/code/train"),
        (("evaluate", "augmented", "0"), "data/code/evaluate"),
        (("train", "16-0.0021", "0"), "data/code/train"),
        (("samples", "other"), "data/code/samples"),
        (("analyze", "deep", "0"), "data/code/analyze"),
    ],
)
def test_an_input_that_a_typed_stage_lacks_is_named_in_one_line(command, missing, tmp_path):
    write(tmp_path)
    for name in ("dvc.yaml", "claims/dvc.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text())
    done = run_stage(tmp_path, "stages", *command)
    assert done.returncode == 1
    makes = "`dvc repro` makes what a stage needs before it runs it"
    assert done.stderr == f"{command[0]}: {missing} is missing; {makes}\n"


def test_what_a_typed_stage_lacks_is_of_its_own_graph(tmp_path, monkeypatch):
    """Of `model`, of the study's runs and of arms, even if another run has all that it needs."""
    monkeypatch.chdir(tmp_path)
    loaded = load_params(write(tmp_path))
    for name in ("dvc.yaml", "claims/dvc.yaml"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text((ROOT / name).read_text())
    shared = ("code/evaluate", "vae", "extractor", "encoder", "reference.npz", "statistics")
    for path in (*shared, *(f"teachers/{run}" for run in ("model", "S-2", "deep"))):
        Path("data", path).mkdir(parents=True)
    for path in ("generator", "discriminator"):
        Path("runs/model", path).mkdir(parents=True)
    assert missing_deps(loaded, "evaluate", "model") == "results/model/run.json"
    assert missing_deps(loaded, "evaluate", "S-2", "0") == "runs/S-2/seed-0/generator"
    for path in ("generator", "discriminator"):
        Path("runs/deep/seed-0", path).mkdir(parents=True)
    assert missing_deps(loaded, "evaluate", "deep", "0") == "claims/results/deep/seed-0/run.json"
    with pytest.raises(ParamsError, match="run: 'S-3' is not allowed"):
        missing_deps(loaded, "evaluate", "S-3", "0")


@pytest.mark.parametrize("command", [("stages", "images"), ("stages.repro",)])
def test_a_user_without_a_name_is_told_what_to_set(command, tmp_path):
    """As in a container that runs with a user id of its own."""
    write(tmp_path)
    (tmp_path / "getpass.py").write_text("def getuser():\n    raise KeyError('uid not found')\n")
    done = run_stage(tmp_path, *command)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "export USER=" in done.stderr

import os
import re
import subprocess
import sys
import unittest.mock

import pytest
import yaml
from conftest import ROOT

import stages.__main__ as entry
from gat.config import Loss, Network, Optimization, ParamsError, Repa, load_params

WRONG = [
    (("model", "width", 50), "model.width: 50 is not allowed; allowed: multiples of 4"),
    (("model", "wdth", 3), "model.wdth: unknown key"),
    (("model", "width", "wide"), "model.width: 'wide' is not allowed; input should be a valid integer"),
    (("model", "depth", 4), "model.depth: 4 is not allowed; allowed: multiples of loss.levels.count (3)"),
    (("model", "patch", 3), "model.patch: 3 is not allowed; allowed: divisors of 8, the latents' side"),
    (("study.S-2", "heads", 5), "study.S-2.width: 12 is not allowed; allowed: multiples of study.S-2.heads (5)"),
    (("study.S-2", "heads", 2), "study.S-2.heads: 2 is not allowed; allowed: such that width/heads is a multiple of 4"),
    (("", "runs", ["S-2", "S-3"]), "runs: 'S-3' is not allowed; allowed: entries of study: B-2, L-2"),
    (("", "runs", ["S-2", "S-2"]), "runs: ['S-2', 'S-2'] is not allowed; allowed: each once"),
    (("", "seeds", [0, 1, 1]), "seeds: [0, 1, 1] is not allowed; allowed: each once"),
    (("", "seeds", []), "seeds: [] is not allowed"),
    (("train", "betas", [0.0, 0.9, 0.99]), "train.betas: [0.0, 0.9, 0.99] is not allowed"),
    (("metrics", "reference_features", 3), "metrics.reference_features: 3 is not allowed"),
    (("showcase", "classes", []), "showcase.classes: [] is not allowed"),
    (("showcase", "truncation_psi", [0.0, 1.5]), "showcase.truncation_psi.1: 1.5 is not allowed"),
    (("", "seeds", 3), "seeds: 3 is not allowed"),
    (("study", "model", {"width": 12, "depth": 4, "patch": 2}), "study: 'model' is not allowed; allowed: other names"),
    (("data", "source", "./nowhere"), "data.source: './nowhere' is not allowed; allowed: a file or folder that exists"),
    (("loss.levels", "schedule", "cubic"), "loss.levels.schedule: 'cubic' is not allowed"),
    (("train", "learning_rate", "fast"), "train.learning_rate: 'fast' is not allowed; input should be a valid number"),
    (
        ("train", "learning_rate", float("inf")),
        "train.learning_rate: inf is not allowed; input should be a finite number",
    ),
    (("study", "B 2", {"width": 12, "depth": 4, "patch": 2}), "study: 'B 2' is not allowed; allowed: names of letters"),
    (("study", "B.2", {"width": 12, "depth": 4, "patch": 2}), "study: 'B.2' is not allowed; allowed: names of letters"),
    (
        ("study", "../B", {"width": 12, "depth": 4, "patch": 2}),
        "study: '../B' is not allowed; allowed: names of letters",
    ),
    (("train", "style_gain", 0.0), "train.style_gain: 0.0 is not allowed"),
    (("train", "ema_decay", None), "train.ema_decay: None is not allowed"),
    (("study.L-2", "train", {"ema_decay": 3}), "study.L-2.train.ema_decay: 3 is not allowed"),
    (("study.L-2", "repa", {"teacher": "./nowhere"}), "study.L-2.repa.teacher: './nowhere' is not allowed"),
    (("study.L-2", "pretrained", "./nowhere"), "study.L-2.pretrained: './nowhere' is not allowed; allowed: pipeline"),
    (
        ("vae.recipe", "channels", [8, 12, 16]),
        "vae.recipe.channels: [8, 12, 16] is not allowed; allowed: multiples of 8",
    ),
    (("report", "highlight", "blurple"), "report.highlight: 'blurple' is not allowed"),
]


def changed(section: str, key: str, value: object) -> dict:
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    place = params
    for part in filter(None, section.split(".")):
        place = place[part]
    place[key] = value
    return params


def write(tmp_path, params) -> str:
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(params))
    return str(path)


def run_stage(stage: str, *arguments: str, tmp_path) -> subprocess.CompletedProcess:
    module = ["stages.repro"] if stage == "repro" else ["stages", stage]
    return subprocess.run(
        [sys.executable, "-m", *module, *arguments],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HF_DATASETS_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(("change", "message"), WRONG, ids=lambda x: ".".join(map(str, x[:2])))
def test_wrong_value_is_named_with_what_is_allowed(change, message, tmp_path):
    with pytest.raises(ParamsError) as error:
        load_params(write(tmp_path, changed(*change)))
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["data.source", "loss.gamma", "loss.levels.count", "train.betas", "compute.threads"])
def test_missing_key_is_named(key, tmp_path):
    """Also of sections that have the paper's values as defaults in Python."""
    params = section = yaml.safe_load((ROOT / "params.yaml").read_text())
    *sections, last = key.split(".")
    for name in sections:
        section = section[name]
    del section[last]
    with pytest.raises(ParamsError, match=f"^{re.escape(key)}: missing$"):
        load_params(write(tmp_path, params))


def test_sections_have_the_papers_values_as_defaults(tmp_path):
    """Those of the profile of its scaling study, but for what the paper does not say."""
    params = load_params(ROOT / "profiles/imagenet256.yaml")
    assert params.loss == Loss()
    assert params.train == Optimization()
    assert params.repa == Repa()


def test_missing_file_and_broken_yaml_are_named(tmp_path):
    with pytest.raises(ParamsError, match=r"nowhere\.yaml: No such file"):
        load_params(tmp_path / "nowhere.yaml")
    (tmp_path / "broken.yaml").write_text("a: [1")
    with pytest.raises(ParamsError, match="not YAML"):
        load_params(tmp_path / "broken.yaml")
    (tmp_path / "empty.yaml").write_text("")
    with pytest.raises(ParamsError, match="copy one from profiles/"):
        load_params(tmp_path / "empty.yaml")


def test_params_are_read_as_dvc_writes_them(tmp_path):
    """YAML 1.2, in which 5e-05 is a number, `no` a word, and a key occurs once."""
    text = (ROOT / "params.yaml").read_text()
    path = tmp_path / "params.yaml"
    path.write_text(text.replace("learning_rate: 7.0e-4", "learning_rate: 5e-05"))
    assert load_params(path).train.learning_rate == 5e-5
    path.write_text(text.replace("mirror: false", "mirror: no"))
    with pytest.raises(ParamsError, match=r"data\.mirror: 'no' is not allowed"):
        load_params(path)
    path.write_text(text + "\nruns: [S-2]\n")
    with pytest.raises(ParamsError, match=r'not YAML: .*duplicate key "runs"'):
        load_params(path)


@pytest.mark.parametrize(
    "content", [b"\xff\xfe", b"a: \x00", b"a: 2026-99-99", b"[" * 5000, b"? {a: 1}\n: 2", b"a: *b"]
)
def test_what_is_no_yaml_is_one_line(content, tmp_path):
    (tmp_path / "params.yaml").write_bytes(content)
    with pytest.raises(ParamsError) as error:
        load_params(tmp_path / "params.yaml")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("key", "value"), [("evaluate.samples", 2047), ("train.eval_samples", 500)])
def test_inception_needs_as_many_samples_as_features(key, value, tmp_path):
    params = yaml.safe_load((ROOT / "profiles/cifar10.yaml").read_text())
    section, name = key.split(".")
    params[section][name] = value
    with pytest.raises(ParamsError, match=rf"^{key}: {value} is not allowed; allowed: more than 2048, one a feature$"):
        load_params(write(tmp_path, params))


def test_home_is_written_with_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "photographs").mkdir()
    params = load_params(write(tmp_path, changed("data", "source", "~/photographs")))
    assert params.data.source == str(tmp_path / "photographs")


def test_patches_are_checked_against_the_latents_of_a_pretrained_vae_once_it_is_there(tmp_path):
    params = changed("vae", "pretrained", "some/hub-id")
    params["study"]["XL-2"]["patch"] = 3
    loaded = load_params(write(tmp_path, params))
    loaded.check_latent_size(12)
    with pytest.raises(ParamsError, match=r"study\.XL-2\.patch: 3 is not allowed; allowed: divisors of 8, the latents"):
        loaded.check_latent_size(8)
    with pytest.raises(ParamsError, match=r"data\.resolution: 32 is not allowed; allowed: multiples of the VAE's"):
        loaded.check_latent_size(31 / 8)


def test_run_against_another_discriminator_is_no_point_of_the_power_law(tmp_path):
    loaded = load_params(write(tmp_path, changed("study.L-2", "discriminator", {"width": 64})))
    assert loaded.settings("L-2").run.overrides
    assert not loaded.settings("B-2").run.overrides


@pytest.mark.parametrize(
    ("environment", "command"),
    [
        ({}, ["accelerate", "launch", "-m", "stages", "train", "S-2", "0"]),
        (
            {"GAT_SLOT": "1"},
            ["accelerate", "launch", "--main_process_port", "0", "-m", "stages", "train", "S-2", "0"],
        ),
        (
            {"ACCELERATE_MIXED_PRECISION": "bf16"},
            ["accelerate", "launch", "--mixed_precision", "bf16", "-m", "stages", "train", "S-2", "0"],
        ),
        (
            {"ACCELERATE_MIXED_PRECISION": "bf16", "GAT_LAUNCH": "srun torchrun"},
            ["srun", "torchrun", "-m", "stages", "train", "S-2", "0"],
        ),
    ],
)
def test_stage_starts_itself_on_all_devices_with_the_machines_precision(environment, command, monkeypatch):
    class StartedError(Exception):
        pass

    def start(program: str, arguments: list[str]) -> None:
        raise StartedError(arguments)

    for name in ("GAT_LAUNCH", "ACCELERATE_MIXED_PRECISION", "LOCAL_RANK", entry.LAUNCHED, entry.SLOT):
        monkeypatch.setenv(name, "")  # so that what the stage sets is taken back, too
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr(entry, "end_with_parent", lambda: None)
    monkeypatch.setattr(entry.os, "execvp", start)
    monkeypatch.setattr(sys, "argv", ["stages", "train", "S-2", "0"])
    with pytest.raises(StartedError) as started:
        entry.main()
    assert started.value.args[0] == command


def test_a_process_whose_launcher_is_dead_ends_instead_of_waiting_for_it(monkeypatch):
    """As one does that was about to ask the system for a signal when the launcher was killed."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("stages.processes.ctypes.CDLL", lambda name: unittest.mock.MagicMock())  # of this very process
    monkeypatch.setattr(sys, "argv", ["stages", "train", "S-2", "0"])
    gone = subprocess.Popen(["true"])
    gone.wait()
    monkeypatch.setenv(entry.LAUNCHED, entry.launched_by_this().replace(f":{os.getpid()}", f":{gone.pid}"))
    with pytest.raises(SystemExit, match="what launched this process was killed"):
        entry.main()
    for alive in (entry.launched_by_this(), f"another-node::{gone.pid}"):
        monkeypatch.setenv(entry.LAUNCHED, alive)
        entry.end_with_parent()


@pytest.mark.parametrize("profile", ["params.yaml", *sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("profiles/*"))])
def test_every_profile_is_valid(profile):
    load_params(ROOT / profile)


@pytest.mark.parametrize(("width", "heads"), [(1152, 18), (1024, 16), (768, 12), (384, 6), (96, 2), (64, 1), (16, 1)])
def test_auto_heads_are_about_64_wide(width, heads):
    assert Network(width=width, depth=4, patch=2).head_count == heads


def test_any_width_divisible_by_four_has_valid_auto_heads():
    for width in range(4, 1200, 4):
        heads = Network(width=width, depth=4, patch=2).head_count
        assert width % heads == 0
        assert width // heads % 4 == 0


def test_discriminator_defaults_to_the_generators_size_and_can_differ(tmp_path):
    params = changed("model", "width", 32)
    params["model"] = {"width": 32, "depth": 3, "heads": 2, "patch": 2, "discriminator": {"width": 64}, "seed": 0}
    params["study"]["L-2"] = {"width": 40, "depth": 3, "heads": 2, "patch": 2}
    loaded = load_params(write(tmp_path, params))
    assert loaded.settings("model").run.discriminator_network == Network(width=64, depth=3, heads="auto", patch=2)
    assert loaded.settings("L-2").run.discriminator_network == Network(width=40, depth=3, heads=2, patch=2)


def test_study_entry_overrides_training_and_loss(tmp_path):
    params = changed("study.L-2", "loss", {"levels": {"schedule": "none"}, "gamma": 0.0})
    params["study"]["L-2"]["train"] = {"scale_lr_by_width": False}
    loaded = load_params(write(tmp_path, params))
    _, loss, train, _ = loaded.settings("L-2")
    assert (loss.levels.schedule, loss.levels.used, loss.gamma) == ("none", 1, 0.0)
    assert loss.augment == loaded.loss.augment
    assert not train.scale_lr_by_width
    assert loaded.settings("B-2").train.scale_lr_by_width


@pytest.mark.parametrize(
    "stage", ["images", "extractor", "reference", "vae", "latents", "floors", "train", "evaluate", "report", "repro"]
)
def test_every_stage_stops_on_a_wrong_value_before_torch_is_imported_and_writes_nothing(stage, tmp_path):
    write(tmp_path, changed("model", "width", 50))
    (tmp_path / "torch.py").write_text("raise AssertionError('imported')")
    done = run_stage(stage, *["model"] * (stage in ("train", "evaluate")), tmp_path=tmp_path)
    assert done.returncode == 1
    assert done.stderr == "params.yaml: model.width: 50 is not allowed; allowed: multiples of 4\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["params.yaml", "torch.py"]


def test_unknown_stage_is_named(tmp_path):
    for name in ([], ["trian"]):
        done = subprocess.run(
            [sys.executable, "-m", "stages", *name], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        assert done.stderr.startswith("python -m stages NAME [RUN SEED], with NAME one of images, ")


def test_unknown_run_is_named(tmp_path):
    write(tmp_path, yaml.safe_load((ROOT / "params.yaml").read_text()))
    for name in (["M-2", "0"], []):
        done = run_stage("evaluate", *name, tmp_path=tmp_path)
        assert done.returncode == 1
        assert done.stderr.startswith(f"params.yaml: run: {(*name, '')[0]!r} is not allowed; allowed: model, S-2, ")


def test_run_of_the_study_needs_a_seed(tmp_path):
    write(tmp_path, yaml.safe_load((ROOT / "params.yaml").read_text()))
    for seed in ([], ["first"]):
        done = run_stage("train", "S-2", *seed, tmp_path=tmp_path)
        assert done.returncode == 1
        message = f"params.yaml: seed: {(*seed, '')[0]!r} is not allowed; allowed: a number after the run's name"
        assert done.stderr.startswith(message)


def test_each_run_is_trained_once_for_each_seed_and_the_model_under_test_once(tmp_path):
    params = yaml.safe_load((ROOT / "params.yaml").read_text()) | {"runs": ["S-2", "S-1"], "seeds": [0, 7]}
    trainings = load_params(write(tmp_path, params)).trainings
    assert [training.stage("train") for training in trainings] == [
        "train-model",
        "train@S-2-0",
        "train@S-2-7",
        "train@S-1-0",
        "train@S-1-7",
    ]
    assert [training.folder for training in trainings][::4] == ["model", "S-1/seed-7"]


def test_what_the_data_show_to_be_wrong_is_one_line_too(tmp_path):
    write(tmp_path, changed("data", "image_column", "picture"))
    done = run_stage("images", tmp_path=tmp_path)
    assert done.returncode == 1
    message = "params.yaml: data.image_column: 'picture' is not a column of mnist5k; it has image, label"
    assert done.stderr.splitlines()[-1] == message
    assert "Traceback" not in done.stderr

"""Pretrained autoencoders as people have them, saved here in diffusers' own format."""

import json
import re

import pytest
import torch
from conftest import ROOT
from diffusers import AutoencoderKL, AutoencoderTiny
from helpers import changed_params, save_vision_model

from gat.config import Params, ParamsError
from gat.data import vision
from gat.data.kinds import vae_problem
from gat.data.pretrained_vae import fetch_vae
from stages.source import check_models, load_models

SIZES = {"block_out_channels": (8, 8), "down_block_types": ("DownEncoderBlock2D",) * 2, "norm_num_groups": 4}
SIZES |= {"up_block_types": ("UpDecoderBlock2D",) * 2}


def small(**config) -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(**SIZES | config)


@pytest.mark.parametrize(("place", "variant"), [("", None), ("vae", None), ("", "fp16")])
def test_an_autoencoder_is_found_in_a_folder_or_a_repository(place, variant, tmp_path):
    vae = small(latent_channels=16)
    vae.save_pretrained(tmp_path / "source" / place, variant=variant)
    fetch_vae(str(tmp_path / "source"), tmp_path / "out")
    read = AutoencoderKL.from_pretrained(tmp_path / "out")
    assert read.config["latent_channels"] == 16
    for name, tensor in vae.state_dict().items():
        assert torch.equal(read.state_dict()[name], tensor)


def refusal(folder, early: bool = True) -> str:
    """What is said of it when its weights are read, and before anything is computed."""
    with pytest.raises(ParamsError) as error:
        fetch_vae(str(folder), folder.with_name("out"))
    if early:
        params = Params.model_validate(changed_params(f"vae: {{pretrained: {folder}}}"))
        with pytest.raises(ParamsError) as first:
            check_models(params)
        assert str(first.value) == str(error.value)
    assert str(error.value).startswith(f"vae.pretrained: {str(folder)!r} ")
    assert "\n" not in str(error.value)
    return str(error.value)


def test_autoencoders_that_cannot_be_used_are_refused_by_name(tmp_path):
    AutoencoderTiny(encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4).save_pretrained(
        tmp_path / "tiny"
    )
    assert "is an AutoencoderTiny; allowed: AutoencoderKL" in refusal(tmp_path / "tiny")
    small(shift_factor=0.1).save_pretrained(tmp_path / "shifted")
    assert "has shift_factor 0.1" in refusal(tmp_path / "shifted")
    small(latents_mean=[1.0] * 4, latents_std=[2.0] * 4).save_pretrained(tmp_path / "normalized/vae")
    assert "has latents_mean" in refusal(tmp_path / "normalized")
    (tmp_path / "nothing").mkdir()
    assert "has no config.json" in refusal(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"in_channels": 1}, "in_channels 1; allowed: 3"),
        ({"out_channels": 4}, "out_channels 4; allowed: 3"),
        ({"scaling_factor": 0}, "scaling_factor 0; allowed: a number above 0"),
        ({"scaling_factor": -0.2}, "scaling_factor -0.2"),
        ({"scaling_factor": None}, "scaling_factor None"),
        ({"scaling_factor": "0.2"}, "scaling_factor 0.2"),
        ({"scaling_factor": True}, "scaling_factor True"),
    ],
)
def test_autoencoders_of_other_images_or_scales_are_refused(config, why):
    usable = {"_class_name": "AutoencoderKL"}
    assert vae_problem(usable) is None
    assert vae_problem(usable | {"in_channels": 3, "out_channels": 3, "scaling_factor": 0.18215}) is None
    assert f"has {why}" in vae_problem(usable | config)


def test_weights_that_are_missing_or_not_finite_are_noticed(tmp_path):
    vae = small()
    vae.decoder.conv_in.weight.data[0] = torch.inf
    vae.save_pretrained(tmp_path / "infinite")
    assert "weights that are not finite" in refusal(tmp_path / "infinite", early=False)
    small().save_pretrained(tmp_path / "short")
    config = json.loads((tmp_path / "short/config.json").read_text())
    (tmp_path / "short/config.json").write_text(json.dumps(config | {"layers_per_block": 2}))
    assert "lacks weights" in refusal(tmp_path / "short", early=False)


@pytest.mark.parametrize("content", [b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", b"", None])
def test_weights_that_cannot_be_read_are_one_line(content, tmp_path):
    """Of an autoencoder in a subfolder, of which more is to be said than that it is not at the top."""
    small().save_pretrained(tmp_path / "source/vae")
    weights = tmp_path / "source/vae/diffusion_pytorch_model.safetensors"
    weights.unlink() if content is None else weights.write_bytes(content)
    assert re.search(r"cannot be read \(.*(git-lfs|diffusion_pytorch_model)", refusal(tmp_path / "source", early=False))


def test_a_broken_configuration_is_one_line(tmp_path):
    small().save_pretrained(tmp_path / "source/vae")
    (tmp_path / "source/vae/config.json").write_text('{"_class_name": ')
    assert "cannot be read (vae/config.json: Expecting value" in refusal(tmp_path / "source")


def test_models_are_loaded_before_images_are_cut(tmp_path, monkeypatch):
    """Once each, and not those that dvc.lock names: results were made from these."""
    monkeypatch.chdir(tmp_path)
    for name in ("vit", "empty"):
        save_vision_model(tmp_path / name, "ViT", image_size=28, patch_size=7, size=28)
    small().save_pretrained(tmp_path / "vae")
    (tmp_path / "empty/model.safetensors").unlink()

    def load(encoder: str, teacher: str) -> None:
        changes = f"{{vae: {{pretrained: ./vae}}, encoder: {{pretrained: {encoder}}}, repa: {{teacher: {teacher}}}}}"
        load_models(Params.model_validate(changed_params(changes)))

    loaded = []
    fetch = vision.fetch_vision_model
    monkeypatch.setattr(vision, "fetch_vision_model", lambda *args: (loaded.append(args[0]), fetch(*args)))
    load("./vit", "vit")
    assert loaded == ["./vit", "vit"]
    load("vit", "vit")
    assert loaded == ["./vit", "vit", "vit"]
    with pytest.raises(ParamsError, match=r"^repa\.teacher: 'empty' cannot be read \(OSError: .*model\.safetensors"):
        load("vit", "empty")
    (tmp_path / "dvc.lock").write_text("stages: {source: {params: {params.yaml: {repa: {teacher: empty}}}}}")
    load("data/encoder", "empty")
    assert not [*(tmp_path / "checkpoints").iterdir()]


def test_kinds_of_encoders_are_checked_before_anything_is_computed(tmp_path):
    save_vision_model(tmp_path / "vit", "ViT", image_size=28, patch_size=7)
    save_vision_model(tmp_path / "beit", "Beit", image_size=28, patch_size=7)
    for key, section in (
        ("encoder.pretrained", "encoder: {{pretrained: {}}}"),
        ("repa.teacher", "repa: {{teacher: {}}}"),
        ("study.L-2.repa.teacher", "study: {{L-2: {{repa: {{teacher: {}}}}}}}"),
    ):
        check_models(Params.model_validate(changed_params(section.format(tmp_path / "vit"))))
        with pytest.raises(ParamsError, match=rf"^{key}: '{tmp_path}/beit' is a beit; allowed: clip, "):
            check_models(Params.model_validate(changed_params(section.format(tmp_path / "beit"))))
        (tmp_path / "vit/preprocessor_config.json").rename(tmp_path / "kept")
        with pytest.raises(ParamsError, match=rf"^{key}: .* has no preprocessor_config\.json"):
            check_models(Params.model_validate(changed_params(section.format(tmp_path / "vit"))))
        (tmp_path / "kept").rename(tmp_path / "vit/preprocessor_config.json")


def test_the_default_study_names_no_model_that_is_refused():
    check_models(Params.model_validate(changed_params("", ROOT / "params.yaml")))

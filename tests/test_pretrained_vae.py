"""Pretrained autoencoders as people have them, saved here in diffusers' own format."""

import json

import pytest
import torch
from conftest import ROOT
from diffusers import AutoencoderKL, AutoencoderTiny
from helpers import changed_params, save_vision_model

from gat.config import Params, ParamsError
from gat.data.pretrained_vae import fetch_vae
from stages.source import check_models

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
    assert "cannot be read" in refusal(tmp_path / "nothing", early=False)


def test_weights_that_are_missing_or_not_finite_are_noticed(tmp_path):
    vae = small()
    vae.decoder.conv_in.weight.data[0] = torch.inf
    vae.save_pretrained(tmp_path / "infinite")
    assert "weights that are not finite" in refusal(tmp_path / "infinite", early=False)
    small().save_pretrained(tmp_path / "short")
    config = json.loads((tmp_path / "short/config.json").read_text())
    (tmp_path / "short/config.json").write_text(json.dumps(config | {"layers_per_block": 2}))
    assert "lacks weights" in refusal(tmp_path / "short", early=False)


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

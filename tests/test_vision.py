"""Pretrained image encoders of all kinds, each of random weights in transformers' own format."""

import errno
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import IMAGENET, save_vision_model
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, ConvNextConfig, ConvNextModel, SiglipConfig, SiglipModel
from transformers.image_processing_base import ImageProcessingMixin

from gat.config import Augment, ParamsError
from gat.data.kinds import encoder_problem, input_size
from gat.data.vision import VisionModel, features_of, fetch_vision_model
from gat.evaluation.encoder import Encoder
from gat.gan.augment import sample_augment_params
from gat.gan.repa import Teacher

SMALL = {"size": 28, "image_size": 28, "patch_size": 7}
KINDS = {
    "CLIPVision": {"intermediate_size": 48},
    "DeiT": {},
    "Dinov2": {},
    "Dinov2WithRegisters": {"num_register_tokens": 3},
    "DINOv3ViT": {"num_register_tokens": 4},
    "IJepa": {},
    "SiglipVision": {},
    "ViT": {},
    "ViTMAE": {},
}


def fetched(tmp_path, kind: str, **config) -> VisionModel:
    save_vision_model(tmp_path / "source", kind, **SMALL | config)
    fetch_vision_model(str(tmp_path / "source"), tmp_path / "out", "repa.teacher")
    return VisionModel(tmp_path / "out")


@pytest.mark.parametrize("kind", KINDS)
def test_patches_are_in_the_order_of_the_image(kind, tmp_path):
    """A changed patch of the image changes the token at its place most, and no random number moves it."""
    network = fetched(tmp_path, kind, **KINDS[kind])
    assert (network.width, network.grid, network.size) == (24, 4, 28)
    images = torch.randn(1, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    pooled, before = features_of(network.model, images)
    assert pooled.shape == (1, 24)
    assert before.shape == (1, 16, 24)
    for row, column in ((0, 0), (1, 3), (3, 2)):
        changed = images.clone()
        changed[:, :, 7 * row : 7 * row + 7, 7 * column : 7 * column + 7] *= -3
        _, after = features_of(network.model, changed)
        assert int((after - before).norm(dim=-1).argmax()) == 4 * row + column
    assert torch.equal(features_of(network.model, images)[1], before)


@pytest.mark.parametrize("kind", ["IJepa", "SiglipVision"])
def test_without_a_cls_token_features_are_the_mean_over_patches(kind, tmp_path):
    network = fetched(tmp_path, kind, **KINDS[kind])
    pooled, patches = features_of(network.model, torch.randn(2, 3, 28, 28))
    torch.testing.assert_close(pooled, patches.mean(1))


@pytest.mark.parametrize(("config", "model"), [(CLIPConfig, CLIPModel), (SiglipConfig, SiglipModel)])
def test_of_a_model_of_images_and_texts_the_part_for_images_is_taken(config, model, tmp_path):
    sizes = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = sizes | {"image_size": 28, "patch_size": 7}
    torch.manual_seed(0)
    whole = model(config(text_config=sizes | {"vocab_size": 50}, vision_config=vision)).eval()
    whole.save_pretrained(tmp_path / "source")
    ImageProcessingMixin(size={"height": 28, "width": 28}, **IMAGENET).save_pretrained(tmp_path / "source")
    fetch_vision_model(str(tmp_path / "source"), tmp_path / "out", "repa.teacher")
    pixels = torch.randn(2, 3, 28, 28)
    _, patches = features_of(VisionModel(tmp_path / "out").model, pixels)
    with torch.no_grad():
        want = whole.vision_model(pixel_values=pixels).last_hidden_state
    torch.testing.assert_close(patches, want[:, -16:])


def test_an_encoder_and_a_teacher_see_images_as_the_preprocessor_says(digits, tmp_path):
    network = fetched(tmp_path, "ViT")
    mean, std = (torch.tensor(IMAGENET[name])[:, None, None] for name in ("image_mean", "image_std"))
    pixels = torch.from_numpy(digits[:4]).permute(0, 3, 1, 2).float() / 255
    resized = F.interpolate(pixels, (28, 28), mode="bicubic", antialias=True).clamp(0, 1)
    want, _ = features_of(network.model, (resized - mean) / std)
    np.testing.assert_allclose(Encoder(tmp_path / "out")(digits[:4]), want.numpy(), atol=1e-5)
    still = sample_augment_params(4, 8, Augment(color=0, translation=0, cutout=0, flip=0), torch.Generator())
    resized = F.interpolate((pixels - mean) / std, (28, 28), mode="bicubic")
    _, want = features_of(network.model, resized)
    torch.testing.assert_close(Teacher(tmp_path / "out")(torch.from_numpy(digits[:4]), still, 8).patches, want)


def test_random_weights_are_those_of_no_training(tmp_path):
    save_vision_model(tmp_path / "source", **SMALL)
    model = VisionModel(tmp_path / "source").model
    next(model.parameters()).data += 1
    model.save_pretrained(tmp_path / "source")
    for name, random in (("own", False), ("random", True), ("again", True)):
        fetch_vision_model(str(tmp_path / "source"), tmp_path / name, "repa.teacher", random)
    own, random, again = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("own", "random", "again"))
    assert own != random
    assert random == again


def refusal(source: Path) -> str:
    """What is said of an encoder when it is loaded."""
    with pytest.raises(ParamsError) as error:
        fetch_vision_model(str(source), source.with_name("out"), "repa.teacher")
    assert str(error.value).startswith(f"repa.teacher: {str(source)!r} ")
    assert "\n" not in str(error.value)
    return str(error.value)


def change(file: Path, **values: object) -> None:
    """Change keys of a JSON file; None: remove them."""
    content = json.loads(file.read_text()) | values
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def test_what_cannot_be_used_is_refused_in_one_line(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    assert "has no config.json" in refusal(source)
    ConvNextModel(ConvNextConfig(hidden_sizes=[8] * 4, depths=[1] * 4)).save_pretrained(source)
    assert "is a convnext; allowed: clip, " in refusal(source)
    save_vision_model(source, "ViT", **SMALL)
    (source / "preprocessor_config.json").unlink()
    assert "has no preprocessor_config.json" in refusal(source)
    ImageProcessingMixin(size=28).save_pretrained(source)
    assert "has no image_mean and image_std" in refusal(source)
    save_vision_model(source, "ViT", **SMALL | {"size": 56})
    assert "cannot be used: " in refusal(source)
    save_vision_model(source, "ViT", **SMALL)
    change(source / "config.json", num_hidden_layers=3)
    assert "lacks weights: " in refusal(source)
    save_vision_model(source, "ViT", **SMALL)
    model = VisionModel(source).model
    next(model.parameters()).data.fill_(torch.nan)
    model.save_pretrained(source)
    assert "has weights that are not finite" in refusal(source)


GIT_LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
WEIGHTS = {
    "a pointer of git-lfs": lambda path: path.write_bytes(GIT_LFS),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "missing": lambda path: path.unlink(),
}


@pytest.mark.parametrize("spoil", WEIGHTS.values(), ids=WEIGHTS)
def test_weights_that_cannot_be_read_are_named_in_one_line(spoil, tmp_path):
    spoil(save_vision_model(tmp_path / "source", "ViT", **SMALL) / "model.safetensors")
    assert "cannot be read (" in refusal(tmp_path / "source")


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ParamsError, match=r"^repa\.teacher: 'org/model' cannot be read \(LocalEntryNotFoundError: .*"):
        fetch_vision_model("org/model", tmp_path / "out", "repa.teacher")


def test_a_full_disk_is_no_fault_of_a_model(monkeypatch, tmp_path):
    def write(*_, **__) -> None:
        raise OSError("cannot download") from OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("transformers.AutoModel.from_pretrained", write)
    with pytest.raises(OSError, match="cannot download"):
        fetch_vision_model(str(save_vision_model(tmp_path / "source")), tmp_path / "out", "repa.teacher")


@pytest.mark.parametrize(
    ("config", "preprocessor", "why"),
    [
        ({}, {"size": {"longest_edge": 224}}, "the size {'longest_edge': 224}"),
        ({}, {"size": None}, "the size None"),
        ({}, {"size": "large"}, "the size large"),
        ({}, {"image_mean": [0.5]}, "image_mean [0.5] in preprocessor_config.json; allowed: three numbers"),
        ({}, {"image_std": 0.5}, "image_std 0.5"),
        ({}, {"image_std": [1, 1, "1"]}, "image_std [1, 1, '1']"),
        ({}, {"image_std": [1, 1, 0]}, "image_std [1, 1, 0] in preprocessor_config.json; allowed: three numbers above"),
        ({}, {"do_normalize": False}, "do_normalize false in preprocessor_config.json; allowed: true"),
        ({}, {"do_rescale": False}, "do_rescale false"),
        ({}, {"rescale_factor": 1 / 127.5}, "rescale_factor 0.0078"),
        ({"num_channels": 1}, {}, "num_channels 1; allowed: 3"),
        ({"model_type": "clip", "vision_config": {"num_channels": 4}}, {}, "num_channels 4; allowed: 3"),
    ],
)
def test_configurations_of_other_images_are_refused(config, preprocessor, why):
    usable = IMAGENET | {"size": 224, "do_rescale": True, "rescale_factor": 0.00392156862745098}
    assert encoder_problem({"model_type": "vit"}, usable) is None
    assert f"has {why}" in encoder_problem({"model_type": "vit"} | config, usable | preprocessor)


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({"size": 224}, 224),
        ({"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}}, 224),
        ({"size": {"height": 384, "width": 384}}, 384),
        ({"size": {"shortest_edge": 224}, "crop_size": None}, 224),
    ],
)
def test_the_size_of_images_is_found_as_preprocessors_write_it(settings, size):
    assert input_size(settings) == size


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json"])
@pytest.mark.parametrize(("content", "why"), [('{"model_type": "v', "Unterminated string"), ("[]", "no JSON object")])
def test_a_broken_configuration_is_one_line(file, content, why, tmp_path):
    (save_vision_model(tmp_path / "source", "ViT", **SMALL) / file).write_text(content)
    assert re.search(rf"cannot be read \({file}.*{why}", refusal(tmp_path / "source"))

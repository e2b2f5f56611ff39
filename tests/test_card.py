import pytest
import yaml
from conftest import ROOT
from huggingface_hub import ModelCard

from gat.config import load_params
from gat.release.card import model_card
from gat.report.settings import as_yaml, plain_name

RESULTS = {
    "run": "S-2", "seed": 0, "params": 1_234_567, "gmacs": 0.5, "fid": 12.5, "recall": 0.25, "samples": 5000,
    "extractor": "inception", "mode": "clean", "truncation_psi": 0.0, "guidance_scale": 1.0, "warnings": [],
}  # fmt: skip


def card_of(source: str = "mnist5k", reference: str | None = None, **results) -> ModelCard:
    recipe = load_params(ROOT / "params.yaml").recipe("S-2")
    return ModelCard(model_card(RESULTS | results, recipe, source, 32, "abc123", "dvc repro x", reference))


def test_card_has_what_was_measured_and_how_to_reproduce_it():
    card = card_of()
    assert [(r.metric_type, r.metric_value) for r in card.data.eval_results] == [("fid", 12.5), ("recall", 0.25)]
    assert card.data.eval_results[0].dataset_name == "mnist5k"
    for part in ("`dvc repro x` at commit abc123", "1.23 million parameters", "learning_rate: 0.0007", "| 12.50 "):
        assert part in card.text
    assert "Warnings" not in card.text
    assert card_of(reference="adm.npz").data.eval_results[0].dataset_name == "adm.npz"
    assert "## Warnings\n\n- FID &lt;diverging&gt;" in card_of(warnings=["FID <diverging>"]).text


def test_names_from_data_are_harmless_in_the_card(tmp_path):
    evil = tmp_path / "<script>alert(1)<"
    evil.mkdir()
    card = card_of(str(evil))
    assert "<script>" not in card.text
    assert str(tmp_path) not in str(card)
    assert card.data.eval_results[0].dataset_name == "<script>alert(1)<"


@pytest.mark.parametrize(
    ("name", "shown"),
    [("a:\n# b", "a: # b"), ("~/data/images", "images"), ("/mnt/teacher", "teacher"), ("facebook/x", "facebook/x")],
)
def test_names_are_single_lines_without_folders(name, shown):
    assert plain_name(name) == shown
    assert yaml.safe_load(as_yaml({"repa": {"teacher": name, "weight": 1.0}})) == {
        "repa": {"teacher": shown, "weight": 1.0}
    }

import pytest
from conftest import ROOT
from huggingface_hub import ModelCard

from gat.config import load_params
from gat.release.card import model_card, plain_name

RESULTS = {
    "run": "S-2", "seed": 0, "params": 1_234_567, "gmacs": 0.5, "fid": 12.5, "recall": 0.25, "samples": 5000,
    "extractor": "inception", "mode": "clean", "truncation_psi": 0.0, "guidance_scale": 1.0, "warnings": [],
}  # fmt: skip


@pytest.fixture
def settings():
    return load_params(ROOT / "params.yaml").settings("S-2")


def test_card_has_what_was_measured_and_how_it_was_made(settings):
    card = ModelCard(model_card(RESULTS, settings, "mnist5k", 32, "abc123", "dvc repro evaluate@S-2-0"))
    assert [(r.metric_type, r.metric_value) for r in card.data.eval_results] == [("fid", 12.5), ("recall", 0.25)]
    assert card.data.eval_results[0].dataset_name == "mnist5k"
    for part in ("`dvc repro evaluate@S-2-0` at commit abc123", "1.23 million parameters", "learning_rate: 0.0007"):
        assert part in card.text
    assert "Warnings" not in card.text
    other = ModelCard(model_card(RESULTS, settings, "mnist5k", 32, "abc123", "x", "adm.npz"))
    assert other.data.eval_results[0].dataset_name == "adm.npz"
    doubtful = model_card(RESULTS | {"warnings": ["FID <diverging>"]}, settings, "mnist5k", 32, "abc123", "x")
    assert "## Warnings\n\n- FID &lt;diverging&gt;" in doubtful


def test_names_from_data_are_harmless_in_the_card(settings, tmp_path):
    evil = tmp_path / "<script>alert(1)<"
    evil.mkdir()
    text = model_card(RESULTS, settings, str(evil), 32, "abc123", "x")
    assert "<script>" not in ModelCard(text).text
    assert str(tmp_path) not in text
    assert ModelCard(text).data.eval_results[0].dataset_name == "<script>alert(1)<"
    assert plain_name("a:\n# b") == "a: # b"

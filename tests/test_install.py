"""Which of pip's settings an installation keeps."""

import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

from stages.install import clean, is_writable

SETTINGS = """\
:env:.user='1'
:env:.find-links='/wheels'
global.extra-index-url='https://one.example\\nhttps://two.example'
install.target='/elsewhere'
user.constraint='/constraints.txt'
"""


def test_sources_of_packages_are_kept_and_all_else_is_dropped():
    environment = {"PATH": "/bin", "HOME": "/h", "PIP_USER": "1", "PIP_CONSTRAINT": "/c", "PYTHONPATH": "/p"}
    assert clean(environment, SETTINGS) == {
        "PATH": "/bin",
        "HOME": "/h",
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_FIND_LINKS": "/wheels",
        "PIP_EXTRA_INDEX_URL": "https://one.example\nhttps://two.example",
    }


def test_a_cache_in_a_folder_that_cannot_be_written_is_not_used(tmp_path, monkeypatch):
    """Asked of the nearest folder that exists. A test that runs as root cannot make one that it may not write to."""
    assert is_writable(tmp_path / "cache/pip")
    monkeypatch.setattr("os.access", lambda path, mode: (path, mode) != (tmp_path, os.W_OK))
    assert not is_writable(tmp_path / "cache/pip")


def test_an_environment_is_marked_only_if_its_packages_import(tmp_path):
    """With nothing to install, the packages are not there."""
    (tmp_path / "stages").mkdir()
    shutil.copy(ROOT / "stages/install.py", tmp_path / "stages")
    (tmp_path / "requirements.lock").touch()
    done = subprocess.run([sys.executable, "stages/install.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert "the installation failed" in done.stderr
    assert not (tmp_path / ".venv/installed").exists()


@pytest.mark.parametrize("name", ["torch", "dvc", "cleanfid"])
def test_what_is_imported_is_pinned(name):
    pinned = (ROOT / "requirements.lock").read_text()
    assert f"\n{ {'cleanfid': 'clean-fid'}.get(name, name) }==" in pinned

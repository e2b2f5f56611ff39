"""Which of pip's settings an installation keeps."""

import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

from stages.install import clean, is_writable, settings

LISTED = """\
:env:.user='1'
download.proxy='http://other.example'
global.cert='/global.pem'
global.extra-index-url='https://one.example\\nhttps://two.example'
global.find-links='/elsewhere'
global.proxy='http://proxy.example'
global.timeout='5'
install.cert='/install.pem'
install.no-index=''
install.target='/elsewhere'
user.constraint='/constraints.txt'
"""


def test_sources_of_packages_are_kept_and_all_else_is_dropped():
    """Of several values of one option, the one that pip uses."""
    environment = {"PATH": "/bin", "HOME": "/h", "PIP_USER": "1", "PIP_CONSTRAINT": "/c", "PYTHONPATH": "/p"}
    environment |= {"PIP_FIND_LINKS": "/wheels", "PIP_PROXY": "", "PIP_DEFAULT_TIMEOUT": "9"}
    kept = clean(environment, LISTED)
    assert kept == {
        "PATH": "/bin",
        "HOME": "/h",
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_CERT": "/install.pem",
        "PIP_EXTRA_INDEX_URL": "https://one.example\nhttps://two.example",
        "PIP_FIND_LINKS": "/wheels",
        "PIP_PROXY": "http://proxy.example",
        "PIP_TIMEOUT": "5",
        "PIP_DEFAULT_TIMEOUT": "9",
    }
    assert [*kept].index("PIP_DEFAULT_TIMEOUT") > [*kept].index("PIP_TIMEOUT")  # the same option; pip uses the last


def test_no_setting_hides_others(tmp_path):
    """Variables and files may have options of `pip config` itself."""
    for folder, text in (
        ("user/pip", "[global]\nuser = 1\nquiet = 1\nisolated = 1\n[install]\nindex-url = https://one.example\n"),
        ("all/pip", "[global]\nproxy = http://a.example\n"),
    ):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "pip.conf").write_text(text)
    environment = {"PATH": os.environ["PATH"], "XDG_CONFIG_HOME": f"{tmp_path}/user"}
    environment["XDG_CONFIG_DIRS"] = f"{tmp_path}/all"
    environment |= dict.fromkeys(("PIP_USER", "PIP_GLOBAL", "PIP_SITE", "PIP_QUIET", "PIP_ISOLATED"), "1")
    kept = clean(environment, settings(sys.executable, environment))
    assert (kept["PIP_INDEX_URL"], kept["PIP_PROXY"]) == ("https://one.example", "http://a.example")
    file = {"PIP_CONFIG_FILE": f"{tmp_path}/user/pip/pip.conf"}
    assert "install.index-url='https://one.example'\n" in settings(sys.executable, environment | file)


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

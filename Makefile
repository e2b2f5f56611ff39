# A fresh clone needs only `make repro`, `make claims` or `make test`; each installs first. JOBS=N sets how many trainings run side by side.
PYTHON ?= python3
READY := .venv/installed
# Commands in dvc.yaml call `python`.
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: install repro claims test test-thorough lint lock
install: $(READY)

repro: $(READY)
	.venv/bin/python -m stages.repro $(if $(JOBS),--jobs $(JOBS))

claims: $(READY)
	.venv/bin/python -m stages.repro $(if $(JOBS),--jobs $(JOBS)) --claims $(CLAIMS)

test: $(READY) lint
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# And kills by the dozen, full disks stage by stage, fuzzing, clones and every launcher.
test-thorough: $(READY) lint
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -m '' --kills 5 --numprocesses logical --maxprocesses 4 --dist loadfile

lint: $(READY)
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy

$(READY): requirements.lock
	$(PYTHON) stages/install.py

# Pins all dependencies of pyproject.toml, for all platforms, whatever package index they come from.
lock:
	uv pip compile pyproject.toml --extra pipeline --extra dev --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-annotate --no-header --output-file requirements.lock

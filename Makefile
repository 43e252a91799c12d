# Two commands do everything: make demo, make test.
VENV ?= .venv
PY := $(VENV)/bin/python
# Packages are pinned in constraints.txt; torch's CPU build goes first, or the resolver would take
# a build with several GB of GPU libraries along.
STAMP := $(VENV)/.installed

.PHONY: demo demo-short test lint bench clean

$(STAMP): pyproject.toml constraints.txt
	python3 -m venv $(VENV)
	$(VENV)/bin/pip install -q -c constraints.txt torch
	$(VENV)/bin/pip install -q -c constraints.txt -e '.[dev]'
	touch $@

demo: $(STAMP)
	PATH="$(abspath $(VENV))/bin:$$PATH" sh training/demo.sh demo

demo-short: $(STAMP)
	PATH="$(abspath $(VENV))/bin:$$PATH" sh training/demo.sh short

test: $(STAMP)
	$(PY) -m pytest -q -n 2 --dist loadfile

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

bench: $(STAMP)
	$(PY) benchmarks/model_speed.py
	$(PY) benchmarks/training_speed.py

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache

# Two commands do everything: make demo, make test.
VENV ?= .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
HAND := static-high,senpai,tmo,tpp,trim-tpp,agentcgroup,senpai+oomd+tpp,host-aware,random
# Packages are pinned in constraints.txt; torch's CPU build goes first, or the resolver would take
# a build with several GB of GPU libraries along.
STAMP := $(VENV)/.installed

.PHONY: demo demo-short demo-kernel dry-run test test-lab lint bench clean

$(STAMP): pyproject.toml constraints.txt
	python3 -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	touch $@

# The main job end to end: train in the model, distil to a rule table, evaluate network and table
# against hand policies on held-out hosts, and let the enforcer run the table in dry-run on a cgroup
# tree that moves.  runs/demo and results/demo are made anew.
demo: $(STAMP)
	rm -rf runs/demo results/demo
	$(BIN)/memcg-gym train demo --out runs/demo
	$(BIN)/memcg-gym export runs/demo --out runs/demo/policy.mrt --rounds 4 --settle-ticks 600 \
	    --hosts 12 --ticks 300
	$(BIN)/memcg-gym evaluate --scenarios host-mix --seeds 0:20 --out results/demo --jobs 2 \
	    --policies $(HAND),runs/demo,runs/demo/policy.mrt
	$(BIN)/memcg-gym show runs/demo/policy.mrt | head -40
	$(MAKE) --no-print-directory dry-run TABLE=runs/demo/policy.mrt
	@echo "report: results/demo/results.md   table: runs/demo/policy.mrt"

# The demo's table and today's policies on a real kernel, three hosts each, settled first.
KERNEL_POLICIES := senpai,tmo,runs/demo/policy.mrt
demo-kernel: $(STAMP)
	test -f runs/demo/policy.mrt || $(MAKE) demo
	$(BIN)/memcg-gym evaluate --world kernel --scenarios host-mix --seeds 0:3 --jobs 2 \
	    --policies $(KERNEL_POLICIES) --out results/kernel

# The same in small, for continuous integration: that every part works, not that it learns.
demo-short: $(STAMP)
	rm -rf runs/short results/short
	$(BIN)/memcg-gym train short --out runs/short
	$(BIN)/memcg-gym export runs/short --out runs/short/policy.mrt --rounds 2 --settle-ticks 60 \
	    --hosts 4 --ticks 60 --validate-hosts 4 --validate-ticks 60
	$(BIN)/memcg-gym evaluate --scenarios burst --seeds 0:4 --settle 120 --ticks 60 \
	    --out results/short --policies senpai,tmo,random,runs/short,runs/short/policy.mrt
	$(BIN)/memcg-gym show runs/short/policy.mrt | head -20
	$(MAKE) --no-print-directory dry-run TABLE=runs/short/policy.mrt

# A model host written out as cgroup v2 files, once a second, and the enforcer reading them.
dry-run: $(STAMP)
	rm -rf runs/tree && mkdir -p runs/tree
	$(PY) -m memcg_gym.envs.cgroup_tree runs/tree --seconds 12 & \
	while [ ! -f runs/tree/facts.toml ]; do sleep 0.5; done; \
	$(BIN)/memcg-gym enforce --table $(TABLE) --dry-run --ticks 4 --children --cgroup . \
	    --root runs/tree/cgroup --proc runs/tree/proc --sys runs/tree/sys \
	    --config runs/tree/facts.toml --journal runs/tree/journal.json; wait

test: $(STAMP)
	$(PY) -m pytest -q -n 2 --dist loadfile -m "not lab"

# Tests that boot a real kernel; .ci/lab-packages.sh installs what they need.
test-lab: $(STAMP)
	$(PY) -m pytest -q -n 2 --dist loadfile -m lab

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	$(PY) benchmarks/step_cost.py
	$(PY) benchmarks/model_speed.py
	$(PY) benchmarks/training_speed.py

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache

# Set-up happens once, behind a stamp file; every target that needs the environment depends on it.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
BENCH  := $(VENV)/.bench-installed
TRAINERS := $(VENV)/.trainers-installed
SERVERS := $(VENV)/.servers-installed
AZURITE := azurite@3.35.0

VERSIONS := .versions
AXOLOTL := $(VERSIONS)/axolotl-whole
BENEATH := import pathlib, sys, sysconfig; \
	pathlib.Path(sysconfig.get_path("purelib"), "beneath.pth").write_text(f"import site; site.addsitedir({sys.argv[1]!r})")
WHICH := from importlib.metadata import version; \
	print(", ".join(f"{name} {version(name)}" for name in ("transformers", "accelerate", "trl", "peft", "torch")), flush=True)
# What trainers of those versions are tried with: all of it, and what of it takes a minute.
OF_TRAINERS := tests/integrations tests/train tests/layouts/test_transformers.py tests/layouts/test_export.py \
	$(addprefix tests/processes/test_, $(addsuffix .py, attach changed_settings collators exceptions outside own_writer \
	resume schedule signals)) tests/ranks/test_attach.py tests/ranks/test_data.py
A_MINUTE := tests/integrations/trainer/test_contract.py tests/integrations/trainer/test_hooks.py tests/processes/test_attach.py

NEW_ENOUGH = $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	|| { echo "Holdfast needs Python 3.11 or newer; say which with: make PYTHON=python3.11 ..."; exit 1; }

NODE_ENOUGH = command -v npm > /dev/null && node -e 'process.exit(+(parseInt(process.versions.node) < 20))' 2> /dev/null \
	|| { echo "make test-remote needs Node.js 20 or newer with npm, for azurite; make test has what runs without"; exit 1; }

.DEFAULT_GOAL := help
.PHONY: help demo demo-mirror test test-full test-faults test-versions test-remote test-trainers test-axolotl fuzz soak check format api dist bench bench-mirror gpu gpu-table clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# torch goes first and alone: its version decides which build the others see.
$(STAMP): pyproject.toml constraints.txt
	@echo "Setting up $(VENV) (once; about three minutes) ..."
	@$(NEW_ENOUGH)
	@$(PYTHON) -m venv $(VENV)
	@PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check torch numpy
	@PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

$(BENCH): $(STAMP)
	@echo "Setting up those whom the benchmark compares with (once) ..."
	@PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[bench]'
	@touch $@

# What others would stumble over lies apart, and its own programs alone see it: the index has torchvision for CUDA, and beside a torch
# without it transformers cannot be imported; DeepSpeed, where it is installed, is imported and prints.
$(TRAINERS): $(STAMP)
	@echo "Setting up the trainers that people bring (once) ..."
	@PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[trainers]'
	@PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(VENV)/timm timm torchvision pillow
	@DS_BUILD_OPS=0 PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(VENV)/deepspeed deepspeed einops hjson msgpack ninja py-cpuinfo
	@touch $@

# azurite is Node's, and is the only server of Azure's protocol.
$(SERVERS): $(STAMP)
	@echo "Setting up the servers of object stores (once) ..."
	@$(NODE_ENOUGH)
	@PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[servers]'
	@npm install --silent --no-audit --no-fund --ignore-scripts --prefix $(VENV)/azurite $(AZURITE)
	@touch $@

# Other versions of transformers and its kin (versions/NAME.txt), over the rest of $(VENV).
$(VERSIONS)/%/.installed: versions/%.txt $(STAMP)
	@echo "Setting up $(VERSIONS)/$* (once; about a minute) ..."
	@$(BIN)/python -m venv --clear --without-pip $(VERSIONS)/$*
	@$(VERSIONS)/$*/bin/python -c '$(BENEATH)' "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
	@$(VERSIONS)/$*/bin/python -m pip install --quiet --disable-pip-version-check --upgrade -r $<
	@touch $@

# Axolotl pins versions of its own. torch has dependencies that its build decides; of all others the list is the whole.
$(AXOLOTL)/.installed: pyproject.toml versions/axolotl-whole.txt
	@echo "Setting up $(AXOLOTL) (once; about two minutes) ..."
	@$(NEW_ENOUGH)
	@$(PYTHON) -m venv $(AXOLOTL)
	@PIP_CONSTRAINT=versions/axolotl-whole.txt $(AXOLOTL)/bin/python -m pip install --quiet --disable-pip-version-check torch numpy
	@$(AXOLOTL)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r versions/axolotl-whole.txt
	@$(AXOLOTL)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: $(STAMP) ## train, ask for a save, kill, resume, and compare with a run that was never interrupted
	@$(BIN)/python examples/demo.py

demo-mirror: $(STAMP) ## train with a mirror in a bucket, kill it and remove its disk, go on from the mirror, and compare
	@$(BIN)/python examples/demo_mirror.py

test: $(VERSIONS)/axolotl/.installed ## the tests (two cores: under 10 minutes); CONTRIBUTING.md has what is left to test-full
	@$(BIN)/python -m pytest -n 2 --dist worksteal
	@echo "A minute with the versions that Axolotl pins (all of them: make test-versions):"
	@$(VERSIONS)/axolotl/bin/python -m pytest -q -n 2 --dist worksteal $(A_MINUTE)

test-full: $(STAMP) ## every test, every cell of the matrix, 200 kills
	@HOLDFAST_FULL=1 $(BIN)/python -m pytest -n 2 --dist worksteal

test-faults: $(STAMP) ## break it in every way of docs/faults.md, also as root with strace, mounts and clocks; writes that page
	@HOLDFAST_FAULTS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -k "test_fault_ or test_security_s" --faults-page=docs/faults.md

test-versions: $(VERSIONS)/oldest/.installed $(VERSIONS)/axolotl/.installed ## the trainers' tests with the oldest versions of transformers and its kin, those that Axolotl pins, ours and the newest
	@rm -rf $(VERSIONS)/newest
	@$(MAKE) --no-print-directory $(VERSIONS)/newest/.installed
	@failed=0; for python in $(addsuffix /bin/python,$(or $(ONLY),$(VERSIONS)/oldest $(VERSIONS)/axolotl $(VENV) $(VERSIONS)/newest)); do \
		$$python -c '$(WHICH)'; \
		$$python -m pytest -q -n 2 --dist worksteal $(OF_TRAINERS) || failed=1; \
	done; exit $$failed

test-remote: $(SERVERS) ## mirrors on servers of S3, Azure and GCS that it starts itself, some behind a proxy that breaks
	@HOLDFAST_REMOTE=1 $(BIN)/python -m pytest -n 2 --dist loadfile tests/remote tests/mirror/test_process.py tests/cli/test_mirror.py \
		tests/processes/test_mirror.py tests/processes/test_failures_elsewhere.py

test-trainers: $(TRAINERS) ## every trainer of docs/trainers.md, asked, signalled, killed and resumed; writes that page
	@HOLDFAST_TRAINERS=1 $(BIN)/python -m pytest -n 2 --dist worksteal tests/field tests/integrations/trainer/test_stored_weights.py --trainers-page=docs/trainers.md

test-axolotl: $(AXOLOTL)/.installed ## Axolotl, the real one, on its own pins: its plugin, and its rows of docs/trainers.md
	@HOLDFAST_TRAINERS=1 AXOLOTL_DO_NOT_TRACK=1 $(AXOLOTL)/bin/python -m pytest -n 2 --dist worksteal \
		tests/integrations/test_axolotl.py tests/field -k axolotl --trainers-page=docs/trainers.md

fuzz: $(STAMP) ## fuzz every parser of what others can write, FUZZ_SECONDS each (60); needs: .venv/bin/pip install atheris
	@nice -n 19 $(BIN)/python tests/security/fuzz.py --seconds $(or $(FUZZ_SECONDS),60)

soak: $(STAMP) ## an hour of training that is asked, stopped, killed and started again at random, on a disk that fills up (SOAK_MINUTES=60)
	@HOLDFAST_SOAK_MINUTES=$(or $(SOAK_MINUTES),60) $(BIN)/python -m pytest -q -s tests/soak

check: $(STAMP) ## ruff, ruff format and mypy, all strict
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(STAMP) ## let ruff rewrite what it can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

api: $(STAMP) ## write docs/api.md from the docstrings
	@$(BIN)/python -m tools.api

dist: $(STAMP) ## build what is released, use it from fresh environments, alone and with each extra, and print the release notes
	@$(BIN)/python -m tools.dist

bench: $(BENCH) ## measure saves and loads beside those of others (two cores: about 22 minutes); writes benchmarks/results and docs/benchmarks.md
	@$(BIN)/python -m benchmarks --only save

bench-mirror: $(STAMP) ## measure uploads and pulls of a mirror beside obstore alone, and training with one beside training without (four minutes)
	@$(BIN)/python -m benchmarks --only mirror

# No environment: a machine with a GPU has its own packages, of which one is a torch that fits its driver.
gpu: ## on a machine with a GPU, with its own packages: tests, exactness, what a save costs (about 5 minutes; PART=name: that alone)
	@$(NEW_ENOUGH)
	@PYTHONPATH=src:tests $(PYTHON) -m benchmarks.gpu check --seconds $(or $(SECONDS),280) $(if $(PART),--part $(PART))

gpu-table: ## the same: a save beside those of others (PART=name: one alone); both write benchmarks/results and docs/benchmarks.md
	@$(NEW_ENOUGH)
	@PYTHONPATH=src:tests $(PYTHON) -m benchmarks.gpu table $(if $(PART),--part $(PART))

clean: ## remove the environment and everything that was built
	rm -rf $(VENV) $(VERSIONS) build dist .mypy_cache .ruff_cache .pytest_cache outputs examples/data
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

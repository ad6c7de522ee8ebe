# The interpreter that .venv is made with: the first of 3.11, 3.12 and 3.13 that runs. Choose with `make setup PYTHON=...`.
FITS := import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
	"$$p" -c '$(FITS)' 2>/dev/null && { echo "$$p"; break; }; done)
BIN := .venv/bin
STAMP := .venv/.treadle-setup

.DEFAULT_GOAL := help
.PHONY: help setup simulators quickstart test test-full faults fuzz resumes soak lint format types docs site base bench gpu curves clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## Prepare .venv with Treadle and the tools, at the tested versions

# A stamp of its own, so that a broken installation is not taken for a finished one.
$(STAMP): pyproject.toml constraints.txt examples/treadle-reach/pyproject.toml
	@test -n "$(PYTHON)" || { echo "error: Python 3.11, 3.12 or 3.13 is needed; name it with: make setup PYTHON=/path/to/python" >&2; exit 1; }
	@$(BIN)/python -c '$(FITS)' 2>/dev/null || { echo "making .venv with $(PYTHON)"; rm -rf .venv; "$(PYTHON)" -m venv .venv; }
	@echo "installing $$(grep '^torch==' constraints.txt) into .venv"
	@$(BIN)/python -m pip install -q "$$(grep '^torch==' constraints.txt)"
	@echo "installing Treadle and its tools, at the versions of constraints.txt"
	@$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]' -e ./examples/treadle-reach
	@echo "ready: make quickstart, or .venv/bin/treadle --help"
	@touch $@

# As root, system packages that are missing are installed too.
simulators: setup ## Install the environments of all simulators (some GB; kept while their pins hold)
	$(BIN)/treadle simulators install --all $$(test "$$(id -u)" != 0 || echo --system)

quickstart: setup ## Fine-tune a tiny policy with RL on this machine, and write its report
	$(BIN)/treadle train quickstart

# `make test TESTS=simulator` runs those alone that need a simulator's environment, `TESTS="not simulator"` the others;
# JOBS=2 runs two files at a time.
test: setup ## Run the fast tests
	$(BIN)/python -m pytest $(if $(TESTS),-m "not full and ($(TESTS))") $(if $(JOBS),-n $(JOBS) --dist loadfile)

test-full: setup ## Run every test, those that take minutes included, on new examples
	$(BIN)/python -m pytest --hypothesis-profile=search -m "full or not full"

# `make faults COUNT=1 SEED=17` repeats the injection of one seed.
faults: setup ## Disturb real training at random moments; results in benchmarks/results/faults.json
	$(BIN)/python -m benchmarks.faults --count $(or $(COUNT),200) --seed $(or $(SEED),0) --json benchmarks/results/faults.json

fuzz: setup ## Read files that Hypothesis makes up, MINUTES long (30)
	$(BIN)/python -m benchmarks.fuzz --minutes $(or $(MINUTES),30)

resumes: setup ## Interrupt runs at random points, resume them, and compare bit by bit; results in benchmarks/results/resumes.json
	$(BIN)/python -m benchmarks.resumes --count $(or $(COUNT),40) --json benchmarks/results/resumes.json

soak: setup ## Let a run go on for MINUTES (60), and see whether it stays as it is; results in benchmarks/results/soak.json
	$(BIN)/python -m benchmarks.soak --minutes $(or $(MINUTES),60) --json benchmarks/results/soak.json

lint: setup ## Check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup ## Format, and mend what can be mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: setup ## Check types
	$(BIN)/pyright

docs: setup ## Write the pages that are generated from the code
	for command in train sft eval; do $(BIN)/treadle recipes --keys $$command > docs/settings-$$command.md; done

site: setup ## Build the site of the docs into site/; a broken link is an error
	$(BIN)/mkdocs build -q

# The flow policy's eyes are those of the other base.
base: setup ## Make the packaged base checkpoints again, from nothing (up to an hour each)
	mkdir -p src/treadle/checkpoints
	for name in tabletop-base tabletop-base-flow; do \
		rm -rf runs/$$name && $(BIN)/treadle sft $$name && \
		rm -rf src/treadle/checkpoints/$$name && cp -r runs/$$name/policy src/treadle/checkpoints/$$name || exit 1; \
	done

bench: setup ## Measure the simulator and the policies
	mkdir -p benchmarks/results
	$(BIN)/python -m benchmarks simulator tabletop --json benchmarks/results/simulator-tabletop.json
	$(BIN)/python -m benchmarks policy --json benchmarks/results/policy-cpu.json

# Under eight minutes on a GPU with 80 GB or more (docs/gpu-checks.md); results land in benchmarks/results/gpu.json.
gpu: setup ## Run every check that needs a GPU, in one call; without one, rehearse them
	$(BIN)/python -m benchmarks.gpu

curves: setup ## Train PPO and GRPO on the tabletop, two seeds each, and plot them (an hour or so)
	$(BIN)/python -m benchmarks curves --output benchmarks/results/curves
	$(BIN)/python -m benchmarks update --json benchmarks/results/curves/update.json

clean: ## Remove what builds and tests leave behind; runs/ and .venv stay
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis
	find src tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +

# Two commands: `make study` (the main job) and `make test`. Each does all the set-up on a fresh machine.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed

.PHONY: study test slow lint format bench certificates clean

study: $(READY)
	$(BIN)/sdediff study

test: $(READY)
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

slow: $(READY)
	$(BIN)/python -m pytest -m slow --timeout 3600

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/variance_loss.py
	$(BIN)/python benchmarks/strong_order.py
	$(BIN)/python benchmarks/error_bound.py
	$(BIN)/python benchmarks/default.py ring8
	$(BIN)/python benchmarks/calibration.py
	$(BIN)/python benchmarks/adaptive_settings.py
	$(BIN)/python benchmarks/adaptive_overhead.py
	$(BIN)/python benchmarks/inversion.py
	$(BIN)/python benchmarks/morph.py
	$(BIN)/python benchmarks/likelihood.py
	$(BIN)/python benchmarks/elbo.py
	$(BIN)/python benchmarks/gradient_variance.py
	$(BIN)/python benchmarks/guidance.py --part mixture
	$(BIN)/python benchmarks/systems.py
	$(BIN)/python benchmarks/systems.py --part giant
	$(BIN)/python benchmarks/improved_ddpm.py
	$(BIN)/python benchmarks/coverage.py
	$(BIN)/python benchmarks/pairing.py
	$(BIN)/python benchmarks/pairing.py --part gap
	$(BIN)/python benchmarks/cifar10_dry_run.py

certificates: $(READY)
	$(BIN)/python benchmarks/certificates.py
	$(BIN)/python benchmarks/exact_frechet.py

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis

# `make demo` and `make test` work on a bare machine: Linux x86-64 (both), macOS arm64 and WSL (demo). See scripts/install.sh.
.PHONY: demo test test-slow bench scaling check lock clean

RUN = .venv/bin/rlcore

demo: ## the light core, and the main job on it
	@bash scripts/install.sh core
	$(RUN) train quickstart --resume

test: ## the full CPU stack, and the whole suite
	@bash scripts/install.sh cpu
	@$(MAKE) --no-print-directory check
	.venv/bin/python -m pytest -m "not slow" --numprocesses 2 --dist loadgroup

test-slow: ## what takes minutes: kills and resumes
	@bash scripts/install.sh cpu
	.venv/bin/python -m pytest -m slow

check: ## style and types
	.venv/bin/ruff check --quiet .
	.venv/bin/ruff format --check --quiet .
	.venv/bin/mypy

BENCHMARKS = step_vs_trl sampler learner pool modes trees grading process_scoring prepacking
bench: ## speed and memory, against TRL, transformers and vLLM; writes docs/performance.md
	@bash scripts/install.sh cpu
	@mkdir -p runs/benchmarks
	@for name in $(BENCHMARKS); do \
	  .venv/bin/python -m benchmarks.$$name --json runs/benchmarks/$$name.json > /dev/null || exit 1; done
	.venv/bin/python -m benchmarks.report runs/benchmarks

scaling: ## what up to 1,024 workers would do, on paper; writes docs/scaling.md
	@bash scripts/install.sh cpu
	@mkdir -p runs/benchmarks
	.venv/bin/python -m benchmarks.scaling --json runs/benchmarks/scaling.json > /dev/null

lock: ## renew locks/
	@bash scripts/install.sh uv
	bash scripts/lock.sh

clean:
	rm -rf .venv runs dist .pytest_cache .mypy_cache .ruff_cache

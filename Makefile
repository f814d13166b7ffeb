# Everything a newcomer needs: `make setup`, `make demo`, `make test`, `make check`.

.DEFAULT_GOAL := help
.PHONY: help setup demo test check clean rendering browser

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
WORKERS := 2
# One thread a process: two test processes on two cores do not fight. Files go out in the order of tests/conftest.py.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder
RENDERING_PACKAGES := libegl1 libgl1 libgl1-mesa-dri libegl-mesa0
BROWSER_PACKAGES := chromium chromium-driver

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP)  ## make .venv and install the package with all that development needs

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "make setup: PYTHON ($(PYTHON)) must be Python 3.11 or newer, got: $$($(PYTHON) --version 2>&1);" \
			"name another one with 'make setup PYTHON=python3.12'" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: setup rendering  ## train, evaluate and export a small policy; the results come to runs/demo
	$(BIN)/qtransformer demo --out runs/demo

# torch.export fails under the run-time shape checks, so the tests marked `export` run without them, in a second call.
test: setup browser  ## run all tests, the slow ones too
	$(PYTEST) -m "not export"
	JAXTYPING_DISABLE=1 $(PYTEST) -m export $$(grep -l mark.export tests/test_*.py)

check: setup  ## lint, formatting, types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright

# $(call provide,who needs it,what tells that it is there,packages,what there is not without): as root, by apt-get.
# Never fails: what needs them does without, and says so.
define provide
	@[ "$$(uname)" = Linux ] || exit 0; \
	PATH="$$PATH:/usr/sbin:/sbin"; \
	if $(2); then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "$(1): installing $(3)"; \
		export DEBIAN_FRONTEND=noninteractive; \
		if apt-get update -qq >/dev/null 2>&1 && \
			apt-get install -qq --yes --no-install-recommends $(3) >/dev/null 2>&1; then exit 0; fi; \
		echo "$(1): apt-get could not install them" >&2; \
	fi; \
	echo "$(1): $(4). On Debian and Ubuntu: sudo apt-get install $(3)" >&2
endef

# MuJoCo draws without a screen through EGL or OSMesa.
rendering:
	$(call provide,rendering,ldconfig -p 2>/dev/null | grep -qE 'libEGL\.so|libOSMesa\.so',$(RENDERING_PACKAGES),no pictures or videos)

# The tests of pages look at them in a real browser.
browser:
	$(call provide,browser,command -v chromium >/dev/null && command -v chromedriver >/dev/null,$(BROWSER_PACKAGES),no page is looked at)

clean:  ## remove .venv, caches and build outputs; runs/ stays
	rm -rf .venv dist build .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -path ./runs -prune -o -path ./.git -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +

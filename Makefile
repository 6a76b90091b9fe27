# Two commands; neither needs the other first, and nothing has to be installed but Python 3.11 or later.
#   make demo   compile the embedded ResNet-20 to W4A4 and print its accuracy before and after
#   make test   formatter, linter, types, import layers, tests

PYTHON ?= python3
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test check tests clean

demo: .venv/installed
	mkdir -p out
	$(BIN)/qcompile models/resnet20_cifar10.onnx -o out/resnet20_w4a4.onnx --w 4 --a 4 \
	  --data models/cifar10_calib.npz --preprocess imagenet-norm --eval models/cifar10_test.npz

test: check tests

tests: .venv/installed-dev
	$(BIN)/python -m pytest

check: .venv/installed-dev # all of `make test` that runs no test
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

.venv/created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "qcompile needs Python 3.11 or later; name one with: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv .venv
	touch $@

.venv/installed: .venv/created pyproject.toml
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv out build *.egg-info

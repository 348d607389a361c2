# make demo: everything on a fresh machine, then the main job on a real model.   make test: all checked but test-more.

PYTHON ?= python3
BIN    := .venv/bin
UV     := $(BIN)/uv
PURE   := core plugins/kernels plugins/torch plugins/transformers plugins/peft plugins/ray plugins/template
NATIVE := plugin_gguf plugin_afq_metal plugin_fp8 plugins/hqq plugins/mx plugins/bnb
JOBS   ?= $(shell nproc)
COMMA  := ,
TORCH  := torch==2.13.0
LLAMA  := -DGGML_NATIVE=ON -DLLAMA_CURL=OFF -DMTMD_BUILD=OFF

# uv reads no pip settings: hand over where wheels lie
export UV_FIND_LINKS ?= $(subst $() ,$(COMMA),$(PIP_FIND_LINKS))
export UV_CONSTRAINT := $(CURDIR)/constraints.txt
export UV_BUILD_CONSTRAINT := $(CURDIR)/constraints.txt
export VIRTUAL_ENV := $(CURDIR)/.venv
export PATH := $(CURDIR)/$(BIN):$(PATH)
export CMAKE_BUILD_PARALLEL_LEVEL := $(JOBS)
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo test test-more test-llama lint pytest test-kernels peers wheels bench bench-model bench-isq sanitize clean

setup: .venv/.ready
	$(UV) pip install -q --no-build-isolation $(addprefix -e ,$(NATIVE))

$(UV):
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check uv==0.13.9

.venv/.torch: $(UV) constraints.txt
	$(UV) pip install -q '$(TORCH)+cpu' || $(UV) pip install -q --torch-backend cpu '$(TORCH)'
	@touch $@

.venv/.ready: .venv/.torch requirements-dev.txt $(addsuffix /pyproject.toml,$(PURE) $(NATIVE))
	$(UV) pip install -q -r requirements-dev.txt
	$(UV) pip install -q --no-build-isolation $(addprefix -e ,$(PURE))
	@touch $@

demo: setup
	@$(BIN)/python examples/demo.py

test: lint pytest

# What needs the package mistralrs, or environments of its own; after `make test` in CI
test-more: setup
	$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile -m "peer or wheel"

# What needs llama.cpp, which is built first: GGUF files and adapters of ours in it, its quantizer beside ours
test-llama: setup .venv/.llama
	$(BIN)/python -m pytest -q -m peer plugin_gguf/tests/test_convert_peer.py plugins/transformers/tests/test_gguf_peer.py \
	  plugins/transformers/tests/test_adapters_peer.py

lint: setup
	ruff format --check .
	ruff check .
	mypy

pytest: setup
	$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile -m "not peer and not wheel"

# Every width of the shared kernel templates, of which `make test` takes one of each kind: three minutes of compiling more
test-kernels: setup
	QUANTRY_TEST_ALL=1 $(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile plugins/kernels/tests

wheels: setup
	rm -rf build/dist
	for d in $(PURE) $(NATIVE); do $(UV) build -q --wheel --no-build-isolation $$d -o build/dist || exit 1; done

# Kernels and peers against the roof: ten minutes on a quiet machine; results and tables are files to commit
bench: setup
	$(BIN)/python benchmarks/products.py

bench-model: setup
	$(BIN)/python benchmarks/foundation.py

# Encoders beside their peers, a whole checkpoint, quality by type: half an hour on a quiet machine
bench-isq: setup
	$(BIN)/python benchmarks/encoders.py
	$(BIN)/python benchmarks/isq.py --rounds 3
	cd benchmarks && ../$(BIN)/python quality.py

# llama.cpp, built: what loads our GGUF files and quantizes beside us
.venv/.llama: .venv/.torch constraints.txt
	CMAKE_ARGS="$(LLAMA)" $(UV) pip install -q llama-cpp-python
	@touch $@

# What `quantry bench --peers` compares with; builds llama.cpp. gptqmodel asks for a torch of its own: only its source is used
peers: setup
	CMAKE_ARGS="$(LLAMA)" $(UV) pip install -q -r requirements-peers.txt
	$(UV) pip install -q --no-deps --no-build-isolation gptqmodel==7.7.0

# AddressSanitizer and UBSan over the native tests (the sanitizer stands in for OpenMP: that test is left out)
sanitize: setup
	$(UV) pip install -q --no-build-isolation --no-deps $(addprefix -e ,$(NATIVE)) \
	  -C cmake.define.QUANTRY_SANITIZE=ON -C build-dir=build/asan -C install.strip=false
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
	  ASAN_OPTIONS=detect_leaks=0:exitcode=66 UBSAN_OPTIONS=print_stacktrace=1 PYTHONMALLOC=malloc \
	  QUANTRY_SANITIZE=1 \
	  $(BIN)/python -m pytest -q plugin_gguf/tests plugin_afq_metal/tests plugin_fp8/tests plugins/hqq/tests plugins/mx/tests \
	  plugins/bnb/tests plugins/kernels/tests \
	  -k "(kernels or panel or encode or repack or hostile or conformance) and not openmp and not neon and not native_build"
	$(UV) pip install -q --no-build-isolation --no-deps --reinstall $(addprefix -e ,$(NATIVE))

clean:
	rm -rf build .venv

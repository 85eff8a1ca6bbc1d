# The commands of README.md. Every target sets up what it needs in .venv, once.
#
#   make demo     train and evaluate on handwritten digits, with figures        make test      the whole test suite
#   make install  set-up and build only                                        make lint      ruff, clang-format, mypy
#   make docs     the pages of docs/ in build/docs, warnings as errors          make notebooks run docs/notebooks and keep their output
#   make bench    time everything against its rivals                           make sanitize  kernels under ASan and UBSan
#   make cuda-on-host   the CUDA kernels behind the ops, executed on the CPU, and each of their barriers left out in turn: 30 minutes
#
# TORCH= chooses another build of torch, for example `make install TORCH=torch==2.11.0`; PYTHON= another interpreter.

PYTHON ?= python3
VENV ?= .venv
TORCH ?= $(shell sed -n 's/^torch==/torch==/p' requirements/lock.txt)
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q

SOURCES := $(shell find csrc -type f) CMakeLists.txt pyproject.toml
CPP := $(shell find csrc tests/cpp -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

# the tests of the ops, as far as they do not ask what a CPU refuses
OPS_TESTS := $(filter-out %test_kernels.py %test_compile.py %test_ops_errors.py %test_mlp_bernoulli_errors.py \
  %test_gaussian_sample_statistics.py, $(wildcard tests/ops/test_*.py))

.PHONY: install demo test lint docs notebooks bench sanitize cuda-on-host clean

install: $(VENV)/built

demo: install
	$(BIN)/python examples/digits.py

test: install
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CPP)
	$(BIN)/mypy

docs: install $(VENV)/docs
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs build/docs

notebooks: install $(VENV)/docs
	$(BIN)/jupyter execute --inplace docs/notebooks/*.ipynb

bench: install
	$(BIN)/python -m bench
	$(BIN)/python -m bench report

sanitize: $(VENV)/ready
	$(BIN)/cmake -S . -B build/sanitize -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja -DDGMFAST_CPP_TESTS=ON -DDGMFAST_SANITIZE=address,undefined
	$(BIN)/cmake --build build/sanitize
	$(BIN)/ctest --test-dir build/sanitize --output-on-failure

ON_HOST := build/cuda-on-host

# A folder of its own with the package, an extension whose CPU ops run the CUDA kernels, and an environment that borrows the packages.
cuda-on-host: install
	$(BIN)/cmake -S . -B $(ON_HOST) -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja -DDGMFAST_CUDA_ON_HOST=ON \
	  -DPython_EXECUTABLE=$(abspath $(BIN))/python -DCMAKE_CXX_FLAGS_RELEASE=-O1
	$(BIN)/cmake --build $(ON_HOST)
	mkdir -p $(ON_HOST)/site && cp -r dgmfast $(ON_HOST)/site
	$(BIN)/cmake --install $(ON_HOST) --prefix $(ON_HOST)/site
	$(BIN)/python -m venv --without-pip $(ON_HOST)/venv
	for path in $(abspath $(ON_HOST))/site "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"; do echo $$path; done \
	  > "$$($(ON_HOST)/venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/borrowed.pth"
	PYTHONSAFEPATH=1 $(ON_HOST)/venv/bin/python -m pytest -n auto --maxprocesses 8 --timeout 1800 $(OPS_TESTS)
	$(BIN)/cmake -S . -B build/cpp -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja -DDGMFAST_CPP_TESTS=ON
	PATH=$(abspath $(BIN)):$$PATH python tests/cpp/cuda/mutants.py build/cpp

clean:
	rm -rf build $(VENV)

# The packages. The stamp carries the torch that was asked for, so that another TORCH= installs anew.
STAMP := $(VENV)/torch.$(subst /,_,$(subst $() ,_,$(TORCH)))

$(STAMP): requirements/lock.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "dgmfast needs Python 3.11 or newer as $(PYTHON); set PYTHON= to one"; exit 2; }
	@command -v $${CXX:-c++} >/dev/null || { echo "dgmfast needs a C++20 compiler; install one (Debian: apt-get install g++) or set CXX="; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	rm -f $(VENV)/torch.* $(VENV)/built
	$(PIP) install $(TORCH)
	grep -v '^torch==' requirements/lock.txt > $(VENV)/lock-without-torch.txt
	$(PIP) install -r $(VENV)/lock-without-torch.txt
	touch $@

$(VENV)/docs: $(STAMP) requirements/docs.txt
	$(PIP) install -r requirements/docs.txt
	touch $@

$(VENV)/ready: $(STAMP)
	touch $@

# An editable install knows the modules by name, so a module that was added, moved or removed calls for another one.
MODULES := $(VENV)/modules.$(shell find dgmfast examples -name '*.py' | sort | cksum | cut -d' ' -f1)

$(MODULES): $(STAMP)
	rm -f $(VENV)/modules.*
	touch $@

$(VENV)/built: $(STAMP) $(MODULES) $(SOURCES)
	$(PIP) install --no-build-isolation --no-deps -e .
	touch $@

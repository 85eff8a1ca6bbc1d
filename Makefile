# The commands of README.md. Every target sets up what it needs in .venv, once.
#
#   make demo     train and evaluate on handwritten digits, with figures        make test      the whole test suite
#   make install  set-up and build only                                        make lint      ruff, clang-format, mypy
#   make bench    time everything against its rivals                           make sanitize  kernels under ASan and UBSan
#
# TORCH= chooses another build of torch, for example `make install TORCH=torch==2.11.0`; PYTHON= another interpreter.

PYTHON ?= python3
VENV ?= .venv
TORCH ?= $(shell sed -n 's/^torch==/torch==/p' requirements/lock.txt)
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q

SOURCES := $(shell find csrc -type f) CMakeLists.txt pyproject.toml
CPP := $(shell find csrc tests/cpp -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

.PHONY: install demo test lint bench sanitize clean

install: $(VENV)/built

demo: install
	$(BIN)/python -m dgmfast demo

test: install
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CPP)
	$(BIN)/mypy

bench: install
	$(BIN)/python -m bench
	$(BIN)/python -m bench report

sanitize: $(VENV)/ready
	$(BIN)/cmake -S . -B build/sanitize -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja -DDGMFAST_CPP_TESTS=ON -DDGMFAST_SANITIZE=address,undefined
	$(BIN)/cmake --build build/sanitize
	$(BIN)/ctest --test-dir build/sanitize --output-on-failure

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

$(VENV)/ready: $(STAMP)
	touch $@

$(VENV)/built: $(STAMP) $(SOURCES)
	$(PIP) install --no-build-isolation --no-deps -e .
	touch $@

"""Fixtures that several test files share: the real data, every device and every instruction set of the processor."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.op_cases import DEVICES, PATHS, dtypes_of

from dgmfast import _C, data

# Parallel test workers share the cores. With two threads per worker on as many cores as workers, they would wait for each other
# at every op.
BESIDE = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if BESIDE > 1 and "OMP_NUM_THREADS" not in os.environ:
    torch.set_num_threads(max(1, torch.get_num_threads() // BESIDE))
    os.environ["OMP_NUM_THREADS"] = str(torch.get_num_threads())  # for the processes that tests start

SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "data"


@pytest.fixture
def data_dir() -> Path:
    """The folder of the real data sets."""
    folder = data.default_dir()
    if folder is None and not SHARED.is_dir():
        pytest.skip("DGMFAST_DATA_DIR is not set and ../shared/data does not exist beside the repository")
    return folder or SHARED


def _device_of(path: str) -> str:
    return path if path in DEVICES else "cpu"


def _name(path_and_dtype: tuple[str, torch.dtype]) -> str:
    return f"{path_and_dtype[0]}-{str(path_and_dtype[1]).removeprefix('torch.')}"


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    """Each available device."""
    return request.param


@pytest.fixture(params=[(device, dtype) for device in DEVICES for dtype in dtypes_of(device)], ids=_name)
def device_dtype(request: pytest.FixtureRequest) -> tuple[str, torch.dtype]:
    """Each device with each dtype that the ops accept there."""
    return request.param


@pytest.fixture
def restored_isa() -> Iterator[None]:
    """Restores the instruction set after the test."""
    active = _C.isa()
    yield
    _C.set_isa(active)


@pytest.fixture(params=PATHS)
def path_device(request: pytest.FixtureRequest, restored_isa: None) -> str:
    """The device of each path; a path is a GPU or an instruction set of this processor, which the test then uses."""
    if _device_of(request.param) == "cpu":
        _C.set_isa(request.param)
    return _device_of(request.param)


@pytest.fixture(params=[(path, dtype) for path in PATHS for dtype in dtypes_of(_device_of(path))], ids=_name)
def path_dtype(request: pytest.FixtureRequest, restored_isa: None) -> tuple[str, torch.dtype]:
    """(device, dtype) for each path, as in `path_device`, and each dtype that the path accepts."""
    path, dtype = request.param
    if _device_of(path) == "cpu":
        _C.set_isa(path)
    return _device_of(path), dtype


@pytest.fixture
def threads() -> Iterator[None]:
    """Restores the number of threads after the test."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the file that compiles for minutes first, so that no other worker waits for it at the end."""
    items.sort(key=lambda item: item.path.name != "test_kernels.py")

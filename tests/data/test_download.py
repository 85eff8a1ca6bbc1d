"""Tests of download_mnist against servers on the loopback interface, correct and faulty."""

import gzip
import hashlib
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from dgmfast import data
from dgmfast.data import download
from dgmfast.errors import InputError

NAMES = list(download.MD5)
FIRST = f"{NAMES[0]}.gz"


class Mirror(ThreadingHTTPServer):
    """Serves `files`; `misbehave` takes the number of the request, from 0, and returns the kind of fault, or "" for none."""

    def __init__(self, files: dict[str, bytes]):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = files
        self.misbehave = lambda n: ""
        self.requests: list[tuple[str, str | None]] = []  # (file, Range header)
        self.url = f"http://127.0.0.1:{self.server_port}/mnist/"

    def handle_error(self, request, client_address):
        """Ignores clients that hang up, because they are part of the test."""


class Handler(BaseHTTPRequestHandler):
    server: Mirror

    def log_message(self, *args):
        pass

    def do_GET(self):
        mirror = self.server
        name, wanted = self.path.rpartition("/")[2], self.headers.get("Range")
        mirror.requests.append((name, wanted))
        how = mirror.misbehave(len(mirror.requests) - 1)
        body = mirror.files.get(name)
        if body is None or how == "404":
            return self.send_error(404)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and how != "no range" else 0
        if start >= len(body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(body)}")
            return self.end_headers()
        if how == "wrong start":
            start = 1
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if how != "no length":
            self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        rest = body[start:]
        self.wfile.write(rest[: len(rest) // 2] if how in ("cut", "stall") else rest)
        if how == "stall":
            time.sleep(0.4)


@pytest.fixture(autouse=True)
def loopback_without_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download, "TIMEOUT", 5.0)


@pytest.fixture
def contents(monkeypatch) -> dict[str, bytes]:
    """Uncompressed idx files of 100 kB in place of MNIST's."""
    raw = {}
    for seed, name in enumerate(NAMES):
        raw[name] = struct.pack(">HBBI", 0, 8, 1, 100_000) + np.random.default_rng(seed).bytes(100_000)
        monkeypatch.setitem(download.MD5, name, hashlib.md5(raw[name]).hexdigest())
    return raw


@pytest.fixture
def files(contents) -> dict[str, bytes]:
    return {f"{name}.gz": gzip.compress(raw, mtime=0) for name, raw in contents.items()}


@pytest.fixture
def start() -> Iterator:
    mirrors = []

    def start_mirror(files: dict[str, bytes]) -> Mirror:
        mirror = Mirror(files)
        thread = threading.Thread(target=mirror.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        mirrors.append((mirror, thread))
        return mirror

    yield start_mirror
    for mirror, thread in mirrors:
        mirror.shutdown()
        mirror.server_close()
        thread.join()


def found(tmp_path) -> dict[str, bytes]:
    return {str(path.relative_to(tmp_path)): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def whole(files) -> dict[str, bytes]:
    return {os.path.join("mnist", name): body for name, body in files.items()}


def fetch(tmp_path, *mirrors, progress=False):
    return data.download_mnist(tmp_path, mirrors=[m if isinstance(m, str) else m.url for m in mirrors], progress=progress)


def test_success_and_nothing_to_do_the_second_time(tmp_path, files, start):
    mirror = start(files)
    assert fetch(tmp_path / "new", mirror) == tmp_path / "new" / "mnist"
    assert found(tmp_path / "new") == whole(files)
    assert mirror.requests == [(name, None) for name in files]
    fetch(tmp_path / "new", mirror)
    assert len(mirror.requests) == 4


def test_cut_transfer_continues_within_the_call(tmp_path, files, start):
    mirror = start(files)
    mirror.misbehave = lambda n: "cut" if n == 0 else ""
    fetch(tmp_path, mirror)
    assert found(tmp_path) == whole(files)
    assert mirror.requests[:2] == [(FIRST, None), (FIRST, f"bytes={len(files[FIRST]) // 2}-")]


def test_cut_transfer_continues_in_the_next_call(tmp_path, files, start):
    mirror = start(files)
    mirror.misbehave = lambda n: "cut"
    with pytest.raises(
        InputError, match=r"train-images-idx3-ubyte.gz from one of 1 mirrors; got http.*closed after \d+ of \d+ bytes"
    ):
        fetch(tmp_path, mirror)
    assert len(mirror.requests) == download.TRIES
    left = found(tmp_path)
    assert list(left) == [os.path.join("mnist", f"{FIRST}.part")]
    (part,) = left.values()
    assert files[FIRST].startswith(part) and len(part) > len(files[FIRST]) * 0.8
    mirror.misbehave = lambda n: ""
    fetch(tmp_path, mirror)
    assert found(tmp_path) == whole(files)
    assert mirror.requests[download.TRIES] == (FIRST, f"bytes={len(part)}-")


def test_next_mirror_continues_a_cut_transfer(tmp_path, files, start):
    bad, good = start(files), start(files)
    bad.misbehave = lambda n: "cut"
    fetch(tmp_path, bad, good)
    assert found(tmp_path) == whole(files)
    assert good.requests[0][1] is not None and len(good.requests) == 4


@pytest.mark.parametrize("how", ["no range", "wrong start"])
def test_server_that_does_not_honour_the_range(tmp_path, files, start, how):
    mirror = start(files)
    mirror.misbehave = lambda n: ["cut", how][n] if n < 2 else ""
    fetch(tmp_path, mirror)
    assert found(tmp_path) == whole(files)
    assert mirror.requests[1][1] is not None
    assert len(mirror.requests) == (5 if how == "no range" else 6)


def test_partial_answer_that_nobody_asked_for(tmp_path, files, start):
    bad, good = start(files), start(files)
    bad.misbehave = lambda n: "wrong start"
    fetch(tmp_path, bad, good)
    assert found(tmp_path) == whole(files)
    assert len(bad.requests) == 1


def test_answer_without_length(tmp_path, files, start):
    mirror = start(files)
    mirror.misbehave = lambda n: "no length"
    fetch(tmp_path, mirror)
    assert found(tmp_path) == whole(files)


def test_stalled_transfer_times_out_and_continues(tmp_path, files, start, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 0.2)
    mirror = start(files)
    mirror.misbehave = lambda n: "stall" if n == 0 else ""
    fetch(tmp_path, mirror)
    assert found(tmp_path) == whole(files)
    assert mirror.requests[1] == (FIRST, f"bytes={len(files[FIRST]) // 2}-")


@pytest.mark.parametrize("extra", [0, 10])
def test_part_that_is_whole_or_too_long(tmp_path, files, start, extra):
    mirror = start(files)
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / f"{FIRST}.part").write_bytes(files[FIRST] + bytes(extra))
    fetch(tmp_path, mirror)
    assert found(tmp_path) == whole(files)
    asked = [wanted for name, wanted in mirror.requests if name == FIRST]
    # After status 416 the download starts again from the beginning.
    assert asked == [f"bytes={len(files[FIRST]) + extra}-"] + [None] * (extra > 0)


def test_part_of_another_compression_is_fetched_anew(tmp_path, files, start, contents):
    other = gzip.compress(contents[NAMES[0]], compresslevel=0, mtime=0)
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / f"{FIRST}.part").write_bytes(other[:50_000])
    mirror = start(files)
    fetch(tmp_path, mirror)
    assert found(tmp_path) == whole(files)
    assert mirror.requests[:2] == [(FIRST, "bytes=50000-"), (FIRST, None)]


def test_404_then_the_next_mirror_which_is_asked_first_from_then_on(tmp_path, files, start):
    bad, good = start({}), start(files)
    fetch(tmp_path, bad, good)
    assert found(tmp_path) == whole(files)
    assert bad.requests == [(FIRST, None)]
    assert len(good.requests) == 4


def test_mirror_that_lacks_one_file(tmp_path, files, start):
    some = start({FIRST: files[FIRST]})
    fetch(tmp_path / "a", some, start(files))
    assert found(tmp_path / "a") == whole(files)
    with pytest.raises(InputError, match=f"expected {NAMES[1]}.gz from one of 2 mirrors"):
        fetch(tmp_path / "b", start({}), some)


def wrong_contents(files) -> list[bytes]:
    idx = struct.pack(">HBBI", 0, 8, 1, 3) + b"abc"
    return [b"<html>log in</html>", gzip.compress(idx), idx, files[FIRST][:-1], files[FIRST] + b"x", b""]


@pytest.mark.parametrize("which", range(6))
def test_wrong_content_then_the_next_mirror(tmp_path, files, start, which):
    bad, good = start(files | {FIRST: wrong_contents(files)[which]}), start(files)
    fetch(tmp_path, bad, good)
    assert found(tmp_path) == whole(files)
    assert len(bad.requests) == 1 and good.requests[0] == (FIRST, None)  # no byte of the wrong file was kept


def test_all_mirrors_fail_with_one_error_and_nothing_left(tmp_path, files, start):
    wrong, missing = start({FIRST: b"<html>"}), start({})
    with socket.socket() as closed:  # The socket is bound but does not listen, so connections are refused.
        closed.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(InputError) as failure:
            fetch(tmp_path, wrong, missing, dead)
    message = str(failure.value)
    assert "\n" not in message and message.startswith(
        f"download_mnist: expected {FIRST} from one of 3 mirrors; got {wrong.url}{FIRST}: "
    )
    assert "3c 68 74 6d" in message
    assert f"; {missing.url}{FIRST}: HTTP 404 Not Found" in message
    assert f"; {dead}/{FIRST}: ConnectionRefusedError" in message
    assert found(tmp_path) == {}


def test_damaged_file_is_replaced_and_sound_plain_file_kept(tmp_path, files, start, contents):
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / FIRST).write_bytes(files[FIRST][:100])
    (tmp_path / NAMES[1]).write_bytes(contents[NAMES[1]])
    mirror = start(files)
    fetch(tmp_path, mirror)
    assert [name for name, _ in mirror.requests] == [FIRST, f"{NAMES[2]}.gz", f"{NAMES[3]}.gz"]
    assert (tmp_path / "mnist" / FIRST).read_bytes() == files[FIRST]


def test_load_reads_what_was_downloaded(tmp_path, start, monkeypatch):
    """The download and the loader must use the same names, folder and checksums."""
    served = {}
    for name, shape in zip(NAMES, ([4, 28, 28], [4], [2, 28, 28], [2]), strict=True):
        raw = struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape) + bytes(int(np.prod(shape)))
        monkeypatch.setitem(download.MD5, name, hashlib.md5(raw).hexdigest())
        served[f"{name}.gz"] = gzip.compress(raw)
    fetch(tmp_path, start(served))
    mnist = data.load("mnist", tmp_path)
    assert mnist.train.x.shape == (4, 784) and mnist.test.y.tolist() == [0, 0]


def test_file_and_folder_are_synced_around_the_rename(tmp_path, files, start, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append("fsync"), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("replace"), replace(a, b)))
    fetch(tmp_path, start(files))
    assert calls == ["fsync", "replace", "fsync" if hasattr(os, "O_DIRECTORY") else ""] * 4


def test_disk_failure_is_not_blamed_on_the_mirror(tmp_path, files, start, monkeypatch):
    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    mirror = start(files)
    with pytest.raises(InputError, match=r"data_dir must be writable; got .*No space left"):
        fetch(tmp_path, mirror)
    assert len(mirror.requests) == 1
    assert not (tmp_path / "mnist" / FIRST).exists()


def test_data_dir_that_is_a_file(tmp_path, files, start):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="download_mnist: data_dir must be writable"):
        fetch(tmp_path / "file", start(files))


@pytest.mark.parametrize("mirrors", [[], "http://127.0.0.1/", ["file:///tmp/"], ["127.0.0.1"]])
def test_mirrors_refused(tmp_path, mirrors):
    with pytest.raises(InputError, match="download_mnist: mirrors must be a list of http"):
        data.download_mnist(tmp_path, mirrors=mirrors)


def test_progress_bar(tmp_path, files, start, capsys, monkeypatch):
    mirror = start(files)
    fetch(tmp_path / "quiet", mirror)
    assert capsys.readouterr().err == ""
    fetch(tmp_path / "bar", mirror, progress=True)
    shown = capsys.readouterr().err
    assert all(f"{name}: 100%" in shown for name in files)
    monkeypatch.setitem(sys.modules, "tqdm", None)
    fetch(tmp_path / "without tqdm", mirror, progress=True)
    assert capsys.readouterr().err == ""
    assert found(tmp_path / "without tqdm") == whole(files)


# ---------------------------------------------------------------- servers that send too much, or too slowly


def test_an_endless_body_is_cut_off(tmp_path, files, start, monkeypatch):
    monkeypatch.setattr(download, "MOST_BYTES", 1 << 18)
    endless = start(files | {FIRST: bytes(1 << 24)})
    endless.misbehave = lambda n: "no length"
    with pytest.raises(InputError, match=r"expected at most 262144 bytes; the server sends more"):
        fetch(tmp_path, endless)
    assert sum(len(body) for body in found(tmp_path).values()) <= 1 << 18
    fetch(tmp_path / "other", start(files | {FIRST: bytes(1 << 24)}), start(files))
    assert found(tmp_path / "other") == whole(files), "the next mirror is asked"


@pytest.mark.parametrize("length", [str(1 << 40), "9" * 5000, "1e3", "-5", "١٢"])
def test_a_length_that_no_file_has(length, tmp_path, files, start, monkeypatch):
    send = Handler.send_header
    monkeypatch.setattr(
        Handler, "send_header", lambda self, name, value: send(self, name, length if name == "Content-Length" else value)
    )
    with pytest.raises(InputError, match=r"download_mnist: expected train-images") as failure:
        fetch(tmp_path, start(files))
    assert len(str(failure.value)) < 500 and found(tmp_path) == {}


def test_a_server_that_drips_is_left(tmp_path, files, start, monkeypatch):
    """A server that sends a byte now and then must be left, although no single wait reaches a timeout."""
    monkeypatch.setattr(download, "MOST_SECONDS", 0.3)
    drips = start(files)
    finish = Handler.do_GET

    def drip(self):
        if self.server is not drips:
            return finish(self)
        self.send_response(200)
        self.end_headers()
        for _ in range(100):
            self.wfile.write(b"\x1f")
            time.sleep(0.05)

    monkeypatch.setattr(Handler, "do_GET", drip)
    begin = time.monotonic()
    with pytest.raises(InputError, match="no end after 0 seconds"):
        fetch(tmp_path, drips)
    assert time.monotonic() - begin < 4.0
    fetch(tmp_path / "other", drips, start(files))
    assert found(tmp_path / "other") == whole(files)


def test_a_body_that_inflates_beyond_any_file_of_mnist(tmp_path, files, start, monkeypatch):
    monkeypatch.setattr("dgmfast.data.idx.MOST_BYTES", 1 << 20)
    bomb = start(files | {FIRST: gzip.compress(bytes(1 << 26))})
    with pytest.raises(InputError, match="expected at most 1048576 bytes in the gzip file; it holds more"):
        fetch(tmp_path, bomb)
    assert found(tmp_path) == {}

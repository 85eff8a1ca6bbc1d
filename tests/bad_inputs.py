"""A campaign of bad inputs that a user, a damaged disk or another person may hand to the command line.

Each case runs on a fresh copy of a small run. A case passes if the command ends with exit code 2, one line of error and no
traceback, and leaves every existing file unchanged. It also passes if the command ends with 0 and gives the results of the
undamaged run. `python tests/bad_inputs.py` runs all cases and prints a table; test_bad_inputs.py runs a sample of them.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import math
import os
import shutil
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from torch import Tensor

from dgmfast import cli
from dgmfast.runs import folder as run_folder
from dgmfast.runs import unfinished

SMALL = ["--epochs", "2", "--set", "eval_every=1", "--no-progress", "--no-figures"]
RUNS = {
    "vae": ["vae-digits", *SMALL, "--set", "model.hidden=[[8]]", "--set", "model.latent=[2]"],
    "adgm": [
        "adgm",
        "--data",
        "digits",
        *SMALL,
        "--set",
        "model.hidden=[8]",
        "--set",
        "labels=100",
        "--set",
        "labelled_batch=50",
    ],
}
EVALUATE = ["evaluate", "RUN", "--iw", "60", "--limit", "40", "--no-progress", "--no-figures"]
COMMANDS: dict[str, list[str]] = {
    "evaluate": EVALUATE,
    "classify": ["classify", "RUN", "--samples", "1"],
    "sample": ["sample", "RUN", "--n", "4", "--npz", "RUN/samples.npz", "--no-progress"],
    "resume": ["train", "--out", "RUN", "--resume", "--epochs", "3", "--no-progress", "--no-figures"],
    "figures": ["figures", "RUN"],
    "compare": ["compare", "RUN", "--out", "RUN/comparison"],
}


@dataclass(frozen=True)
class Case:
    """One bad input: `damage` changes a copy of the run, and then a command is called; RUN in `arguments` is the copy."""

    name: str
    arguments: tuple[str, ...]
    damage: Callable[[Path], None] = lambda folder: None
    run: str = "vae"


# JSON texts that replace a number, a text or a list.


def deep(levels: int) -> str:
    return "[" * levels + "]" * levels


WRONG_JSON = {
    "null": "null",
    "text": '"x"',
    "true": "true",
    "minus one": "-1",
    "zero": "0",
    "half": "0.5",
    "NaN": "NaN",
    "infinity": "Infinity",
    "huge": "1" + "0" * 30,
    "5000 digits": "9" * 5000,
    "empty list": "[]",
    "nested lists": deep(3),
    "deep lists": deep(100_000),
    "object": '{"a": 1}',
}
NUMBERS = "x 0 -1 nan inf -inf 1e400 1e3 0.5 0x10 １２ 1_0 --1 [1]"
WRONG_NUMBERS = ["", " ", *NUMBERS.split(), "9" * 30, "9" * 5000]


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yields the paths of all values inside a JSON value."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from leaves(item, (*path, key))


PLACE = "@@PLACE@@"


def with_json(value: Any, path: tuple[Any, ...], text: str | None) -> str:
    """Returns a value as JSON with `text` at a path, or without that entry if `text` is None."""
    changed = copy.deepcopy(value)
    parent = changed
    for key in path[:-1]:
        parent = parent[key]
    if text is None:
        del parent[path[-1]]
        return json.dumps(changed)
    parent[path[-1]] = PLACE
    return json.dumps(changed).replace(f'"{PLACE}"', text)


def damaged_json(file: str, line: int | None = None) -> Iterator[tuple[str, Callable[[Path], None]]]:
    """Yields ways to damage a JSON file of a run, or one line of a JSON lines file."""
    source = TEMPLATES["vae"] / file
    lines = source.read_text().splitlines()
    value = json.loads(source.read_text() if line is None else lines[line])

    def write(text: str) -> Callable[[Path], None]:
        whole = text if line is None else "\n".join([*lines[:line], text, *lines[line + 1 :]]) + "\n"
        return lambda folder: replace_file(folder / file, whole.encode())

    for path in leaves(value):
        where = ".".join(map(str, path))
        yield f"{file} without {where}", write(with_json(value, path, None))
        for kind, text in WRONG_JSON.items():
            yield f"{file} {where} = {kind}", write(with_json(value, path, text))
    for kind, text in WRONG_JSON.items():
        yield f"{file} is {kind}", write(text)


def replace_file(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def damaged_bytes(file: str) -> Iterator[tuple[str, Callable[[Path], None]]]:
    """Yields ways to damage any file of a run."""
    content = (TEMPLATES["vae"] / file).read_bytes()
    for share in (0.0, 0.1, 0.5, 0.9, 0.999):
        cut = content[: int(share * len(content))]
        yield f"{file} cut at {share:.1%}", lambda folder, cut=cut: replace_file(folder / file, cut)
    for seed in range(6):
        spoilt = bytearray(content)
        random = np.random.default_rng(seed)
        for place in random.integers(0, len(content), 1 + 20 * (seed % 2)):
            spoilt[place] ^= 1 << int(random.integers(8))
        yield f"{file} with bits flipped, {seed}", lambda folder, spoilt=bytes(spoilt): replace_file(folder / file, spoilt)
    for name, other in {
        "zeros": bytes(1000),
        "text": b"hello\n",
        "not UTF-8": b"\xff\xfe{",
        "zip": b"PK\x03\x04" + bytes(50),
    }.items():
        yield f"{file} is {name}", lambda folder, other=other: replace_file(folder / file, other)
    yield f"{file} is missing", lambda folder: (folder / file).unlink()
    yield f"{file} is a folder", lambda folder: ((folder / file).unlink(), (folder / file).mkdir())
    yield f"{file} is a broken link", lambda folder: ((folder / file).unlink(), (folder / file).symlink_to("nowhere"))


def bad_tensors(t: Tensor) -> dict[str, Any]:
    """Returns values that replace a tensor."""
    bad = {
        "None": None,
        "a text": "x",
        "a number": 1.0,
        "a list": [1.0],
        "no elements": t.new_zeros(0),
        "one more dimension": t.unsqueeze(0),
        "one element more": torch.cat([t.flatten(), t.flatten()[:1]]),
        "another dtype": t.double() if t.is_floating_point() else t.float(),
        "integers": t.to(torch.int64),
        "complex": t.to(torch.complex64),
    }
    if t.dim() == 2:
        bad |= {"transposed": t.t().contiguous(), "sparse": t.to_sparse()}
    if t.is_floating_point() and t.numel():
        bad |= {"NaN": torch.full_like(t, math.nan), "infinity": torch.full_like(t, math.inf)}
    return bad


def damaged_state() -> Iterator[tuple[str, Callable[[Path], None]]]:
    """Yields ways to craft a checkpoint that torch can load."""
    state = torch.load(TEMPLATES["vae"] / "state.pt", weights_only=True)

    def write(changed: dict[str, Any]) -> Callable[[Path], None]:
        def damage(folder: Path) -> None:
            kept = {name: value for name, value in changed.items() if name not in ("format", "digest")}
            buffer = io.BytesIO()
            try:
                digest = run_folder.tensor_digest(kept)
            # The digest of a sparse tensor, for example, fails; whoever crafts a file need not compute it as we do.
            except Exception:
                digest = "0" * 32
            torch.save({"format": changed.get("format"), **kept, "digest": digest}, buffer)
            replace_file(folder / "state.pt", buffer.getvalue())

        return damage

    wrong = {
        "None": None,
        "text": "x",
        "minus one": -1,
        "half": 0.5,
        "huge": 2**70,
        "true": True,
        "a list": [1],
        "a dict": {"a": 1},
        "a tensor": torch.ones(2),
        "deep": eval("[" * 90 + "]" * 90),
    }
    for name in state:
        if name == "digest":
            continue
        yield f"state without {name}", write({key: value for key, value in state.items() if key != name})
        for kind, value in wrong.items():
            yield f"state {name} = {kind}", write({**state, name: value})
    for name, tensor in state["model"].items():
        for kind, value in bad_tensors(tensor).items():
            yield f"state model.{name} = {kind}", write({**state, "model": {**state["model"], name: value}})
    yield "state model with one more", write({**state, "model": {**state["model"], "more": torch.ones(2)}})
    optimizer = state["optimizer"]
    for name, tensor in optimizer["state"][0].items():
        for kind, value in bad_tensors(tensor).items():
            entry = {**optimizer["state"], 0: {**optimizer["state"][0], name: value}}
            yield f"state optimizer.{name} = {kind}", write({**state, "optimizer": {**optimizer, "state": entry}})
    for name in optimizer["param_groups"][0]:
        for kind, value in wrong.items():
            group = {**optimizer["param_groups"][0], name: value}
            yield f"state optimizer group {name} = {kind}", write({**state, "optimizer": {**optimizer, "param_groups": [group]}})
    for kind, value in {"no state": {}, "another parameter": {99: optimizer["state"][0]}}.items():
        yield f"state optimizer with {kind}", write({**state, "optimizer": {**optimizer, "state": value}})


def damaged_export() -> Iterator[tuple[str, Callable[[Path], None]]]:
    """Yields ways to craft an export that safetensors can load."""
    tensors = load_file(TEMPLATES["vae"] / "model.safetensors")

    def write(changed: dict[str, Tensor], told: str = '{"epoch": 2}') -> Callable[[Path], None]:
        def damage(folder: Path) -> None:
            (folder / "model.safetensors").unlink()
            save_file(changed, folder / "model.safetensors", {"dgmfast": told})

        return damage

    for name, tensor in tensors.items():
        for kind, value in bad_tensors(tensor).items():
            if isinstance(value, Tensor) and not value.is_sparse and not value.is_complex():
                yield f"export {name} = {kind}", write({**tensors, name: value.contiguous()})
    yield "export with one more", write({**tensors, "more": torch.ones(2)})
    yield "export without one", write(dict(list(tensors.items())[1:]))
    for epoch in ("x", "-1", "1e3", "9" * 30, "9" * 5000, "null", "true", '"2"', "[2]", ""):
        yield f"export epoch = {epoch[:9]!r}", write(tensors, f'{{"epoch": {epoch}}}')
    for told in ("", "x", "2", "[2]", "[" * 100_000, '{"epoch": 2, "blake2b": "0"}', '{"epoch": 2, "blake2b": null}'):
        yield f"export metadata = {told[:30]!r}", write(tensors, told)


def damaged_partial() -> Iterator[tuple[str, Callable[[Path], None]]]:
    """Yields ways to damage the saved rows of an interrupted evaluation."""
    (source,) = TEMPLATES["vae"].glob("evaluation.partial-*.npz")
    with np.load(source) as file:
        arrays = dict(file)

    def write(changed: dict[str, Any]) -> Callable[[Path], None]:
        def damage(folder: Path) -> None:
            buffer = io.BytesIO()
            np.savez(buffer, **changed)
            replace_file(folder / source.name, buffer.getvalue())

        return damage

    for name, array in arrays.items():
        yield f"partial without {name}", write({key: value for key, value in arrays.items() if key != name})
        others: dict[str, Any] = {"text": np.array("x"), "a scalar": np.array(1.0), "nothing": np.zeros(0)}
        if array.dtype.kind == "f":
            spoilt = {"NaN": np.full_like(array, np.nan), "infinity": np.full_like(array, np.inf), "minus": -np.ones_like(array)}
            others |= {
                **spoilt,
                "complex": array.astype(complex),
                "float32": array.astype(np.float32),
                "integers": array.astype(int),
            }
        if array.ndim:
            others |= {"more rows": np.concatenate([array] * 9), "another dimension": array[None]}
        for kind, value in others.items():
            if name == "pareto_k" and kind == "NaN":
                continue  # NaN is a valid k̂: it stands for a tail that allows no fit
            yield f"partial {name} = {kind}", write({**arrays, name: value})
    both = {name: np.concatenate([arrays[name]] * 9) for name in ("states", "pareto_k")}
    yield "partial with more rows than the split", write({**arrays, **both})


def option_cases() -> Iterator[Case]:
    """Yields every option of every command with values that it does not accept."""
    numbers = {
        "evaluate": ["--iw", "--tolerance", "--limit", "--chunk", "--seed", "--threads"],
        "classify": ["--samples", "--seed", "--threads"],
        "sample": ["--n", "--seed", "--temperature", "--threads"],
        "resume": [
            "--epochs",
            "--batch-size",
            "--lr",
            "--seed",
            "--k",
            "--threads",
            "--checkpoint-every",
            "--checkpoint-minutes",
        ],
        "figures": ["--seed", "--threads"],
    }
    texts = {
        "evaluate": ["--labels", "--data", "--split", "--device", "--data-dir"],
        "classify": ["--by", "--split", "--device", "--data-dir"],
        "sample": ["--data-dir"],
        "resume": ["--data", "--data-dir", "--device", "--set"],
        "figures": ["--split", "--data-dir"],
    }
    for command, options in numbers.items():
        for option in options:
            for value in [*WRONG_NUMBERS, "9223372036854775808", "33000", "2" + "0" * 25]:
                yield Case(f"{command} {option} {value[:12]!r}", (*COMMANDS[command], f"{option}={value}"))
    for command, options in texts.items():
        for option in options:
            for value in [
                "",
                " ",
                ".",
                "/",
                "..",
                "nope",
                "no\nline",
                "a" * 5000,
                "../../etc/passwd",
                "%s%n",
                "cuda:99",
                "=",
                "ü\u202e",
            ]:
                yield Case(f"{command} {option} {value[:12]!r}", (*COMMANDS[command], f"{option}={value}"))
    for command, arguments in COMMANDS.items():
        for folder in [
            "",
            ".",
            "/",
            "..",
            "/nope",
            "/dev/null",
            "/proc/self",
            "a" * 5000,
            "no\0pe" if os.name == "nope" else "nope\n",
        ]:
            yield Case(f"{command} of {folder[:12]!r}", tuple(folder if a == "RUN" else a for a in arguments if "RUN/" not in a))


SETTINGS = """
latent=5 model.latnt=[5] model.latent= model.latent=5.5 model.latent=[0] model.latent=[-1] model.latent=x
model.latent=[1e3] model.latent=[True] model.latent=None model.latent=[[1]] model.latent=[99999999999]
model.hidden=[[]] model.hidden=[] model.hidden=8 model.hidden=[[8],[8]] model.hidden={} model.activation=tahn model.name=vea
model.likelihood=bernouli model=vae model={} objective.k=1e3 objective.k=0 objective.k=True objective.k=None
objective.estimator=x objective.chunk=-1 objective.beta=1 objective=1 learning_rate=0 learning_rate=-1
learning_rate=nan learning_rate=.001x learning_rate=None batch_size=0 batch_size=1e2 batch_size=999999999999
epochs=0 epochs=-5 epochs=1.5 epochs=True seed=1.5 seed=None seed=99999999999999999999 betas=[1]
betas=[0.9,1.0] betas=x eps=-1 grad_clip_norm=-1 labels=7 labels=-10 labelled_batch=1 labelled_batch=0
binarize=maybe binarize=1 data=digitss data= name= name=../x = =5 x a.b.c.d=1 eval_every=0
schedule=x schedule.name=burdaa start_from=/nope start_from= start_at_mean=2 model.x_dim=63 model.x_dim=x
objective.free_bits=-1 objective.free_bits=nan objective.warmup_epochs=-1 objective.label_sum=sparse
model.batch_norm=yes model.image=[1,8,8]
"""


def setting_cases() -> Iterator[Case]:
    """Yields cases of --set for a new run, which must leave no folder behind, and for a resumed run."""
    for text in [*SETTINGS.split(), f"model.latent={deep(100_000)}", "learning_rate=" + "9" * 5000]:
        new = ("train", "vae-digits", "--out", "RUN/new", "--epochs", "1", "--no-progress", "--no-figures", "--set", text)
        yield Case(f"train --set {text[:40]!r}", new)
        yield Case(f"resume --set {text[:40]!r}", (*COMMANDS["resume"], "--set", text))
    for name in ["", "vea-digits", "vae-digit", "vae", "mnist", ".", "a" * 5000, "vae-digits\n"]:
        yield Case(f"train {name[:12]!r}", ("train", name, "--out", "RUN/new", "--epochs", "1", "--no-progress", "--no-figures"))


def link_cases() -> Iterator[Case]:
    """Yields cases in which files of the run are links to another person's file, which must not change."""
    files = [
        "metrics.jsonl",
        "state.pt",
        "config.json",
        "model.safetensors",
        "evaluation.json",
        "evaluation.csv",
        "evaluation.npz",
    ]
    files += ["classification.json", "classification.csv", "samples.png", "samples.npz", "figures"]
    for command, arguments in COMMANDS.items():
        for file in files:

            def link(folder: Path, file: str = file) -> None:
                target = folder / "victim"
                if (folder / file).is_dir():
                    shutil.rmtree(folder / file)
                if (folder / file).exists():
                    (folder / file).rename(target)
                elif file == "figures":
                    target.mkdir()
                    (target / "precious").write_text("of somebody else")
                else:
                    target.write_text("of somebody else")
                (folder / file).symlink_to(target)

            yield Case(f"{command} with a linked {file}", tuple(arguments), link)


def all_cases() -> list[Case]:
    """Returns every case of the command line."""
    cases = [*option_cases(), *setting_cases(), *link_cases()]
    opens = ("evaluate", "sample", "figures")
    for command, ways in {
        **{name: [*damaged_json("config.json"), *damaged_bytes("config.json")] for name in ("sample", "resume")},
        "evaluate": [*damaged_partial(), *damaged_bytes(next(TEMPLATES["vae"].glob("evaluation.partial-*.npz")).name)],
        "figures": [*damaged_json("metrics.jsonl", 1), *damaged_bytes("metrics.jsonl")],
        "compare": [*damaged_json("metrics.jsonl", 0), *damaged_json("evaluation.json"), *damaged_json("classification.json")],
    }.items():
        cases += [Case(f"{command}: {name}", tuple(COMMANDS[command]), damage) for name, damage in ways]
    for command in ("resume", "compare"):
        for name, damage in damaged_bytes("metrics.jsonl"):
            cases.append(Case(f"{command}: {name}", tuple(COMMANDS[command]), damage))
    cases += [Case(f"resume: {n}", tuple(COMMANDS["resume"]), d) for n, d in [*damaged_state(), *damaged_bytes("state.pt")]]
    for command in opens:
        ways = [*damaged_export(), *damaged_bytes("model.safetensors")]
        cases += [Case(f"{command}: {name}", tuple(COMMANDS[command]), damage) for name, damage in ways]
    return cases


# Running the cases


TEMPLATES: dict[str, Path] = {}
CLEAN: dict[str, Any] = {}  # the results of each command on the undamaged run


def call(arguments: tuple[str, ...], folder: Path) -> Any:
    filled = [a.replace("RUN", str(folder)) if a.startswith("RUN") else a for a in arguments]
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        return CliRunner().invoke(cli.main, filled)


def make_templates(place: Path) -> None:
    """Makes one small run of each kind: trained, evaluated, classified, and with the saved rows of an interrupted evaluation."""
    for name, arguments in RUNS.items():
        folder = place / name
        for command in (("train", *arguments, "--out", "RUN"), tuple(EVALUATE)):
            result = call(command, folder)
            assert result.exit_code == 0, result.output
        if name == "adgm":
            done = call(tuple(COMMANDS["classify"]), folder)
            assert done.exit_code == 0, done.output
        TEMPLATES[name] = folder
    shutil.copy(TEMPLATES["adgm"] / "classification.json", TEMPLATES["vae"] / "classification.json")
    # This leaves the state of a process that was killed after the last row and before the table.
    with mock.patch.object(unfinished.EvaluationCheckpoint, "remove"):
        assert call(tuple(EVALUATE), TEMPLATES["vae"]).exit_code == 0


def snapshot(folder: Path) -> dict[str, str]:
    """Returns the digests of all files below a folder, without following links."""
    files = (p for p in sorted(folder.rglob("*")) if p.is_file() and not p.is_symlink())
    return {str(p.relative_to(folder)): hashlib.blake2b(p.read_bytes()).hexdigest() for p in files}


def results(command: str, folder: Path, output: str) -> Any:
    """Returns the main results of a command."""
    if command == "evaluate":
        return json.loads((folder / "evaluation.json").read_text())["bounds"]
    if command == "classify":
        return (
            json.loads((folder / "classification.json").read_text())["error"] if (folder / "classification.json").exists() else 0
        )
    if command == "sample":
        with np.load(folder / "samples.npz") as file:
            return file["x"].tolist()
    if command == "resume":
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        return [{name: value for name, value in json.loads(line).items() if name != "seconds"} for line in lines]
    return sorted(line.rsplit("/", 1)[-1] for line in output.splitlines() if line.startswith("wrote"))


def judge(case: Case, place: Path) -> str:
    """Runs a case and returns its verdict.

    A passing case gives "refused", "harmless", "accepted" (the option is valid after all) or "told" (a warning says what is left
    out). Any other text says what is wrong.
    """
    folder = place / "run"
    shutil.copytree(TEMPLATES[case.run], folder)
    case.damage(folder)
    before = snapshot(folder)
    done = call(case.arguments, folder)
    after = snapshot(folder)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        return f"traceback: {type(done.exception).__name__}: {str(done.exception)[:120]}"
    victim = folder / "victim"
    if victim.is_dir() and (changed := [p.name for p in victim.iterdir() if p.name != "precious"]):
        return f"wrote through a link: {changed}"
    if victim.is_file() and after["victim"] != before["victim"]:
        return "wrote through a link"
    if done.exit_code == 2:
        lines = done.stderr.splitlines()
        errors = [line for line in lines if line.startswith("Error: ")]
        if len(errors) != 1 or len(errors[0]) > 1500:
            return f"exit 2 with {len(errors)} errors of {sum(map(len, errors))} letters: {done.stderr[:200]!r}"
        lost = [name for name, digest in before.items() if after.get(name) != digest]
        if lost and not any(name.startswith("evaluation.partial") for name in lost):
            return f"refused, but files changed: {lost}"
        if (folder / "new").exists():
            return "refused, but a new run was begun"
        return "refused"
    if done.exit_code != 0:
        return f"exit {done.exit_code}: {done.output[-200:]!r}"
    if "RUN/new" in case.arguments or case.name.split()[1:2] == ["of"]:
        return "accepted"
    command = case.name.split()[0].rstrip(":")
    if any(a.startswith("--") and "=" in a for a in case.arguments[len(COMMANDS[command]) :]) or "--set" in case.arguments:
        return "accepted"
    try:
        same = results(command, folder, done.output) == CLEAN[command]
    except Exception as error:
        return f"no result: {error!r}"
    if same:
        return "harmless"
    return "told" if "are left out" in done.stderr else "accepted, with other results"


def clean_results(place: Path) -> None:
    """Runs every command on an undamaged copy and keeps its results."""
    for command, arguments in COMMANDS.items():
        if command == "classify":
            CLEAN[command] = 0
            continue
        folder = place / command
        shutil.copytree(TEMPLATES["vae"], folder)
        done = call(tuple(arguments), folder)
        assert done.exit_code == 0, done.output
        CLEAN[command] = results(command, folder, done.output)


def main() -> None:
    torch.set_num_threads(1)
    every = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    with tempfile.TemporaryDirectory() as scratch:
        make_templates(Path(scratch) / "templates")
        clean_results(Path(scratch) / "clean")
        counts: Counter[str] = Counter()
        for i, case in enumerate(all_cases()[::every]):
            with tempfile.TemporaryDirectory(dir=scratch) as place:
                verdict = judge(case, Path(place))
            counts[verdict.split(":")[0]] += 1
            if verdict not in ("refused", "harmless"):
                print(f"{i:5} {case.name}: {verdict}", flush=True)
        print(json.dumps(counts, indent=2))


if __name__ == "__main__":
    main()

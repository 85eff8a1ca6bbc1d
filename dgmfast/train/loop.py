"""One training loop for all models. It is seeded and checkpointed, and a run resumes bit for bit, on one process or on many.

Every random choice is a pure function of the recipe's seed and of a path that names the choice (see `derive_seed`):

- (seed, "init"): the initial parameters;
- (seed, "shuffle", epoch) and (seed, "binarize", epoch): the order of the rows, and their binary images;
- (seed, "labels"): which rows are labelled;
- (seed, "labelled", pass): their order and binary images in a pass over them;
- (seed, "noise", epoch, step): the latents, through Philox, numbered by the rows of the whole batch;
- (seed, "torch", epoch, rank): torch's own generator, for layers that draw from it;
- (seed, "evaluate"): the latents of the bounds in the log.

A checkpoint at the end of an epoch therefore needs no generator state.
"""

from __future__ import annotations

import inspect
import json
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from dgmfast import data, models
from dgmfast.errors import InputError, check_count
from dgmfast.evaluate import classification_error, kl_units
from dgmfast.files import disk_errors
from dgmfast.models import GenerativeModel, LabelModel
from dgmfast.objectives import Objective
from dgmfast.recipes import OWN_DATA, Recipe
from dgmfast.runs import (
    STATE,
    Group,
    Metrics,
    check_tensors,
    create_model,
    export_parameters,
    fixed_split,
    holds_run,
    initialise,
    is_main,
    load_dataset,
    load_state,
    never_trained,
    parallel,
    process_group,
    resolve_device,
    run_environment,
    save_state,
    stored_changes,
    stored_recipe,
    warn_if_changed,
    write_config,
)
from dgmfast.seeds import derive_seed
from dgmfast.train.labelled import LabelledRows
from dgmfast.train.progress import Progress

WINDOW = 50  # steps between two reads of the loss, because reading it on CUDA waits for the device
EVALUATION_ROWS = 1000
INTACT = "the last checkpoint is intact"


OnEpoch = Callable[[GenerativeModel, dict[str, Any]], object]


class ScalarLogger(Protocol):
    """What `fit` needs of a logger. A torch.utils.tensorboard.SummaryWriter has it."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> Any:
        """Keep the value of `tag` in epoch `global_step`."""
        ...


def fit(
    recipe: Recipe,
    folder: str | Path | None,
    *,
    dataset: data.Dataset | None = None,
    data_dir: str | Path | None = None,
    device: str = "cpu",
    checkpoint_every: int | None = None,
    checkpoint_minutes: float = 1.0,
    progress: bool = True,
    figures: bool = True,
    model: GenerativeModel | None = None,
    on_epoch: OnEpoch | Sequence[OnEpoch] = (),
    logger: ScalarLogger | None = None,
) -> GenerativeModel:
    """Train the model of `recipe` in a new run folder, and return it in evaluation mode.

    A checkpoint is written at the start and at the end, after every `checkpoint_every` epochs, and at the end of an epoch that is
    `checkpoint_minutes` after the last checkpoint.

    Args:
        recipe: The experiment.
        folder: The run folder, or None to write no files. It may not hold a run that has trained an epoch.
        dataset: The data to train on, instead of reading `recipe.data` from `data_dir`.
        data_dir: The folder of the data sets; by default that of DGMFAST_DATA_DIR.
        device: "cpu" or "cuda".
        checkpoint_every: Number of epochs between checkpoints, or None.
        checkpoint_minutes: Number of minutes between checkpoints.
        progress: If true, show the progress on stderr.
        figures: If true, draw the figures of the run at the end.
        model: A model to train, with its present parameters as the initial ones, instead of making the recipe's.
        on_epoch: A function, or several, that are called with the model and the record of the log at the end of every epoch. If
            one returns True, training stops after this epoch; the run can be resumed.
        logger: Gets every number of the record, by add_scalar(name, value, epoch).

    Raises:
        InputError: The folder holds a run already, the data or a setting is wrong, a loss is not finite, or the disk is full.
    """
    options = _Options(folder, device, checkpoint_every, checkpoint_minutes, progress, figures, on_epoch, logger)
    with _session(options) as group:

        def check_folder() -> None:
            if options.folder is None:
                return
            if holds_run(options.folder) and not never_trained(options.folder):
                raise InputError(f"{folder} holds a run already: continue it with --resume, or name another folder")

        group.broadcast_from_rank0(check_folder)
        dataset = load_dataset(recipe, None, data_dir) if dataset is None else dataset
        recipe = _complete(recipe, dataset)
        x_dim = dataset.train.x.shape[1]
        if recipe.model["x_dim"] != x_dim:
            raise InputError(f"model.x_dim must be {x_dim}, the size of a row of {dataset.name}; got {recipe.model['x_dim']!r}")
        _warn_of_labels(recipe, dataset)
        return _Training(recipe, dataset, group, options, None, model).run()


def _warn_of_labels(recipe: Recipe, dataset: data.Dataset) -> None:
    """Warn if a model that classifies is trained without the labels that the data set has."""
    kind = models.MODELS.get(recipe.model["name"], GenerativeModel)
    if recipe.labels == 0 and issubclass(kind, LabelModel) and not kind.clusters and dataset.train.y is not None and is_main():
        warnings.warn(
            f"{recipe.model['name']} is trained without labels, so its classes mean nothing; set labels to the number of "
            f"training rows whose label it may use, such as labels={10 * (dataset.classes or 1)} and labelled_batch=50",
            stacklevel=3,
        )


def _complete(recipe: Recipe, dataset: data.Dataset) -> Recipe:
    """The recipe with the settings that follow from the data, unless it has them.

    They are the size of x, the number of classes if labels are used, and a Gaussian likelihood for numbers outside [0, 1].
    """
    follows: dict[str, Any] = {"x_dim": dataset.train.x.shape[1]}
    kind = models.MODELS.get(recipe.model["name"], GenerativeModel)
    if recipe.labels and dataset.classes is not None and issubclass(kind, LabelModel):
        follows["num_classes"] = dataset.classes
    if dataset.kind in ("levels", "real") and "likelihood" in inspect.signature(kind).parameters:
        follows["likelihood"] = "gaussian"
    return replace(recipe, model={**follows, **recipe.model})


def resume(
    folder: str | Path,
    changes: Mapping[str, Any] | None = None,
    *,
    dataset: data.Dataset | None = None,
    data_dir: str | Path | None = None,
    device: str = "cpu",
    checkpoint_every: int | None = None,
    checkpoint_minutes: float = 1.0,
    progress: bool = True,
    figures: bool = True,
    model: GenerativeModel | None = None,
    on_epoch: OnEpoch | Sequence[OnEpoch] = (),
    logger: ScalarLogger | None = None,
) -> GenerativeModel:
    """Continue a run from its last checkpoint, and return the model.

    The parameters and metrics are those of an uninterrupted run.

    Args:
        folder: The run folder.
        changes: {"epochs": n} extends the run, unless its schedule is scaled to the number of epochs. "learning_rate" and
            settings of the schedule change what the remaining epochs do; config.json says so. Other settings cannot change.
        dataset: As for `fit`, like the arguments below.
        data_dir: The folder of the data sets.
        device: "cpu" or "cuda".
        checkpoint_every: Number of epochs between checkpoints, or None.
        checkpoint_minutes: Number of minutes between checkpoints.
        progress: If true, show the progress on stderr.
        figures: If true, draw the figures of the run at the end.
        model: A model of the same class and sizes, for a run whose model was given as an object.
        on_epoch: As for `fit`.
        logger: As for `fit`.

    Raises:
        InputError: The folder holds no run, its checkpoint is damaged, `changes` asks for more than that, or as for `fit`.
    """
    folder = Path(folder)
    options = _Options(folder, device, checkpoint_every, checkpoint_minutes, progress, figures, on_epoch, logger)
    with _session(options) as group:
        state = group.broadcast_from_rank0(lambda: load_state(folder))
        stored = stored_recipe(folder, state)
        recipe = _continued(stored, changes or {}, state["epoch"])
        state["changes"] = stored_changes(folder, state) + _record_of_changes(stored, recipe, state["epoch"])
        dataset = load_dataset(recipe, folder, data_dir) if dataset is None else dataset
        return _Training(recipe, dataset, group, options, state, model).run()


def _record_of_changes(stored: Recipe, recipe: Recipe, epoch: int) -> list[dict[str, Any]]:
    """What changes after `epoch` epochs, as config.json keeps it."""
    before, after = stored.to_dict(), recipe.to_dict()
    names = [name for name in before if before[name] != after[name]]
    return [{"after_epoch": epoch, "setting": name, "from": before[name], "to": after[name]} for name in names]


def _continued(stored: Recipe, changes: Mapping[str, Any], epoch: int) -> Recipe:
    """The recipe with which a run continues.

    Raises:
        InputError: `changes` contains something that cannot be changed.
    """
    wanted = stored.override(changes)
    if wanted == stored:
        return stored
    before, after = stored.to_dict(), wanted.to_dict()
    free = ("epochs", "learning_rate", "schedule")
    changed = [name for name in before if before[name] != after[name] and name not in free]
    if changed:
        changes_wanted = ", ".join(f"{name} from {before[name]!r} to {after[name]!r}" for name in changed)
        raise InputError(
            f"a resumed run keeps its settings, except for epochs, learning_rate and schedule; it cannot change {changes_wanted}"
        )
    if stored.schedule.name == "burda" and wanted.schedule == stored.schedule and wanted.epochs != stored.epochs:
        raise InputError(
            f"the burda schedule is scaled to the run's {stored.epochs} epochs; for {wanted.epochs}, begin a new run"
        )
    if wanted.epochs < epoch:
        raise InputError(f"epochs must be at least {epoch}, those already trained; got {wanted.epochs}")
    return wanted


class _Options:
    """The options of training that do not change the trained parameters."""

    def __init__(
        self,
        folder: str | Path | None,
        device: str,
        every: int | None,
        minutes: float,
        progress: bool,
        figures: bool,
        on_epoch: OnEpoch | Sequence[OnEpoch],
        logger: ScalarLogger | None,
    ) -> None:
        if every is not None:
            check_count("train", "checkpoint_every", every)
        if not minutes > 0.0:
            raise InputError(f"checkpoint_minutes must be above 0; got {minutes}")
        self.folder, self.device = None if folder is None else Path(folder), resolve_device(device)
        self.every, self.seconds, self.progress, self.figures = every, 60.0 * minutes, progress, figures
        functions = [on_epoch] if callable(on_epoch) else on_epoch
        if not isinstance(functions, Sequence) or not all(map(callable, functions)):
            raise InputError(f"on_epoch must be a function or a list of functions; got {on_epoch!r:.60}")
        self.on_epoch, self.logger = list(functions), logger
        if logger is not None and not callable(getattr(logger, "add_scalar", None)):
            raise InputError(f"logger must have the method add_scalar; got {type(logger).__name__}")


@contextmanager
def _session(options: _Options) -> Iterator[Group]:
    """Context manager: the processes that train together. torch's generators are restored afterwards."""
    devices = [options.device] if options.device.type == "cuda" else []
    with torch.random.fork_rng(devices), process_group(options.device) as group:
        yield group


class _Training:
    """A training run: its state between two epochs, and the methods that advance it."""

    def __init__(
        self,
        recipe: Recipe,
        dataset: data.Dataset,
        group: Group,
        options: _Options,
        state: dict[str, Any] | None,
        given: GenerativeModel | None = None,
    ) -> None:
        self.recipe, self.dataset, self.group, self.options = recipe, dataset, group, options
        torch.manual_seed(derive_seed(recipe.seed, "init"))
        model = create_model(recipe) if given is None else given
        train = _finite(dataset.train, dataset.name)
        self.labelled = LabelledRows(recipe, dataset, model, options.device) if recipe.labels else None
        unlabelled = train.x if self.labelled is None else train.x[self.labelled.others]
        self.x = unlabelled.to(options.device)
        self.batch_size = recipe.batch_size - (recipe.labelled_batch if self.labelled else 0)
        _check_last_batch(model, len(self.x), self.batch_size, group)
        if self.labelled is not None and _normalises(model) and recipe.labelled_batch < 2 * group.size:
            raise InputError(
                "batch normalisation needs two labelled rows per process in every batch; "
                f"got labelled_batch {recipe.labelled_batch} for {group.size} process{'es' if group.size > 1 else ''}"
            )
        split = "test" if dataset.valid is None else "valid"
        self.bound_split = split
        self.bound_name = f"{split}_elbo"
        fixed = fixed_split(dataset, split, recipe.binarize)
        self.bound_x, self.bound_labels = fixed.x.to(options.device), fixed.y
        self.error_name = f"{split}_error"
        if state is not None:
            assert options.folder is not None
            check_tensors(options.folder / STATE, state["model"], model.state_dict())
            model.load_state_dict(state["model"])
        elif given is None or recipe.start_from or recipe.start_at_mean:
            initialise(model, recipe, self.x)
        recipe.objective.check(model.to(options.device), self.bound_x, self.labelled is not None)
        self._check_values(model, dataset.train.x, "train")
        self._check_values(model, self.bound_x, split)
        self.learned: list[bool] = []
        self.model = model
        self.optimizer = torch.optim.Adam(
            model.parameters(), lr=recipe.learning_rate, betas=recipe.betas, eps=recipe.eps, fused=True
        )
        self.epoch, self.step, self.metrics_bytes = 0, 0, 0
        self.environment = run_environment(options.device, group.size)
        self.changes: list[dict[str, Any]] = []
        self.stopped = False
        if state is not None:
            assert options.folder is not None
            self.changes = state["changes"]
            _load_optimizer(self.optimizer, list(model.parameters()), state["optimizer"]["state"], options.folder / STATE)
            self.epoch, self.step, self.metrics_bytes = state["epoch"], state["step"], state["metrics_bytes"]
            if group.rank == 0:
                warn_if_changed(state["environment"], self.environment)
        self.resumed = state is not None

    def _check_values(self, model: GenerativeModel, x: Tensor, split: str) -> None:
        """Raise InputError unless the model takes the values of all rows x of a split, drawn as in an epoch."""
        for first in range(0, len(x), EVALUATION_ROWS):
            part = x[first : first + EVALUATION_ROWS]
            if split == "train" and self.recipe.binarize:
                part = data.sample_inputs(self.dataset, part, derive_seed(self.recipe.seed, "binarize", 0))
            model.check_values(f"{split} split of {self.dataset.name}", part, first)

    def run(self) -> GenerativeModel:
        """Train until the last epoch. The first process writes the run folder, if there is one."""
        folder = self.options.folder
        if self.group.rank > 0 or folder is None:
            self._train(None)
            return self.model.eval()
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        with Metrics(folder, self.metrics_bytes, self.epoch, self.step) as metrics:
            if not self.resumed:
                if self.recipe.data == OWN_DATA:
                    data.save(self.dataset, folder / OWN_DATA)
                self._save_state(folder, metrics)  # written first, so that any begun run can be resumed
            write_config(folder, self.recipe, self.environment, self.dataset, self.changes)
            export_parameters(folder, self.model.state_dict(), self.epoch)
            self._train(metrics)
        self.model.eval()
        if self.options.figures:
            from dgmfast import plots

            rows = data.Split(self.bound_x, self.bound_labels)
            plots.draw_run(folder, self.model, rows, self.dataset, split_name=self.bound_split)
        return self.model

    def _train(self, metrics: Metrics | None) -> None:
        """Train the remaining epochs. `metrics` is None if this process writes no files."""
        steps = math.ceil(len(self.x) / self.batch_size)
        shown = self.options.progress and self.group.rank == 0
        bar = Progress(self.recipe.name, self.epoch, self.recipe.epochs, steps, shown)
        saved_at = time.monotonic()
        try:
            while self.epoch < self.recipe.epochs and not self.stopped:
                record = self._train_epoch(bar)
                if metrics is not None:
                    metrics.append(record)
                bar.epoch(record)
                self._tell(record)
                every = self.options.every
                due = (every is not None and self.epoch % every == 0) or self.epoch == self.recipe.epochs or self.stopped
                if metrics is not None and (due or time.monotonic() - saved_at >= self.options.seconds):
                    assert self.options.folder is not None
                    self._save_state(self.options.folder, metrics)
                    export_parameters(self.options.folder, self.model.state_dict(), self.epoch)
                    saved_at = time.monotonic()
        finally:
            bar.close()

    def _tell(self, record: dict[str, Any]) -> None:
        """Give the record of an epoch to the logger and to the functions of `on_epoch`, in the first process."""
        if self.options.logger is not None and self.group.rank == 0:
            for name, value in record.items():
                if isinstance(value, (int, float)) and name != "epoch":
                    self.options.logger.add_scalar(name, value, record["epoch"])
        if self.options.on_epoch:
            answers = self.group.broadcast_from_rank0(lambda: [f(self.model, record) is True for f in self.options.on_epoch])
            self.stopped = any(answers)

    def _train_epoch(self, bar: Progress) -> dict[str, Any]:
        """Train one epoch, and return its record for the log. The record is complete in the first process."""
        start, epoch, recipe = time.perf_counter(), self.epoch, self.recipe
        torch.manual_seed(derive_seed(recipe.seed, "torch", epoch, self.group.rank))
        x = self.x
        if recipe.binarize:
            x = data.sample_inputs(self.dataset, x, derive_seed(recipe.seed, "binarize", epoch))
        rate, beta = recipe.learning_rate_at(epoch), recipe.objective.beta(epoch)
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = rate
        self.model.begin_epoch(epoch)
        learned = [p.requires_grad for p in self.model.parameters()]
        # A new stage of the model: the processes average the gradients of other parameters.
        if learned != self.learned:
            self.learned, self.loss = learned, parallel(self.model, self.recipe.objective, self.group, self.options.device)
        self.model.train()
        terms = self._steps(x, beta, bar)
        self.epoch += 1
        record = {"epoch": self.epoch, "step": self.step, "lr": rate, "beta": beta, **terms}
        if self.epoch % recipe.eval_every == 0 and self.group.rank == 0:
            record |= self._evaluate()
        return {**record, "seconds": round(time.perf_counter() - start, 3)}

    def _steps(self, x: Tensor, beta: float, bar: Progress) -> dict[str, float]:
        """Train on all batches of an epoch, and return the mean over its rows of each term, in nats."""
        seed, epoch = self.recipe.seed, self.epoch
        generator = torch.Generator().manual_seed(derive_seed(seed, "shuffle", epoch))
        batches = torch.randperm(len(x), generator=generator).to(x.device).split(self.batch_size)
        window: list[Tensor] = []
        sums, names = torch.zeros((), dtype=torch.float64), ["loss"]
        weights: list[float] = []
        for step, batch in enumerate(batches):
            begin, end = self.group.shard(len(batch))
            # A process without rows still takes part, with one row of weight 0.
            rows = batch[begin:end] if end > begin else batch[:1]
            share = (end - begin) / len(batch)
            labelled = None
            if self.labelled is not None and not self.model.ignores_labels:
                labelled = self.labelled.batch(self.step + step, self.group, len(batch))
            # The gradients are averaged over the processes, so that each process multiplies its share by their number.
            counts = share * self.group.size, self.labelled.share(self.group) * self.group.size if self.labelled else 0.0
            step_seed = derive_seed(seed, "noise", epoch, step)
            loss, terms = self.loss(x[rows], None, beta, step_seed, begin, labelled, counts)
            self.optimizer.zero_grad()
            loss.backward()
            if self.recipe.grad_clip_norm:
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.grad_clip_norm)
            self.optimizer.step()
            window += (loss.detach() / (counts[0] or 1.0), *terms.values())
            weights.append(share * len(batch))
            if len(weights) == WINDOW or step + 1 == len(batches):
                names = ["loss", *terms]
                sums = sums + self._close_window(torch.stack(window).view(-1, len(names)), weights, names, step)
                bar.steps(len(weights))
                window, weights = [], []
        self.step += len(batches)
        loss, *means = (sums / len(x)).tolist()
        return {"objective": -loss, **dict(zip(names[1:], means, strict=True))}

    def _close_window(self, values: Tensor, weights: list[float], names: list[str], last: int) -> Tensor:
        """The sums of the terms over the window's rows, [terms]. `values` [steps, terms] are this process's means.

        Raises:
            InputError: A value is not finite. The message names the first such step.
        """
        values = values.double().cpu()
        bad = self.group.sum((~values.isfinite()).long())
        if bad.any():
            step = int(bad.any(1).nonzero()[0])
            guilty = [name for name, count in zip(names, bad[step].tolist(), strict=True) if count]
            # "loss" and "elbo" are sums of the other terms.
            terms = [name for name in guilty if name not in ("loss", "elbo")] or guilty[:1]
            place = f"epoch {self.epoch + 1}, step {last + 2 - len(values) + step}"
            raise InputError(f"training stopped in {place}: {', '.join(terms)} not finite; {INTACT}")
        return self.group.sum(torch.tensor(weights, dtype=torch.float64) @ values)

    @torch.no_grad()
    def _evaluate(self) -> dict[str, Any]:
        """L_1 in nats per row, the KL of each unit, and the error in percent, on the validation split (else the test split)."""
        self.model.eval()
        objective, seed, total = Objective(), derive_seed(self.recipe.seed, "evaluate"), 0.0
        for first in range(0, len(self.bound_x), EVALUATION_ROWS):
            x = self.bound_x[first : first + EVALUATION_ROWS]
            total += float(objective.loss(self.model, x, None, 1.0, seed, first)[1]["elbo"]) * len(x)
        bound = total / len(self.bound_x)
        if not math.isfinite(bound):
            raise InputError(f"training stopped after epoch {self.epoch}: {self.bound_name} not finite; {INTACT}")
        record: dict[str, Any] = {self.bound_name: bound}
        if isinstance(self.model, LabelModel) and self.bound_labels is not None and not self.model.ignores_labels:
            y = self.bound_labels.to(self.bound_x.device)
            record[self.error_name] = classification_error(self.model, self.bound_x, y, 1, seed)
        units = kl_units(self.model, self.bound_x[:EVALUATION_ROWS], seed)
        return record | {"kl_units": {name: [round(value, 6) for value in kl.tolist()] for name, kl in units.items()}}

    def _save_state(self, folder: Path, metrics: Metrics) -> None:
        """Write the checkpoint.

        Raises:
            InputError: A parameter is not finite, or the disk is full.
        """
        for name, value in self.model.state_dict().items():
            if not value.isfinite().all():
                raise InputError(f"training stopped after epoch {self.epoch}: {name} not finite; {INTACT}")
        state = {
            "recipe": json.dumps(self.recipe.to_dict()),
            "environment": self.environment,
            "changes": json.dumps(self.changes),
            "epoch": self.epoch,
            "step": self.step,
            "metrics_bytes": metrics.sync(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        save_state(folder, state)


def _load_optimizer(optimizer: torch.optim.Optimizer, parameters: list[Tensor], state: dict[Any, Any], path: Path) -> None:
    """Load Adam's moments after checking them, because the fused kernel trusts their shapes. The rest follows from the recipe."""
    for index, entry in state.items():
        if type(index) is not int or not 0 <= index < len(parameters) or entry.keys() != {"step", "exp_avg", "exp_avg_sq"}:
            raise InputError(f"{path}: expected the moments of {len(parameters)} parameters; got others, of {index!r:.30}")
        own = parameters[index]
        for name, value in entry.items():
            shape, dtype = (torch.Size(), torch.float32) if name == "step" else (own.shape, own.dtype)
            if value.shape != shape or value.dtype != dtype:
                expected = f"{dtype} {list(shape)}; got {value.dtype} {list(value.shape)}"
                raise InputError(f"{path}: expected {name} of parameter {index} of {expected}")
            if not value.isfinite().all() or (name != "exp_avg" and bool((value < 0).any())):
                raise InputError(f"{path}: expected a finite {name} of parameter {index}, and none below 0 but exp_avg")
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _normalises(model: GenerativeModel) -> bool:
    """True if the model contains batch normalisation."""
    return any(isinstance(module, torch.nn.modules.batchnorm._BatchNorm) for module in model.modules())


def _check_last_batch(model: GenerativeModel, rows: int, batch_size: int, group: Group) -> None:
    """Raise InputError if batch normalisation would get fewer than two rows per process in the last batch."""
    last = rows % batch_size or min(rows, batch_size)
    if _normalises(model) and last < 2 * group.size:
        raise InputError(
            "batch normalisation needs two rows per process in every batch, "
            f"but {rows} rows in batches of {batch_size} leave {last}; choose another batch_size"
        )


def _finite(split: data.Split, name: str) -> data.Split:
    """Return the split, or raise InputError if a value of x is not finite."""
    finite = split.x.isfinite().all(1) if split.x.is_floating_point() else torch.ones(len(split.x), dtype=torch.bool)
    if not finite.all():
        row = int((~finite).nonzero()[0])
        raise InputError(f"training stopped before epoch 1, step 1: x not finite in row {row} of the training data {name}")
    return split

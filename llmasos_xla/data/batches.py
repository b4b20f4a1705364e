"""Batches for the compiled step: Grain iterates over groups of steps, ahead of the device, and resumes exactly."""

import math
import threading
from typing import Any, NamedTuple, final

import numpy as np

from llmasos_xla import errors
from llmasos_xla.data.dataset import Dataset
from llmasos_xla.data.order import Plan
from llmasos_xla.data.preprocessing import Preprocessing
from llmasos_xla.data.rows import count, take

PREFETCH = 2
"""Groups of batches that are made ready ahead."""


class Group(NamedTuple):
    """Batches for one dispatch; every group of an iterator has the same shapes."""

    x: Any
    """`[group, batch, ...]`, encoded; a dict of such arrays for several inputs."""
    y: np.ndarray | None
    """`[group, batch, ...]`: int32 class ids or float32 targets."""
    weight: np.ndarray
    """`[group, batch]` float32: sample weights, else 1; 0 in rows that only pad."""
    count: np.ndarray
    """`[group]` int32: real rows of each step; 0 for a step that only pads."""
    epoch: int
    """Which epoch of the whole training."""
    first_step: int
    """The step of the epoch at which the group begins."""
    steps: int
    """How many of the `group` steps are real."""


def batches(
    dataset: Dataset,
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    seed: int = 0,
    first_epoch: int = 0,
    epochs: int = 1,
    shuffle: bool | None = None,
    group: int = 1,
    start_step: int = 0,
    workers: int = 0,
    prefetch: int = PREFETCH,
    share: np.ndarray | None = None,
) -> "BatchIterator":
    """Iterates over `epochs` epochs in groups of `group` batches.

    The order of an epoch depends on `(seed, epoch)` alone; each row comes once with its weight. The last batch is
    filled up with other rows of the epoch at weight 0, the last group with repeated steps at weight 0. Groups end with
    the epoch.

    Args:
        dataset: the rows.
        preprocessing: encodes them, on the host.
        batch_size: rows of a step.
        seed: of the order.
        first_epoch: the number of the first epoch, if training goes on.
        epochs: how many epochs.
        shuffle: by default if the Dataset's mode is "train".
        group: steps of a dispatch.
        start_step: the step of the first epoch to begin at.
        workers: processes that read and decode; 0 uses threads, as arrays in memory always do.
        prefetch: groups to prepare ahead; 0 prepares each when asked.
        share: the places in each batch, ascending, whose rows are wanted: this process's share. The others are neither
            read nor decoded, and the arrays have `len(share)` rows; what is in which place does not change. None wants
            all.

    >>> import numpy as np
    >>> data = Dataset(np.arange(5, dtype=np.float32)[:, None], np.arange(5), mode="test")
    >>> for group in batches(data, Preprocessing.fit(data), batch_size=2, group=2):
    ...     print(group.y.tolist(), group.weight.tolist(), group.steps)
    [[0, 1], [2, 3]] [[1.0, 1.0], [1.0, 1.0]] 2
    [[4, 0], [4, 0]] [[1.0, 0.0], [0.0, 0.0]] 1
    """
    _grain()
    plan = Plan(len(dataset), batch_size, seed, dataset.mode == "train" if shuffle is None else shuffle, group)
    for name, value, least in (
        ("batch_size", batch_size, 1), ("group", group, 1), ("epochs", epochs, 0), ("first_epoch", first_epoch, 0),
        ("start_step", start_step, 0), ("workers", workers, 0), ("prefetch", prefetch, 0),
    ):  # fmt: skip
        if value < least:
            raise ValueError(f"batches: {name}={value}; a whole number from {least} is wanted")
    if start_step > plan.steps:
        raise ValueError(f"batches: start_step={start_step}, but an epoch has {plan.steps} steps")
    share = np.arange(batch_size) if share is None else np.asarray(share)
    if not len(share) or share[0] < 0 or share[-1] >= batch_size or (np.diff(share) < 1).any():
        raise ValueError(f"batches: share wants ascending places from 0 to {batch_size - 1}, got {share}")
    rows = _in_memory(dataset, preprocessing) if dataset.in_memory else _OnDemand(dataset, preprocessing)
    return BatchIterator(plan, rows, first_epoch, start_step, first_epoch + epochs, workers, prefetch, share)


@final
class BatchIterator:
    """Yields `Group`s; close it, use it as a context, or let it run out."""

    def __init__(
        self,
        plan: Plan,
        rows: Any,
        epoch: int,
        step: int,
        last_epoch: int,
        workers: int,
        prefetch: int,
        share: np.ndarray,
    ):
        self._plan, self._rows, self._last_epoch = plan, rows, last_epoch
        self._workers, self._prefetch, self._share = workers, prefetch, share
        self._iterator: Any = None
        self._epoch, self._step = self._settle(epoch, step)

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch: rows over batch size, rounded up."""
        return self._plan.steps

    def get_state(self) -> dict[str, int | bool]:
        """Where the next group begins, as a small dict for JSON."""
        return {"epoch": self._epoch, "step": self._step, **self._plan.fingerprint()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to where `get_state` was called.

        Raises ValueError if the state comes from other rows, another batch size, seed or order.
        """
        wanted = self._plan.fingerprint()
        if not isinstance(state, dict) or state.keys() != {"epoch", "step", *wanted}:
            raise ValueError(f"batches: a state has epoch, step, {', '.join(wanted)}; {state!r} came")
        other = {name: state[name] for name in wanted if state[name] != wanted[name]}
        if other:
            ours = {name: wanted[name] for name in other}
            raise ValueError(
                f"batches: the state was taken with {other}, this iterator has {ours}; the order of rows would differ"
            )
        epoch, step = state["epoch"], state["step"]
        if type(epoch) is not int or type(step) is not int or epoch < 0 or not 0 <= step <= self._plan.steps:
            raise ValueError(f"batches: the state's epoch {epoch!r} and step {step!r} are out of range")
        self.close()
        self._epoch, self._step = self._settle(epoch, step)

    def close(self) -> None:
        """Ends the threads and processes; iterating again starts them anew."""
        iterator, self._iterator = self._iterator, None
        if iterator is not None:
            iterator.close()

    def __iter__(self) -> "BatchIterator":
        return self

    def __next__(self) -> Group:
        if self._epoch >= self._last_epoch:
            self.close()
            raise StopIteration
        try:
            if self._iterator is None:
                self._iterator = self._start()
            group = next(self._iterator)
        except BaseException:
            # Ctrl-C among them: no thread may outlive it.
            self.close()
            raise
        self._epoch, self._step = self._settle(group.epoch, group.first_step + group.steps)
        return group

    def __enter__(self) -> "BatchIterator":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _settle(self, epoch: int, step: int) -> tuple[int, int]:
        return (epoch + 1, 0) if step >= self._plan.steps else (epoch, step)

    def _start(self) -> Any:
        source = _Groups(self._plan, self._rows, self._epoch, self._step, self._last_epoch, self._share)
        grain = _grain()
        groups = grain.MapDataset.source(source)
        if not self._workers or isinstance(self._rows, _Encoded):
            threads = self._rows.threads if self._prefetch else 0
            return iter(groups.to_iter_dataset(grain.ReadOptions(threads, max(threads, self._prefetch))))
        _mark_flags_parsed()
        reading = groups.to_iter_dataset(grain.ReadOptions(1, 1))
        buffer = max(1, self._prefetch)
        return iter(reading.mp_prefetch(grain.MultiprocessingOptions(self._workers, per_worker_buffer_size=buffer)))


class _Groups:
    """What Grain indexes: group i of the epochs from (epoch, step) on."""

    def __init__(self, plan: Plan, rows: Any, epoch: int, step: int, last_epoch: int, share: np.ndarray):
        self._plan, self._rows, self._epoch, self._step, self._share = plan, rows, epoch, step, share
        self._rest = math.ceil((plan.steps - step) / plan.group)
        self._full = math.ceil(plan.steps / plan.group)
        self._length = self._rest + self._full * (last_epoch - epoch - 1)
        self._orders: dict[int, np.ndarray | None] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: Any) -> Group:
        index = int(index)
        if index < self._rest:
            epoch, first = self._epoch, self._step + index * self._plan.group
        else:
            after, place = divmod(index - self._rest, self._full)
            epoch, first = self._epoch + 1 + after, place * self._plan.group
        plan = self._plan
        steps = min(plan.group, plan.steps - first)
        indices, real = plan.slots(self._order(epoch), first, steps)
        shape = (plan.group, len(self._share))
        x, y, weight = self._rows.take(indices.reshape(plan.group, plan.batch_size)[:, self._share].reshape(-1))
        return Group(
            {k: v.reshape(*shape, *v.shape[1:]) for k, v in x.items()} if isinstance(x, dict) else
            x.reshape(*shape, *x.shape[1:]),
            None if y is None else y.reshape(*shape, *y.shape[1:]),
            _masked(weight, real, self._share, shape), real, epoch, first, steps,
        )  # fmt: skip

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_lock", "_orders")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _orders={}, _lock=threading.Lock())

    def _order(self, epoch: int) -> np.ndarray | None:
        with self._lock:
            if epoch not in self._orders:
                # Two: prefetching reaches into the next epoch while this one still runs.
                self._orders = {e: o for e, o in self._orders.items() if e == epoch - 1}
                self._orders[epoch] = self._plan.order(epoch)
            return self._orders[epoch]


class _Encoded(NamedTuple):
    """Everything encoded beforehand: a group is one gather."""

    x: Any
    y: np.ndarray | None
    weight: np.ndarray | None

    @property
    def threads(self) -> int:
        return 1

    def take(self, indices: np.ndarray) -> tuple[Any, np.ndarray | None, np.ndarray | None]:
        return (
            take(self.x, indices),
            None if self.y is None else take(self.y, indices),
            None if self.weight is None else self.weight[indices],
        )


class _OnDemand(NamedTuple):
    """Rows read and encoded group by group."""

    dataset: Dataset
    preprocessing: Preprocessing

    @property
    def threads(self) -> int:
        return self.dataset.content.x.threads

    def take(self, indices: np.ndarray) -> tuple[Any, np.ndarray | None, np.ndarray | None]:
        # Padding repeats rows: each file is decoded once.
        distinct, places = np.unique(indices, return_inverse=True)
        rows = self.dataset.take(distinct)
        x, y, weight = (None if part is None else take(part, places) for part in rows)
        who = self.dataset.name
        return (
            self.preprocessing.encode(x, self.dataset.columns, who=who),
            None if y is None else self.preprocessing.encode_labels(y, who=who),
            weight,
        )


def _in_memory(dataset: Dataset, preprocessing: Preprocessing) -> _Encoded:
    x, y, weight = dataset.rows()
    encoded = preprocessing.encode(x, dataset.columns, who=dataset.name)
    labels = None if y is None else preprocessing.encode_labels(y, who=f"{dataset.name}, labels")
    if labels is not None and len(labels) != count(encoded):
        raise ValueError(f"{dataset.name}: {count(encoded)} rows and {len(labels)} labels")
    return _Encoded(encoded, labels, weight)


def _masked(weight: np.ndarray | None, real: np.ndarray, share: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    mask = share < real[:, None]
    return mask.astype(np.float32) if weight is None else np.where(mask, weight.reshape(shape), np.float32(0))


def _grain() -> Any:
    # Half a second to import: only when something is iterated.
    try:
        import grain
    except ImportError:
        raise errors.missing_package("batches", "grain") from None
    return grain


def _mark_flags_parsed() -> None:
    # Grain's workers read absl flags, which a program not started by absl.app.run has not parsed.
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()

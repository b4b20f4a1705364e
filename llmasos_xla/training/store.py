"""A folder of checkpoints: arrays by name and a record in JSON, written by Orbax in the background.

Orbax writes into a folder with another name and renames it at the end, so a killed save leaves the earlier ones whole.
What it cannot see, a file that is cut off or has a bit flipped afterwards, the manifest shows.
"""

import json
import logging
import os
import pathlib
import shutil
import time
from collections.abc import Mapping
from typing import Any, final

import jax
import numpy as np

from llmasos_xla.sharding.agreement import of_first
from llmasos_xla.training.checkpoint_folder import (
    ARRAYS,
    LEFTOVERS,
    MANIFEST,
    RECORD,
    DamagedCheckpointError,
    Entry,
    digests,
    entries,
    files,
    first_damage,
    free_name,
    read_json,
)

FORMAT = "llmasos_xla/checkpoint/1"
_TOLD = 5


@final
class Store:
    """Writes, keeps and reads the checkpoints of one folder. Every process of a run makes the same calls.

    Args:
        folder: on a file system that every process sees; made if it is to be written to.
        keep: how many of the newest stay.
        best: (metric, "min" or "max"), by which others stay besides.
        keep_best: how many of those.
        read_only: nothing is made, swept or deleted.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        *,
        keep: int = 3,
        best: tuple[str, str] | None = None,
        keep_best: int = 1,
        read_only: bool = False,
    ):
        self.folder = pathlib.Path(os.path.abspath(folder))
        self.keep, self.best, self.keep_best = keep, best, keep_best
        self.swept: tuple[str, ...] = ()
        """Names of the half-written checkpoints that were removed."""
        self._pending: tuple[pathlib.Path, str] | None = None
        self._metrics: dict[pathlib.Path, dict[str, float]] = {}
        self._orbax: Any = None
        self._hush = _NoOrbax()
        logging.getLogger("absl").addFilter(self._hush)
        if read_only:
            return
        if jax.process_index() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.swept = tuple(sorted(p.name for pattern in LEFTOVERS for p in self.folder.glob(pattern)))
            for name in self.swept:
                shutil.rmtree(self.folder / name)
        # Nobody may begin to write before the sweep is over.
        of_first([0])
        # Now rather than at the first save: the import takes a second, in which a step would be held up.
        import orbax.checkpoint as ocp

        options = ocp.options.AsyncOptions(post_finalization_callback=self._add_record)
        self._orbax = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler(), async_options=options)

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, ascending."""
        return sorted({entry.step for entry in entries(self.folder)})

    def latest(self) -> int | None:
        """The newest step, or None."""
        return max(self.steps(), default=None)

    def best_step(self) -> int:
        """The step with the best metric; raises ValueError if none was kept by a metric."""
        newest = {entry.step: entry for entry in entries(self.folder)}
        known = [entry for entry in newest.values() if self._metrics_of(entry.path)]
        best = self.best or next((b for e in reversed(known) if (b := self._content(e.path).get("best"))), None)
        ranked = _ranked(best, {entry: self._metrics_of(entry.path) for entry in known})
        if not ranked:
            raise ValueError(
                f"checkpoint: {str(self.folder)!r} does not say which step is best; fit with checkpoint=Checkpoint("
                f'folder, best="val_loss"), or name one of the steps {_listed(self.steps())}'
            )
        return ranked[0].step

    def save(
        self,
        step: int,
        arrays: Mapping[str, jax.Array],
        record: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
    ) -> float:
        """Begins to write a checkpoint; returns the seconds that the caller was held up.

        The arrays may be given away as soon as it returns. A save still under way is waited for first. A second
        checkpoint of the same step takes the place of the first once it is whole.

        Args:
            step: the number of updates.
            arrays: by name; sharded ones are written by the processes that hold the shards.
            record: JSON values.
            metrics: of this step, for `best`.

        Raises RuntimeError if the save before failed.
        """
        import orbax.checkpoint as ocp

        if self._orbax is None:
            raise RuntimeError(f"checkpoint: {str(self.folder)!r} is open for reading only, or closed")
        started = time.perf_counter()
        self.wait()
        there = [entry.revision for entry in entries(self.folder) if entry.step == step]
        (revision,) = of_first([max(there, default=-1) + 1])
        path = self.folder / (f"step_{step}.{revision}" if revision else f"step_{step}")
        # Orbax refuses arrays of size zero; their shapes say all there is to know.
        empty = {n: [list(a.shape), str(a.dtype)] for n, a in arrays.items() if not a.size}
        content = {"format": FORMAT, "step": step, "metrics": dict(metrics or {}), "best": self.best, "empty": empty}
        self._pending = path, json.dumps({**content, "record": record})
        filled = {n: a for n, a in arrays.items() if a.size}
        try:
            self._orbax.save(path, args=ocp.args.Composite(**{ARRAYS: ocp.args.PyTreeSave(filled)}))
        except BaseException:
            self._pending = None
            raise
        return time.perf_counter() - started

    def restore(
        self,
        step: int | None = None,
        like: Mapping[str, jax.ShapeDtypeStruct] | None = None,
        *,
        partial: bool = False,
        check: bool = True,
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The arrays and the record of a step, by default the newest.

        Args:
            step: which.
            like: the shapes and dtypes that are wanted. One with a sharding comes as a `jax.Array` laid out so, on
                whatever devices; one without as NumPy. Default: all arrays, as NumPy.
            partial: the checkpoint may hold more than is wanted.
            check: whether the files' digests are compared first, which `newest_whole` has done already.

        Raises FileNotFoundError if there is no such step, DamagedCheckpointError, or ValueError if names, shapes or
        dtypes are others than wanted; the text says which.
        """
        self.wait()
        path = self._path(step)
        if check:
            self._check(path)
        content = self._content(path)
        stored = self._shapes(path, content)
        like = stored if like is None else like
        if differences := _differences(like, stored, partial):
            raise ValueError(
                f"checkpoint: {len(differences)} arrays of {str(path)!r} are not what is wanted: "
                + "; ".join(differences[:_TOLD])
                + ("; ..." if len(differences) > _TOLD else "")
            )
        filled = {n: s for n, s in like.items() if n not in content["empty"]}
        arrays = self._read(path, filled) if filled else {}
        for name in like.keys() - filled.keys():
            zeros, sharding = np.zeros(like[name].shape, like[name].dtype), like[name].sharding
            arrays[name] = zeros if sharding is None else jax.device_put(zeros, sharding)
        return {n: arrays[n] for n in like}, content["record"]

    def record(self, step: int | None = None) -> dict[str, Any]:
        """The record alone; raises as `restore` does."""
        return self._content(self._path(step))["record"]

    def shapes(self, step: int | None = None) -> dict[str, jax.ShapeDtypeStruct]:
        """What a step holds, without reading it."""
        path = self._path(step)
        return self._shapes(path, self._content(path))

    def newest_whole(self, *, set_aside: bool = False) -> tuple[int | None, dict[str, str]]:
        """The newest step whose files are what was written, and what is wrong with those after it, by name.

        With `set_aside`, and if there is a whole one, the damaged get names that end in ".damaged", so that their steps
        can be saved again.
        """
        self.wait()
        found, damaged = -1, {}
        if jax.process_index() == 0:
            for entry in reversed(entries(self.folder)):
                if not (wrong := first_damage(entry.path, MANIFEST)):
                    found = entry.step
                    break
                damaged[entry.path] = wrong
            if set_aside and found >= 0:
                for path in damaged:
                    os.replace(path, free_name(path, ".damaged"))
        (found,) = of_first([found])
        return (None if found < 0 else found), {path.name: wrong for path, wrong in damaged.items()}

    def wait(self) -> None:
        """Until the save under way is done; then those that need not be kept are deleted.

        Raises RuntimeError with the reason if it could not be written.
        """
        if self._pending is None:
            return
        path = self._pending[0]
        try:
            self._orbax.wait_until_finished()
        except Exception as error:
            raise RuntimeError(
                f"checkpoint: {path.name} could not be written to {str(self.folder)!r}: {error}; the checkpoints "
                "before it are whole"
            ) from error
        finally:
            self._pending = None
        if jax.process_index() == 0:
            self._collect()

    def close(self) -> None:
        """Waits, and ends Orbax's threads."""
        try:
            self.wait()
        finally:
            orbax, self._orbax = self._orbax, None
            if orbax is not None:
                orbax.close()
            logging.getLogger("absl").removeFilter(self._hush)

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _add_record(self) -> None:
        # Orbax calls this on the first process, once all files are written and before the folder gets its name.
        assert self._pending is not None
        path, text = self._pending
        (temporary,) = self.folder.glob(f"{path.name}.orbax-checkpoint-tmp*")
        (temporary / RECORD).write_text(text, encoding="utf-8")
        sums = digests(temporary, [RECORD, *files(temporary / ARRAYS, temporary)])
        with open(temporary / MANIFEST, "w", encoding="utf-8") as file:
            json.dump({"format": FORMAT, "files": sums}, file)
            file.flush()
            os.fsync(file.fileno())

    def _collect(self) -> None:
        # Only what has a manifest of ours is ours to delete.
        mine = [entry for entry in entries(self.folder) if (entry.path / MANIFEST).is_file()]
        newest = {entry.step: entry for entry in mine}
        stay = set(sorted(newest.values())[-self.keep :])
        stay |= set(_ranked(self.best, {e: self._metrics_of(e.path) for e in newest.values()})[: self.keep_best])
        for entry in mine:
            if entry not in stay:
                # A name of its own first: a deletion that is killed must not leave a checkpoint with files missing.
                doomed = free_name(entry.path, ".deleted")
                os.replace(entry.path, doomed)
                shutil.rmtree(doomed)
                self._metrics.pop(entry.path, None)

    def _path(self, step: int | None) -> pathlib.Path:
        there = entries(self.folder)
        wanted = [entry for entry in there if step is None or entry.step == step]
        if wanted:
            return wanted[-1].path
        if not self.folder.is_dir():
            raise FileNotFoundError(f"checkpoint: there is no folder {str(self.folder)!r}")
        known = f"its steps are {_listed(self.steps())}" if there else "it holds no checkpoint"
        which = f"step {step} in {str(self.folder)!r}" if step is not None else f"checkpoint in {str(self.folder)!r}"
        raise FileNotFoundError(f"checkpoint: there is no {which}; {known}")

    def _check(self, path: pathlib.Path) -> None:
        # One process reads and tells the others, so that none goes on alone.
        wrong = first_damage(path, MANIFEST) if jax.process_index() == 0 else ""
        if any(of_first([int(bool(wrong))])):
            raise DamagedCheckpointError(
                f"checkpoint: {str(path)!r} is damaged: {wrong or 'the first process says what is wrong'}"
            )

    def _content(self, path: pathlib.Path) -> dict[str, Any]:
        content = read_json(path / RECORD)
        if content.get("format") != FORMAT:
            raise ValueError(
                f"checkpoint: {str(path)!r} is of format {content.get('format')!r}, this version reads {FORMAT!r}; "
                "upgrade"
            )
        wanted = {"step": int, "metrics": dict, "empty": dict, "record": dict}
        if wrong := [name for name, kind in wanted.items() if not isinstance(content.get(name), kind)]:
            raise DamagedCheckpointError(f"checkpoint: {str(path / RECORD)!r} is damaged: no {', '.join(wrong)}")
        return content

    def _metrics_of(self, path: pathlib.Path) -> dict[str, float]:
        if path not in self._metrics:
            try:
                self._metrics[path] = self._content(path)["metrics"]
            except ValueError:
                # A damaged one is none of the best; whoever opens it is told.
                self._metrics[path] = {}
        return self._metrics[path]

    def _shapes(self, path: pathlib.Path, content: Mapping[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
        import orbax.checkpoint as ocp
        from etils import epath

        try:
            tree = ocp.PyTreeCheckpointHandler().metadata(epath.Path(path / ARRAYS)).tree
            stored = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in tree.items()}
            empty = {n: jax.ShapeDtypeStruct(tuple(shape), dtype) for n, (shape, dtype) in content["empty"].items()}
            if full := [n for n, s in empty.items() if s.size]:
                raise ValueError(f"{full[0]} is said to be empty, of shape {empty[full[0]].shape}")
        except Exception as error:
            # What a damaged file makes of Orbax's reader has no common type.
            raise DamagedCheckpointError(f"checkpoint: {str(path)!r} is damaged: {error!r}") from error
        return dict(sorted({**stored, **empty}.items()))

    def _read(self, path: pathlib.Path, like: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, Any]:
        import orbax.checkpoint as ocp
        from etils import epath

        how = {
            n: ocp.RestoreArgs(restore_type=np.ndarray)
            if s.sharding is None
            else ocp.ArrayRestoreArgs(sharding=s.sharding, global_shape=s.shape, dtype=s.dtype)
            for n, s in like.items()
        }
        items = {n: jax.ShapeDtypeStruct(s.shape, s.dtype) for n, s in like.items()}
        arguments = ocp.args.PyTreeRestore(item=items, restore_args=how, partial_restore=True)
        # The handler and not a checkpointer: it has no barrier at which the others would wait for one that fails.
        try:
            return ocp.PyTreeCheckpointHandler().restore(epath.Path(path / ARRAYS), args=arguments)
        except Exception as error:
            raise DamagedCheckpointError(f"checkpoint: {str(path)!r} cannot be read: {error}") from error


class _NoOrbax(logging.Filter):
    """Keeps Orbax's log out of the terminal: its errors are raised, and the rest is not for the user."""

    def filter(self, record: logging.LogRecord) -> bool:
        return f"{os.sep}orbax{os.sep}" not in record.pathname


def _listed(steps: list[int]) -> str:
    return ", ".join(map(str, steps[-10:])) if len(steps) <= 10 else "..., " + ", ".join(map(str, steps[-10:]))


def _ranked(best: Any, metrics: Mapping[Entry, Mapping[str, float]]) -> list[Entry]:
    """Entries by their metric, the best first; of equals the newer."""
    if not best:
        return []
    name, mode = best
    sign = -1.0 if mode == "max" else 1.0
    known = {e: sign * m[name] for e, m in metrics.items() if isinstance(m.get(name), int | float)}
    return sorted((e for e, v in known.items() if v == v), key=lambda e: (known[e], -e.step, -e.revision))


def _differences(
    like: Mapping[str, jax.ShapeDtypeStruct], stored: Mapping[str, jax.ShapeDtypeStruct], partial: bool
) -> list[str]:
    out = []
    for name in sorted(like.keys() | stored.keys()):
        if name not in stored:
            out.append(f"{name} is missing")
        elif name not in like:
            if not partial:
                out.append(f"{name} is left over")
        elif like[name].shape != stored[name].shape:
            out.append(f"{name} has shape {stored[name].shape}, wanted {like[name].shape}")
        elif like[name].dtype != stored[name].dtype:
            out.append(f"{name} has dtype {stored[name].dtype}, wanted {like[name].dtype}")
    return out

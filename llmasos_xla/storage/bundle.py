"""The `.lmx` bundle: a model as one file that runs wherever JAX does.

It is a zip whose entries are stored, not compressed:

    manifest.json          format, tensors in and out, programs, preprocessing; size and digests of every other entry
    weights.safetensors    the arrays by name, params/... and state/...
    programs/N.stablehlo   what `jax.export` wrote: (arrays, inputs) -> outputs, dicts by name, for any number of rows
    example.safetensors    a request and its answer, inputs/... and outputs/...
    model.json             what rebuilds the model where the programs can no longer be read; may be missing
    manifest.ed25519       a signature of manifest.json's bytes; may be missing

Nothing in it is pickled. `Bundle.open` believes nothing: entries must be known by name, lie where the zip says, and
have the digests of the manifest; programs may call nothing but what JAX promises to keep stable. JAX and NumPy are all
that it takes to run one, without the code that trained it.
"""

import concurrent.futures
import dataclasses
import hashlib
import json
import os
import pathlib
import re
import struct
import types
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, final

import numpy as np

from llmasos_xla._version import __version__
from llmasos_xla.storage import exported, safetensors, signatures
from llmasos_xla.storage.atomic import atomically

FORMAT = "llmasos_xla/bundle/1"
MANIFEST, SIGNATURE, MODEL = "manifest.json", "manifest.ed25519", "model.json"
WEIGHTS, EXAMPLE = "weights.safetensors", "example.safetensors"
_PROGRAM = re.compile(r"programs/[0-9]{1,4}\.stablehlo")
_NAME = re.compile(r"[A-Za-z0-9._-]{1,200}")
# Digests of pieces, not of wholes: several cores then check one file.
_PIECE = 8 << 20
_MOST_MANIFEST_BYTES, _MOST_ENTRIES = 64 << 20, 2000
# A date that says nothing: equal models give equal files.
_DATE = (1980, 1, 1, 0, 0, 0)


class DamagedBundleError(ValueError):
    """A bundle that is cut off, changed or not what it says."""


class Tensor(NamedTuple):
    """An input or output of the programs."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    """A text where any length will do; equal texts, equal lengths. The first axis is "rows"."""


class Program(NamedTuple):
    """One program of a bundle."""

    inputs: tuple[str, ...]
    """The inputs that it takes; of several programs, one takes those that must come, another all."""
    platforms: tuple[str, ...]
    content: bytes
    """What `jax.export` serialized."""
    lengths: Mapping[str, int] = types.MappingProxyType({})
    """The lengths that it was exported for, by their names in `Tensor.shape`; those that are not here are free."""


@dataclasses.dataclass(frozen=True)
class Content:
    """What a bundle holds.

    Attributes:
        name: what the model is called.
        inputs: encoded inputs, as the programs take them.
        outputs: what they give.
        arrays: the weights by name.
        programs: at least one.
        limits: of lengths that the programs hold to, (least, most or None).
        example: inputs and outputs by name.
        preprocessing: from raw to encoded input, as JSON; None where there is nothing to do.
        model: what rebuilds the model, as JSON; None if nothing does.
        made_by: versions of the packages that wrote it.
    """

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    arrays: Mapping[str, np.ndarray]
    programs: tuple[Program, ...]
    example: tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]]
    preprocessing: dict[str, Any] | None = None
    model: dict[str, Any] | None = None
    limits: Mapping[str, tuple[int, int | None]] = dataclasses.field(default_factory=dict)
    made_by: Mapping[str, str] = dataclasses.field(default_factory=dict)


def write(path: str | os.PathLike, content: Content, *, key: Any = None) -> pathlib.Path:
    """Writes a bundle; whatever was at `path` stays whole until the new one is.

    Args:
        key: a private ed25519 key to sign with, as `signatures.private_key` takes it.

    Raises ValueError for another ending than .lmx, FileNotFoundError for a folder that is not there.
    """
    path = pathlib.Path(path)
    if path.suffix != ".lmx":
        raise ValueError(f"export: a bundle ends in .lmx, {path.name!r} came")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"export: there is no folder {str(path.parent)!r}; make it first")
    if not _NAME.fullmatch(content.name):
        raise ValueError(f"export: a name is made of letters, digits, . _ and -; {content.name!r} came")
    signer = None if key is None else signatures.private_key(key)
    atomically(path, lambda temporary: _fill(temporary, content, signer))
    return path


def _fill(path: str, content: Content, signer: Any) -> None:
    inputs, outputs = content.example
    example = {f"inputs/{n}": a for n, a in inputs.items()} | {f"outputs/{n}": a for n, a in outputs.items()}
    entries: dict[str, Iterable[bytes | memoryview]] = {
        f"programs/{i}.stablehlo": [program.content] for i, program in enumerate(content.programs)
    }
    if content.model is not None:
        entries[MODEL] = [_dumped(content.model)]
    entries |= {EXAMPLE: safetensors.pieces(example), WEIGHTS: safetensors.pieces(content.arrays)}
    parts = {}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        for name, pieces in entries.items():
            digests = _Digests()
            with file.open(zipfile.ZipInfo(name, _DATE), "w", force_zip64=True) as entry:
                for piece in pieces:
                    entry.write(piece)
                    digests.add(piece)
            parts[name] = digests.to_json()
        manifest = _dumped(
            {
                "format": FORMAT,
                "name": content.name,
                "made_by": {"llmasos_xla": __version__, **content.made_by},
                "inputs": [_tensor_to_json(t) for t in content.inputs],
                "outputs": [_tensor_to_json(t) for t in content.outputs],
                "programs": [
                    {
                        "file": f"programs/{i}.stablehlo",
                        "inputs": list(p.inputs),
                        "platforms": list(p.platforms),
                        "lengths": dict(p.lengths),
                    }
                    for i, p in enumerate(content.programs)
                ],
                "limits": {name: list(limits) for name, limits in content.limits.items()},
                "preprocessing": content.preprocessing,
                "parts": parts,
            }
        )
        file.writestr(zipfile.ZipInfo(MANIFEST, _DATE), manifest)
        if signer is not None:
            file.writestr(zipfile.ZipInfo(SIGNATURE, _DATE), signer.sign(manifest))


@final
class Bundle:
    """A bundle that was opened and found whole."""

    def __init__(self, path: pathlib.Path, content: Content, digest: str, signed: bool):
        self.path, self.content = path, content
        self.digest: str = digest
        """sha256 of the manifest, which holds the digests of all else: equal digests, equal bundles."""
        self.signed: bool = signed
        """Whether a signature was checked."""

    @classmethod
    def open(cls, path: str | os.PathLike, *, key: Any = None) -> "Bundle":
        """Opens a bundle and checks every byte of it.

        Args:
            key: the public ed25519 key of whoever must have signed it, as `signatures.public_key` takes it.

        Raises FileNotFoundError, PermissionError for a bundle that `key` did not sign, DamagedBundleError (a
        ValueError) for all else that is wrong.
        """
        path = pathlib.Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"bundle: there is no file {str(path)!r} (looked from {pathlib.Path.cwd()})")
        try:
            # Read, not mapped: what was checked cannot change any more, whoever writes to the file.
            memory = np.fromfile(path, np.uint8)
            memory.flags.writeable = False
            entries = _entries(path, memory)
            manifest = entries.pop(MANIFEST).tobytes()
            signature = entries.pop(SIGNATURE, None)
            signatures.check(key, manifest, None if signature is None else signature.tobytes(), path.name)
            content = _content(json.loads(manifest), entries)
        except PermissionError:
            raise
        except exported.BAD as error:
            reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
            raise DamagedBundleError(f"bundle: {path.name!r} is refused: {reason}") from error
        return cls(path, content, hashlib.sha256(manifest).hexdigest(), key is not None)

    def program(
        self,
        inputs: Iterable[str] | None = None,
        lengths: Mapping[str, int] | None = None,
        platform: str | None = None,
    ) -> Callable:
        """The program that takes these inputs of these lengths: (arrays, inputs) -> outputs, by name.

        It can be called, traced and compiled like any function on arrays. Of several programs the first is taken where
        neither is said. Raises ValueError for a platform that it was not exported for, and `UnreadableProgramError`
        where this JAX can no longer read it.
        """
        programs = self.content.programs
        wanted = set(programs[0].inputs if inputs is None else inputs)
        fitting = [p for p in programs if set(p.inputs) == wanted]
        if not fitting:
            known = " or ".join(dict.fromkeys(", ".join(p.inputs) for p in programs))
            raise ValueError(f"bundle: no program takes {', '.join(sorted(wanted))}; there is one for {known}")
        if lengths is not None:
            fitting = [p for p in fitting if all(lengths.get(n) == length for n, length in p.lengths.items())]
        if not fitting:
            known = ", ".join(str(dict(p.lengths)) for p in programs if set(p.inputs) == wanted)
            raise ValueError(f"bundle: no program takes the lengths {dict(lengths or {})}; there are {known}")
        return exported.function(
            fitting[0].content, fitting[0].platforms, platform, self.content.made_by.get("jax", "an unknown version")
        )

    def __repr__(self) -> str:
        return f"Bundle({self.content.name!r}, {self.digest[:12]}, {self.path.name!r})"


def _entries(path: pathlib.Path, memory: np.ndarray) -> dict[str, np.ndarray]:
    """The bytes of each entry, as windows on the file."""
    with zipfile.ZipFile(path) as file:
        listed = file.infolist()
    if len(listed) > _MOST_ENTRIES:
        raise ValueError(f"it has {len(listed)} entries; at most {_MOST_ENTRIES} are taken")
    found: dict[str, np.ndarray] = {}
    for entry in listed:
        name = entry.filename
        if name not in (MANIFEST, SIGNATURE, MODEL, WEIGHTS, EXAMPLE) and not _PROGRAM.fullmatch(name):
            raise ValueError(f"an entry {name[:80]!r} is none of a bundle")
        if name in found:
            raise ValueError(f"the entry {name!r} is there twice")
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size or entry.flag_bits & 1:
            raise ValueError(f"the entry {name!r} is compressed or encrypted; those of a bundle are stored")
        head = memory[entry.header_offset : entry.header_offset + 30].tobytes()
        if len(head) < 30 or head[:4] != b"PK\x03\x04":
            raise ValueError(f"the entry {name!r} is not where the zip says")
        start = entry.header_offset + 30 + sum(struct.unpack("<HH", head[26:30]))
        if start + entry.file_size > memory.size:
            raise ValueError(f"the entry {name!r} is cut off")
        found[name] = memory[start : start + entry.file_size]
    if lacking := [name for name in (MANIFEST, WEIGHTS, EXAMPLE) if name not in found]:
        raise ValueError(f"it has no {' and no '.join(lacking)}; it is no bundle")
    if found[MANIFEST].size > _MOST_MANIFEST_BYTES:
        raise ValueError(f"its manifest has {found[MANIFEST].size} bytes")
    return found


def _content(manifest: Any, entries: Mapping[str, np.ndarray]) -> Content:
    _check(isinstance(manifest, dict), "its manifest is no table")
    form = manifest.get("format")
    _check(isinstance(form, str) and form.startswith("llmasos_xla/bundle/"), "its manifest is not of llmasos_xla")
    _check(form == FORMAT, f"it is of format {str(form)[:60]!r}, this version reads {FORMAT!r}; upgrade llmasos_xla")
    _check(
        isinstance(manifest["name"], str) and _NAME.fullmatch(manifest["name"]),
        f"its name is {str(manifest['name'])[:60]!r}",
    )
    _check_digests(manifest["parts"], entries)
    made_by = manifest["made_by"]
    _check(
        isinstance(made_by, dict) and all(isinstance(v, str) for v in made_by.values()),
        "its made_by is no table of texts",
    )
    programs = tuple(
        Program(
            _strings(p["inputs"]),
            _strings(p["platforms"]),
            entries[p["file"]].tobytes(),
            {str(n): int(length) for n, length in p["lengths"].items()},
        )
        for p in manifest["programs"]
    )
    _check(programs, "it has no program")
    inputs, outputs = (tuple(map(_tensor, manifest[kind])) for kind in ("inputs", "outputs"))
    known = {t.name for t in inputs}
    _check(all(known.issuperset(p.inputs) for p in programs), "a program takes inputs that the manifest does not list")
    example = safetensors.views(entries[EXAMPLE])
    halves = tuple(
        {name.removeprefix(kind): array for name, array in example.items() if name.startswith(kind)}
        for kind in ("inputs/", "outputs/")
    )
    preprocessing = manifest["preprocessing"]
    _check(preprocessing is None or isinstance(preprocessing, dict), "its preprocessing is no table")
    model = json.loads(entries[MODEL].tobytes()) if MODEL in entries else None
    _check(model is None or isinstance(model, dict), f"its {MODEL} is no table")
    arrays = safetensors.views(entries[WEIGHTS])
    return Content(
        manifest["name"],
        inputs,
        outputs,
        arrays,
        programs,
        (halves[0], halves[1]),
        preprocessing,
        model,
        {str(n): (int(least), None if most is None else int(most)) for n, (least, most) in manifest["limits"].items()},
        made_by,
    )


def _check(true: Any, otherwise: str) -> None:
    if not true:
        raise ValueError(otherwise)


def _strings(value: Any) -> tuple[str, ...]:
    _check(isinstance(value, list) and all(isinstance(v, str) for v in value), f"no texts: {str(value)[:60]}")
    return tuple(value)


def _tensor(value: Any) -> Tensor:
    name, dtype, shape = value["name"], value["dtype"], value["shape"]
    _check(isinstance(name, str) and isinstance(dtype, str), "a tensor without name and dtype")
    np.dtype(dtype)
    _check(
        isinstance(shape, list)
        and all((type(n) is int and n >= 0) or (isinstance(n, str) and n.isidentifier()) for n in shape),
        f"the tensor {name!r} has the shape {str(shape)[:60]}",
    )
    return Tensor(name, dtype, tuple(shape))


def _tensor_to_json(tensor: Tensor) -> dict[str, Any]:
    return {"name": tensor.name, "dtype": tensor.dtype, "shape": list(tensor.shape)}


def _dumped(value: Any) -> bytes:
    return json.dumps(value, allow_nan=False, sort_keys=True, separators=(",", ":")).encode()


class _Digests:
    """sha256 of each piece of a stream of bytes."""

    def __init__(self) -> None:
        self._size, self._done, self._open = 0, [], hashlib.sha256()

    def add(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while len(view):
            room = _PIECE - self._size % _PIECE
            self._open.update(view[:room])
            self._size += len(view[:room])
            view = view[room:]
            if not self._size % _PIECE:
                self._done.append(self._open.hexdigest())
                self._open = hashlib.sha256()

    def to_json(self) -> dict[str, Any]:
        rest = [self._open.hexdigest()] if self._size % _PIECE or not self._size else []
        return {"bytes": self._size, "sha256": [*self._done, *rest]}


def _check_digests(parts: Any, entries: Mapping[str, np.ndarray]) -> None:
    _check(isinstance(parts, dict), "its manifest lists no parts")
    _check(parts.keys() == entries.keys(), f"the manifest lists {sorted(parts)}, there are {sorted(entries)}")
    todo: list[tuple[str, np.ndarray, str]] = []
    for name, about in parts.items():
        data, digests = entries[name], _strings(about["sha256"])
        pieces = list(_cut(data))
        _check(
            about["bytes"] == data.size and len(digests) == len(pieces),
            f"{name!r} has {data.size} bytes, the manifest says {str(about['bytes'])[:20]}",
        )
        todo += [(name, piece, digest) for piece, digest in zip(pieces, digests, strict=True)]

    def right(part: tuple[str, np.ndarray, str]) -> bool:
        return hashlib.sha256(part[1].data).hexdigest() == part[2]

    with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for (name, _, _), true in zip(todo, pool.map(right, todo), strict=True):
            _check(true, f"the bytes of {name!r} are not those that the manifest has the digest of")


def _cut(data: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, max(data.size, 1), _PIECE):
        yield data[start : start + _PIECE]

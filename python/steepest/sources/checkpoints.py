"""A folder of checkpoints: safetensors or PyTorch files, one for each step, ordered by the number in the name."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from steepest.safetensors_file import SafetensorsFile
from steepest.sources.source import VECTORS, NameFilter, Source, SourceStep, by_field

__all__ = ["CheckpointFolder", "numbered"]

_log = logging.getLogger("steepest")
_TORCH = (".pt", ".pth", ".bin", ".ckpt")
_SUFFIXES = (".safetensors", *_TORCH)
_NESTED = ("state_dict", "model_state_dict", "model", "module")
_SHARD = re.compile(r"-\d{5}-of-\d{5}$")
# Beside a model in the folder of a step
_OTHER = re.compile(r"^(optimizer|optim|scheduler|scaler|rng_state|random_states|training_args)", re.IGNORECASE)


class CheckpointFolder(Source):
    """A folder with one checkpoint for each step; see `open_source`.

    Parameters
    ----------
    folder : Path
        Where they are.
    files : str, optional
        Shell pattern of the checkpoints in the folder (``"*/model.safetensors"``).
    number : str, optional
        Regular expression whose first group is the number of the step.
    params : str or sequence of str, optional
        See `NameFilter`.

    Raises
    ------
    ValueError
        No checkpoints, or their order is not clear.
    """

    def __init__(
        self,
        folder: Path,
        files: str | None = None,
        number: str | None = None,
        params: str | Sequence[str] | None = None,
    ) -> None:
        self.where = str(folder)
        self._params = NameFilter(params, self.where)
        entries = _entries(folder, files)
        self._steps = numbered([p.relative_to(folder).as_posix() for p in entries], number, self.where)
        self._paths = [_parts(folder / name, files is not None) for name in self._steps.values()]
        self.numbers = np.array(list(self._steps), dtype=np.int64)
        gaps = np.unique(np.diff(self.numbers))
        if gaps.size > 1:
            _log.warning(
                "%s: checkpoints are %d to %d steps apart; differences between them are updates over that many",
                self.where, gaps[0], gaps[-1],
            )  # fmt: skip
        first = self._read(0)
        self.fields = tuple(first)
        vectors = [first[field] for field in VECTORS if field in first]
        if "params" not in first and "update" not in first:
            raise ValueError(f"expected params or update in {self._paths[0][0]}, got {self.fields}")
        arrays = vectors[0] if isinstance(vectors[0], Mapping) else {None: vectors[0]}
        self.names = None if None in arrays else tuple(str(name) for name in arrays)
        self.shapes = tuple(tuple(x.shape) for x in arrays.values())
        self.dtypes = tuple(str(x.dtype).removeprefix("torch.") for x in arrays.values())

    def step(self, t: int) -> SourceStep:
        """Read one checkpoint; see `Source.step`.

        Parameters
        ----------
        t : int
            Place of the step.

        Returns
        -------
        SourceStep
            Vectors of this step alone.

        Raises
        ------
        ValueError
            Its arrays are not those of the first checkpoint.
        """
        self._check(t)
        found = self._read(t)
        for field in VECTORS:
            if field not in found:
                continue
            x = found[field]
            arrays = x if isinstance(x, Mapping) else {None: x}
            names = None if None in arrays else set(arrays)
            if names != (None if self.names is None else set(self.names)):
                raise ValueError(
                    f"expected {field} in {self._paths[t][0]} to have the arrays of the first checkpoint, "
                    f"{list(self.names or ())[:8]}, got {list(arrays)[:8]}"
                )
            shapes = dict(zip(self.names or (None,), self.shapes, strict=True))
            for name, array in arrays.items():
                if tuple(array.shape) != shapes[name]:
                    raise ValueError(
                        f"expected {field} {name!r} in {self._paths[t][0]} to have shape {shapes[name]} as in the "
                        f"first checkpoint, got {tuple(array.shape)}"
                    )
            if self.names is not None:  # in the order of the first
                found[field] = {name: arrays[name] for name in self.names}
        return SourceStep(**found)

    def _read(self, t: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for path in self._paths[t]:
            part = _read_safetensors(path, self._params) if path.suffix == ".safetensors" else None
            part = _read_torch(path, self._params) if part is None else part
            for field, value in part.items():
                known = found.setdefault(field, value)
                if known is value:
                    continue
                if not isinstance(known, dict) or not isinstance(value, dict) or set(known) & set(value):
                    raise ValueError(f"expected the parts of a checkpoint to be disjoint, got {field} again in {path}")
                known.update(value)
        return found


def numbered(names: Sequence[str], number: str | None, where: str) -> dict[int, str]:
    """Names ordered by the number of the step that they contain.

    Parameters
    ----------
    names : sequence of str
        Relative paths.
    number : str, optional
        Regular expression whose first group is the number. By default the only number that differs between names that
        agree in everything else.
    where : str
        For messages.

    Returns
    -------
    dict
        Number -> name, ascending.

    Raises
    ------
    ValueError
        A name without a number, several numbers, or the same number twice.
    """
    found: list[tuple[int, str]] = []
    if number is not None:
        pattern = re.compile(number)
        if pattern.groups < 1:
            raise ValueError(f"expected number to have a group, as in r'step_(\\d+)', got {number!r}")
        for name in names:
            match = pattern.search(name)
            if match is None or not (match[1] or "").isdigit():
                raise ValueError(f"expected {name!r} in {where} to match number={number!r} with digits in its group")
            found.append((int(match[1]), name))
    else:
        digits = {name: re.findall(r"\d+", name) for name in names}
        without = [name for name, numbers in digits.items() if not numbers]
        if without:
            raise ValueError(
                f"expected a step number in the name of each checkpoint of {where}, got {without[:4]} without one; "
                "choose with files='step_*.pt', say"
            )
        kinds = sorted({re.sub(r"\d+", "#", name) for name in names})
        if len(kinds) > 1:
            raise ValueError(
                f"expected the checkpoints of {where} to have names that differ in a number only, got {kinds[:4]}; "
                "choose with files='step_*.pt', say"
            )
        columns = list(zip(*digits.values(), strict=True))
        varying = [i for i, column in enumerate(columns) if len(set(map(int, column))) > 1]
        if len(varying) != 1 and len(columns) > 1:
            raise ValueError(
                f"expected one number that differs between the checkpoints of {where}, got {len(varying)} in names "
                f"such as {names[0]!r}; say which with number=r'step=(\\d+)'"
            )
        place = varying[0] if varying else 0
        found = [(int(numbers[place]), name) for name, numbers in digits.items()]
    found.sort()
    for (k, first), (j, second) in pairwise(found):
        if k == j:
            raise ValueError(
                f"expected one checkpoint for each step in {where}, got {first!r} and {second!r} for {k}; choose with "
                "files= or number="
            )
    return dict(found)


def _entries(folder: Path, files: str | None) -> list[Path]:
    if files is not None:
        found = sorted(p for p in folder.glob(files) if p.suffix in _SUFFIXES or p.is_dir())
    else:
        found = sorted(
            p
            for p in folder.iterdir()
            if (p.is_file() and p.suffix in _SUFFIXES)
            or (p.is_dir() and any(q.suffix in _SUFFIXES for q in p.iterdir() if q.is_file()))
        )
    if not found:
        raise ValueError(
            f"expected checkpoints ({', '.join(_SUFFIXES)}, or folders of them) in {folder}"
            + f" that fit files={files!r}" * (files is not None)
            + ", got none"
        )
    return found


def _parts(entry: Path, chosen: bool) -> list[Path]:
    """The files of one checkpoint: itself, or in a folder the model, which may lie in several files."""
    if entry.is_file():
        return [entry]
    found = sorted(p for p in entry.iterdir() if p.suffix in _SUFFIXES and not _OTHER.match(p.name))
    for kind in ((".safetensors",), _TORCH):
        of_kind = [p for p in found if p.suffix in kind]
        if len(of_kind) == 1 or (of_kind and all(_SHARD.search(p.stem) for p in of_kind)):
            return of_kind
        if of_kind:
            break
    raise ValueError(
        f"expected one checkpoint, or its parts '-00001-of-0000N', in {entry}, got {[p.name for p in found][:6]}; "
        "choose with files='*/model.safetensors', say" + " (the pattern given matches folders)" * chosen
    )


def _read_safetensors(path: Path, params: NameFilter) -> dict[str, Any]:
    file = SafetensorsFile(path)
    scalars = {key: file.metadata[key] for key in ("loss", "time") if key in file.metadata}
    entries = dict(file.entries)
    for key in ("loss", "time"):
        if key in entries and math.prod(entries[key].shape) == 1:
            scalars[key] = float(file.read(key).reshape(()))  # type: ignore[assignment]
            del entries[key]

    def arrays(wanted: dict[str, str]) -> dict[str, Any]:
        chosen = params(wanted, file.is_float)
        return {name: file.read(key) for name, key in chosen.items()}

    found: dict[str, Any] = {}
    for field, value in by_field({key: key for key in entries}, str(path)).items():
        found[field] = arrays(value) if isinstance(value, dict) else file.read(value)
    found = found or {"params": arrays({key: key for key in entries})}
    return found | {key: _number(value, key, path) for key, value in scalars.items()}


def _read_torch(path: Path, params: NameFilter) -> dict[str, Any]:
    try:
        import torch
    except ImportError as error:
        raise ImportError(f'{path.name} needs PyTorch: pip install "steepest[torch]"') from error
    import pickle  # only to name its error: nothing is unpickled but tensors and plain containers

    options = {"map_location": "cpu", "weights_only": True}
    try:
        try:
            content = torch.load(path, mmap=True, **options)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            content = torch.load(path, **options)  # the format before PyTorch 1.6 cannot be mapped
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"expected {path} to hold tensors and plain containers (torch.load with weights_only=True), got other "
            f"objects: save a state_dict, or safetensors. {str(error).splitlines()[0]}"
        ) from error
    if not isinstance(content, Mapping):
        raise TypeError(f"expected {path} to hold a mapping name -> tensor, got {type(content).__name__}")
    scalars = {key: content[key] for key in ("loss", "time") if key in content and _is_number(content[key])}
    content = {str(key): value for key, value in content.items() if key not in scalars}

    def arrays(wanted: Mapping[Any, Any], what: str) -> dict[str, Any]:
        if not all(isinstance(value, torch.Tensor) for value in wanted.values()):
            wrong = next(key for key, value in wanted.items() if not isinstance(value, torch.Tensor))
            raise ValueError(f"expected {what} of {path} to map names to tensors, got another type for {wrong!r}")
        named = {str(key): value.detach() for key, value in wanted.items()}
        return params(named, lambda x: x.dtype.is_floating_point)

    found: dict[str, Any] = {}
    if any(isinstance(content.get(field), Mapping | torch.Tensor) for field in VECTORS):
        for field in VECTORS:
            if isinstance(content.get(field), Mapping):
                found[field] = arrays(content[field], field)
            elif isinstance(content.get(field), torch.Tensor):
                found[field] = content[field].detach()
    elif all(isinstance(value, torch.Tensor) for value in content.values()):
        found = by_field(content, str(path)) or {"params": content}
        found = {k: arrays(v, k) if isinstance(v, Mapping) else v.detach() for k, v in found.items()}
    else:
        nested = [key for key in _NESTED if isinstance(content.get(key), Mapping)]
        if not nested:
            raise ValueError(
                f"expected {path} to hold a state dict, or one under {', '.join(map(repr, (*_NESTED, 'params')))}, got "
                f"the keys {list(content)[:8]}"
            )
        found["params"] = arrays(content[nested[0]], nested[0])
    return found | {key: _number(value, key, path) for key, value in scalars.items()}


def _is_number(x: Any) -> bool:
    return isinstance(x, float | int) or (hasattr(x, "shape") and math.prod(x.shape) == 1)


def _number(x: Any, key: str, path: Path) -> float:
    try:
        return float(x)
    except (TypeError, ValueError) as error:
        raise ValueError(f"expected {key} of {path} to be a number, got {x!r}") from error

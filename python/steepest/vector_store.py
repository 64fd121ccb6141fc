"""The vectors of recorded steps: one safetensors file for each, read by memory map; docs/recording-format.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steepest.arrays import Array, ArrayOrMapping, LongVector, long_vector
from steepest.safetensors_file import SafetensorsFile, Tensor, bfloat16, write_safetensors
from steepest.storage import sync_folder

__all__ = ["StoredStep", "VectorFolder", "VectorMemory", "as_arrays"]


@dataclass(frozen=True, eq=False)
class StoredStep:
    """The vectors of one step of a recording.

    Attributes
    ----------
    params, grad, update : array, mapping name -> array, or None
        In the element types in which they were recorded; None where one was not. In a recording with candidates `grad`
        is a mapping candidate -> gradient, without those that were not given.
    """

    params: ArrayOrMapping | None
    grad: ArrayOrMapping | None
    update: ArrayOrMapping | None


class VectorFolder:
    """The folder ``vectors`` of a recording; called with the number of a step it reads its vectors.

    Parameters
    ----------
    path : Path
        Of the recording.
    names, candidates : tuple of str or None
        As in its `RecordingInfo`.
    """

    def __init__(self, path: Path, names: tuple[str, ...] | None, candidates: tuple[str, ...] | None) -> None:
        self.path = path / "vectors"
        self._names, self._candidates = names, candidates

    def write(
        self,
        number: int,
        params: LongVector | None,
        grads: Sequence[LongVector | None],
        update: LongVector | None,
        *,
        sync: bool = False,
    ) -> None:
        """Write the vectors of one step, replacing those of a step that was begun and never recorded.

        Parameters
        ----------
        number : int
            Of the step.
        params, update : LongVector or None
            At the step.
        grads : sequence of LongVector or None
            One for each candidate.
        sync : bool
            Flush to the disk.
        """
        tensors: dict[str, Tensor] = {}
        kinds = [("params", params), ("update", update)]
        kinds += zip(
            ("grad",) if self._candidates is None else [f"grad/{c}" for c in self._candidates], grads, strict=True
        )
        for kind, vector in kinds:
            if vector is not None:
                tensors |= zip(self._keys(kind), zip(vector.segments, vector.dtypes, strict=True), strict=True)
        if not self.path.exists():
            self.path.mkdir(exist_ok=True)
            if sync:
                sync_folder(self.path.parent)
        write_safetensors(self._file(number), tensors, sync=sync)

    def write_stored(self, number: int, step: StoredStep, *, sync: bool = False) -> None:
        """Write the vectors of one step of another recording.

        Parameters
        ----------
        number : int
            Of the step.
        step : StoredStep
            Of the same names.
        sync : bool
            Flush to the disk.
        """
        grads = [step.grad] if self._candidates is None else [(step.grad or {}).get(name) for name in self._candidates]
        params, update, *gradients = (
            None if x is None else long_vector(x, "vectors") for x in (step.params, step.update, *grads)
        )
        self.write(number, params, gradients, update, sync=sync)

    def __call__(self, number: int) -> StoredStep:
        """Read the vectors of one step.

        Parameters
        ----------
        number : int
            Of the step.

        Returns
        -------
        StoredStep
            Mapped into memory, read-only.

        Raises
        ------
        ValueError
            The step was recorded without vectors, or its file is damaged.
        """
        if not self._file(number).exists():
            raise ValueError(f"step {number} has no vectors: {self._file(number)} does not exist")
        file = SafetensorsFile(self._file(number))

        def vector(kind: str) -> ArrayOrMapping | None:
            keys = self._keys(kind)
            if keys[0] not in file.entries:
                return None
            arrays = [file.read(key) for key in keys]
            return arrays[0] if self._names is None else dict(zip(self._names, arrays, strict=True))

        if self._candidates is None:
            grad = vector("grad")
        else:
            each = {name: vector(f"grad/{name}") for name in self._candidates}
            grad = {name: x for name, x in each.items() if x is not None}
        return StoredStep(vector("params"), grad, vector("update"))

    def _keys(self, kind: str) -> list[str]:
        return [kind] if self._names is None else [f"{kind}/{name}" for name in self._names]

    def _file(self, number: int) -> Path:
        return self.path / f"{number:012d}.safetensors"


class VectorMemory:
    """The vectors of a recording without a path: as `VectorFolder`, but copies in memory.

    Parameters
    ----------
    candidates : tuple of str or None
        As in its `RecordingInfo`.
    """

    def __init__(self, candidates: tuple[str, ...] | None) -> None:
        self._candidates = candidates
        self._steps: dict[int, tuple[LongVector | None, list[LongVector | None], LongVector | None]] = {}

    def write(
        self,
        number: int,
        params: LongVector | None,
        grads: Sequence[LongVector | None],
        update: LongVector | None,
        *,
        sync: bool = False,  # noqa: ARG002
    ) -> None:
        """Copy the vectors of one step.

        Parameters
        ----------
        number : int
            Of the step.
        params, update : LongVector or None
            At the step.
        grads : sequence of LongVector or None
            One for each candidate.
        sync : bool
            Means nothing here.
        """
        self._steps[number] = _copied(params), [_copied(grad) for grad in grads], _copied(update)

    def __call__(self, number: int) -> StoredStep:
        """The vectors of one step.

        Parameters
        ----------
        number : int
            Of the step.

        Returns
        -------
        StoredStep
            The memory of the recording: not to be written to.

        Raises
        ------
        ValueError
            The step was recorded without vectors.
        """
        if number not in self._steps:
            raise ValueError(f"step {number} has no vectors")
        params, grads, update = self._steps[number]
        each = [as_arrays(grad) for grad in grads]
        if self._candidates is None:
            return StoredStep(as_arrays(params), each[0], as_arrays(update))
        known = {name: grad for name, grad in zip(self._candidates, each, strict=True) if grad is not None}
        return StoredStep(as_arrays(params), known, as_arrays(update))


def _copied(x: LongVector | None) -> LongVector | None:
    return None if x is None else replace(x, segments=[np.array(segment) for segment in x.segments])


def as_arrays(x: LongVector | None) -> ArrayOrMapping | None:
    """A vector in the form in which a user has it.

    Parameters
    ----------
    x : LongVector or None
        Views.

    Returns
    -------
    array, mapping name -> array, or None
        NumPy arrays that share its memory.
    """
    if x is None:
        return None
    arrays = [as_array(s, d) for s, d in zip(x.segments, x.dtypes, strict=True)]
    return arrays[0] if x.layout.names is None else dict(zip(x.layout.names, arrays, strict=True))


def as_array(segment: NDArray[Any], dtype: str) -> Array:
    """The bits of bfloat16 as an array of bfloat16; other arrays as they are.

    Parameters
    ----------
    segment : ndarray
        As the core sees it.
    dtype : str
        Name of its element type.

    Returns
    -------
    ndarray
        The same memory.

    Raises
    ------
    ImportError
        ml_dtypes, which defines bfloat16 for NumPy, is not installed.
    """
    return segment.view(bfloat16()) if dtype == "bfloat16" else segment

"""Stub of the compiled module. A `Vector` is an array, or a list or tuple of arrays read as one vector, in float64,
float32, float16, or uint16 for the bits of bfloat16; nothing is converted or copied."""

from collections.abc import Sequence
from typing import Any, TypeAlias

from numpy import float64
from numpy.typing import NDArray

_Array: TypeAlias = NDArray[Any]
_Vector: TypeAlias = _Array | Sequence[_Array]
_Matrix: TypeAlias = NDArray[float64]

class Gram:
    @property
    def hi(self) -> _Matrix: ...
    @property
    def lo(self) -> _Matrix: ...
    @property
    def bound(self) -> _Matrix: ...
    @property
    def exponents(self) -> list[int]: ...
    @property
    def sign_flip_variance(self) -> float: ...
    @property
    def finite(self) -> bool: ...
    @property
    def precision(self) -> str: ...
    @property
    def pair(
        self,
    ) -> tuple[float, float, float, float, float, float, int, int, float, float, float, bool]: ...

class Operator:
    def __init__(
        self,
        columns: Sequence[_Vector],
        exponents: Sequence[int],
        through_base: Sequence[bool],
        core: _Matrix,
        exponent: int = 0,
        scalar: float = 1.0,
        diagonal: _Vector | None = None,
        inverse: bool = False,
    ) -> None: ...
    def apply(self, x: _Vector, out: _Vector, source: _Vector | None = None, columns: bool = False) -> None: ...
    def assemble(self, out: _Array) -> None: ...

class Complement:
    def __init__(self, g: _Array) -> None: ...
    def apply(self, z: _Array, out: _Array, columns: bool = False, transpose: bool = False) -> None: ...

def gram(vectors: Sequence[_Vector], precision: str = "fast") -> Gram: ...
def angle_gram(
    y: _Vector, g: _Vector, base: _Vector | None = None, tolerance: float = 1e-13, rounding_squared: float = 0.0
) -> Gram: ...
def segment_angle_grams(
    y: _Vector, g: _Vector, tolerances: Sequence[float], rounding_squared: Sequence[float], precision: str = "fast"
) -> _Matrix: ...
def segment_cross_products(y: _Vector, g: _Vector, y0: _Vector, g0: _Vector) -> NDArray[float64]: ...
def step_grams(
    y: _Vector,
    g: _Vector,
    tolerances: NDArray[float64],
    rounding_squared: NDArray[float64],
    skip: int = 0,
    lag: int = 0,
    precision: str = "fast",
) -> tuple[NDArray[float64], NDArray[float64]]: ...
def spacing_squares(x: _Vector) -> list[float]: ...
def first_not_positive(d: _Vector) -> int: ...
def add_element_products(
    grads: Sequence[_Vector],
    updates: Sequence[_Vector],
    exponents: tuple[int, int],
    yy: _Vector,
    yg: _Vector,
    gg: _Vector,
) -> bool: ...
def fit_elements(yy: _Vector, yg: _Vector, gg: _Vector) -> _Matrix: ...
def diagonal_residuals(
    grads: Sequence[_Vector],
    updates: Sequence[_Vector],
    exponents: tuple[int, int],
    p: _Vector,
    d: _Vector,
    s: _Vector,
) -> NDArray[float64]: ...
def project(vectors: Sequence[_Vector], x: _Vector, out: _Vector, onto: bool = True, columns: bool = False) -> None: ...
def low_rank_spectrum(
    core: _Matrix, core_low: _Matrix, gram: _Matrix, gram_low: _Matrix
) -> tuple[NDArray[float64], _Matrix]: ...
def low_rank_pencil(
    c1: float,
    core1: _Matrix,
    core1_low: _Matrix,
    c2: float,
    core2: _Matrix,
    core2_low: _Matrix,
    gram: _Matrix,
    gram_low: _Matrix,
) -> tuple[NDArray[float64], float, float]: ...
def low_rank_log_ratios(
    c1: float, core1: _Matrix, c2: float, core2: _Matrix, gram: _Matrix, gram_low: _Matrix
) -> _Matrix: ...
def get_num_threads() -> int: ...
def set_num_threads(n: int) -> None: ...
def available_cpus() -> int: ...
def build_config() -> dict[str, Any]: ...

class StepSums:
    def __init__(
        self, y: _Vector, after: _Vector, before: _Vector, update_dtypes: Sequence[str], floor_after: bool = False
    ) -> None: ...
    @property
    def spacing_squares(self) -> list[float]: ...
    def rows(
        self, tolerances: Sequence[float], rounding_squared: Sequence[float], update: _Vector | None = None
    ) -> tuple[_Matrix, list[int]]: ...

def difference(after: _Vector, before: _Vector, out: _Vector) -> None: ...
def copy(x: _Vector, out: _Vector, squares: bool = False) -> list[float]: ...

"""Times of calls that compete, taken in turn within one process."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping

import numpy as np

Call = Callable[[], object]

SHORTEST = 300e-6  # seconds; a sample repeats its call until it lasts this long
# The threads of OpenBLAS and OpenMP go on spinning for up to 26 ms after a call, on the cores that the next competitor
# would use. They are given the time to fall asleep, and each competitor the time to wake its own.
SETTLE = 0.03  # seconds
LONGEST = 60.0  # seconds; competitors that would take longer than this make FEWEST rounds
FEWEST = 3


def _sample(call: Call, repeats: int) -> float:
    begin = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - begin) / repeats


def interleaved(
    calls: Mapping[str, Call], rounds: int = 7, seconds: float = 0.5, limit: int = 60
) -> dict[str, np.ndarray]:
    """Seconds per call of each competitor, a column of samples in shuffled rounds.

    Whatever else the machine does then hits all of them alike. Each sample follows a pause and an untimed one, so that
    it finds caches and thread pools as its own kind left them, as in a loop of its own.
    """
    repeats = {}
    spent = 0.0
    for name, call in calls.items():
        call()  # compiles, faults pages in
        once = min(_sample(call, 1) for _ in range(2))
        repeats[name] = max(1, int(SHORTEST / max(once, 1e-9)))
        spent += 2 * repeats[name] * once + SETTLE
    rounds = FEWEST if rounds * spent > LONGEST else int(min(limit, max(rounds, seconds / spent)))
    times: dict[str, list[float]] = {name: [] for name in calls}
    order = list(calls)
    shuffle = random.Random(0).shuffle
    for _ in range(rounds):
        shuffle(order)
        for name in order:
            time.sleep(SETTLE)
            _sample(calls[name], repeats[name])
            times[name].append(_sample(calls[name], repeats[name]))
    return {name: np.array(found) for name, found in times.items()}

"""The experiments behind ``steepest reproduce``: linear dynamics, feedback alignment, learning rules.

Each module has a pure compute function ``run``, a frozen result with ``to_dict()``, and ``figure(result)``.
They need ``pip install "steepest[experiments]"``; the package itself does not import them.
"""

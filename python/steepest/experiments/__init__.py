"""The experiments behind ``steepest reproduce``: dynamics, feedback alignment, geometries, learning rules, navigation.

Each module has a pure compute function ``run``, a frozen result with ``to_dict()``, and ``figure(result)``.
They need ``pip install "steepest[experiments]"``; the package itself does not import them.
"""

"""Live tracking of any `torch.optim` optimiser: one added line, and the training stays the same bit by bit."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

try:
    import torch
except ModuleNotFoundError as error:
    if error.name == "torch":
        raise ImportError('steepest.torch needs PyTorch: pip install "steepest[torch]"') from error
    raise

from steepest.row_format import Keep, Objective
from steepest.torch.hessian import hessian_vector_product
from steepest.torch.tracker import Tracker

__all__ = ["Tracker", "hessian_vector_product", "track"]


def track(
    optimizer: torch.optim.Optimizer,
    model: torch.nn.Module | None = None,
    path: str | os.PathLike[str] | None = None,
    evaluate: Callable[[], Any] | None = None,
    every: int = 1,
    *,
    evaluate_every: int | None = None,
    lag: int = 0,
    keep: Keep = "scalars",
    objective: Objective | None = None,
    log: Callable[[dict[str, float]], object] | None = None,
    log_blocks: bool = False,
    resume: bool = False,
    sync: bool = False,
    _working: torch.dtype | None = None,
) -> Tracker:
    """Record gradient and update of each step of an optimiser, by hooks around its `step`.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        Any rule of `torch.optim` or derived from `torch.optim.Optimizer`, with any groups, and with a closure too.
        Several optimisers take several trackers.
    model : torch.nn.Module, optional
        Gives the blocks their names, and is put back after each evaluation. Without it the names are those that the
        optimiser was given, else ``param_0``, ``param_1``, ...
    path : path-like, optional
        Folder to be made; None records in memory. See `Recorder`.
    evaluate : callable, optional
        Without arguments. Returns the loss on a FIXED batch as a tensor with a graph, or (loss, gradients), the latter
        a mapping by the names of the blocks or a sequence in their order. It runs before the step, and gives loss and
        gradient of the recording instead of those that the rule consumed.
    every : int
        Record each step whose number is a multiple; steps count from 0.
    evaluate_every : int, optional
        Evaluate at multiples of this multiple of `every`, which is the default. Recorded steps in between have status
        ``no_gradient``.
    lag : int
        Also record the inner products with this many steps before: 2 `lag` more copies of the parameters.
    keep : {'scalars', 'vectors'}
        ``vectors`` also keeps params, grad and update of each recorded step, and copies them to the host for it;
        gradients that are missing are stored as zeros.
    objective : {'unknown', 'fixed'}, optional
        Default ``fixed`` with `evaluate`, which is one function, else ``unknown``. Full batches are ``fixed`` too.
    log : callable, optional
        Called for each row with a dict ``steepest/step, loss, psi`` (degrees), ``cos, cond_min, grad_norm,
        update_norm`` of the whole vector, without what is unknown: ``wandb.log``, say. On an accelerator rows come some
        steps late.
    log_blocks : bool
        The same for each block, as ``steepest/psi/<block>``, ...
    resume, sync : bool
        As of `Recorder`.
    _working : torch.dtype, optional
        For tests: take the way of accelerators with this precision.

    Returns
    -------
    Tracker
        A context manager, or to be closed with ``close()``; ``loss(value)``, ``skip(reason)``, ``recording()``.

    Raises
    ------
    TypeError
        Parameters that are complex, sparse, sharded, quantised, or not on a device.
    ValueError
        An option has no valid value, the optimiser holds nothing that requires a gradient, or it seems to step inside
        the backward pass (a post-accumulate-grad hook). During a step: new parameters appear in the optimiser.
    FileExistsError
        Something is at `path`, and not `resume`.

    See Also
    --------
    steepest.Recorder : For any other loop.

    Notes
    -----
    *The gradient* is `.grad` as the optimiser finds it: after accumulation, unscaling and clipping. Plain SGD is then
    at 0 degrees by construction, whatever the noise. Against the gradient on a fixed batch (`evaluate`) it is not; to
    have both, track the optimiser twice, once with `evaluate`. Coupled weight decay (SGD, Adam) enters the rule, not
    `.grad`, and so opens an angle; decoupled one (AdamW) is part of the update, and ``decay_share`` is
    |lr weight_decay param| / |update|. With ``maximize=True`` `.grad` is still that of the function which is maximised:
    status ``ascent``. A parameter without `.grad` has status ``no_gradient``, and counts as zeros in the whole.

    *Closures*: the loss and gradient of the step are those of the first evaluation, where the step begins.

    *evaluate* runs with the global generators seeded alike each time, so that dropout draws the same masks, and they
    are put back (PyTorch's on all devices, NumPy's, Python's), as are `.grad`, and of `model` its buffers and modes;
    other state that the callable changes stays changed. ``torch.autograd.grad`` does not go through
    DistributedDataParallel: call ``model.module``.

    *Gradient scalers*: fused optimisers report skipped steps; for others see `Tracker.skip`.

    *The update* is ``params_next - params``, in float32 for narrower parameters. `psi_floor` is that of the parameters
    after the step, to whose spacing the update was rounded.

    *Cost* for n parameters, each recorded step: ONE copy of the parameters stays in memory (two with
    ``keep="vectors"``). They are copied before each step, so nothing has to be known of what moves them between two
    steps. After the step gradient, copy and parameters are read once on the CPU, and the update is formed meanwhile in
    registers; in memory, in place of the copy, only where this pass does not settle an angle. With ``lag`` or
    ``keep="vectors"`` it is formed first and read then. On an accelerator a few hundred launches for all blocks
    together, nothing waits, and the numbers are fetched after 16 steps, for `recording`, or at the end (so a killed
    process loses up to 16 rows of its folder).

    Examples
    --------
    >>> import torch
    >>> from steepest.torch import track
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Linear(3, 1)
    >>> x, y = torch.randn(32, 3), torch.randn(32, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> with track(optimizer, model, objective="fixed") as rec:
    ...     for _ in range(5):
    ...         optimizer.zero_grad()
    ...         rec.loss(torch.nn.functional.mse_loss(model(x), y)).backward()
    ...         optimizer.step()
    >>> recording = rec.recording()
    >>> recording.blocks, recording.counts()
    (('(all)', 'weight', 'bias'), {'ok': 5})
    >>> bool((recording.angle[:, 0] < 1e-5).all())
    True
    """
    return Tracker(
        optimizer,
        model,
        path,
        evaluate,
        every,
        evaluate_every,
        lag,
        keep,
        objective,
        log,
        log_blocks,
        resume,
        sync,
        _working,
    )

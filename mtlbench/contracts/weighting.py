"""How the tasks' losses or gradients become one update."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from mtlbench.contracts.task import Task


class Need(Enum):
    """What a weighting looks at; this decides what a training step costs before the run starts."""

    LOSSES = "losses"
    GRAM = "gram"
    CROSS = "cross"
    BILEVEL = "bilevel"
    JACOBIAN = "jacobian"

    @property
    def batches(self) -> int:
        """How many independent batches a step draws; an epoch has as many times fewer steps."""
        return {Need.CROSS: 3, Need.BILEVEL: 2}.get(self, 1)

    @property
    def small(self) -> bool:
        """Whether it looks at matrices of T rows, in float64 on the CPU, where the state is then too."""
        return self in (Need.GRAM, Need.CROSS, Need.BILEVEL)


class Lookahead(Protocol):
    """What a BILEVEL method may ask: how training on one batch changes the losses of another.

    J [T, P] are the task gradients of the training batch by all parameters that the tasks train, their heads
    included; K are those of the held-out batch. All answers are float64 on the CPU. The model is as before
    after each question.

    rate: the learning rate of this step.
    """

    rate: float

    def gram(self) -> Tensor:
        """Return the Gram matrix ``[2 T, 2 T]`` of J, then K."""

    def cross(self, steps: Tensor) -> tuple[Tensor, Tensor]:
        """Return J Kᵀ ``[T, T]`` and the held-out losses ``[T]`` where ``- Jᵀ steps`` leads (steps [T]).

        J is taken where the model is, K there: element (i, j), times -1, is the derivative of held-out loss j
        by ``steps[i]``.
        """

    def losses(self, steps: Tensor, count: int) -> Tensor:
        """Return the training batch's losses ``[T]`` after ``count`` moves by ``- Jᵀ steps``, J each anew."""


class Weighting(nn.Module, ABC):
    """A function of losses, of the Gram matrix or of the Jacobian. It never touches a model or autograd.

    The constructor may ask for ``tasks`` (a sequence of `Task`) and, where it wraps other methods, for
    ``weightings`` (a function from a spec such as ``"mgda"`` to a `Weighting` for these tasks); its other
    arguments are the method's parameters. State lives in buffers (learned state in parameters, which the
    optimiser steps), and every random draw comes from `generator`, so that a resumed run is exact.

    ``forward`` takes, by `needs`,

    - LOSSES: ``forward(losses [T])`` -> weights ``[T]``, or the scalar objective itself;
    - GRAM: ``forward(gram [T, T], losses [T])`` -> weights ``[T]``, where ``gram`` is J Jᵀ in float64 on the
      CPU; with `blocks`, ``gram [K, T, T]`` -> weights ``[K, T]``;
    - CROSS: ``forward(cross [T, T], losses [T])`` -> weights ``[T]`` of a batch, where ``cross`` is J₁ J₂ᵀ in
      float64 on the CPU, of two other batches: all three are independent, so J₁ J₂ᵀ is an unbiased estimate
      of the Gram matrix of the expected gradients, which J Jᵀ is not;
    - BILEVEL: ``forward(ahead, losses [T])`` -> weights ``[T]`` of a training batch whose ``losses`` these
      are, or ``[2, T]`` of it and of a held-out batch; ``ahead`` is a `Lookahead`. `heads` is "weighted";
    - JACOBIAN: ``forward(jacobian [T, P], losses [T])`` -> the update ``[P]``.

    State and arguments are on one device: the CPU for GRAM, CROSS and BILEVEL, else where the model is
    trained. The hooks get float64 losses there. A method that wraps another is its submodule's only caller:
    it forwards the hooks.

    The optimiser steps the parameters of a LOSSES method, through the objective that it returns. A GRAM or
    JACOBIAN method that learns something updates it itself, in ``forward`` or in a hook.

    T counts the tasks that have a label in this batch: `active` holds their indices. A method with a value
    for each task picks with it: ``self.log_variance[self.active]``.
    """

    context: ClassVar[tuple[str, ...]] = ("tasks", "weightings")
    needs: ClassVar[Need]
    heads: ClassVar[Literal["weighted", "unweighted", "own"]] = "weighted"
    """Whether a head receives its own task's gradient times the task's weight, or as it is, or times a weight
    of its own: then ``forward`` sets `head_weights` too. What serves one task in the architecture, such as
    its gate, is treated like its head."""
    spaces: ClassVar[frozenset[str]] = frozenset({"parameters", "features"})
    """What a GRAM or JACOBIAN method may differentiate by. One that follows gradients over steps leaves out
    ``"features"``: there every batch has gradients of its own samples."""
    properties: ClassVar[frozenset[str]] = frozenset()
    """What the method promises and the conformance kit then checks: ``"permutation-equivariant"``,
    ``"scale-free"`` (all losses times c give the same weights), ``"non-conflicting"`` (the update has no
    negative product with any task gradient), ``"diagonal"`` (it reads no more of the Gram matrix than its
    diagonal, so the engine need not form the rest)."""
    blocks: Literal["model", "layer", "matrix"] = "model"
    """Which shared parameters have a Gram matrix, and weights, in common: all, those of one layer (the
    parameters that one module holds itself) or each by itself. For GRAM methods."""
    every: int = 1
    """Weights are computed on every so-manieth step and reused between; those steps cost as much as ew."""

    forward: Callable[..., Tensor]
    active: Tensor
    head_weights: Tensor
    """``[T]``, where `heads` is ``"own"``: what each head's gradient is multiplied by. Set by ``forward``."""
    called: str
    """What messages call it: the plugin's name where it was chosen by that, else the class's."""
    eps: float = 2.0**-23
    """The relative rounding error of the gradients: that of the parameters' dtype. The engine sets it."""

    def __init__(self, tasks: Sequence[Task] = ()) -> None:
        super().__init__()
        self.called = type(self).__name__
        self.active = torch.arange(len(tasks))
        self.generator = torch.Generator()

    def after_step(self, losses: Callable[[], Tensor]) -> None:
        """Run after the optimiser's step. ``losses()`` evaluates the same batch again (one forward), [T]."""

    def after_epoch(self, losses: Tensor) -> None:
        """Run after an epoch with the epoch's mean training losses, float64 ``[T]``."""

    def get_extra_state(self) -> Any:
        """Return the generator's state: random draws go on where they were when a run is resumed."""
        return self.generator.get_state()

    def set_extra_state(self, state: Any) -> None:
        """Restore what `get_extra_state` gave."""
        self.generator.set_state(state)

"""From the losses of one batch to ``.grad`` of every parameter.

The graph is cut between architecture and heads: each head is backpropagated once, by its own loss, down to
a detached copy of its pyramid. What arrives there (the *cotangents* of a task) is then pulled through the
trunk, in one of three ways:

- LOSSES: nothing is cut, one backward of the weighted sum;
- parameters: one pull for each task, the Gram matrix of the results, their combination into ``.grad``;
- features: the Gram matrix of the cotangents themselves, then ONE pull of their combination.

A CROSS method compares the gradients of two further batches, which are pulled task by task; the batch of
the update is then pulled once, weighted. A BILEVEL method asks how steps on one batch change another (see
`ModelLookahead`).

A batch may come in parts: over time (micro-batches of one process) and over space (the shares of several
processes). Either way a part's loss is its sum over the count of the whole batch, so that gradients are sums
over parts, exactly, however labels are spread. Methods see the sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mtlbench.contracts import Architecture, Batch, Need, Pyramid, Task, Vector, Weighting
from mtlbench.errors import MtlbenchError, RunFailedError
from mtlbench.gradients.ghost import Ghosts, find
from mtlbench.gradients.gram import Gradient, Jacobian
from mtlbench.gradients.lookahead import ModelLookahead
from mtlbench.gradients.moment import Moment
from mtlbench.gradients.precision import Precision, at_least_float32
from mtlbench.parallel import ALONE, Ranks

Space = Literal["parameters", "features"]
Scale = Literal["published", "sum", "mean"]
Batches = Batch | Mapping[str, Batch]
"""One batch for all tasks (joint mode), or one for each (per-task mode)."""
Parts = Batches | Sequence[Batches]
"""A batch, or the parts of it that one process computes one after another."""
SMALL = 1000
"""Fewer numbers than these are few."""


@dataclass(frozen=True)
class Step:
    """What one step saw.

    losses: float64 ``[T]`` on the CPU, NaN for a task without a label in the batch. weights: float64 ``[T]``,
    what each task's gradient was multiplied by (the mean over `Weighting.blocks`, the sum over two batches);
    None where the method gave an update and no weights. gram: float64 ``[T, T]``, the products of the task
    gradients, NaN for a task without a label; None where nobody computed them. penalty: the architecture's
    extra term of the objective, a scalar; None for none. skipped: whether a gradient left the range of half
    precision; then there is nothing to step with.
    """

    losses: Tensor
    weights: Tensor | None
    gram: Tensor | None = None
    penalty: Tensor | None = None
    skipped: bool = False


class _Overflow(Exception):
    """A gradient left the range of half precision where a step ahead led."""


@dataclass(frozen=True)
class _Whole:
    """What a batch in parts has in all: labels by task, as its loss counts them, and samples by task."""

    counts: dict[str, float]
    samples: dict[str, float]


@dataclass(frozen=True)
class _Forward:
    """A forward pass of one part: its shares of the losses ``[T]`` and of the penalty.

    each: the losses again, one by one in their graph, as is the penalty; nothing where that is not kept.
    """

    losses: Tensor
    penalty: Tensor | None
    each: Sequence[Tensor] = ()


@dataclass(frozen=True)
class _Cut:
    """A forward pass of one part, cut at the features, and the heads already backpropagated.

    Cotangents are multiplied by the scale of the precision; losses and penalty are not.
    """

    names: list[str]
    losses: Tensor
    pyramids: list[Pyramid]
    cotangents: list[list[Tensor | None]]
    penalty: Tensor | None


class GradientEngine:
    """Computes one update; the optimiser then steps.

    architecture, heads, tasks: the model in parts. weighting: see its contract. space: what a gradient
    weighting differentiates by. per_task: whether each task has inputs of its own. scale: what the weights
    are brought to: "published" leaves them as the method has them, with "sum" they add up to the number of
    tasks, with "mean" to 1. ranks: the processes that hold the other shares of every batch. precision: of
    the networks. Raises `MtlbenchError` when method, architecture, space and scale do not fit, before
    anything is trained.
    """

    def __init__(
        self,
        architecture: Architecture,
        heads: Mapping[str, nn.Module],
        tasks: Sequence[Task],
        weighting: Weighting,
        space: Space = "parameters",
        per_task: bool = False,
        scale: Scale = "published",
        ranks: Ranks = ALONE,
        precision: Precision | None = None,
    ) -> None:
        self.ranks, self.precision = ranks, precision or Precision()
        self.architecture, self.heads, self.weighting = architecture, heads, weighting
        self.tasks = {task.name: task for task in tasks}
        self.space, self.per_task, self.scale = space, per_task, scale
        method, sharing = weighting.called, architecture.called
        if scale != "published" and weighting.needs is Need.JACOBIAN:
            raise MtlbenchError(
                f"--scale {scale}: {method} gives an update and no weights; leave --scale out"
            )
        if weighting.every < 1:
            raise MtlbenchError(f"{method}: 'every' must be at least 1, found {weighting.every}")
        if weighting.needs is not Need.GRAM and weighting.every != 1:
            raise MtlbenchError(
                f"{method}: only weights from a Gram matrix can be reused, so 'every' must be 1"
            )
        if weighting.needs is Need.LOSSES and weighting.heads != "weighted":
            raise MtlbenchError(f"{method}: one backward of weighted losses always weights the heads too")
        if weighting.needs is Need.BILEVEL and weighting.heads != "weighted":
            raise MtlbenchError(f"{method}: a bilevel method trains heads by its weights too")
        if weighting.blocks != "model" and (weighting.needs is not Need.GRAM or weighting.every != 1):
            raise MtlbenchError(f"{method}: only weights from Gram matrices of every step can go by block")
        if space == "features":
            if weighting.needs is Need.LOSSES:
                raise MtlbenchError(
                    f"--grad features: {method} weights losses and takes no gradients; leave --grad out"
                )
            if weighting.needs.batches > 1:
                raise MtlbenchError(
                    f"--grad features: {method} compares gradients of several batches, and those by features"
                    " are of one batch only; use --grad parameters"
                )
            if weighting.blocks != "model":
                raise MtlbenchError(
                    f"--grad features: {method} has weights by {weighting.blocks} of the shared part; use"
                    " --grad parameters"
                )
            if "features" not in weighting.spaces:
                raise MtlbenchError(
                    f"--grad features: {method} follows gradients over steps, and those by features are of"
                    " one batch only; use --grad parameters"
                )
            if not architecture.shares_features:
                raise MtlbenchError(
                    f"--grad features: {sharing} has no feature tensor that all tasks share;"
                    " use --grad parameters"
                )
            if per_task:
                raise MtlbenchError(
                    "--grad features: each task has its own inputs, so no feature tensor feeds all tasks;"
                    " use --grad parameters"
                )
        architecture.pulled_apart = weighting.needs is not Need.LOSSES and space == "parameters"
        shared = set(architecture.shared_parameters())
        self._trunk = [p for p in architecture.parameters() if p.requires_grad]
        self._is_shared = [p in shared for p in self._trunk]
        self._blocks = _blocks(architecture, shared, weighting.blocks)
        self._parameters = [*self._trunk, *(p for name in self.tasks for p in heads[name].parameters())]
        self._methods = [part for part in weighting.modules() if isinstance(part, Weighting)]
        if self._trunk:
            for part in self._methods:
                part.eps = max(torch.finfo(self._trunk[0].dtype).eps, self.precision.eps)
        self._learns = weighting.needs is Need.LOSSES and any(True for _ in weighting.parameters())
        self._others = weighting.needs.batches - 1
        self._active = torch.arange(len(self.tasks))
        self._present = list(self.tasks)
        self._age = 0
        self._weights: dict[str, float] = {}
        self._own: dict[str, float] = {}
        self._probing = False
        self._gram: Tensor | None = None
        self.mark: Callable[[str], None] = lambda phase: None
        """Is told of each forward pass that begins: where a profile listens."""

    def state_dict(self) -> dict[str, object]:
        """Return what reused weights (``every``) and scaled gradients need to go on."""
        return {
            "age": self._age,
            "weights": self._weights,
            "own": self._own,
            "precision": self.precision.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self._age, self._weights, self._own = state["age"], state["weights"], state["own"]
        self.precision.load_state_dict(state["precision"])

    # ---- forward -------------------------------------------------------------------------------------

    def losses(self, batch: Parts, names: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Return the losses of ``names`` (None: of all) on ``batch``, each a scalar.

        They are in their graph where the batch is in one part and this is the only process.
        """
        parts, names = _parts(batch), list(names or self.tasks)
        whole = self._whole(parts, names)
        seen = [self._forward(part, names, whole) for part in parts]
        losses: Sequence[Tensor] = seen[0].each if whole is None else self._totals(seen)[0].unbind()
        return dict(zip(names, losses, strict=True))

    def _whole(self, parts: Sequence[Batches], names: Sequence[str]) -> _Whole | None:
        """Return what the parts' losses are shares of; None where the only part is the whole batch."""
        if len(parts) == 1 and self.ranks.size == 1:
            return None
        own = [[part if isinstance(part, Batch) else part[name] for part in parts] for name in names]
        counts = [
            sum(self._count(name, part) for part in group) for name, group in zip(names, own, strict=True)
        ]
        samples = [float(sum(len(part.inputs) for part in group)) for group in own]
        totals = self.ranks.total([*counts, *samples])
        return _Whole(
            dict(zip(names, totals[: len(names)], strict=True)),
            dict(zip(names, totals[len(names) :], strict=True)),
        )

    def _count(self, name: str, part: Batch) -> float:
        """Return the number of labels of a task, as its loss counts them; that needs no forward pass."""
        output = self.tasks[name].output
        size = (output.size,) if isinstance(output, Vector) else (output.channels, *part.inputs.shape[2:])
        blank = part.inputs.new_zeros(()).expand(len(part.inputs), *size)
        return float(self.tasks[name].loss.terms(blank, part.targets[name])[1])

    def _forward(
        self,
        batch: Batches,
        names: Sequence[str],
        whole: _Whole | None,
        cut: dict[str, tuple[Pyramid, Pyramid]] | None = None,
        trunk: bool = True,
    ) -> _Forward:
        """Pass one part forward; with ``cut``, fill it with (pyramid, detached leaves) by task.

        trunk: whether the trunk's graph is kept.
        """
        self.mark("forward")
        losses: list[Tensor] = []
        penalties: list[Tensor] = []
        groups = [(names, batch)] if isinstance(batch, Batch) else [([name], batch[name]) for name in names]
        for group, part in groups:
            with self.precision.autocast(part.inputs.device):
                with torch.set_grad_enabled(trunk and torch.is_grad_enabled()):
                    features = self.architecture(part.inputs, group)
                outputs = {}
                for name in group:
                    pyramid = features.pyramids[name]
                    if cut is not None:
                        leaves = tuple(level.detach().requires_grad_() for level in pyramid)
                        cut[name] = (pyramid, leaves)
                        pyramid = leaves
                    outputs[name] = self.heads[name](pyramid, tuple(part.inputs.shape[2:]))
            for name, output in outputs.items():
                loss, target = self.tasks[name].loss, part.targets[name]
                output = at_least_float32(output)
                if whole is None:
                    losses.append(loss(output, target))
                else:
                    losses.append(loss.terms(output, target)[0] / max(whole.counts[name], 1.0))
            if features.penalty is not None:
                penalty = at_least_float32(features.penalty) / len(groups)
                if whole is not None and not len(part.inputs):
                    penalty = 0 * penalty.nan_to_num()  # a mean over no samples
                elif whole is not None:
                    penalty = penalty * (len(part.inputs) / whole.samples[group[0]])
                penalties.append(penalty)
        with torch.no_grad():
            values = torch.stack(losses)
        return _Forward(values, torch.stack(penalties).sum() if penalties else None, losses)

    def _cut(
        self,
        batch: Batches,
        names: list[str],
        whole: _Whole | None,
        trunk: bool = True,
        heads: bool = True,
    ) -> _Cut:
        """Pass one part forward and its heads backward. heads: whether these get their gradients, too."""
        cut: dict[str, tuple[Pyramid, Pyramid]] = {}
        forward = self._forward(batch, names, whole, cut, trunk)
        leaves = [leaf for name in names for leaf in cut[name][1]]
        # Unlike `torch.autograd.grad`, backward never gives two leaves one memory; they are scaled in place.
        torch.autograd.backward(self._scaled(forward.each), inputs=None if heads else leaves)
        cotangents = [[leaf.grad for leaf in cut[name][1]] for name in names]
        return _Cut(
            names,
            forward.losses,
            [cut[name][0] for name in names],
            [[None if g is None else at_least_float32(g) for g in row] for row in cotangents],
            forward.penalty,
        )

    def _scaled(self, numbers: Sequence[Tensor]) -> Sequence[Tensor]:
        """Multiply by the scale of the precision."""
        return [number * self.precision.scale for number in numbers] if self.precision.scaled else numbers

    def _totals(self, passes: Sequence[_Forward | _Cut]) -> tuple[Tensor, Tensor | None]:
        """Return losses ``[T]`` and penalty of the whole batch. Raises `RunFailedError` for a bad penalty."""
        losses = passes[0].losses
        penalty = passes[0].penalty
        if len(passes) > 1:
            losses = torch.stack([part.losses for part in passes]).sum(0)
            shares = [part.penalty for part in passes if part.penalty is not None]
            penalty = torch.stack(shares).sum() if shares else None
        if self.ranks.size > 1:
            values = [losses.detach().double(), losses.new_zeros(1, dtype=torch.float64)]
            if penalty is not None:
                values[1] = penalty.detach().double().reshape(1)
            sums = torch.cat(values)
            self.ranks.sum([sums])
            losses = sums[:-1].to(losses.dtype)
            penalty = None if penalty is None else sums[-1].to(penalty.dtype)
        if penalty is not None and not penalty.isfinite():
            raise RunFailedError(f"the penalty of {self.architecture.called} is not finite")
        return losses, penalty

    # ---- one step ------------------------------------------------------------------------------------

    def step(
        self,
        batch: Parts,
        names: Sequence[str] | None = None,
        probe: bool = False,
        others: Sequence[Parts] = (),
        rate: float = 0.0,
    ) -> Step:
        """Fill ``.grad`` of every parameter for one batch; it must be empty (None) before.

        batch: one batch, or the parts of it that this process computes, one after another, so that memory
        holds the graph of one part at a time. names: the tasks that have a label in any part (None: all); the
        others are left out of the weighting, since a zero gradient would look like a solved task to it.
        probe: compute `Step.gram` also for a method that has no use for it; the update is the same, bit for
        bit. others: the further batches that the method draws in a step, `Need.batches` less 1; for CROSS
        `Step.gram` is of the first of them, for BILEVEL it is the held-out batch. rate: the learning rate,
        which a BILEVEL method may look at.
        """
        needs = self.weighting.needs
        if len(others) != self._others:
            method = self.weighting.called
            raise MtlbenchError(
                f"{method}: a step takes {needs.batches} independent batches, found {len(others) + 1}"
            )
        self._probing, self._gram = probe, None
        parts = _parts(batch)
        present = [name for name in self.tasks if names is None or name in names]
        if present != self._present:
            self._active = torch.tensor([i for i, name in enumerate(self.tasks) if name in present])
            self._present = present
        for part in self._methods:
            if part.active is not self._active:
                part.active = self._active
        whole = self._whole(parts, present)
        reuse = self._age % self.weighting.every != 0 and all(name in self._weights for name in present)
        if reuse:
            step = self._reuse(parts, present, whole)
        elif needs is Need.BILEVEL:
            step = self._weigh_bilevel(parts, present, _parts(others[0]), rate)
        elif others:
            step = self._weigh_cross(parts, present, whole, [_parts(other) for other in others])
        elif needs is Need.LOSSES:
            step = self._weigh_losses(parts, present, whole)
        elif self.space == "parameters":
            step = self._weigh_parameters(parts, present, whole)
        elif needs is Need.GRAM:
            step = self._weigh_features(parts, present, whole)
        else:
            step = self._update_features(parts, present, whole)
        self._age += not step.skipped
        return step

    def _reuse(self, parts: Sequence[Batches], names: list[str], whole: _Whole | None) -> Step:
        """Follow the weights of an earlier step."""
        weights, own = [self._weights[name] for name in names], [self._own[name] for name in names]
        seen = [self._pull_weighted(part, names, whole, weights, own) for part in parts]
        return self._follow(*self._totals(seen), names, weights, own)

    def _pull_weighted(
        self,
        part: Batches,
        names: list[str],
        whole: _Whole | None,
        weights: list[float],
        own: list[float],
        heads: bool = True,
    ) -> _Forward:
        """Add one part's weighted gradients to ``.grad``; those of heads as they are, or not at all."""
        cut = self._cut(part, names, whole, heads=heads)
        self._pull_once(cut, weights, own)
        return _seen(cut)

    def _step(
        self, losses: Tensor, penalty: Tensor | None, weights: Sequence[float] = (), skipped: bool = False
    ) -> Step:
        """Return what the step saw."""
        return Step(
            self._spread(losses.tolist(), math.nan),
            self._spread(weights, 0.0) if len(weights) else None,
            None if self._gram is None else self._spread_gram(self._gram),
            None if penalty is None else penalty.detach(),
            skipped,
        )

    def _follow(
        self,
        losses: Tensor,
        penalty: Tensor | None,
        names: list[str],
        weights: list[float],
        own: list[float],
        collected: bool = False,
    ) -> Step:
        """End a step: every ``.grad`` is filled, but heads have yet to be multiplied by ``own``."""
        if not collected and not self._collect():
            return self._step(losses, penalty, skipped=True)
        for name, number in zip(names, own, strict=True):
            if number != 1:
                _scale([p.grad for p in self.heads[name].parameters()], number)
        return self._step(losses, penalty, weights)

    def _collect(self, rows: Sequence[list[Tensor | None]] = ()) -> bool:
        """Sum ``rows`` (gradients of the trunk) and every ``.grad`` over the ranks, and undo their scale.

        Returns whether they are of use: False where a scaled gradient left the range of half precision.
        """
        if self.ranks.size == 1 and not self.precision.scaled:
            return True
        found = [*(g for row in rows for g in row), *(p.grad for p in self._parameters)]
        found = self.ranks.sum_gradients(found, [*self._trunk * len(rows), *self._parameters])
        gradients = iter(found)
        for row in rows:
            row[:] = [next(gradients) for _ in row]
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient
        return not self.precision.scaled or self.precision.unscale(found)

    def _moment(self, parts: Sequence[Batches]) -> Moment | None:
        """Remember where the forward passes of several parts began; one part keeps its graph instead."""
        return None if len(parts) == 1 else Moment([self.architecture, *self.heads.values()])

    def _spread(self, values: Sequence[float], absent: float) -> Tensor:
        """Place the values ``[A]`` of the active tasks among all tasks."""
        if len(values) < len(self.tasks):
            given = dict(zip(self._present, values, strict=True))
            values = [given.get(name, absent) for name in self.tasks]
        return torch.tensor(values, dtype=torch.float64)

    def _spread_gram(self, products: Tensor) -> Tensor:
        """Place the products ``[A, A]`` of the active tasks among all tasks."""
        products = products.detach().cpu().double()
        if len(products) == len(self.tasks):
            return products
        spread = torch.full((len(self.tasks),) * 2, math.nan, dtype=torch.float64)
        spread[self._active[:, None], self._active] = products
        return spread

    def _weigh_losses(self, parts: Sequence[Batches], names: list[str], whole: _Whole | None) -> Step:
        moment = self._moment(parts)
        with torch.set_grad_enabled(moment is None):
            seen = [self._forward(part, names, whole) for part in parts]
        losses, penalty = self._totals(seen)
        if not _finite(losses):
            return self._step(losses, penalty)
        # Whatever the method returns, its weights are the derivatives where it sees the losses. That is a
        # leaf, unless one backward pass does for its objective and for the networks.
        plain = whole is None and self.scale == "published" and not self.precision.scaled
        joined = self._learns and plain and not self._probing
        leaf = (torch.stack([*seen[0].each]) if joined else losses.detach()).requires_grad_()
        leaf.retain_grad()
        result = self._given(self.weighting(leaf), torch.Size([]), leaf.shape)
        if result.dim() == 0:
            roots = (
                [result, penalty] if joined and penalty is not None and penalty.requires_grad else [result]
            )
            torch.autograd.backward(roots)
            weights = torch.zeros_like(losses) if leaf.grad is None else leaf.grad
            parts = [] if joined else parts
        else:
            weights = result.detach().to(losses)
        weights = self._rescale(weights)
        seeds = self._scaled(weights.unbind())
        rows: list[list[Tensor | None]] = []
        if moment is not None:
            moment.restore()
        for number, part in enumerate(parts):
            forward = seen[number] if moment is None else self._forward(part, names, whole)
            if self._probing:
                self._probe(forward.each, rows)
            self._backward(forward.each, seeds, forward.penalty)
        self._gram = self._probed(rows)
        if not self._collect():
            return self._step(losses, penalty, skipped=True)
        return self._step(losses, penalty, weights.tolist())

    def _probe(self, losses: Sequence[Tensor], rows: list[list[Tensor | None]]) -> None:
        """Add the trunk gradients of ``losses`` to ``rows``, one for each (none: there are none yet)."""
        for task, loss in enumerate(self._scaled(losses)):
            found = torch.autograd.grad(loss, self._trunk, retain_graph=True, allow_unused=True)
            _add(rows, task, list(found))

    def _probed(self, rows: Sequence[list[Tensor | None]]) -> Tensor | None:
        """Return the Gram matrix of this rank's scaled rows, if there are any and it is finite.

        They decide nothing: where only they leave the range of half precision, the step is made all the same.
        """
        if not rows:
            return None
        shapes = self._shared(self._trunk)
        sums = [self.ranks.sum_gradients(self._shared(row), shapes) for row in rows]
        products = Jacobian(sums).gram() / self.precision.scale**2
        return products if products.isfinite().all() or not self.precision.scaled else None

    def _ask(self, statistic: Tensor, losses: Tensor) -> tuple[Tensor, list[float]]:
        """Ask for weights, [T] or [K, T], and the weights of the heads."""
        shape = torch.Size([*statistic.shape[:-2], len(losses)])
        # A copy, since what a method does to its argument is its own affair.
        weights = self._given(self.weighting(statistic.clone(), losses.cpu().double()), shape)
        weights = self._rescale(weights)
        return weights, self._own_weights(weights)

    def _solve(self, statistic: Tensor, losses: Tensor, names: list[str]) -> tuple[list[float], list[float]]:
        """Ask a weighting for weights from a matrix [T, T]: those of the tasks, and those of their heads.

        They are remembered, for the steps that reuse them.
        """
        asked, own = self._ask(statistic, losses)
        weights: list[float] = asked.tolist()
        self._weights = dict(zip(names, weights, strict=True))
        self._own = dict(zip(names, own, strict=True))
        return weights, own

    def _given(self, result: Any, *shapes: torch.Size) -> Tensor:
        """Check what the weighting gave: its type and shape (a bug), and that it is finite (a failed run)."""
        method = self.weighting.called
        if not isinstance(result, Tensor) or result.shape not in shapes:
            found = list(result.shape) if isinstance(result, Tensor) else type(result).__name__
            rule = " or ".join(str(list(shape)) for shape in shapes)
            raise MtlbenchError(f"weighting {method}: forward must give a tensor {rule}, found {found}")
        if not (_finite(result) if result.numel() < SMALL else result.detach().sum().isfinite()):
            raise RunFailedError(f"weighting {method} gave numbers that are not finite")
        return result

    def _rescale(self, weights: Tensor) -> Tensor:
        """Put weights on the footing that ``scale`` asks for."""
        if self.scale == "published":
            return weights
        total = weights.sum(-1, keepdim=True)
        if not (total > 0).all():
            raise RunFailedError(f"--scale {self.scale}: the weights add up to {float(total.min()):g}")
        return weights * ((weights.shape[-1] if self.scale == "sum" else 1) / total)

    def _weigh_parameters(self, parts: Sequence[Batches], names: list[str], whole: _Whole | None) -> Step:
        trunk: list[list[Tensor | None]] = []
        pulled = [self._pull_all(part, names, whole, trunk, self._hides(parts)) for part in parts]
        ghosts = pulled[-1][1]
        losses, penalty = self._totals([seen for seen, _ in pulled])
        if not _finite(losses):
            return self._step(losses, penalty)  # no solver can say more than the losses do
        if not self._collect(trunk):
            return self._step(losses, penalty, skipped=True)
        shared = [self._shared(row) for row in trunk]
        rest = [[g for g, keep in zip(row, self._is_shared, strict=True) if not keep] for row in trunk]
        trunk.clear()
        weights: list[float] = []
        if self.weighting.needs is Need.JACOBIAN:
            everything = self._shared(self._trunk)
            if self._probing:
                self._gram = Jacobian(shared).gram()
            update: list[Tensor | None] = [*self._update(shared, losses, everything)]
            ones = torch.ones(len(names))  # what a method is not asked for where nothing is shared
            own = self._own_weights(ones) if everything else ones.tolist()
        elif self.weighting.blocks == "model":
            jacobian, diagonal = Jacobian(shared), "diagonal" in self.weighting.properties
            statistic = self._gram = self._products(jacobian, ghosts, diagonal)
            if diagonal:
                self._gram = self._products(jacobian, ghosts) if self._probing else None
            weights, own = self._solve(statistic, losses, names)
            update = jacobian.combine(weights)
            if hidden := ghosts.combine(weights):
                pairs = zip(self._shared(self._trunk), update, strict=True)
                update = [hidden.get(parameter, gradient) for parameter, gradient in pairs]
        else:
            weights, own, update = self._weigh_blocks(shared, losses)
        self._assign(update, Jacobian(rest).combine(own))
        return self._follow(losses, penalty, names, weights, own, collected=True)

    def _products(self, jacobian: Jacobian, ghosts: Ghosts, diagonal: bool = False) -> Tensor:
        """Return the Gram matrix ``[T, T]`` of what is there and what is hidden."""
        products = jacobian.gram(diagonal=diagonal)
        return products + ghosts.gram() if ghosts.edges else products

    def _weigh_blocks(
        self, shared: Sequence[Gradient], losses: Tensor
    ) -> tuple[list[float], list[float], list[Tensor | None]]:
        """Weigh each block of shared parameters by its own Gram matrix."""
        parts = [Jacobian([[row[i] for i in block] for row in shared]) for block in self._blocks]
        if not parts:
            return [1.0] * len(losses), [1.0] * len(losses), []
        matrices = torch.stack([part.gram() for part in parts])
        self._gram = matrices.sum(0)
        weights, own = self._ask(matrices, losses)
        update: list[Tensor | None] = [None] * len(shared[0])
        for block, part, row in zip(self._blocks, parts, weights.tolist(), strict=True):
            for i, gradient in zip(block, part.combine(row), strict=True):
                update[i] = gradient
        return weights.mean(0).tolist(), own, update

    def _hides(self, parts: Sequence[Batches]) -> bool:
        """Say whether weight gradients need not be there: sums over parts or blocks are made of them."""
        whole = len(parts) == self.ranks.size == 1 and not self.precision.scaled
        return whole and self.weighting.needs is Need.GRAM and self.weighting.blocks == "model"

    def _pull_all(
        self,
        part: Batches,
        names: list[str],
        whole: _Whole | None,
        trunk: list[list[Tensor | None]],
        hide: bool = False,
    ) -> tuple[_Forward, Ghosts]:
        """Add every task's trunk gradients of one part to ``trunk``, and the rest to ``.grad``.

        hide: whether layers that are faster without weight gradients leave them out.
        """
        cut = self._cut(part, names, whole)
        if hide:
            levels = [level for pyramid in cut.pyramids for level in pyramid]
            roots, _ = _live(levels, [g for row in cut.cotangents for g in row])
            ghosts = find(roots, self._trunk, self._is_shared, len(names))
        else:
            ghosts = Ghosts(self._trunk)
        for task in range(len(names)):
            _add(trunk, task, self._pull(cut, task, ghosts))
        self._pull_penalty(cut)
        return _seen(cut), ghosts

    def _weigh_features(self, parts: Sequence[Batches], names: list[str], whole: _Whole | None) -> Step:
        moment = self._moment(parts)
        products = torch.zeros(len(names), len(names), dtype=torch.float64)
        seen = []
        for part in parts:
            cut = self._cut(part, names, whole, trunk=moment is None)
            products += Jacobian(cut.cotangents).gram()
            seen.append(_seen(cut))
        losses, penalty = self._totals(seen)
        if not _finite(losses):
            return self._step(losses, penalty)
        self.ranks.sum([products])
        products /= self.precision.scale**2
        if self.precision.scaled and not products.isfinite().all():
            self.precision.overflowed()
            return self._step(losses, penalty, skipped=True)
        self._gram = products
        weights, own = self._solve(products, losses, names)
        if moment is None:
            self._pull_once(cut, weights, own)
        else:
            moment.restore()
            for part in parts:
                self._pull_weighted(part, names, whole, weights, own, heads=False)
        return self._follow(losses, penalty, names, weights, own)

    def _weigh_cross(
        self,
        parts: Sequence[Batches],
        names: list[str],
        whole: _Whole | None,
        others: Sequence[Sequence[Batches]],
    ) -> Step:
        """Weigh one batch by what the gradients of two others have in common."""
        rows = []
        for other in others:
            trunk: list[list[Tensor | None]] = []
            all_of_it = self._whole(other, names)
            losses, penalty = self._totals(
                [self._pull_all(part, names, all_of_it, trunk)[0] for part in other]
            )
            if not _finite(losses):
                return self._step(losses, penalty)
            for parameter in self._parameters:  # only the statistic is taken from this batch
                parameter.grad = None
            if not self._collect(trunk):
                return self._step(losses, penalty, skipped=True)
            rows.append(Jacobian([self._shared(row) for row in trunk]))
        if self._probing:
            self._gram = rows[0].gram()
        moment = self._moment(parts)
        if moment is None:
            cut = self._cut(parts[0], names, whole)
            losses, penalty = self._totals([cut])
        else:
            with torch.no_grad():
                losses, penalty = self._totals([self._forward(part, names, whole) for part in parts])
        if not _finite(losses):
            return self._step(losses, penalty)
        weights, own = self._solve(rows[0].products(rows[1]), losses, names)
        if moment is None:
            self._pull_once(cut, weights, own)
        else:
            moment.restore()
            for part in parts:
                self._pull_weighted(part, names, whole, weights, own)
        return self._follow(losses, penalty, names, weights, own)

    def _weigh_bilevel(
        self, parts: Sequence[Batches], names: list[str], held: Sequence[Batches], rate: float
    ) -> Step:
        """Weigh a batch, or it and a held-out batch, by what steps on the one do to the other."""
        rows, rest, losses, penalty = self._all_rows(parts, names)
        if not _finite(losses):
            return self._step(losses, penalty)
        if not rows:
            return self._step(losses, penalty, skipped=True)

        def evaluate(batch: Sequence[Batches]) -> tuple[list[Gradient], Tensor]:
            found, _, seen, _ = self._all_rows(batch, names)
            if not found and _finite(seen):
                raise _Overflow
            return found, seen

        @torch.no_grad()
        def look() -> Tensor:
            whole = self._whole(parts, names)
            return self._totals([self._forward(part, names, whole) for part in parts])[0]

        modules = [self.architecture, *[self.heads[name] for name in names]]
        ahead = ModelLookahead(
            self._parameters,
            [buffer for module in modules for buffer in module.buffers()],
            rows,
            lambda: evaluate(parts),
            lambda: evaluate(held),
            look,
            rate,
        )
        if self._probing:
            self._gram = Jacobian([self._shared(row[: len(self._trunk)]) for row in rows]).gram()
        count = len(names)
        try:
            result = self.weighting(ahead, losses.cpu().double())
        except _Overflow:
            return self._step(losses, penalty, skipped=True)
        weights = self._given(result, torch.Size([count]), torch.Size([2, count]))
        if weights.dim() == 2 and self.scale != "published":
            method = self.weighting.called
            raise MtlbenchError(f"--scale {self.scale}: {method} weighs two batches; leave --scale out")
        weights = self._rescale(weights).view(-1, count)
        chosen = rows if len(weights) == 1 else [*rows, *ahead.held_rows]
        update = Jacobian(chosen).combine(weights.flatten().tolist())
        for parameter, gradient, extra in zip(self._parameters, update, rest, strict=True):
            if gradient is not None and extra is not None:
                gradient = gradient.add_(extra)
            parameter.grad = _placed(parameter, extra if gradient is None else gradient)
        return self._follow(losses, penalty, names, weights.sum(0).tolist(), [1.0] * count, collected=True)

    def _all_rows(
        self, parts: Sequence[Batches], names: list[str]
    ) -> tuple[list[Gradient], list[Tensor | None], Tensor, Tensor | None]:
        """Return each task's gradient by the trunk and all heads, the penalty's, the losses and the penalty.

        There are no rows where a loss is not finite or a gradient left the range of half precision. Every
        ``.grad`` is empty afterwards.
        """
        trunk: list[list[Tensor | None]] = []
        whole = self._whole(parts, names)
        losses, penalty = self._totals([self._pull_all(part, names, whole, trunk)[0] for part in parts])
        usable = _finite(losses) and self._collect(trunk)
        found = [p.grad for p in self._parameters]
        for parameter in self._parameters:
            parameter.grad = None
        if not usable:
            return [], [], losses, penalty
        size = len(self._trunk)
        owners = [name for name in self.tasks for _ in self.heads[name].parameters()]
        rows = [
            [*row, *[g if owner == name else None for g, owner in zip(found[size:], owners, strict=True)]]
            for name, row in zip(names, trunk, strict=True)
        ]
        return [*rows], [*found[:size], *[None] * len(owners)], losses, penalty

    def _update_features(self, parts: Sequence[Batches], names: list[str], whole: _Whole | None) -> Step:
        """Ask a Jacobian method about the cotangents of all samples, in the order of the whole batch."""
        moment = self._moment(parts)
        cuts = [self._cut(part, names, whole, trunk=moment is None) for part in parts]
        losses, penalty = self._totals([_seen(cut) for cut in cuts])
        if not _finite(losses):
            return self._step(losses, penalty)
        rows, targets, places = self._joined(cuts)
        if self.precision.scaled and not all(
            bool(level.isfinite().all()) for row in rows for level in row if level is not None
        ):
            self.precision.overflowed()
            return self._step(losses, penalty, skipped=True)
        if self._probing:
            self._gram = Jacobian(rows).gram()
        update = self._update(rows, losses, targets)
        if moment is not None:
            moment.restore()
        for number, (part, place) in enumerate(zip(parts, places, strict=True)):
            cut = cuts[number] if moment is None else self._cut(part, names, whole, heads=False)
            seeds = [level[place] * self.precision.scale for level in update]
            self._backward(cut.pyramids[0], seeds, cut.penalty)
        return self._follow(losses, penalty, names, [], self._own_weights(torch.ones(len(names))))

    def _joined(self, cuts: Sequence[_Cut]) -> tuple[list[list[Tensor | None]], list[Tensor], list[slice]]:
        """Return the cotangents of all samples by task and level, their shapes, and each part's place there.

        A batch is first cut into parts over time and each of these into the shares of the ranks.
        """
        levels = cuts[0].pyramids[0]
        if len(cuts) == self.ranks.size == 1 and not self.precision.scaled:
            return cuts[0].cotangents, list(levels), [slice(None)]
        sizes = torch.tensor(self.ranks.gather([len(cut.pyramids[0][0]) for cut in cuts])).T
        starts = (sizes.flatten().cumsum(0) - sizes.flatten()).view_as(sizes)[:, self.ranks.rank].tolist()
        places = [slice(at, at + len(cut.pyramids[0][0])) for at, cut in zip(starts, cuts, strict=True)]
        targets = [
            level.new_zeros(int(sizes.sum()), *level.shape[1:], dtype=at_least_float32(level).dtype)
            for level in levels
        ]
        rows: list[list[Tensor]] = [[target.clone() for target in targets] for _ in cuts[0].names]
        for cut, place in zip(cuts, places, strict=True):
            for row, cotangents in zip(rows, cut.cotangents, strict=True):
                for level, cotangent in zip(row, cotangents, strict=True):
                    if cotangent is not None:
                        level[place] = cotangent / self.precision.scale
        self.ranks.sum([level for row in rows for level in row])
        return [[*row] for row in rows], targets, places

    def _shared(self, row: Sequence[Any]) -> list[Any]:
        """Keep what belongs to the shared parameters of the trunk."""
        return [item for item, keep in zip(row, self._is_shared, strict=True) if keep]

    def _own_weights(self, weights: Tensor) -> list[float]:
        """Return what heads, and trunk parameters that serve one task, are multiplied by.

        weights: of the tasks, or ones where the method gave an update and no weights.
        """
        if self.weighting.heads == "own":
            weights = self._given(self.weighting.head_weights, torch.Size([weights.shape[-1]]))
        elif self.weighting.heads == "unweighted":
            return [1.0] * weights.shape[-1]
        own: list[float] = (weights if weights.dim() == 1 else weights.mean(0)).tolist()
        return own

    def _update(
        self, jacobian: Sequence[list[Tensor | None]], losses: Tensor, targets: Sequence[Tensor]
    ) -> list[Tensor]:
        """Ask a Jacobian weighting for the update of ``targets``, as tensors shaped like them.

        Where no task reaches a target its gradients are zero, so that P is the same at every step. The rows
        are emptied as they are read: in the end their numbers are there only once.
        """
        if not targets:
            return []
        sizes = [target.numel() for target in targets]
        given = [g.dtype for row in jacobian for g in row if g is not None]
        dtype = reduce(torch.promote_types, given, targets[0].dtype)
        flat = targets[0].new_empty(len(jacobian), sum(sizes), dtype=dtype)
        for row, line in zip(jacobian, flat, strict=True):
            for number, place in enumerate(line.split(sizes)):
                gradient = row[number]
                if gradient is None:
                    place.zero_()
                else:
                    place.view(targets[number].shape).copy_(gradient)
            row.clear()
        update = self._given(self.weighting(flat, losses), flat.shape[1:])
        pieces = torch.split(update.to(flat), sizes)
        return [piece.view(target.shape) for piece, target in zip(pieces, targets, strict=True)]

    # ---- pulling cotangents through the trunk --------------------------------------------------------

    def _pull(self, cut: _Cut, task: int, ghosts: Ghosts) -> list[Tensor | None]:
        """Return the gradient of one task with respect to every trunk parameter, in memory of its own.

        None for those that ``ghosts`` hides; it takes their cotangents.
        """
        roots, cotangents = _live(cut.pyramids[task], cut.cotangents[task])
        asked: list[Any] = [*ghosts.plain, *ghosts.edges]
        if not roots or not asked:
            ghosts.add([None] * len(ghosts.edges))
            return [None] * len(self._trunk)
        last = self.per_task or task == len(cut.names) - 1
        retain = not last or cut.penalty is not None
        pulled = torch.autograd.grad(roots, asked, cotangents, retain_graph=retain, allow_unused=True)
        deltas = pulled[len(ghosts.plain) :]
        ghosts.add(deltas)
        # autograd may hand out one tensor twice, or a cotangent itself (a parameter that is simply added);
        # gradients are combined in place, so each must stand alone.
        taken = {g.untyped_storage().data_ptr() for g in (*cotangents, *deltas) if g is not None}
        gradients: list[Tensor | None] = list(pulled[: len(ghosts.plain)])
        for place, gradient in enumerate(gradients):
            if gradient is not None:
                address = gradient.untyped_storage().data_ptr()
                if address in taken or 0 in gradient.stride():
                    gradients[place] = gradient.clone(memory_format=torch.contiguous_format)
                taken.add(address)
        if len(gradients) == len(self._trunk):
            return gradients
        given = dict(zip(ghosts.plain, gradients, strict=True))
        return [given.get(parameter) for parameter in self._trunk]

    def _pull_once(self, cut: _Cut, weights: list[float], own_weights: list[float]) -> None:
        """Fill the trunk's ``.grad`` with one backward of the weighted cotangents."""
        own = [p for p, shared in zip(self._trunk, self._is_shared, strict=True) if not shared]
        apart = bool(own) and own_weights != weights
        if apart:
            # A gate serves one task: it takes that task's gradient as its head does, so it is pulled apart.
            roots, cotangents = _live(
                [level for pyramid in cut.pyramids for level in pyramid],
                [
                    g if g is None or weight == 1 else g * weight
                    for row, weight in zip(cut.cotangents, own_weights, strict=True)
                    for g in row
                ],
            )
            rest = torch.autograd.grad(roots, own, cotangents, retain_graph=True, allow_unused=True)
        # One pyramid may feed several tasks: its cotangents are summed, so that it is pulled once.
        totals: dict[int, tuple[Tensor, Tensor]] = {}
        for pyramid, row, weight in zip(cut.pyramids, cut.cotangents, weights, strict=True):
            for level, cotangent in zip(pyramid, row, strict=True):
                if cotangent is None:
                    continue
                if id(level) in totals:
                    totals[id(level)][1].add_(cotangent, alpha=weight)
                else:
                    totals[id(level)] = (level, cotangent.mul_(weight))
        levels = [level for level, _ in totals.values()]
        weighted = [total for _, total in totals.values()]
        if not apart:
            self._backward(levels, weighted, cut.penalty)
            return
        shared = [p for p, is_shared in zip(self._trunk, self._is_shared, strict=True) if is_shared]
        if shared:
            self._backward(levels, weighted, None, inputs=shared, retain_graph=cut.penalty is not None)
        for parameter, gradient in zip(own, rest, strict=True):
            if gradient is not None and parameter.grad is not None:  # of an earlier part
                parameter.grad.add_(gradient)
            elif gradient is not None:
                parameter.grad = _placed(parameter, gradient)
        self._pull_penalty(cut)

    def _backward(
        self,
        levels: Sequence[Tensor],
        cotangents: Sequence[Tensor | None],
        penalty: Tensor | None,
        **options: Any,
    ) -> None:
        roots, seeds = _live(levels, cotangents)
        if penalty is not None and penalty.requires_grad:
            roots, seeds = [*roots, penalty], [*seeds, torch.full_like(penalty, self.precision.scale)]
        if roots:
            torch.autograd.backward(roots, seeds, **options)

    def _pull_penalty(self, cut: _Cut) -> None:
        if cut.penalty is not None:
            self._backward([], [], cut.penalty)

    def _assign(self, shared: list[Tensor | None], own: list[Tensor | None]) -> None:
        shared_gradients, own_gradients = iter(shared), iter(own)
        for parameter, is_shared in zip(self._trunk, self._is_shared, strict=True):
            gradient = _placed(parameter, next(shared_gradients if is_shared else own_gradients))
            if parameter.grad is None:
                parameter.grad = gradient
            elif gradient is not None:  # beside the penalty's
                parameter.grad.add_(gradient)


def _blocks(
    architecture: nn.Module, shared: set[nn.Parameter], granularity: Literal["model", "layer", "matrix"]
) -> list[list[int]]:
    """Return the shared parameters by block, as places in their order; none for "model"."""
    order = {
        p: i for i, p in enumerate(p for p in architecture.parameters() if p in shared and p.requires_grad)
    }
    if granularity == "model":
        return []
    if granularity == "matrix":
        return [[i] for i in order.values()]
    found: list[list[int]] = []
    for module in architecture.modules():
        block = [order.pop(p) for p in module.parameters(recurse=False) if p in order]
        if block:
            found.append(block)
    return found


def _finite(values: Tensor) -> bool:
    """Say whether a few numbers are finite: as plain ones they are looked at faster than as a tensor."""
    return all(map(math.isfinite, values.flatten().tolist()))


def _parts(batch: Parts) -> Sequence[Batches]:
    return [batch] if isinstance(batch, Batch | Mapping) else batch


def _seen(cut: _Cut) -> _Forward:
    """Return what is left to say of a part once it was pulled, without its graph."""
    return _Forward(cut.losses, None if cut.penalty is None else cut.penalty.detach())


def _add(rows: list[list[Tensor | None]], task: int, gradients: list[Tensor | None]) -> None:
    """Add one part's gradients of a task to its row, in place; the first part's become the row."""
    if task == len(rows):
        rows.append(gradients)
        return
    for place, gradient in enumerate(gradients):
        total = rows[task][place]
        if total is None:
            rows[task][place] = gradient
        elif gradient is not None:
            total.add_(gradient)


def _live(levels: Sequence[Tensor], cotangents: Sequence[Tensor | None]) -> tuple[list[Tensor], list[Tensor]]:
    """Keep the levels that a head really read and that lead back to a parameter."""
    pairs = [(f, g) for f, g in zip(levels, cotangents, strict=True) if g is not None and f.requires_grad]
    return [f for f, _ in pairs], [g for _, g in pairs]


def _placed(parameter: Tensor, gradient: Tensor | None) -> Tensor | None:
    """Return the gradient in the memory layout of its parameter, as ``backward`` would have left it.

    Convolutions of channels-last images give channels-last gradients, and fused optimisers walk both
    memories side by side.
    """
    if gradient is None or gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter).copy_(gradient)


def _scale(gradients: Sequence[Tensor | None], weight: float) -> None:
    present = [g for g in gradients if g is not None]
    if present:
        torch._foreach_mul_(present, weight)

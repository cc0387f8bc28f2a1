"""From the losses of one batch to ``.grad`` of every parameter.

The graph is cut between architecture and heads: each head is backpropagated once, by its own loss, down to
a detached copy of its pyramid. What arrives there (the *cotangents* of a task) is then pulled through the
trunk, in one of three ways:

- LOSSES: nothing is cut, one backward of the weighted sum;
- parameters: one pull for each task, the Gram matrix of the results, their combination into ``.grad``;
- features: the Gram matrix of the cotangents themselves, then ONE pull of their combination.

A CROSS method compares the gradients of two further batches, which are pulled task by task; the batch of the
update is then pulled once, weighted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mtlbench.contracts import Architecture, Batch, Need, Pyramid, Task, Weighting
from mtlbench.errors import MtlbenchError, RunFailedError
from mtlbench.gradients.gram import Gradient, combine, cross_gram, gram

Space = Literal["parameters", "features"]
Scale = Literal["published", "sum", "mean"]
Batches = Batch | Mapping[str, Batch]
"""One batch for all tasks (joint mode), or one for each (per-task mode)."""


@dataclass(frozen=True)
class Step:
    """What one step saw.

    losses: float64 ``[T]`` on the CPU, NaN for a task without a label in the batch. weights: float64 ``[T]``,
    what each task's gradient was multiplied by (the mean over `Weighting.blocks`); None where the method gave
    an update and no weights. gram: float64 ``[T, T]``, the products of the task gradients, NaN for a task
    without a label; None where nobody computed them. penalty: the architecture's extra term of the objective,
    a scalar; None for none.
    """

    losses: Tensor
    weights: Tensor | None
    gram: Tensor | None = None
    penalty: Tensor | None = None


@dataclass(frozen=True)
class _Cut:
    """A forward pass with the graph cut at the features, and the heads already backpropagated."""

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
    tasks, with "mean" to 1. Raises `MtlbenchError` when method, architecture, space and scale do not fit,
    before anything is trained.
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
    ) -> None:
        self.architecture, self.heads, self.weighting = architecture, heads, weighting
        self.tasks = {task.name: task for task in tasks}
        self.space, self.per_task, self.scale = space, per_task, scale
        method, sharing = type(weighting).__name__, type(architecture).__name__
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
        shared = set(architecture.shared_parameters())
        self._trunk = [p for p in architecture.parameters() if p.requires_grad]
        self._is_shared = [p in shared for p in self._trunk]
        self._blocks = _blocks(architecture, shared, weighting.blocks)
        self._methods = [part for part in weighting.modules() if isinstance(part, Weighting)]
        if self._trunk:
            for part in self._methods:
                part.eps = torch.finfo(self._trunk[0].dtype).eps
        self._age = 0
        self._weights: dict[str, float] = {}
        self._own: dict[str, float] = {}
        self._probing = False
        self._gram: Tensor | None = None

    def state_dict(self) -> dict[str, object]:
        """Return what reused weights (``every``) need to go on."""
        return {"age": self._age, "weights": self._weights, "own": self._own}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Restore what `state_dict` gave."""
        self._age, self._weights, self._own = state["age"], state["weights"], state["own"]  # type: ignore[assignment]

    # ---- forward -------------------------------------------------------------------------------------

    def losses(self, batch: Batches, names: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Return the losses of ``names`` (None: of all) on ``batch``, each a scalar in its graph."""
        found, _ = self._losses(batch, names or list(self.tasks), cut=None)
        return found

    def _losses(
        self, batch: Batches, names: Sequence[str], cut: dict[str, tuple[Pyramid, Pyramid]] | None
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Return losses and penalties; with ``cut``, fill it with (pyramid, detached leaves) by task."""
        losses: dict[str, Tensor] = {}
        penalties: list[Tensor] = []
        parts = [(names, batch)] if isinstance(batch, Batch) else [([name], batch[name]) for name in names]
        for group, part in parts:
            features = self.architecture(part.inputs, group)
            if features.penalty is not None:
                if not features.penalty.isfinite():
                    raise RunFailedError(f"the penalty of {type(self.architecture).__name__} is not finite")
                penalties.append(features.penalty / len(parts))
            for name in group:
                pyramid = features.pyramids[name]
                if cut is not None:
                    leaves = tuple(level.detach().requires_grad_() for level in pyramid)
                    cut[name] = (pyramid, leaves)
                    pyramid = leaves
                output = self.heads[name](pyramid, tuple(part.inputs.shape[2:]))
                losses[name] = self.tasks[name].loss(output, part.targets[name])
        return losses, penalties

    def _cut(self, batch: Batches, names: list[str]) -> _Cut:
        cut: dict[str, tuple[Pyramid, Pyramid]] = {}
        losses, penalties = self._losses(batch, names, cut)
        torch.autograd.backward([losses[name] for name in names])
        return _Cut(
            names,
            torch.stack([losses[name].detach() for name in names]),
            [cut[name][0] for name in names],
            [[leaf.grad for leaf in cut[name][1]] for name in names],
            torch.stack(penalties).sum() if penalties else None,
        )

    # ---- one step ------------------------------------------------------------------------------------

    def step(
        self,
        batch: Batches,
        names: Sequence[str] | None = None,
        probe: bool = False,
        others: Sequence[Batches] = (),
    ) -> Step:
        """Fill ``.grad`` of every parameter for one batch; it must be empty (None) before.

        names: the tasks that have a label in this batch (None: all); the others are left out of the
        weighting, since a zero gradient would look like a solved task to it. probe: compute `Step.gram` also
        for a method that has no use for it; the update is the same, bit for bit. others: the further batches
        that the method draws in a step, `Need.batches` less 1; with them `Step.gram` is of the first of them.
        """
        needs = self.weighting.needs
        if len(others) != needs.batches - 1:
            method = type(self.weighting).__name__
            raise MtlbenchError(
                f"{method}: a step takes {needs.batches} independent batches, found {len(others) + 1}"
            )
        self._probing, self._gram = probe, None
        present = [name for name in self.tasks if names is None or name in names]
        active = torch.tensor([i for i, name in enumerate(self.tasks) if name in present])
        for part in self._methods:
            part.active = active
        reuse = self._age % self.weighting.every != 0 and all(name in self._weights for name in present)
        self._age += 1
        if needs is Need.LOSSES:
            losses, weights, penalty = self._weigh_losses(batch, present)
            return self._seen(losses, self._spread(weights, 0.0), penalty)
        rows = []
        for other in others:
            seen = self._cut(other, present)
            if not seen.losses.isfinite().all():
                return self._seen(seen.losses, None, seen.penalty)
            rows.append(self._shared_rows([self._pull(seen, task) for task in range(len(present))]))
            self._forget_heads()
        cut = self._cut(batch, present)
        if not cut.losses.isfinite().all():
            return self._seen(cut.losses, None, cut.penalty)  # no solver can say more than the losses do
        if reuse:
            numbers = [self._weights[name] for name in present]
            own = [self._own[name] for name in present]
            self._pull_once(cut, numbers, own)
        else:
            if rows:
                if probe:
                    self._gram = gram(rows[0])
                numbers, own = self._solve(cross_gram(*rows), cut.losses)
                self._pull_once(cut, numbers, own)
            elif self.space == "features":
                numbers, own = self._weigh_features(cut)
            else:
                numbers, own = self._weigh_parameters(cut)
            self._weights = dict(zip(present, numbers, strict=False))
            self._own = dict(zip(present, own, strict=True))
        for name, number in zip(present, own, strict=True):
            if number != 1:
                _scale([p.grad for p in self.heads[name].parameters()], number)
        if not numbers:
            return self._seen(cut.losses, None, cut.penalty)
        weights = self._spread(torch.tensor(numbers, dtype=torch.float64), 0.0)
        return self._seen(cut.losses, weights, cut.penalty)

    def _seen(self, losses: Tensor, weights: Tensor | None, penalty: Tensor | None) -> Step:
        gram = None if self._gram is None else self._spread(self._gram)
        return Step(self._spread(losses), weights, gram, None if penalty is None else penalty.detach())

    def _forget_heads(self) -> None:
        """Drop the gradients of the heads: they belong to a batch that only the statistic is taken from."""
        for head in self.heads.values():
            head.zero_grad(set_to_none=True)

    def _spread(self, values: Tensor, absent: float = float("nan")) -> Tensor:
        """Place the values ``[A]`` or ``[A, A]`` of the active tasks among all tasks."""
        spread = torch.full((len(self.tasks),) * values.dim(), absent, dtype=torch.float64)
        active = self.weighting.active
        spread[active if values.dim() == 1 else (active[:, None], active)] = values.detach().cpu().double()
        return spread

    def _weigh_losses(self, batch: Batches, names: list[str]) -> tuple[Tensor, Tensor, Tensor | None]:
        found, penalties = self._losses(batch, names, cut=None)
        losses = torch.stack([found[name] for name in names])
        penalty = torch.stack(penalties).sum() if penalties else None
        if self._probing:
            self._gram = self._probe(losses)
        # The method sees the losses as a leaf: whatever it returns, its weights are the derivatives there.
        leaf = losses.detach().requires_grad_()
        if not leaf.isfinite().all():
            return leaf.detach(), torch.zeros_like(leaf), penalty
        result = self._given(self.weighting(leaf), torch.Size([]), leaf.shape)
        if result.dim() == 0:
            torch.autograd.backward(result)
            weights = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        else:
            weights = result.detach().to(losses)
        weights = self._rescale(weights)
        torch.autograd.backward([losses, *penalties], [weights, *[torch.ones_like(p) for p in penalties]])
        return leaf.detach(), weights, penalty

    def _probe(self, losses: Tensor) -> Tensor:
        """Return the Gram matrix of the gradients of ``losses`` by the shared parameters, float64 [T, T]."""
        shared = [p for p, keep in zip(self._trunk, self._is_shared, strict=True) if keep]
        if not shared:
            return gram([[]] * len(losses))
        return gram(
            [torch.autograd.grad(loss, shared, retain_graph=True, allow_unused=True) for loss in losses]
        )

    def _ask(self, statistic: Tensor, losses: Tensor) -> tuple[Tensor, list[float]]:
        """Ask for weights, [T] or [K, T], and the weights of the heads."""
        shape = torch.Size([*statistic.shape[:-2], len(losses)])
        # A copy, since what a method does to its argument is its own affair.
        weights = self._given(self.weighting(statistic.clone(), losses.cpu().double()), shape)
        weights = self._rescale(weights)
        return weights, self._own_weights(weights)

    def _solve(self, statistic: Tensor, losses: Tensor) -> tuple[list[float], list[float]]:
        """Ask a weighting for weights from a matrix [T, T]: those of the tasks, and those of their heads."""
        weights, own = self._ask(statistic, losses)
        return [float(w) for w in weights], own

    def _given(self, result: Any, *shapes: torch.Size) -> Tensor:
        """Check what the weighting gave: its type and shape (a bug), and that it is finite (a failed run)."""
        method = type(self.weighting).__name__
        if not isinstance(result, Tensor) or result.shape not in shapes:
            found = list(result.shape) if isinstance(result, Tensor) else type(result).__name__
            rule = " or ".join(str(list(shape)) for shape in shapes)
            raise MtlbenchError(f"weighting {method}: forward must give a tensor {rule}, found {found}")
        if not result.detach().sum().isfinite():
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

    def _shared_rows(self, trunk: Sequence[Gradient]) -> list[Gradient]:
        return [[g for g, keep in zip(row, self._is_shared, strict=True) if keep] for row in trunk]

    def _weigh_parameters(self, cut: _Cut) -> tuple[list[float], list[float]]:
        trunk = [self._pull(cut, task) for task in range(len(cut.names))]
        shared = self._shared_rows(trunk)
        weights: list[float] = []
        if self.weighting.needs is Need.JACOBIAN:
            everything = [p for p, is_shared in zip(self._trunk, self._is_shared, strict=True) if is_shared]
            update: list[Tensor | None] = [*self._update(shared, cut.losses, everything)]
            ones = torch.ones(len(cut.names))  # what a method is not asked for where nothing is shared
            own = self._own_weights(ones) if everything else ones.tolist()
        elif self.weighting.blocks == "model":
            self._gram = gram(shared)
            weights, own = self._solve(self._gram, cut.losses)
            update = combine(shared, weights)
        else:
            weights, own, update = self._weigh_blocks(shared, cut.losses)
        rest = combine(
            [[g for g, keep in zip(row, self._is_shared, strict=True) if not keep] for row in trunk], own
        )
        self._assign(update, rest)
        self._pull_penalty(cut)
        return weights, own

    def _weigh_blocks(
        self, shared: list[Gradient], losses: Tensor
    ) -> tuple[list[float], list[float], list[Tensor | None]]:
        """Weigh each block of shared parameters by its own Gram matrix."""
        parts = [[[row[i] for i in block] for row in shared] for block in self._blocks]
        if not parts:
            return [1.0] * len(losses), [1.0] * len(losses), []
        matrices = torch.stack([gram(part) for part in parts])
        self._gram = matrices.sum(0)
        weights, own = self._ask(matrices, losses)
        update: list[Tensor | None] = [None] * len(shared[0])
        for block, part, row in zip(self._blocks, parts, weights.tolist(), strict=True):
            for i, gradient in zip(block, combine(part, row), strict=True):
                update[i] = gradient
        return weights.mean(0).tolist(), own, update

    def _weigh_features(self, cut: _Cut) -> tuple[list[float], list[float]]:
        if self.weighting.needs is Need.GRAM:
            self._gram = gram(cut.cotangents)
            weights, own = self._solve(self._gram, cut.losses)
            self._pull_once(cut, weights, own)
            return weights, own
        self._backward(
            cut.pyramids[0], self._update(cut.cotangents, cut.losses, cut.pyramids[0]), cut.penalty
        )
        return [], self._own_weights(torch.ones(len(cut.names)))

    def _own_weights(self, weights: Tensor) -> list[float]:
        """Return what heads, and trunk parameters that serve one task, are multiplied by.

        weights: of the tasks, or ones where the method gave an update and no weights.
        """
        if self.weighting.heads == "own":
            given = self._given(self.weighting.head_weights, torch.Size([weights.shape[-1]]))
            return [float(w) for w in given]
        if self.weighting.heads == "weighted":
            return [float(w) for w in weights.view(-1, weights.shape[-1]).mean(0)]
        return [1.0] * weights.shape[-1]

    def _update(
        self, jacobian: Sequence[Gradient], losses: Tensor, targets: Sequence[Tensor]
    ) -> list[Tensor]:
        """Ask a Jacobian weighting for the update of ``targets``, as tensors shaped like them.

        Where no task reaches a target its gradients are zero, so that P is the same at every step.
        """
        if not targets:
            return []
        rows = [
            torch.cat(
                [
                    (torch.zeros_like(t) if g is None else g).reshape(-1)
                    for g, t in zip(row, targets, strict=True)
                ]
            )
            for row in jacobian
        ]
        flat = torch.stack(rows)
        if self._probing:
            self._gram = gram(jacobian)
        update = self._given(self.weighting(flat, losses), flat.shape[1:])
        pieces = torch.split(update.to(flat), [target.numel() for target in targets])
        return [piece.view(target.shape) for piece, target in zip(pieces, targets, strict=True)]

    # ---- pulling cotangents through the trunk --------------------------------------------------------

    def _pull(self, cut: _Cut, task: int) -> list[Tensor | None]:
        """Return the gradient of one task with respect to every trunk parameter, in memory of its own."""
        roots, cotangents = _live(cut.pyramids[task], cut.cotangents[task])
        if not roots or not self._trunk:
            return [None] * len(self._trunk)
        last = self.per_task or task == len(cut.names) - 1
        retain = not last or cut.penalty is not None
        pulled = torch.autograd.grad(roots, self._trunk, cotangents, retain_graph=retain, allow_unused=True)
        # autograd may hand out one tensor twice, or a cotangent itself (a parameter that is simply added);
        # gradients are combined in place, so each must stand alone.
        taken = {g.untyped_storage().data_ptr() for g in cotangents}
        gradients: list[Tensor | None] = []
        for gradient in pulled:
            if gradient is not None:
                address = gradient.untyped_storage().data_ptr()
                if address in taken or 0 in gradient.stride():
                    gradient = gradient.clone(memory_format=torch.contiguous_format)
                taken.add(address)
            gradients.append(gradient)
        return gradients

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
            roots, seeds = [*roots, penalty], [*seeds, torch.ones_like(penalty)]
        if roots:
            torch.autograd.backward(roots, seeds, **options)

    def _pull_penalty(self, cut: _Cut) -> None:
        if cut.penalty is not None and cut.penalty.requires_grad:
            torch.autograd.backward(cut.penalty)

    def _assign(self, shared: list[Tensor | None], own: list[Tensor | None]) -> None:
        shared_gradients, own_gradients = iter(shared), iter(own)
        for parameter, is_shared in zip(self._trunk, self._is_shared, strict=True):
            parameter.grad = _placed(parameter, next(shared_gradients if is_shared else own_gradients))


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

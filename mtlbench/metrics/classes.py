"""Metrics of class labels, of pixels or of whole inputs: each is a function of the confusion matrix.

All of them take what `BinaryCrossEntropy` takes (``num_classes=None``: one logit, positive = foreground)
or what `CrossEntropy` takes (``num_classes`` given: the largest logit wins), and ignore labels of -1. The
matrix is a torchmetrics metric; the scores are taken from it here, so that all of them agree on what
happens when a class is absent: a class is *present* when it occurs in the labels or in the predictions,
and averages run over the classes that are present. With no label at all a score is ``float("nan")``;
otherwise it never is.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from mtlbench.contracts import Metric

Score = Callable[[Tensor], Tensor]


class ConfusionScore(MulticlassConfusionMatrix):
    """Counts labels against predictions over a split, then takes ``score`` of the counts.

    score: maps the confusion matrix, float64 ``[K, K]`` on the CPU (rows are labels, columns predictions;
    K = 2 for one logit), to a scalar.
    """

    def __init__(self, score: Score, num_classes: int | None) -> None:
        super().__init__(num_classes=num_classes or 2, ignore_index=-1, validate_args=False)
        self.score = score
        self.one_logit = num_classes is None

    def update(self, output: Tensor, target: Tensor) -> None:
        """Count a batch of logits ``[B, C, ...]`` (one logit: also ``[B]``) and labels ``[B, ...]``."""
        predicted = (output > 0).long().view_as(target) if self.one_logit else _largest(output)
        # Not torchmetrics' own count: where torch is asked for determinism, it builds a K x K mesh a pixel.
        # A label of -1 falls into a row of its own, the first, which is left out.
        pairs = ((target + 1) * self.num_classes + predicted).flatten().cpu()
        counts = torch.bincount(pairs, minlength=(self.num_classes + 1) * self.num_classes)
        self.confmat += counts.view(-1, self.num_classes)[1:].to(self.confmat)

    def compute(self) -> Tensor:
        """Return the score, a float64 scalar."""
        return self.score(self.confmat.cpu().double())


def _largest(output: Tensor) -> Tensor:
    """Return the first class with the largest logit, int64 ``[B, ...]``, of ``[B, C, ...]``.

    Of maps on a CPU class by class: there torch's argmax across planes is several times slower.
    """
    if output.dim() == 2 or output.device.type != "cpu":
        return output.argmax(1)
    best, place = output[:, 0].clone(), torch.zeros(output[:, 0].shape, dtype=torch.int64)
    for number in range(1, output.shape[1]):
        level = output[:, number]
        place.masked_fill_(level > best, number)
        torch.maximum(best, level, out=best)
    return place


def _overlap(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return (how often label and prediction agree, how often either occurs), by class."""
    both = matrix.diagonal()
    return both, matrix.sum(0) + matrix.sum(1) - both


def _share_of_right(matrix: Tensor) -> Tensor:
    return matrix.trace() / matrix.sum()


def _class_iou(matrix: Tensor) -> Tensor:
    both, either = _overlap(matrix)
    return both / either


def _class_dice(matrix: Tensor) -> Tensor:
    both, either = _overlap(matrix)
    return 2 * both / (both + either)


def _mean(matrix: Tensor, by_class: Score) -> Tensor:
    # An absent class is 0/0; the mean leaves it out.
    return by_class(matrix).nanmean()


def _foreground(matrix: Tensor, by_class: Score) -> Tensor:
    # Foreground neither there nor predicted is a perfect answer, not an undefined one.
    return by_class(matrix)[1].nan_to_num(nan=1.0) if matrix.sum() > 0 else matrix.sum() / 0


def _metric(name: str, score: Score, num_classes: int | None) -> Metric:
    return Metric(name, partial(ConfusionScore, score, num_classes), True, state=("confusion", num_classes))


def iou(num_classes: int | None = None) -> Metric:
    """Intersection over union (Jaccard index), in 0..1.

    num_classes None: of the foreground, 1 where there is none and none is predicted. Given: the mean over
    the classes that are present.
    """
    over = _foreground if num_classes is None else _mean
    return _metric("iou", partial(over, by_class=_class_iou), num_classes)


def dice(num_classes: int | None = None) -> Metric:
    """Dice coefficient 2 |A and B| / (|A| + |B|), in 0..1.

    num_classes None: of the foreground, 1 where there is none and none is predicted. Given: the mean over
    the classes that are present.
    """
    over = _foreground if num_classes is None else _mean
    return _metric("dice", partial(over, by_class=_class_dice), num_classes)


def pixel_accuracy(num_classes: int | None = None) -> Metric:
    """Share of the labelled pixels that are right, in 0..1."""
    return _metric("pixel_accuracy", _share_of_right, num_classes)


def accuracy(num_classes: int | None = None) -> Metric:
    """Share of the labelled samples that are right, in 0..1."""
    return _metric("accuracy", _share_of_right, num_classes)


def f1(num_classes: int | None = None) -> Metric:
    """F1 score 2 TP / (2 TP + FP + FN), in 0..1: the mean over the classes that are present.

    For one logit too it is the mean over both classes; the F1 score of the foreground alone is `dice`.
    """
    return _metric("f1", partial(_mean, by_class=_class_dice), num_classes)

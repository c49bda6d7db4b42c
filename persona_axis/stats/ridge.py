"""Ridge regression whose predictions are only ever made for groups it has not seen, in float64."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Folds = NDArray[np.int64]

ALPHAS = np.logspace(6, -3, 19)
"""Penalties tried, strongest first, in units of the number of rows: the loss is the mean squared error plus alpha
times the squared length of the weights on standardised features."""

_CONSTANT = 1e-6  # of a feature's mean: float32 activations vary by as much from rounding alone


class Held(NamedTuple):
    """Predictions [rows, targets] for held-out rows, and the penalty chosen in each fold [folds, targets]."""

    predicted: Array
    alphas: Array


def predict_held_out(features: Array, targets: Array, groups: Folds, folds: int, seed: int) -> Held:
    """Predict `targets` [rows, targets] from `features` [rows, width], each row by a model that never saw its group.

    `groups` [rows] numbers each row's group from 0. In each outer fold the penalty of each target is chosen by a
    second cross-validation by group inside the other folds; means and scales of the features come from there too.
    """
    rng = np.random.default_rng(seed)
    outer = assign(groups, folds, rng)
    predicted, chosen = np.empty_like(targets), np.empty((folds, targets.shape[1]))
    for fold in range(folds):
        held, rest = outer == fold, outer != fold
        inside = assign(groups[rest], folds, rng)
        x, y = features[rest], targets[rest]
        errors = np.zeros((len(ALPHAS), targets.shape[1]))
        for k in range(folds):
            at = inside == k
            errors += ((_path(x[~at], y[~at], x[at]) - y[at]) ** 2).sum(axis=1)
        best = errors.argmin(axis=0)  # of equals the strongest
        found = _path(x, y, features[held])
        predicted[held] = np.stack([found[alpha, :, target] for target, alpha in enumerate(best)], axis=1)
        chosen[fold] = ALPHAS[best]
    return Held(predicted, chosen)


def assign(groups: Folds, folds: int, rng: np.random.Generator) -> Folds:
    """The fold of each row; a group lies in one fold, and folds have equally many groups, but for one."""
    names, of_row = np.unique(groups, return_inverse=True)
    fold_of: Folds = rng.permutation(len(names)) % folds
    return fold_of[of_row]


def _path(train: Array, targets: Array, held: Array) -> Array:
    """Predictions [alphas, held rows, targets] of ridge at every penalty; one decomposition serves all of them."""
    centre, scale = train.mean(axis=0), train.std(axis=0)
    scale = np.where(scale > _CONSTANT * np.abs(centre), scale, np.inf)  # a feature that tells nothing becomes 0
    x, new = (train - centre) / scale, (held - centre) / scale
    middle = targets.mean(axis=0)
    y = targets - middle
    wide = x.shape[1] > x.shape[0]
    values, basis = np.linalg.eigh(x @ x.T if wide else x.T @ x)
    left = (new @ x.T if wide else new) @ basis
    right = basis.T @ (y if wide else x.T @ y)
    weight = 1 / (np.maximum(values, 0) + ALPHAS[:, None] * len(x))
    predictions: Array = middle + left @ (weight[:, :, None] * right)
    return predictions

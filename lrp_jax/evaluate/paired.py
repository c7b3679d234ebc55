"""Two methods on the same images: the difference of their figures."""

from __future__ import annotations

import numpy as np

from lrp_jax import metrics
from lrp_jax.evaluate.study import Figure, Summary


def difference(summary: Summary, other: Summary) -> dict[str, Figure]:
    """How much larger the figures of one run are than those of another, over the images that both measured.

    Images are drawn anew for both runs together (paired bootstrap, Efron and Tibshirani 1993), so that how hard they
    are does not widen the intervals: a difference whose interval leaves 0 out is one of the methods.

    Args:
        summary: of a run.
        other: of a run of the same protocol, options of the protocol and dataset.

    Returns:
        The differences by name, with their 95% intervals.

    Raises:
        ValueError: the runs are of different protocols or datasets, or have no image in common.
    """
    for name in ("protocol", "dataset", *summary.measured.options):
        if summary.settings.get(name) != other.settings.get(name):
            raise ValueError(
                f"runs must have one {name}, got {summary.settings.get(name)!r} and {other.settings.get(name)!r}."
            )
    places = {image: i for i, image in enumerate(other.measured.images)}
    common = [(i, places[image]) for i, image in enumerate(summary.measured.images) if image in places]
    if not common:
        raise ValueError("the runs have no image in common.")
    first, second = np.array(common).T
    both = np.concatenate([summary.measured.numbers[first], other.measured.numbers[second]], axis=1)
    of_means = summary.measured.figures.of_means

    def differences(means: np.ndarray) -> np.ndarray:
        one, two = np.split(means, 2, axis=-1)
        return of_means(one) - of_means(two)

    values, ends = differences(both.mean(axis=0)), metrics.bootstrap_interval(differences, both)
    names = summary.measured.figures.names
    return {
        name: Figure(*map(float, triple))
        for name, *triple in zip(names, values, *ends, strict=True)
        if not np.isnan(triple[0])
    }

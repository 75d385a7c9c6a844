"""How much of the space of actions a dataset has tried, and where that would teach little."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finflow_sb3.market.layout import ObservationLayout
from finflow_sb3.messages import words
from finflow_sb3.offline.dataset import OfflineDataset
from finflow_sb3.offline.record import PREFIX
from finflow_sb3.offline.tallies import ActionTally, Spread

__all__ = ["BINS", "ActionCoverage", "Dimension", "coverage_of", "dimension_names", "warnings_of"]

Float = NDArray[np.float64]

BINS = 20
SAMPLE = 2000
EXPLAINED = 0.95
STILL = 1e-6
ALIKE = 0.01
AT_LIMIT = 0.5
NARROW = 0.25
FEW_EPISODES = 30
FAR = 0.3
NAMED = 5


@dataclass(frozen=True)
class Dimension:
    """One number of the actions.

    Attributes
    ----------
    spread : quantiles are right to within 0.001
    at_limit : share of actions at the clip, ±0.95
    counts : actions in each of 20 equal bins from -1 to 1
    visited : share of the bins with at least one action
    """

    name: str
    spread: Spread
    at_limit: float
    counts: tuple[int, ...]
    visited: float


@dataclass(frozen=True)
class ActionCoverage:
    """What the actions tried.

    Attributes
    ----------
    dimensions : each number of the actions
    components : principal components that 95 % of the variance takes
    participation : participation ratio (Σλ)²/Σλ² of the variances λ along them, from 1 (all
        along one line) to the number of dimensions; 0 where nothing varies
    neighbour : mean distance to the nearest other action in a sample, divided by √A
    neighbour_uniform : the same for as many actions drawn uniformly from the box
    sample : actions in the sample
    """

    dimensions: tuple[Dimension, ...]
    components: int
    participation: float
    neighbour: float
    neighbour_uniform: float
    sample: int


def dimension_names(layout: ObservationLayout) -> tuple[str, ...]:
    """What each number of an action moves."""
    assets = (*layout.assets, "cash")
    if layout.action_base != "anchors":
        return assets
    return (*(f"gate {a}" for a in layout.anchors), *(f"tilt {a}" for a in assets))


def coverage_of(dataset: OfflineDataset, tally: ActionTally) -> ActionCoverage:
    """The figures of a tally of all actions, and the neighbours in a sample of them."""
    variances = tally.variances()
    total = float(variances.sum())
    sample = _sample(dataset)
    uniform = np.random.default_rng(0).uniform(-1.0, 1.0, size=sample.shape)
    shares = np.cumsum(variances) / total if total > 0.0 else np.zeros(0)
    counts = tally.coarse(BINS)
    return ActionCoverage(
        dimensions=tuple(
            Dimension(
                name=name,
                spread=tally.histogram.spread(i),
                at_limit=float(tally.at_limit[i] / tally.count),
                counts=tuple(int(c) for c in counts[i]),
                visited=float(np.mean(counts[i] > 0)),
            )
            for i, name in enumerate(dimension_names(dataset.layout))
        ),
        components=int(np.searchsorted(shares, EXPLAINED) + 1) if total > 0.0 else 0,
        participation=total**2 / float(np.sum(variances**2)) if total > 0.0 else 0.0,
        neighbour=_neighbour_distance(sample),
        neighbour_uniform=_neighbour_distance(uniform),
        sample=len(sample),
    )


def _sample(dataset: OfflineDataset) -> Float:
    """Actions at random, [M, A]; in the order of the file, which a disk reads faster."""
    rng = np.random.default_rng(0)
    chosen = rng.choice(len(dataset), size=min(SAMPLE, len(dataset)), replace=False)
    return np.asarray(dataset.action[np.sort(chosen)], dtype=np.float64)


def _neighbour_distance(points: Float) -> float:
    """Mean root-mean-square difference to the nearest other point; NaN of a single one."""
    if len(points) < 2:
        return float("nan")
    from sklearn.neighbors import NearestNeighbors

    distances, _ = NearestNeighbors(n_neighbors=1).fit(points).kneighbors()
    return float(distances.mean() / np.sqrt(points.shape[1]))


def warnings_of(
    distances: Mapping[str, float],
    episodes: int,
    rewards: tuple[float, float],
    coverage: ActionCoverage,
) -> tuple[str, ...]:
    """Where a dataset would teach little, in sentences.

    Parameters
    ----------
    distances : rule that has episodes → mean distance of the actions' targets from the rule's;
        record → of the weights after the trade from its own
    rewards : the least and the largest
    """
    found = []
    if len(distances) == 1:
        found.append(
            f"One rule only ({words(next(iter(distances)))}): nothing says what another would have "
            "earned; collect with more behaviours."
        )
    if episodes < FEW_EPISODES:
        found.append(f"{episodes} episodes only: market noise outweighs what rules differ in.")
    if rewards[0] == rewards[1]:
        found.append("All rewards are the same: no action can be told from another.")
    far = [words(name) for name, distance in distances.items() if distance > FAR]
    return (*found, *_far_warnings(far), *_action_warnings(coverage))


def _far_warnings(far: Sequence[str]) -> list[str]:
    """Of rules whose targets actions are far from, and of records that trades are far from."""
    found = []
    rules = [name for name in far if not name.startswith(PREFIX)]
    records = [name for name in far if name.startswith(PREFIX)]
    if rules:
        found.append(
            f"Not what the rule wanted: actions of {_listed(rules)} are further than {FAR} from "
            "its targets on average, which they cannot express."
        )
    if records:
        found.append(
            f"Not what was held: weights after the trades of {_listed(records)} are further than "
            f"{FAR} from the recorded ones on average, which actions or limits keep out of reach."
        )
    return found


def _action_warnings(coverage: ActionCoverage) -> list[str]:
    found = []
    dimensions = coverage.dimensions
    widths = {d.name: d.spread.q95 - d.spread.q05 for d in dimensions}
    if max(widths.values()) < ALIKE:
        return [
            "All actions are alike: only what the rules did can be learned, not what would be "
            "better; raise noise or collect with more behaviours."
        ]
    still = [d.name for d in dimensions if d.spread.maximum - d.spread.minimum < STILL]
    if still:
        found.append(f"Never moved: {_listed(still)}. Nothing is learned about what they do.")
    narrow = [d.name for d in dimensions if d.visited <= NARROW and d.name not in still]
    if narrow:
        found.append(
            f"Hardly moved, in a quarter of the range at most: {_listed(narrow)}; a policy that "
            "goes further is not told what it costs."
        )
    stuck = [d.name for d in dimensions if d.at_limit > AT_LIMIT]
    if stuck:
        found.append(f"At the clip in most transitions: {_listed(stuck)}.")
    if coverage.components == 1 and len(dimensions) > 1:
        found.append("95 % of the variance of actions lies along one line.")
    return found


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more

"""Names for every slice of the flat observation.

The observation is float32 and has two parts: the market part, which depends on the day alone
(asset features, market block, anchors), and the portfolio part. Order:

=====================  ==================================================================
block                  shape
=====================  ==================================================================
volatility … growth    n × f_g each: scaled features of the group, asset by asset
market                 m: scaled market features
anchor_weights         K × n: target weights of each anchor (cash is what is missing to 1)
anchor_record          K × 3: trailing net return, volatility, drawdown (scaled)
weights                n + 1: drifted weights, cash last
scalars                drawdown, and what the reward needs (running moments)
present                n: 1 for the assets of the episode's universe (asset_dropout only)
pending                n + 1: target that waits for the next close (execution_lag 1 only)
=====================  ==================================================================
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from finflow_sb3.errors import ArtefactError
from finflow_sb3.market.features import FEATURES, MARKET_FEATURES

__all__ = ["ANCHOR_RECORD", "ObservationLayout"]

ANCHOR_RECORD = ("net_return_63", "volatility_63", "drawdown_252")


@dataclass(frozen=True)
class ObservationLayout:
    """What stands where in an observation, and what an action means.

    Attributes
    ----------
    assets : n names, in the order of columns
    groups : (group, feature names) pairs, in order
    market : names of the market block
    anchors : K names
    record : names of the anchor record
    scalars : names of the portfolio scalars
    lagged : whether the pending order is part of the observation
    masked : whether it says which assets an episode has (asset_dropout): the others' features and
        weights in anchors are to be disregarded, as networks over the layout do by themselves
    action_base : how actions are read ("anchors", "drift", "none")
    """

    assets: tuple[str, ...]
    anchors: tuple[str, ...]
    scalars: tuple[str, ...]
    action_base: str
    lagged: bool = False
    masked: bool = False
    groups: tuple[tuple[str, tuple[str, ...]], ...] = tuple(FEATURES.items())
    market: tuple[str, ...] = MARKET_FEATURES
    record: tuple[str, ...] = ANCHOR_RECORD

    @property
    def n_assets(self) -> int:
        return len(self.assets)

    @property
    def n_anchors(self) -> int:
        return len(self.anchors)

    @cached_property
    def slices(self) -> dict[str, slice]:
        """Block name → slice of the flat observation."""
        n, k = self.n_assets, self.n_anchors
        sizes = {name: n * len(features) for name, features in self.groups}
        sizes |= {
            "market": len(self.market),
            "anchor_weights": k * n,
            "anchor_record": k * len(self.record),
            "weights": n + 1,
            "scalars": len(self.scalars),
        }
        if self.masked:
            sizes["present"] = n
        if self.lagged:
            sizes["pending"] = n + 1
        out, start = {}, 0
        for name, size in sizes.items():
            out[name] = slice(start, start + size)
            start += size
        return out

    @property
    def market_size(self) -> int:
        """Length of the part that depends on the day alone."""
        return int(self.slices["weights"].start)

    @property
    def portfolio_size(self) -> int:
        return self.size - self.market_size

    @property
    def size(self) -> int:
        """Length of the flat observation."""
        return int(max(piece.stop for piece in self.slices.values()))

    @property
    def action_size(self) -> int:
        gates = self.n_anchors if self.action_base == "anchors" else 0
        return gates + self.n_assets + 1

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ObservationLayout:
        """The layout that `as_dict` gave, from its JSON form.

        Raises
        ------
        ArtefactError
            If a part is missing.
        """
        try:
            return cls(
                assets=tuple(data["assets"]),
                anchors=tuple(data["anchors"]),
                scalars=tuple(data["scalars"]),
                action_base=str(data["action_base"]),
                lagged=bool(data["lagged"]),
                masked=bool(data.get("masked", False)),
                groups=tuple((name, tuple(features)) for name, features in data["groups"]),
                market=tuple(data["market"]),
                record=tuple(data["record"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ArtefactError(
                f"layout.json is not whole ({error}); use another artefact"
            ) from None

    def require_equal(self, other: ObservationLayout, what: str) -> None:
        """Refuse another universe or feature set by name.

        Raises
        ------
        ArtefactError
            If `other` differs; the message names the first difference.
        """
        self._require(("assets",), other, what)
        self.require_like(other, what)

    def require_like(self, other: ObservationLayout, what: str) -> None:
        """As `require_equal`, for any assets: what is shared over assets fits both.

        Raises
        ------
        ArtefactError
            If `other` differs; the message names the first difference.
        """
        self._require(("groups", "market", "anchors", "record", "scalars"), other, what)
        for name in ("action_base", "lagged", "masked"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise ArtefactError(f"{what} has {name} {theirs!r} where {mine!r} is needed")

    def _require(self, names: tuple[str, ...], other: ObservationLayout, what: str) -> None:
        for name in names:
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise ArtefactError(f"{what} has other {name}: {_difference(mine, theirs)}")


def _difference(mine: tuple[Any, ...], theirs: tuple[Any, ...]) -> str:
    missing = [str(x) for x in mine if x not in theirs]
    foreign = [str(x) for x in theirs if x not in mine]
    parts = []
    if missing:
        parts.append(f"without {', '.join(missing[:5])}")
    if foreign:
        parts.append(f"with {', '.join(foreign[:5])}")
    return " and ".join(parts) + "; use matching prices" if parts else "the order differs"

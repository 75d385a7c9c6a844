"""60 % equities, 40 % bonds, where a universe has both."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from finflow_sb3.config import EvaluationSettings
from finflow_sb3.errors import ConfigError
from finflow_sb3.messages import remedy, shown

__all__ = ["equities_and_bonds", "sixty_forty"]

Float = NDArray[np.float64]
Bool = NDArray[np.bool_]

EQUITIES = 0.6
BONDS = """
AGG BND BNDX BSV BIV BLV BWX EMB FLOT GOVT HYG IEF IEI IGSB JNK LQD MBB MUB SCHO SCHP SCHR SCHZ
SHY SPAB STIP TIP TLH TLT VCIT VCLT VCSH VGIT VGLT VGSH VMBS VTIP VWOB
"""
BOND_FUNDS = frozenset(BONDS.split())
"""Well-known US-listed funds of bonds."""
OTHERS = """
BIL SGOV SHV TBIL USFR
GLD GLDM IAU PALL PPLT SIVR SLV DBA DBB DBC DBO GSG PDBC UNG USO
FXA FXB FXC FXE FXF FXY UUP
"""
OTHER_FUNDS = frozenset(OTHERS.split())
"""Well-known US-listed funds of cash, metals and commodities, and currencies."""


def equities_and_bonds(
    assets: Sequence[str], evaluation: EvaluationSettings
) -> tuple[Bool, Bool] | None:
    """Which assets 60/40 holds as equities and as bonds, shape [n] each; None without bonds.

    Bonds are those that `evaluation.bonds` names, else the known funds of bonds; equities those
    that `evaluation.equities` names, else all that are neither bonds nor known as anything else.

    Raises
    ------
    ConfigError
        If a name is no asset of the universe, or stands under both.
    """
    bonds = _named("bonds", evaluation.bonds, assets)
    if bonds is None:
        bonds = np.array([asset.upper() in BOND_FUNDS for asset in assets])
    equities = _named("equities", evaluation.equities, assets)
    if equities is None:
        other = np.array([asset.upper() in BOND_FUNDS | OTHER_FUNDS for asset in assets])
        equities = ~bonds & ~other
    both = np.flatnonzero(bonds & equities)
    if len(both):
        raise ConfigError(
            f"evaluation: {shown(assets[both[0]])} is among equities and bonds; name it once"
        )
    return (equities, bonds) if bonds.any() and equities.any() else None


def sixty_forty(equities: Bool, bonds: Bool, listed: Bool) -> Float:
    """Weights [n+1], equal within each group over what is listed; cash holds an empty group's.

    Parameters
    ----------
    equities, bonds, listed : shape [n]
    """
    out = np.zeros(len(listed) + 1)
    for share, group in ((EQUITIES, equities & listed), (1.0 - EQUITIES, bonds & listed)):
        if group.any():
            out[:-1] += share * group / group.sum()
    out[-1] = max(0.0, 1.0 - out[:-1].sum())
    return out


def _named(what: str, names: Sequence[str] | None, assets: Sequence[str]) -> Bool | None:
    if names is None:
        return None
    for name in names:
        if name not in assets:
            raise ConfigError(
                f"evaluation.{what}: {shown(name)} is no asset; {remedy(name, tuple(assets))}"
            )
    return np.isin(np.array(assets), np.array(names))

"""Looks at the machine: is what finflow needs there, and does it work?"""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from finflow_sb3.errors import FinflowError

__all__ = ["Check", "examine"]

_DISTRIBUTION = "finflow-sb3"
_DEVELOPER_EXTRA = "dev"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes
    ----------
    name : what was looked at
    found : what was found
    status : "ok", "optional" where something is missing that not everybody needs, or "wrong"
    remedy : what to do, empty where nothing is
    """

    name: str
    found: str
    status: Literal["ok", "optional", "wrong"] = "ok"
    remedy: str = ""


def examine(log_dir: Path, cache_dir: Path, device: str = "auto") -> list[Check]:
    """Check versions, device, memory, write access, the embedded market and the extras.

    What is needed, in which version, is read from the metadata of the installed package.

    Parameters
    ----------
    log_dir, cache_dir : folders that must be writable or can be made
    device : torch device that must be usable; "auto" always is
    """
    return [
        *_packages(),
        *_torch(device),
        Check("processors", str(_processors())),
        _memory(),
        _writable("log folder", log_dir, "--log-dir"),
        _writable("cache folder", cache_dir, "FINFLOW_CACHE_DIR"),
        _market(),
    ]


def _packages() -> Iterator[Check]:
    try:
        distribution = metadata.distribution(_DISTRIBUTION)
    except metadata.PackageNotFoundError:
        yield Check(_DISTRIBUTION, "not installed", "wrong", f"pip install {_DISTRIBUTION}")
        return
    yield Check(_DISTRIBUTION, distribution.version)
    yield _python(distribution.metadata["Requires-Python"] or "")
    extras = distribution.metadata.get_all("Provides-Extra") or []
    for text in distribution.requires or []:
        requirement = Requirement(text)
        marker = requirement.marker
        if marker is None or marker.evaluate({"extra": ""}):
            yield _package(requirement, extra=None)
            continue
        for extra in extras:
            if extra != _DEVELOPER_EXTRA and marker.evaluate({"extra": extra}):
                yield _package(requirement, extra)


def _python(needed: str) -> Check:
    version = platform.python_version()
    if SpecifierSet(needed).contains(version, prereleases=True):
        return Check("python", version)
    return Check("python", version, "wrong", f"install Python {needed}")


def _package(requirement: Requirement, extra: str | None) -> Check:
    name = requirement.name if extra is None else f"{requirement.name} (extra {extra})"
    remedy = f"pip install '{requirement.name}{requirement.specifier}'"
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        if extra is None:
            return Check(name, "not installed", "wrong", remedy)
        return Check(name, "not installed", "optional", f"pip install '{_DISTRIBUTION}[{extra}]'")
    if requirement.specifier.contains(version, prereleases=True):
        return Check(name, version)
    return Check(name, version, "wrong", remedy)


def _torch(device: str) -> Iterator[Check]:
    try:
        import torch
    except (ImportError, OSError) as error:
        reason = " ".join(str(error).split())
        yield Check("torch devices", f"torch cannot be imported: {reason}", "wrong", "reinstall it")
        return
    devices = ["cpu"]
    for index in range(torch.cuda.device_count()):
        devices.append(f"cuda:{index} ({torch.cuda.get_device_name(index)})")
    if torch.backends.mps.is_available():
        devices.append("mps")
    yield Check("torch devices", ", ".join(devices))
    yield Check("torch threads", str(torch.get_num_threads()))
    if device != "auto":
        yield _device(device)


def _device(device: str) -> Check:
    import torch

    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        return Check("chosen device", f"{device}: {reason}", "wrong", "choose --device cpu")
    return Check("chosen device", device)


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory() -> Check:
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        total = os.sysconf("SC_PHYS_PAGES") * page / 2**30
    except (AttributeError, ValueError, OSError):
        return Check("memory", "unknown on this system")
    return Check("memory", f"{total:.1f} GiB")


def _writable(name: str, folder: Path, option: str) -> Check:
    """Try the folder, or where it would be made; nothing is left behind."""
    remedy = f"choose another folder with {option}"
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        return Check(name, f"{existing} is not a folder", "wrong", remedy)
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        return Check(name, f"{folder}: {error.strerror}", "wrong", remedy)
    return Check(name, f"{folder} is writable" if folder.exists() else f"{folder} can be made")


def _market() -> Check:
    from finflow_sb3.market.sources import load_prices

    try:
        prices = load_prices("us20")
    except (FinflowError, ImportError) as error:
        return Check("market us20", str(error), "wrong", "reinstall skfolio")
    first, last = prices.dates[0], prices.dates[-1]
    return Check("market us20", f"{len(prices)} days x {prices.n_assets} assets, {first} to {last}")

"""The version of the installed distribution, which `pyproject.toml` states."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from finflow_sb3.errors import FinflowError

__all__ = ["installed_version"]


def installed_version() -> str:
    """Version of the installed ``finflow-sb3``, such as ``"0.1.0"``.

    Raises
    ------
    FinflowError
        If the package runs from a checkout that was never installed.
    """
    try:
        return version("finflow-sb3")
    except PackageNotFoundError:
        raise FinflowError(
            "finflow-sb3 is not installed here; run `pip install -e .` in its checkout"
        ) from None

"""What every test shares: no settings from outside, one thread, reproducible examples."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

# Before anything loads numpy or torch: they read these once.
for _name in [n for n in os.environ if n.startswith("FINFLOW_") and n != "FINFLOW_CACHE_DIR"]:
    del os.environ[_name]
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["MPLBACKEND"] = "Agg"

settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Anchors are cached in a folder of this run, unless the caller named one to keep."""
    with pytest.MonkeyPatch.context() as patch:
        if "FINFLOW_CACHE_DIR" not in os.environ:
            base = tmp_path_factory.getbasetemp()
            if "PYTEST_XDIST_WORKER" in os.environ:
                base = base.parent  # one cache for all workers
            patch.setenv("FINFLOW_CACHE_DIR", str(base / "finflow-cache"))
        yield

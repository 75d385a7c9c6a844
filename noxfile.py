"""Automation: `nox` runs lint, docs, package, tests and services; `nox -s slow` the tests that take
minutes, `nox -s upstream` those of SB3 and sb3-contrib with CQSAC in the place of SAC and TQC.

Where this interpreter already has the project with its dev extra (the README's line makes such a
`.venv`), lint, docs, tests and slow run in it: installing torch once is enough. Elsewhere each
makes an environment of its own. `package` always makes a fresh one.

mypy follows neither the editable install's import hook nor the mapping of `cli/` to
`finflow_sb3.cli`; it checks a folder of links that looks as the installed package does.
"""

from __future__ import annotations

import getpass
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import nox

ROOT = Path(__file__).resolve().parent
CONSTRAINTS = str(ROOT / "constraints.txt")
MAPPED = ("cli", "zoo_configs")
PLUGIN = ROOT / "tests" / "upstream"
WORKERS = str(min(4, os.cpu_count() or 1))
THREADS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MPLBACKEND": "Agg"}


def _project_is_here() -> bool:
    try:
        return all(version(name) for name in ("finflow-sb3", "pytest-xdist", "mypy"))
    except PackageNotFoundError:
        return False


HERE = _project_is_here()
BACKEND = "none" if HERE else "virtualenv"

nox.needs_version = ">=2025.2.9"
nox.options.sessions = ["lint", "docs", "package", "tests", "services"]
nox.options.reuse_venv = "yes"
nox.options.stop_on_first_error = True


def run(session: nox.Session, *arguments: str, **environment: str) -> None:
    """Run a module in the environment that has the project: this one, or the session's."""
    if not HERE:
        session.install("-c", CONSTRAINTS, "-e", f"{ROOT}[dev]")
    python = sys.executable if HERE else "python"
    session.run(python, "-m", *arguments, env={**THREADS, **environment}, external=HERE)


def link_package(folder: Path) -> None:
    """Make `folder`/finflow_sb3 look as it does once installed."""
    package = folder / "finflow_sb3"
    package.mkdir()
    for entry in (ROOT / "finflow_sb3").iterdir():
        if entry.name != "__pycache__":
            (package / entry.name).symlink_to(entry)
    for name in MAPPED:
        (package / name).symlink_to(ROOT / name)


@nox.session(venv_backend=BACKEND)
def lint(session: nox.Session) -> None:
    """Check style, format and types."""
    run(session, "ruff", "check", ".")
    run(session, "ruff", "format", "--check", ".")
    with tempfile.TemporaryDirectory() as folder:
        link_package(Path(folder))
        config, cache = str(ROOT / "pyproject.toml"), str(ROOT / ".mypy_cache")
        with session.chdir(folder):
            run(session, "mypy", "--config-file", config, "--cache-dir", cache, "-p", "finflow_sb3")


@nox.session(venv_backend=BACKEND)
def docs(session: nox.Session) -> None:
    """Build the documentation's site, without a warning; run the code of pages and examples.

    `nox -s docs -- FOLDER` keeps the site, and runs nothing.
    """
    with tempfile.TemporaryDirectory() as folder:
        site = str(Path(*session.posargs[:1] or (folder,)).resolve())
        quiet = {"NO_MKDOCS_2_WARNING": "1"}
        run(session, "mkdocs", "build", "--strict", "--clean", "--site-dir", site, **quiet)
    if not session.posargs:
        run(session, "pytest", "-m", "docs", "-n", WORKERS)


@nox.session(venv_backend=BACKEND)
def tests(session: nox.Session) -> None:
    """Run the tests; arguments after `--` go to pytest."""
    # A file's tests stay on one worker, so that what its fixtures trained is trained once.
    arguments = session.posargs or ["-n", WORKERS, "--dist", "loadfile"]
    run(session, "pytest", *arguments)


@nox.session(venv_backend=BACKEND)
def slow(session: nox.Session) -> None:
    """Run the tests that take minutes."""
    run(session, "pytest", "-m", "slow", *session.posargs)


@nox.session(venv_backend=BACKEND)
def services(session: nox.Session) -> None:
    """Run the tests that need a server: PostgreSQL, Debian's where none is installed."""
    with postgres(session) as url:
        run(session, "pytest", "-m", "services", *session.posargs, TEST_POSTGRES_URL=url)


@contextmanager
def postgres(session: nox.Session) -> Iterator[str]:
    """A PostgreSQL of its own on a free port of this machine; gives its address."""
    binaries = postgres_binaries(session)
    # A server refuses to run as root; Debian's package brings a user for it.
    root = os.geteuid() == 0
    user = "postgres" if root else getpass.getuser()
    as_user = ("setpriv", "--reuid", user, "--regid", user, "--clear-groups") if root else ()
    with tempfile.TemporaryDirectory(prefix="finflow-postgres-") as name, socket.socket() as free:
        folder = Path(name) / "data"
        if root:
            shutil.chown(name, user)
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()

        def call(command: str, *arguments: str) -> None:
            # Its home must be a folder that the user may read.
            whole = [*as_user, str(binaries / command), *arguments]
            subprocess.run(whole, check=True, cwd=name, stdout=subprocess.DEVNULL)

        call("initdb", "--pgdata", str(folder), "--auth", "trust", "--username", "finflow")
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c fsync=off -k {name}"
        log = str(Path(name) / "log")
        call("pg_ctl", "--pgdata", str(folder), "-w", "-l", log, "-o", options, "start")
        try:
            yield f"postgresql://finflow@127.0.0.1:{port}/postgres"
        finally:
            call("pg_ctl", "--pgdata", str(folder), "-m", "immediate", "stop")


def postgres_binaries(session: nox.Session) -> Path:
    """The folder of the server's programs, which Debian keeps off the PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found and shutil.which("initdb"):
        found = [Path(shutil.which("initdb") or "").resolve()]
    if not found and os.geteuid() == 0 and shutil.which("apt-get"):
        quiet = {"DEBIAN_FRONTEND": "noninteractive"}
        session.run("apt-get", "update", "-q", env=quiet, external=True, silent=True)
        install = ("apt-get", "install", "-qy", "--no-install-recommends", "postgresql")
        session.run(*install, env=quiet, external=True, silent=True)
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        session.error("PostgreSQL is not installed; install it, as with apt-get install postgresql")
    return found[-1].parent


@nox.session(venv_backend=BACKEND)
def upstream(session: nox.Session) -> None:
    """Run SB3's and sb3-contrib's own tests with CQSAC in the place of SAC and of TQC.

    The tests come from the sdists of the installed versions. UPSTREAM may name a folder instead
    that has `stable-baselines3/tests` and `sb3-contrib/tests` in it. Arguments go to pytest.
    """
    folder = Path(os.environ.get("UPSTREAM", session.create_tmp())).resolve()
    for project, name in (("stable-baselines3", "SAC"), ("sb3-contrib", "TQC")):
        if "UPSTREAM" not in os.environ:
            fetch_sdist(session, project, folder)
        with session.chdir(folder / project / "tests"):
            files = [
                path.name
                for path in sorted(Path().glob("test_*.py"))
                if re.search(rf"\b{name}\b", path.read_text(encoding="utf-8"))
            ]
            plugin = ("-p", "substitute", "--in-place-of", name)
            run(session, "pytest", *plugin, *session.posargs, *files, PYTHONPATH=str(PLUGIN))


def fetch_sdist(session: nox.Session, project: str, folder: Path) -> None:
    """Unpack the sdist of the installed version of `project` to `folder`/`project`."""
    wanted = (f"{project}=={version(project)}",) if HERE else ("-c", CONSTRAINTS, project)
    shutil.rmtree(folder / project, ignore_errors=True)
    with tempfile.TemporaryDirectory() as name:
        only_sdist = ("--no-deps", "--no-binary", project, "--dest", name)
        run(session, "pip", "download", "--quiet", *only_sdist, *wanted)
        (archive,) = Path(name).glob("*.tar.gz")
        shutil.unpack_archive(archive, name, filter="data")
        (unpacked,) = (path for path in Path(name).iterdir() if path.is_dir())
        shutil.move(unpacked, folder / project)


@nox.session(venv_backend="virtualenv", reuse_venv=False)
def package(session: nox.Session) -> None:
    """Build sdist and from it the wheel, install that afresh and try it away from the checkout."""
    session.install("-c", CONSTRAINTS, "build", "pytest")
    with tempfile.TemporaryDirectory() as name:
        away = Path(name)
        dist = away / "dist"
        session.run("python", "-m", "build", "--outdir", str(dist), str(ROOT), silent=True)
        (wheel,) = dist.glob("*.whl")
        session.install("-c", CONSTRAINTS, str(wheel))
        for test in ("test_imports.py", "test_package.py"):
            shutil.copy(ROOT / "tests" / test, away)
        with session.chdir(away):
            session.run("finflow", "--version", env=THREADS)
            session.run("finflow", "--help", env=THREADS, silent=True)
            session.run("finflow", "doctor", env=THREADS)
            session.run("python", "-m", "pytest", "-q", ".", env=THREADS)

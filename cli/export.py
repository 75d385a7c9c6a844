"""`finflow export`: a policy as a file that needs neither this package nor torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finflow_sb3.cli.console import out, print_json
from finflow_sb3.cli.ensembles import Combine, RunFolders, Shrink
from finflow_sb3.cli.options import Shared, only_shared
from finflow_sb3.cli.runs import refuse_flags

if TYPE_CHECKING:
    from finflow_sb3.deployment.onnx_file import ExportedPolicy

__all__ = ["command"]


@only_shared()
def command(
    shared: Shared,
    runs: RunFolders,
    onnx: Annotated[Path, typer.Option(metavar="FILE.onnx", help="File to write.")],
    combine: Combine = None,
    shrink: Shrink = None,
) -> None:
    """Write a run's best policy with its scaler as ONNX: unscaled features in, weights out.

    Several runs are one model. finflow checkpoint export writes zips for Stable-Baselines3.
    """
    refuse_flags("a policy is exported with the config.yml of its run", shared, {})

    from finflow_sb3.quiet import silence_gym_notice

    silence_gym_notice()
    from finflow_sb3.deployment.onnx_file import export_onnx

    exported = export_onnx(runs, onnx, combine, shrink)
    if shared.json:
        print_json(exported)
    else:
        _show(exported)


def _show(exported: ExportedPolicy) -> None:
    from rich.text import Text

    lines = [f"{exported.path}: opset {exported.opset}, batch of any size"]
    shapes = [
        f"{name} [batch, {', '.join(map(str, shape))}]" for name, shape in exported.inputs.items()
    ]
    lines += [f"  in   {shape}" for shape in shapes]
    lines += [f"  out  {name}" for name in exported.outputs]
    lines.append(f"Largest difference from torch: {exported.largest_difference:.1e}")
    for line in lines:
        out.print(Text(line), soft_wrap=True)

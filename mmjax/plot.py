"""Curves of a run: loss.png in its workdir."""

import io
import os
from pathlib import Path

from mmjax import paths
from mmjax.log import naming, read_metrics

CURVES = "loss.png"
NAMES = ("loss", "validation/loss")


def losses(workdir: str | Path) -> None:
    """Draws the training loss, and the validation loss beside it where there is one, by step.

    Below, every term that was measured on both. Nothing is drawn of a run without rows.

    Raises:
        OSError: with the file's name.
    """
    rows = read_metrics(workdir)
    named = {name for row in rows for name in row}
    terms = sorted(n for n in named if f"validation/{n}" in named and n != "loss")
    panels = [n for n in ("loss", *terms) if n in named]
    if not panels:
        return
    # Here, not above: it takes half a second, and the command line should not wait for it.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 2.6 * len(panels)), layout="constrained")
    for place, name in enumerate(panels, start=1):
        axes = figure.add_subplot(len(panels), 1, place)
        for key, style in ((name, "-"), (f"validation/{name}", "o-")):
            points = [(r["step"], r[key]) for r in rows if isinstance(r.get(key), int | float)]
            if points:
                label = "validation" if key.startswith("validation/") else "training"
                size = 3 if style == "o-" else None
                axes.plot(*zip(*points, strict=True), style, markersize=size, label=label)
        axes.set_ylabel(name)
        axes.grid(alpha=0.3)
        axes.legend()
    axes.set_xlabel("step")
    path = paths.of(workdir) / CURVES
    if paths.is_remote(path):
        whole = io.BytesIO()
        figure.savefig(whole, dpi=110, format="png")
        path.write_bytes(whole.getvalue())
        return
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with naming(path):
            figure.savefig(draft, dpi=110, format="png")
            os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)

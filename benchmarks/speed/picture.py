"""One picture of a run: for each row how far below, or above, what was promised it came."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["draw"]

KEPT, MISSED, AIM = "#3b76a0", "#c8553d", "#222222"
LEAST = 0.05
"""Part of a promise at which the picture begins."""


def draw(results: Sequence[dict[str, Any]], path: Path) -> None:
    """Write it, in the format that the path's suffix names. It needs matplotlib."""
    from matplotlib import rc_context  # noqa: PLC0415 - only some want a picture
    from matplotlib.figure import Figure  # noqa: PLC0415

    rows = [row for row in reversed(results) if row.get("must") or not row["kept"]]
    figure = Figure(figsize=(8, 0.32 * len(rows) + 1.2), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(rows):
        if "spread" not in row:
            continue
        low, high = (_share(row, each) for each in row["spread"])
        share = _share(row, row["ratio"])
        colour = KEPT if row["kept"] else MISSED
        axes.barh(place, share, color=colour, height=0.6)
        axes.plot([low, high], [place, place], color="black", linewidth=1)
        if row["aim"]:
            axes.plot(_share(row, row["aim"]), place, marker="|", color=AIM, markersize=11)
    axes.axvline(1, color=MISSED, linewidth=1)
    axes.set_xscale("log")
    axes.set_xlim(LEAST, 4)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xticks([0.1, 0.5, 1, 2], ["a tenth", "half", "as promised", "twice"], fontsize=8)
    axes.minorticks_off()
    axes.set_yticks(range(len(rows)), [_label(row) for row in rows], fontsize=8)
    axes.set_xlabel("measured; line: middle half of the rounds; |: the aim", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    with rc_context({"svg.fonttype": "none"}):  # text stays text
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _share(row: dict[str, Any], ratio: float) -> float:
    """Part of what is promised: below 1 is better, for a lower bound as well."""
    share = row["must"] / ratio if row["at_least"] else ratio / row["must"]
    return max(float(share), LEAST)


def _label(row: dict[str, Any]) -> str:
    if "spread" not in row:
        return f"{row['name']}: not measured"
    sign = ">=" if row["at_least"] else "<="
    against = f" / {row['against']}" if row["against"] else f", {row['unit']}"
    return f"{row['what']}{against}: {row['ratio']:.3g} ({sign} {row['must']:g})"

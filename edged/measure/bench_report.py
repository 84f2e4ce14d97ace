"""The output of `edged bench`: a table, a JSON document, and on request an SVG picture."""

from __future__ import annotations

import sys
from html import escape
from typing import Any, Final

from edged.measure.bench import Result, Row

BAR, LINE, LEFT = 420, 26, 210  # pixels of the picture: the longest bar, a line's height, the names' column
COLOURS: Final = ("#2f6f4f", "#b0b7bd")


def document(result: Result) -> dict[str, Any]:
    """One JSON document."""
    rows = [
        {
            "name": row.name,
            "unit": row.unit,
            "value": round(row.ours, 3),
            **({"peer": round(row.peer, 3), "ratio": round(row.ratio, 3)} if row.peer and row.ratio else {}),
            **({"ratios": [round(ratio, 3) for ratio in row.ratios]} if row.ratios else {}),
        }
        for row in result.rows
    ]
    return {**result.about, "cases": rows}


def show(result: Result) -> None:
    """Prints the table."""
    from rich.console import Console
    from rich.table import Table

    about, console = result.about, Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    console.print(
        f"[bold]{about['model']}[/] {about['quantization']}, {about['weights_bytes'] / 1e6:.0f} MB, "
        f"{about['kernels']} kernels, {about['threads']} threads"
        + (", processors kept awake" if about["processors_awake"] else "")
    )
    if peer := about.get("peer"):
        console.print(f"[dim]peer: {peer['name']}: {peer['system'].strip()}[/]")
    table = Table("", "edged", box=None, header_style="bold")
    table.columns[1].justify = "right"
    if about.get("peer"):
        for name in ("peer", "ratio", "pair by pair"):
            table.add_column(name, justify="right")
    for row in result.rows:
        table.add_row(f"{row.name} [dim]{row.unit}[/]", *_cells(row))
    console.print(table)
    if memory := about["memory"]:
        console.print(
            f"memory of a worker: {memory['resident'] / 1e6:.0f} MB, most ever {memory['peak'] / 1e6:.0f}; "
            f"above weights and cache {memory['above'] / 1e6:.0f}"
        )
    most = f" ({about['limit_over_peer']:.2f} × the peer's decode)" if "limit_over_peer" in about else ""
    console.print(
        f"memory reads {about['read_bytes_per_second'] / 1e9:.1f} GB/s in a plain loop alongside decode: "
        f"about {about['limit_tokens_per_second']:.0f} tokens/s of {about['token_bytes'] / 1e6:.0f} MB each{most}; "
        f"decode reaches {about['fraction_of_limit']:.0%} of that; "
        f"{about['huge_pages']:.0%} of the weights are in huge pages"
    )


def _cells(row: Row) -> list[str]:
    ours = f"{row.ours:.3g}" if row.ours < 100 else f"{row.ours:.0f}"
    if row.peer is None or row.ratio is None:
        return [ours]
    colour = "green" if row.ratio >= 1 else "red"
    pairs = " ".join(f"{ratio:.2f}" for ratio in row.ratios)
    return [ours, f"{row.peer:.0f}", f"[{colour}]{row.ratio:.2f} ×[/]", pairs]


def picture(result: Result) -> str:
    """An SVG of the speeds as bars, each case on the scale of its own faster side."""
    rows = [row for row in result.rows if row.unit == "tokens/s"]
    parts = []
    below = 40
    for row in rows:
        top, below = below, below + (LINE * 2 if row.peer else LINE)
        longest = max(row.ours, row.peer or 0)
        parts.append(f'<text x="{LEFT - 10}" y="{top + 16}" text-anchor="end">{escape(row.name)}</text>')
        for place, value in enumerate((row.ours, row.peer)):
            if value is None:
                continue
            y, width = top + place * 20, BAR * value / longest
            label = f"{value:.0f} tokens/s" + (f" ({row.ratio:.2f} ×)" if row.ratio and not place else "")
            parts.append(f'<rect x="{LEFT}" y="{y}" width="{width:.0f}" height="16" fill="{COLOURS[place]}"/>')
            parts.append(f'<text x="{LEFT + width + 8:.0f}" y="{y + 13}">{label}</text>')
    about = result.about
    title = f"{about['model']} {about['quantization']}, {about['threads']} threads, {about['kernels']} kernels"
    if peer := about.get("peer"):
        title += f"; grey: {peer['name']}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + BAR + 190}" height="{below + 10}" '
        f'font-family="sans-serif" font-size="13"><rect width="100%" height="100%" fill="white"/>'
        f'<text x="10" y="22" font-weight="bold">{escape(title)}</text>{"".join(parts)}</svg>\n'
    )

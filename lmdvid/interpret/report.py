"""One HTML page with everything in it, and the same numbers as JSON."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

_STYLE = """
:root { color-scheme: light; --ink: #1f2933; --soft: #52606d; --line: #e4e7eb; --ground: #f7f8fa; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 36px 24px 64px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 4px; }
h2 { font-size: 21px; margin: 44px 0 6px; }
h3 { font-size: 16px; margin: 0; }
p { margin: 6px 0 12px; max-width: 78ch; color: var(--soft); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(220px, 1fr)); gap: 12px;
  margin: 22px 0; }
.tile, .card, .sheet { background: #fff; border: 1px solid var(--line); border-radius: 10px; }
.tile { padding: 12px 14px; }
.tile b { display: block; font-size: 22px; line-height: 1.25; }
.tile span { color: var(--soft); font-size: 13px; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(500px, 1fr)); gap: 16px; }
.card { padding: 14px 16px; overflow: hidden; }
.card header { display: flex; gap: 10px; align-items: baseline; margin-bottom: 8px; }
.card header small { color: var(--soft); margin-left: auto; white-space: nowrap; }
.badge { background: var(--ink); color: #fff; border-radius: 5px; padding: 0 7px; font-size: 13px; }
.row { display: grid; grid-template-columns: minmax(0, 1fr) 112px 112px; gap: 10px;
  align-items: center; }
.row video { width: 100%; border-radius: 6px; }
.row img { width: 112px; height: 112px; }
.strip { width: 100%; border-radius: 6px; margin-top: 10px; display: block; }
.ends { display: flex; justify-content: space-between; color: var(--soft); font-size: 12px; }
.sheet { padding: 14px 16px; overflow-x: auto; margin: 12px 0; }
.plots { display: flex; flex-wrap: wrap; gap: 16px; align-items: flex-start; }
figure { margin: 0; }
figcaption { color: var(--soft); font-size: 13px; max-width: 46ch; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 7px; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th { color: var(--soft); font-weight: 600; }
td.words, th.words { text-align: left; }
tr:last-child td { border-bottom: 0; }
.key { display: inline-flex; gap: 8px; align-items: center; color: var(--soft); font-size: 13px; }
.key img { width: 40px; height: 40px; }
@media (max-width: 560px) { .cards { grid-template-columns: 1fr; }
  .row { grid-template-columns: 1fr 1fr; } .row video { grid-column: 1 / 3; } }
"""


@dataclass
class Card:
    """One direction: its number, name, a remark, and data URIs."""

    direction: int
    name: str
    remark: str
    video: str
    pictures: Sequence[str]
    strip: str = ""
    ends: tuple[str, str] = ("", "")


@dataclass
class Report:
    """A page as it grows: sections of HTML, and the numbers behind them."""

    title: str
    subtitle: str
    parts: list[str] = field(default_factory=list)
    numbers: dict[str, Any] = field(default_factory=dict)

    def heading(self, text: str, explanation: str = "") -> None:
        """Begin a section."""
        self.parts.append(f"<h2>{escape(text)}</h2>")
        if explanation:
            self.parts.append(f"<p>{escape(explanation)}</p>")

    def tiles(self, values: Mapping[str, str]) -> None:
        """Show a few large numbers."""
        shown = (
            f'<div class="tile"><b>{escape(value)}</b><span>{escape(name)}</span></div>'
            for name, value in values.items()
        )
        self.parts.append(f'<div class="tiles">{"".join(shown)}</div>')

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> None:
        """Show a table whose first columns, `words` of them, are text."""

        def line(cells: Sequence[str], tag: str) -> str:
            made = (
                f"<{tag}{' class=words' if i < words else ''}>{escape(cell)}</{tag}>"
                for i, cell in enumerate(cells)
            )
            return f"<tr>{''.join(made)}</tr>"

        body = "".join(line(row, "td") for row in rows)
        self.parts.append(f'<div class="sheet"><table>{line(head, "th")}{body}</table></div>')

    def plots(self, plots: Mapping[str, str]) -> None:
        """Show plots, data URIs by their captions."""
        shown = (
            f'<figure><img src="{uri}" alt="{escape(text)}">'
            f"<figcaption>{escape(text)}</figcaption></figure>"
            for text, uri in plots.items()
        )
        self.parts.append(f'<div class="sheet plots">{"".join(shown)}</div>')

    def key(self, wheel: str, text: str) -> None:
        """Show the key to the flow's colours."""
        self.parts.append(
            f'<p class="key"><img src="{wheel}" alt="colour wheel">{escape(text)}</p>'
        )

    def cards(self, cards: Sequence[Card]) -> None:
        """Show directions."""
        self.parts.append(f'<div class="cards">{"".join(map(_card, cards))}</div>')

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Write `index.html` and `report.json`."""
        folder.mkdir(parents=True, exist_ok=True)
        page, numbers = folder / "index.html", folder / "report.json"
        page.write_text(
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(self.title)}</title><style>{_STYLE}</style></head><body><main>"
            f"<h1>{escape(self.title)}</h1><p>{escape(self.subtitle)}</p>"
            f"{''.join(self.parts)}</main></body></html>\n",
            "utf-8",
        )
        text = json.dumps(_plain(self.numbers), indent=1, ensure_ascii=False, allow_nan=False)
        numbers.write_text(text + "\n", "utf-8")
        return page, numbers


def _card(card: Card) -> str:
    pictures = "".join(f'<img src="{uri}" alt="">' for uri in card.pictures)
    strip = ""
    if card.strip:
        low, high = map(escape, card.ends)
        strip = (
            f'<img class="strip" src="{card.strip}" alt="from the lowest to the highest magnitude">'
            f'<div class="ends"><span>{low}</span><span>{high}</span></div>'
        )
    return (
        f'<section class="card"><header><span class="badge">d{card.direction}</span>'
        f"<h3>{escape(card.name)}</h3><small>{escape(card.remark)}</small></header>"
        f'<div class="row"><video src="{card.video}" autoplay loop muted playsinline></video>'
        f"{pictures}</div>{strip}</section>"
    )


def _plain(value: Any) -> Any:
    """Plain data for JSON: arrays as lists, four significant digits, None for no number."""
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float | np.floating):
        return float(f"{value:.4g}") if np.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value

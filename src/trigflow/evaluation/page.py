"""Tables as Markdown, and one stand-alone HTML page: pictures are embedded, nothing is fetched."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #1c2430; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 0.92rem; }
caption { text-align: left; font-weight: 600; padding: 0.35rem 0.6rem; }
th, td { padding: 0.35rem 0.6rem; text-align: right; border-bottom: 1px solid #d5dbe3; white-space: nowrap; }
th { white-space: normal; vertical-align: bottom; } th:first-child, td:first-child { text-align: left; }
.wide { overflow-x: auto; }
figure { margin: 1.5rem 0; } img { max-width: 100%; height: auto; } figcaption { color: #52606d; font-size: 0.92rem; }
"""


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text, the first of them the head; all columns but the first are aligned to the right."""
    head, *others = rows
    align = "|" + "|".join([":--"] + ["--:"] * (len(head) - 1)) + "|"
    return "\n".join([f"| {' | '.join(head)} |", align, *(f"| {' | '.join(row)} |" for row in others)])


def html_table(rows: Sequence[Sequence[str]], caption: str = "") -> str:
    """Rows of text, the first of them the head."""
    head, *others = rows
    lines = "".join(_html_row(row, "td") for row in others)
    above = f"<caption>{html.escape(caption)}</caption>\n" if caption else ""
    return f'<div class="wide"><table>{above}{_html_row(head, "th")}{lines}</table></div>'


def _html_row(cells: Sequence[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>\n"


def html_figure(caption: str, picture: bytes) -> str:
    """A PNG with its caption."""
    source = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
    text = html.escape(caption)
    return f'<figure><img src="{source}" alt="{text}"><figcaption>{text}</figcaption></figure>'


def html_page(title: str, texts: Sequence[str], parts: Sequence[str], facts: Sequence[str]) -> str:
    """A whole page.

    Args:
        title: its heading.
        texts: paragraphs of plain text under it.
        parts: tables and figures, as HTML.
        facts: a list of plain text at the end.
    """
    start = '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    start += '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    start += f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
    body = [
        f"<h1>{html.escape(title)}</h1>",
        *(f"<p>{html.escape(text)}</p>" for text in texts),
        *parts,
        "<ul>" + "".join(f"<li>{html.escape(fact)}</li>" for fact in facts) + "</ul>",
    ]
    return start + "\n".join(body) + "\n</body>\n</html>\n"

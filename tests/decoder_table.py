"""The README's table of decoder families, from what the tests run. ``python -m tests.decoder_table`` writes it there."""

from __future__ import annotations

from pathlib import Path

from tests.synthetic.decoder_families import FAMILIES, REFUSED

README = Path(__file__).resolve().parents[1] / "README.md"
BEGIN = "<!-- decoder families: written by python -m tests.decoder_table -->\n"
END = "<!-- end of decoder families -->\n"


def table() -> str:
    """A row for each family: those that are served first, then those that are refused."""
    rows = ["| family | what it brings, and the tests watch | export |", "|---|---|---|"]
    for family in FAMILIES.values():
        rows.append(f"| {family.title} | {'; '.join(family.features)} | exported, served, equal |")
    reasons: dict[str, list[str]] = {}
    for title, (reason, _) in REFUSED.items():
        reasons.setdefault(reason, []).append(title)
    rows += [f"| {', '.join(titles)} | | refused: {reason} |" for reason, titles in reasons.items()]
    return "\n".join(rows) + "\n"


def table_in(text: str) -> str:
    """What stands between the markers. Raises ValueError when they are not there."""
    begin = text.index(BEGIN) + len(BEGIN)
    return text[begin : text.index(END, begin)]


def main() -> None:
    text = README.read_text(encoding="utf-8")
    README.write_text(text.replace(BEGIN + table_in(text), BEGIN + table()), encoding="utf-8")


if __name__ == "__main__":
    main()

"""One Markdown and one JSON of all parts: their tables, their notes, and the last lines of what failed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.gpu.parts import Part
from bench.gpu.processes import Outcome
from bench.gpu.rows import has_failed

__all__ = ["Finding", "to_markdown", "write_report"]


@dataclass(frozen=True)
class Finding:
    """A part, how it ended, and its rows."""

    part: Part
    outcome: Outcome
    rows: list[dict[str, Any]]


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    return " ".join(str(value).replace("|", "/").split())


def _table(rows: Sequence[dict[str, Any]]) -> list[str]:
    names = list(dict.fromkeys(name for row in rows for name in row if name != "table"))
    lines = [names, ["---"] * len(names)]
    lines += [[_cell(row.get(name)) for name in names] for row in rows]
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def _section(finding: Finding) -> list[str]:
    part, outcome = finding.part, finding.outcome
    lines = [f"## {part.name}", "", part.about, ""]
    if outcome.status != "ok":
        lines += [f"Ended early: {outcome.status}. Its last lines:", "", "```"]
        lines += [*outcome.tail.rstrip().replace("```", "'''").splitlines(), "```", ""]
    for row in finding.rows:
        if "table" not in row:
            lines += [row["note"], ""]
    for table in dict.fromkeys(row["table"] for row in finding.rows if "table" in row):
        rows = [row for row in finding.rows if row.get("table") == table]
        lines += [f"### {table}", "", *_table(rows), ""]
    return lines


def to_markdown(findings: Sequence[Finding], dry_run: bool) -> str:
    """The report as text.

    Args:
        findings: In the order of the report.
        dry_run: Whether no figure in it means anything.

    Example:
        >>> part = Part("card", "x:y", 9, 0, "The card.")
        >>> finding = Finding(part, Outcome("ok", 1.25, ""), [{"table": "card", "name": "H100"}])
        >>> print(to_markdown([finding], False).splitlines()[-1])
        | H100 |
    """
    card = next((row["name"] for f in findings for row in f.rows if row.get("table") == "card"), "")
    lines = [f"# SPELA on {card or 'an unknown card'}", "", "`python -m bench.gpu`", ""]
    if dry_run:
        lines += ["A dry run: no GPU, the smallest sizes. Figures mean nothing.", ""]
    summary = [
        {
            "part": f.part.name,
            "ended": f.outcome.status,
            "seconds": f.outcome.seconds,
            "rows": len(f.rows),
            "failed rows": sum(has_failed(row) for row in f.rows),
        }
        for f in findings
    ]
    lines += [*_table(summary), ""]
    for finding in findings:
        lines += _section(finding)
    return "\n".join(lines).rstrip() + "\n"


def write_report(findings: Sequence[Finding], dry_run: bool, folder: Path) -> None:
    """Write `report.md` and `report.json`.

    Args:
        findings: As for `to_markdown`.
        dry_run: Likewise.
        folder: Where to.
    """
    data = {
        "dry_run": dry_run,
        "parts": [
            {
                "name": f.part.name,
                "limit_s": f.part.limit,
                "ended": f.outcome.status,
                "seconds": f.outcome.seconds,
                "rows": f.rows,
                "tail": "" if f.outcome.status == "ok" else f.outcome.tail,
            }
            for f in findings
        ],
    }
    (folder / "report.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    (folder / "report.md").write_text(to_markdown(findings, dry_run), encoding="utf-8")

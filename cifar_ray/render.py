"""From the records of a run to report.html and report.md, and the finalists as a table for the terminal.

The HTML template and the Markdown writer lay out the same `sections`. jinja2 and matplotlib are imported where they are
used, so that the driver can import this early.
"""

from __future__ import annotations

import base64
import html
import textwrap
from collections.abc import Sequence
from pathlib import Path

from cifar_ray import results
from cifar_ray.figures import FIGURE_STYLE
from cifar_ray.ranking import METRIC_NAMES, ConfigSummary, best_value, score_text
from cifar_ray.records import Records
from cifar_ray.report_parts import Section, decimals, short
from cifar_ray.results import Row, RunFolder
from cifar_ray.sections import facts_of, headline_of, sections_of


def results_table(summaries: Sequence[ConfigSummary], metric: str = "accuracy") -> str:
    """The finalists as a plain-text table of at most 80 columns, best first."""
    name = "acc %" if metric == "accuracy" else METRIC_NAMES[metric]
    rows = [["#", "config", f"val {name}", f"test {name}", "params", "p50 ms", "img/s", "seeds"]]
    for rank, one in enumerate(summaries, start=1):
        scores = [score_text(one.val_metric, metric), score_text(one.test_score(metric), metric)]
        numbers = [short(one.num_params), short(one.latency_ms_p50), short(one.images_per_s), one.seeds]
        rows.append([str(rank), one.config, *scores, *numbers])
    notes = [textwrap.shorten(f"{one.config}: {one.failed}", 80) for one in summaries if one.failures]
    if any(one.test_score(metric).low is not None for one in summaries):
        notes.append("in brackets: 95 % interval over seeds and test images")
    flipped = [one.config for one in summaries if one.tta == "flip"]
    notes += [f"scored and timed with flip test-time augmentation: {', '.join(flipped)}"] if flipped else []
    return "\n".join([_text_table(rows), *notes])


def trials_table(trials: Sequence[Row], metric: str, num_shown: int = 5) -> str:
    """The best trials of a search that has not come to final models, as a plain-text table of at most 80 columns."""
    tried = [trial for trial in trials if best_value(trial) is not None]
    tried.sort(key=lambda trial: -best_value(trial))
    rows = [["#", "trial", "state", "epochs", f"val {metric}", "params"]]
    for rank, one in enumerate(tried[:num_shown], start=1):
        cells = [str(one["epochs"]), decimals(best_value(one)), short(one.get("num_params"))]
        rows.append([str(rank), one["name"], one["state"], *cells])
    return _text_table(rows)


def _text_table(rows: list[list[str]]) -> str:
    """Rows under a header as text; the second column, a name, is cut where the whole would be wider than 80 columns.

    In its middle: names of presets begin alike, and those of trials end differently.
    """
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    widths[1] = min(widths[1], 80 - 2 * (len(widths) - 1) - (sum(widths) - widths[1]))
    lines = []
    for row in rows:
        name, left = row[1], widths[1] - 1
        if len(name) > widths[1]:
            name = f"{name[: left - left // 2]}…{name[len(name) - left // 2 :]}"
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join([cells[0], name.ljust(widths[1]), *cells[2:]]))
    return "\n".join(lines)


def build_report(run: Path) -> tuple[Path, Path]:
    """Write report.html, report.md and the figures of evaluation/ from the records of a run, and return both paths.

    What a run has not recorded (it was interrupted, it has no test split) is left out.

    Raises:
        InputError: `run` is no run folder, or one of its records is broken.
    """
    import jinja2
    import matplotlib

    folder = RunFolder(run)
    records = Records(folder)
    with matplotlib.rc_context(FIGURE_STYLE):
        sections = sections_of(records)
    for image in [image for section in sections for image in section.images]:
        results.write_bytes(folder.evaluation / image.name, image.png)
    title, headline, facts = run.resolve().name, headline_of(records), facts_of(records)
    command = str(records.run.get("command") or "")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
    page = environment.get_template("report.html.j2")
    text = page.render(title=title, headline=headline, facts=facts, command=command, sections=sections)
    results.write_text(folder.report_html, text)
    results.write_text(folder.report_md, _markdown(title, headline, facts, command, sections))
    return folder.report_html, folder.report_md


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    text = html.escape(" ".join(text.split()), quote=False)
    return "".join("\\" + letter if letter in "\\`*_[]|~#" else letter for letter in text)


def _markdown(
    title: str, headline: str, facts: Sequence[tuple[str, str]], command: str, sections: Sequence[Section]
) -> str:
    lines = [f"# {_escaped(title)}", "", f"**{_escaped(headline)}**", "", *_fenced(command), ""]
    lines += [f"- {label}: {_escaped(text)}" for label, text in facts] + [""]
    for section in sections:
        lines += [f"## {section.heading}", ""]
        for text in section.text:
            lines += [_escaped(text), ""]
        for table in section.tables:
            lines.append("| " + " | ".join(_escaped(column) for column in table.columns) + " |")
            num_numbers = len(table.columns) - table.num_text
            lines.append("|" + " --- |" * table.num_text + " ---: |" * num_numbers)
            for index, row in enumerate(table.rows):
                cells = [_escaped(cell) for cell in row]
                cells[table.num_text - 1] += "".join(f" **{mark}**" for mark in table.marks.get(index, []))
                lines.append("| " + " | ".join(cells) + " |")
            lines += ["", _escaped(table.note), ""] if table.note else [""]
        for image in section.images:
            lines += [f"![{_escaped(image.title)}](evaluation/{image.name})", ""]
        if section.folded:
            summary, code = section.folded
            lines += [
                "<details>",
                f"<summary>{html.escape(summary)}</summary>",
                "",
                *_fenced(code),
                "",
                "</details>",
                "",
            ]
    return "\n".join(lines)


def _fenced(code: str) -> list[str]:
    fence = "`" * (3 + code.count("```"))  # longer than any fence inside
    return [fence, code, fence]

"""From the records of a run to report.html and report.md.

The HTML template and the Markdown writer lay out the same `sections`. jinja2 and matplotlib are imported where they are
used, so that the driver can import this early.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from pathlib import Path

from cifar_ray.files import write_bytes, write_text
from cifar_ray.reporting.audit import audit
from cifar_ray.reporting.card import model_card
from cifar_ray.reporting.choice import choice
from cifar_ray.reporting.curves import curves, search
from cifar_ray.reporting.data import data
from cifar_ray.reporting.effects import base_model, effects, effects_headline
from cifar_ray.reporting.facts import facts_of
from cifar_ray.reporting.figures import FIGURE_STYLE
from cifar_ray.reporting.mistakes import mistakes
from cifar_ray.reporting.parts import Section, escaped
from cifar_ray.reporting.quality import quality
from cifar_ray.reporting.reflection import reflection
from cifar_ray.reporting.robustness import robustness
from cifar_ray.reporting.sheets import data_uri, sheet_png
from cifar_ray.reporting.sizes import front_rows, sizes
from cifar_ray.reporting.speed import speed
from cifar_ray.reporting.summary import configuration, families, finalists, gain, headline_of
from cifar_ray.reporting.trials import all_trials, best_trials, ledger
from cifar_ray.results.choice import Limits
from cifar_ray.results.config_json import CARD
from cifar_ray.results.recorded_run import Records
from cifar_ray.results.records import FRONT_COLUMNS, RunFolder, write_csv


def build_report(run: Path, limits: Limits | None = None) -> tuple[Path, Path]:
    """Write report.html, report.md and the figures of evaluation/ from the records of a run, and return both paths.

    Where there is a chosen model, its card is written too, and of a search front.csv.

    What a run has not recorded (it was interrupted, it has no test split) is left out. With `limits` the report says
    what to take within them.

    Raises:
        InputError: `run` is no run folder, or one of its records is broken.
    """
    import jinja2
    import matplotlib

    folder = RunFolder(run)
    records = Records(folder)
    with matplotlib.rc_context(FIGURE_STYLE):
        sections = sections_of(records, limits)
    for section in sections:
        for image in section.images:
            write_bytes(folder.evaluation / image.name, image.png)
        for sheet in section.sheets:
            write_bytes(folder.evaluation / sheet.name, sheet_png(sheet))
    if rows := front_rows(records):
        write_csv(folder.front_csv, FRONT_COLUMNS, rows)
    title, facts = run.resolve().name, facts_of(records)
    headline = effects_headline(records) if records.ablated else headline_of(records)
    command = str(records.run.get("command") or "")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
    environment.filters["data_uri"] = data_uri
    environment.filters["glued"] = _glued
    page = environment.get_template("report.html.j2")
    text = page.render(title=title, headline=headline, facts=facts, command=command, sections=sections)
    write_text(folder.report_html, text)
    write_text(folder.report_md, _markdown(title, headline, facts, command, sections))
    if records.summaries and (folder.best / CARD).exists():
        write_text(folder.best / "README.md", model_card(records))
    return folder.report_html, folder.report_md


def _glued(text: str) -> str:
    """Text whose numbers stay on one line with their per-cent sign."""
    return text.replace(" %", "\N{NO-BREAK SPACE}%")


def _markdown(
    title: str, headline: str, facts: Sequence[tuple[str, str]], command: str, sections: Sequence[Section]
) -> str:
    lines = [f"# {escaped(title)}", "", f"**{escaped(headline)}**", ""]
    for section in sections:
        lines += [f"## {section.heading}", ""]
        for text in section.text:
            lines += [escaped(text), ""]
        if section.entries:
            lines += [*(f"- **{escaped(term)}**: {escaped(' '.join(said))}" for term, said in section.entries), ""]
        for table in section.tables:
            lines.append("| " + " | ".join(escaped(column) for column in table.columns) + " |")
            num_numbers = len(table.columns) - table.num_text
            lines.append("|" + " --- |" * table.num_text + " ---: |" * num_numbers)
            for index, row in enumerate(table.rows):
                cells = [escaped(cell) for cell in row]
                cells[table.num_text - 1] += "".join(f" **{mark}**" for mark in table.marks.get(index, []))
                lines.append("| " + " | ".join(cells) + " |")
            lines += ["", escaped(table.note), ""] if table.note else [""]
        for image in section.images:
            lines += [f"![{escaped(image.title)}](evaluation/{image.name})", ""]
        for sheet in section.sheets:
            captions = "; ".join(tile.caption for tile in sheet.tiles)
            lines += [f"![{escaped(sheet.title)}](evaluation/{sheet.name})", ""]
            lines += [escaped(f"{sheet.title}. Row by row: {captions}."), ""]
        if section.points:
            lines += ["What to try next:", "", *(f"- {escaped(text)}" for text in section.points), ""]
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
    lines += ["## The run", "", *_fenced(command), ""]
    lines += [f"- {label}: {escaped(text)}" for label, text in facts] + [""]
    return "\n".join(lines)


def _fenced(code: str) -> list[str]:
    fence = "`" * (3 + code.count("```"))  # longer than any fence inside
    return [fence, code, fence]


def sections_of(records: Records, limits: Limits | None = None) -> list[Section]:
    """All sections in the order of the report, without those that the run has no records for."""
    if records.ablated:
        sections = _sections_of_ablation(records)
        return [one for one in sections if not one.empty]
    sections = [
        choice(records, limits),
        reflection(records),
        finalists(records) if records.summaries else best_trials(records),
    ]
    sections += [families(records), gain(records), quality(records), curves(records), *mistakes(records)]
    sections += [robustness(records), speed(records), configuration(records), data(records)]
    sections += [search(records), audit(records), sizes(records), all_trials(records), ledger(records)]
    return [one for one in sections if not one.empty]


def _sections_of_ablation(records: Records) -> list[Section]:
    """An ablation compares many configurations, most of them worse: only the base's mistakes are worth a look."""
    results = finalists(records) if records.summaries else Section("All results")
    results.heading = "All results"
    return [*effects(records), data(records), results, *mistakes(records, base_model(records))]

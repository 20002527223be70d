"""What the report says of the choice under limits that were asked for."""

from __future__ import annotations

from cifar_ray.reporting.parts import Section, Table, difference_text, score_text, with_unit
from cifar_ray.results.choice import Choice, Limits, choose
from cifar_ray.results.recorded_run import Records
from cifar_ray.text import decimals, short, thousands


def choice(records: Records, limits: Limits | None) -> Section:
    """What to take within the limits; without limits it is absent."""
    section = Section("The choice within your limits")
    if limits is None or not records.summaries:
        return section
    chosen = choose(records.summaries, limits, lambda a, b: records.comparison(a, b, records.metric))
    asked = _asked(limits)
    if not chosen:
        smallest = min((one.num_params for one in records.summaries if one.num_params), default=None)
        fastest = min((one.latency_ms_p50 for one in records.summaries if one.latency_ms_p50), default=None)
        section.text = [
            f"No configuration has {asked}: the smallest has {thousands(smallest)} parameters, the fastest takes "
            f"{short(fastest)} ms for an image. Search with --max-params, or allow more."
        ]
        return section
    section.text = [_sentence(records, one, limits, asked) for one in chosen]
    table = Table([], [])
    for one in chosen:
        taken = one.chosen
        cells = {
            "choice": one.why,
            "configuration": taken.config,
            f"val {records.metric_name}": score_text(taken.val_metric, records.metric),
            f"test {records.metric_name}": score_text(taken.test_score(records.metric), records.metric),
            "params": short(taken.num_params),
            "MB": decimals(taken.size_mb, 2),
            "p50 ms": short(taken.latency_ms_p50),
        }
        table.columns, table.num_text = list(cells), 2
        table.rows.append(list(cells.values()))
    table.note = (
        f"Chosen by mean validation {records.metric_name} over seeds alone; the test split then says whether it holds."
    )
    if records.run.get("same_validation") is False:
        table.note += " The runs had other validation images, so that their validation scores compare roughly."
    section.tables = [table]
    return section


def _asked(limits: Limits) -> str:
    parts = []
    if limits.max_params is not None:
        parts.append(f"at most {thousands(limits.max_params)} parameters")
    if limits.max_latency_ms is not None:
        parts.append(f"a median latency of at most {limits.max_latency_ms:g} ms for one image")
    return " and ".join(parts)


def _sentence(records: Records, one: Choice, limits: Limits, asked: str) -> str:
    of = f"of those with {asked}" if asked else "of all"
    score = with_unit(records.metric, one.chosen.val_metric)
    if one.why == "best" or limits.within is None:
        return f"Take {one.chosen.config}, the best {of}: validation {records.metric_name} {score}."
    margin = f"{limits.within:g} {'point' if limits.within == 1 else 'points'}"
    if one.chosen is one.best:
        return f"Take {one.chosen.config}, which is both the best and the {one.why} {of} within {margin}."
    said = (
        f"Take {one.chosen.config}, the {one.why} {of} within {margin} of the best, {one.best.config}, on validation "
        f"({score} against {with_unit(records.metric, one.best.val_metric)})"
    )
    confirmed = one.confirmed(limits.within)
    if one.test is None:
        return f"{said}; how they compare on test is not known."
    low, high = (difference_text(bound, records.metric) for bound in (one.test.low, one.test.high))
    unit = " points" if records.metric == "accuracy" else ""
    difference = difference_text(one.test.difference, records.metric)
    found = f"on test it differs by {difference} ({low} to {high}){unit}"
    if confirmed is None:
        return f"{said}; {found}, which one seed is too few to judge by."
    if confirmed:
        return f"{said}; confirmed: {found}, all of it within {margin}."
    return f"{said}; not confirmed: {found}, so it may be worse than that. More seeds or test images would tell."

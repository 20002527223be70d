"""What a report says of the trials of the search: the best ones, how they ended, and where their time went."""

from __future__ import annotations

from collections import Counter, defaultdict

from cifar_ray.reporting.parts import Section, Table, with_unit
from cifar_ray.results.ranking import best_value
from cifar_ray.results.recorded_run import Records
from cifar_ray.results.records import EVALUATION_SECONDS, TRIAL_SECONDS, State
from cifar_ray.text import counted, decimals, duration, share, short

STATE_MEANINGS = {
    State.COMPLETE: "reached its horizon or its patience",
    State.PRUNED: "stopped early by ASHA",
    State.INFEASIBLE: "over a limit, not trained",
    State.FAILED: "ended by an error",
}


def best_trials(records: Records) -> Section:
    """The best ten; stands first in the report until a final model is evaluated."""
    table = Table([], [])
    for trial in records.tried[:10]:
        best = trial["best"]
        words = {"trial": trial["name"], **records.origin(trial["name"]), "state": trial["state"]}
        cells = words | {"epochs": str(trial.get("epochs", "-"))}
        cells[f"val {records.metric_name}"] = with_unit(records.metric, best["val_metric"])
        cells |= {"val loss": decimals(best.get("val_loss"), 3), "params": short(trial.get("num_params"))}
        table.columns, table.num_text = list(cells), len(words)
        table.rows.append(list(cells.values()))
    if not records.searched:
        return Section("Best trials so far")
    text = "No final model has been evaluated, so this report shows the search alone: one seed a trial, no test split."
    return Section("Best trials so far", [text], [table] if table.rows else [])


def search_gain(records: Records) -> str:
    """What the trials of each space gained over its default recipe, in words; empty where nothing says it."""
    spaces = defaultdict(list)
    for trial in records.tried:  # best first
        spaces[records.space_of[trial["name"]]].append(trial)
    said = []
    for space, tried in sorted(spaces.items(), key=lambda item: min(trial["number"] for trial in item[1])):
        default = next((trial for trial in tried if records.is_default(trial["name"])), None)
        if default is None or len(tried) == 1:
            continue
        reached = f"{records.recipe(default['name'])} reached {with_unit(records.metric, best_value(default))}"
        if default["state"] == State.PRUNED:  # less than it may reach in all epochs
            reached += f", stopped early after {counted(default.get('epochs'), 'epoch')},"
        if tried[0] is default:
            others = "the other trial did no" if len(tried) == 2 else f"none of the other {len(tried) - 1} trials did"
            said.append(f"{reached} and {others} better")
        else:
            of_space = f" of {space}" if records.several_spaces else ""
            best = f"the best trial{of_space}, {tried[0]['name']}"
            said.append(f"{reached} and {best}, {with_unit(records.metric, best_value(tried[0]))}")
    return "; ".join(said)


def all_trials(records: Records) -> Section:
    """How the trials ended, why some are lost, and how many were of each space."""
    states = Counter(trial["state"] for trial in records.trials)
    rows = [[state, meaning, str(states[state])] for state, meaning in STATE_MEANINGS.items() if states[state]]
    section = Section("Trials", tables=[Table(["state", "meaning", "trials"], rows, num_text=2)] if rows else [])
    lost = [trial for trial in records.trials if trial["state"] in (State.FAILED, State.INFEASIBLE)]
    reasons = Counter((one["state"], " ".join(str(one.get("reason") or "unknown").split())[:200]) for one in lost)
    if reasons:
        rows = [[state, reason, str(count)] for (state, reason), count in reasons.most_common(12)]
        section.tables.append(Table(["state", "reason", "trials"], rows, num_text=2))
    section.tables += _spaces(records)
    section.text += _heads(records)
    return section


def _spaces(records: Records) -> list[Table]:
    """The states and the best value of the trials of each space, and of each family within it; none of a single one."""
    families = defaultdict(set)
    for trial in records.trials:
        families[records.space_of[trial["name"]]].add(records.family_of[trial["name"]])
    groups = defaultdict(list)
    for trial in records.trials:
        space = records.space_of[trial["name"]]
        known = [str(family) for family in families[space] if family]
        # A trial without a valid configuration belongs where all others of its space do.
        family = records.family_of[trial["name"]] or (known[0] if len(known) == 1 else "-")
        groups[space, str(family)].append(trial)
    if len(groups) < 2:
        return []
    states = [state for state in State if any(trial["state"] == state for trial in records.trials)]
    named_alike = all(space == family for space, family in groups)
    rows = []
    for (space, family), trials in groups.items():
        counts = Counter(trial["state"] for trial in trials)
        names = {trial["name"] for trial in trials}
        best = next((trial for trial in records.tried if trial["name"] in names), None)  # best first
        row = [space, *([] if named_alike else [family]), best["name"] if best else "-"]
        row += [with_unit(records.metric, best_value(best)) if best else "-", *(str(counts[state]) for state in states)]
        rows.append([*row, str(len(trials))])
    words = ["space", *([] if named_alike else ["family"]), "best trial"]
    columns = [*words, f"best val {records.metric_name}", *states, "trials"]
    note = "Best value: validation, one seed, and the largest of many, so expect less of it on new images."
    return [Table(columns, rows, note, num_text=len(words))]


def _heads(records: Records) -> list[str]:
    """How many trials trained a head on features that were computed before, and what these took."""
    features = [trial["features"] for trial in records.trials if trial.get("features")]
    if not features:
        return []
    views = sorted(Counter(one["views"] for one in features).items())
    if len(views) == 1:
        of = f"for {counted(views[0][0], 'view')} of each training image"
    else:
        of = ", ".join(f"in {counted(count, 'trial')} for {counted(number, 'view')}" for number, count in views)
        of += " of each training image"
    seconds = sum(one.get("seconds") or 0.0 for one in features)
    return [
        f"{len(features)} of {counted(len(records.trials), 'trial')} trained a head alone, on features that a frozen "
        f"backbone computed once ({of}); computing or loading them took {duration(seconds)} in all."
    ]


def ledger(records: Records) -> Section:
    """The wall-clock of the phases, and what the time of the slots went to."""
    section = Section("Where the time went")
    total = sum(records.phases.values())
    if total > 0:
        phases = records.phases.items()
        rows = [[phase, duration(s), share(s, total)] for phase, s in phases] + [["all", duration(total), "100.0 %"]]
        shares = [s / total for _, s in phases]
        section.tables.append(
            Table(["phase", "wall-clock", "share"], rows, "Phases of the run.", shares=[*shares, 0.0])
        )
    if by_phase := records.slot_seconds:
        section.tables.append(_slots(by_phase, records.device.get("slots") or 1))
    return section


def _slots(by_phase: dict[str, dict[str, float]], num_slots: int) -> Table:
    sums: Counter[str] = Counter()
    for seconds in by_phase.values():
        sums.update(seconds)
    slot_s = sums.total()
    idle = "nothing in the slot: the phase begins, or has no more for it"
    kinds = {**TRIAL_SECONDS, **EVALUATION_SECONDS, "idle": idle}

    def row(kind: str, what: str, seconds: list[float], total: float) -> list[str]:
        return [kind, what, *(duration(s) if s else "-" for s in seconds), share(total, slot_s)]

    shown = {kind: what for kind, what in kinds.items() if sums[kind]}
    by_kind = {kind: [of.get(kind, 0.0) for of in by_phase.values()] for kind in shown}
    rows = [row(kind, what, by_kind[kind], sums[kind]) for kind, what in shown.items()]
    rows.append(row("all", "", [sum(of.values()) for of in by_phase.values()], slot_s))
    note = f"Time of {counted(num_slots, 'slot')}, in each of which one model at a time is trained or scored."
    columns = ["slot time", "what", *by_phase, "share"]
    return Table(columns, rows, note, 2, shares=[*(sums[kind] / slot_s for kind in shown), 0.0])

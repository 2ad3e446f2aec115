"""The printed report of a campaign: a line for each fault, and a table at the end."""

from collections.abc import Mapping, Sequence

from tests.faults.victim import Outcome


def line_of(outcome: Outcome, *, number: int) -> str:
    """Return the line of one fault, with its problems below it."""
    result = f"recovered, {outcome.lost} steps lost" if not outcome.problems else "NOT RECOVERED"
    what = f"{number:>3}  {outcome.kind:<36} step {outcome.step:>3}  {result:<24} {outcome.seconds:>4.0f} s"
    return "\n     - ".join([f"{what}  {outcome.details}".rstrip(), *outcome.problems])


def table(outcomes: Sequence[Outcome], *, untried: Mapping[str, str], seed: int, seconds: float) -> str:
    """Return a table of kinds and totals, with faults that were not recovered; `untried` gives kinds and reasons."""
    kinds = list(dict.fromkeys(outcome.kind for outcome in outcomes))
    rows = ["| fault | tried | recovered exactly | steps lost (max) | note |", "|---|---|---|---|---|"]
    for kind in sorted(kinds):
        of_kind = [outcome for outcome in outcomes if outcome.kind == kind]
        n_bad = sum(bool(outcome.problems) for outcome in of_kind)
        note = f"{n_bad} not recovered, see below" if n_bad else ""
        lost = max(outcome.lost for outcome in of_kind)
        rows.append(f"| {kind} | {len(of_kind)} | {len(of_kind) - n_bad} | {lost} | {note} |")
    rows += [f"| {kind} | 0 | - | - | not tried ({why}) |" for kind, why in untried.items()]
    bad = [outcome for outcome in outcomes if outcome.problems]
    rows.append(f"| all | {len(outcomes)} | {len(outcomes) - len(bad)} | {max(o.lost for o in outcomes)} | |")
    rows.append(f"\nseed {seed}, {seconds / 60:.0f} minutes")
    if bad:
        rows.append("not recovered:")
        rows += [f"- {o.kind}, step {o.step}, {o.details}: {'; '.join(o.problems)}" for o in bad]
    return "\n".join(rows)

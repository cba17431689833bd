"""`shoal fsck repair`: what the check found, and what would be done about it; with --apply, it is done.

The metadata service works out each repair and carries it out as a replicated operation, which it refuses if anything
that the repair was worked out from has changed; the filesystem stays in use. Repairs come in phases, and the check is
made again after each, because one repair may make another one needless. What is broken between two phases is what was
broken before, less what is repaired: the command can be ended at any moment and begun again.
"""

from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
import typer

from shoalfs.fs.cli.cluster import ConfigOption, MdsOption, Operator, StateOption, call, locate
from shoalfs.fs.cli.fsck import ATTEMPT_MS, anew, check
from shoalfs.fs.cli.output import Format, OutputOption, print_json
from shoalfs.fs.cli.targets import mutate
from shoalfs.transport.errors import UserError
from shoalfs.transport.limits import BAD_REPLICAS_MAX, GARBAGE_GRACE_MS_DEFAULT, PLANS_MAX

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shoalfs.fs.fsck import Finding
    from shoalfs.mds.messages import Finding as Row
    from shoalfs.mds.messages import Plan

_ROUNDS_MAX: Final = 40  # there are six phases, and one inode may need several repairs in one of them
_REFUSALS_MAX: Final = 3  # rounds in which everything had changed meanwhile


@dataclass(frozen=True)
class Step:
    """One finding, and what is done about it. ``outcome``: "planned", "repaired", "reported", or "ordered" (a
    copy of a chunk; the leader sees to it)."""

    finding: "Finding"
    text: str
    outcome: str

    def line(self) -> str:
        where = self.finding.path or (f"inode {self.finding.ino}" if self.finding.ino else "metadata")
        return f"{self.outcome}: {self.finding.kind}: {where}: {self.finding.text}: {self.text}"

    def as_json(self) -> dict[str, Any]:
        return self.finding.as_json() | {"repair": self.text, "outcome": self.outcome}


@dataclass
class Outcome:
    """``steps`` in the order in which they were made; what is left at the end comes last."""

    applied: bool
    steps: list[Step] = field(default_factory=list)

    @property
    def counts(self) -> Counter[str]:
        return Counter(step.outcome.partition(":")[0] for step in self.steps)

    @property
    def is_clean(self) -> bool:
        return not self.counts.keys() - {"repaired"}


def repair(
    apply: Annotated[bool, typer.Option("--apply", help="Do it. Otherwise it is only shown.")] = False,
    deep: Annotated[bool, typer.Option("--deep", help="Read all data and compare every hash.")] = False,
    output: OutputOption = Format.TABLE,
    mds: MdsOption = None,
    config: ConfigOption = None,
    state: StateOption = None,
) -> None:
    """Show what a repair would do, or do it. Exit code 0 if nothing is left to do, 1 otherwise."""
    outcome = call(locate(mds, config, state), partial(carry_out, apply=apply, deep=deep))
    if output is Format.JSON:
        print_json({"applied": apply, "clean": outcome.is_clean, "steps": [step.as_json() for step in outcome.steps]})
    else:
        for step in outcome.steps:
            typer.echo(step.line())
        counts = outcome.counts
        typer.echo(f"fsck repair: {', '.join(f'{n} {word}' for word, n in sorted(counts.items())) or 'clean'}")
        if counts["planned"]:
            typer.echo("to do it: `shoal fsck repair --apply`; further repairs may follow from these")
    if not outcome.is_clean:
        raise typer.Exit(1)


async def carry_out(operator: Operator, *, apply: bool, deep: bool = False) -> Outcome:
    """Raises ShoalError if the metadata service cannot be asked; what is repaired by then stays so."""
    outcome = Outcome(apply)
    refusals = 0
    for _ in range(_ROUNDS_MAX):
        report = await check(operator, deep=deep, grace_ms=GARBAGE_GRACE_MS_DEFAULT)
        pairs = await _plans(operator, [found for found in report.findings if found.row is not None])
        phase = min((plan.phase for _, plan in pairs if plan.mend is not None), default=None)
        if apply and phase is not None and refusals < _REFUSALS_MAX:
            steps = await _apply(operator, [(f, p) for f, p in pairs if p.mend is not None and p.phase == phase])
            repaired = [step for step in steps if step.outcome == "repaired"]
            outcome.steps += repaired
            refusals = 0 if repaired else refusals + 1
            continue
        outcome.steps += [Step(f, p.text, "reported" if p.mend is None else "planned") for f, p in pairs]
        outcome.steps += await _replicas(operator, [f for f in report.findings if f.row is None], apply=apply)
        break
    return outcome


async def _plans(operator: Operator, findings: "Sequence[Finding]") -> "list[tuple[Finding, Plan]]":
    """What would be done about each."""
    plans: list[Plan] = []
    for start in range(0, len(findings), PLANS_MAX):
        rows = tuple(found.row for found in findings[start : start + PLANS_MAX] if found.row is not None)
        plans += await anew(partial(_plans_of, operator, rows))
    return list(zip(findings, plans, strict=True))


async def _plans_of(operator: Operator, rows: "tuple[Row, ...]") -> "tuple[Plan, ...]":
    """Raises ESTALE if another node of the metadata service leads by now."""
    from shoalfs.mds.messages import PLAN_MEND, READ_PLANS, MendPlans, PlanMend, ReadInspection

    number = (await operator.leader.call(PLAN_MEND, PlanMend(rows), ATTEMPT_MS)).body.number
    page, found = 0, MendPlans((), False)
    while not found.done:
        page += 1
        found = (await operator.leader.call(READ_PLANS, ReadInspection(number, page), ATTEMPT_MS)).body
    return found.plans


async def _apply(operator: Operator, pairs: "Sequence[tuple[Finding, Plan]]") -> list[Step]:
    """One after the other. Each carries the number of those before it, so that none is applied twice."""
    from shoalfs.mds.messages import Op

    steps: list[Step] = []
    done = 0
    for finding, plan in pairs:
        assert plan.mend is not None, plan
        try:
            await mutate(operator, Op.MEND, msgspec.structs.replace(plan.mend, mended=plan.mend.mended + done))
        except UserError as refused:
            steps.append(Step(finding, plan.text, f"refused: {refused}"))
        else:
            done += 1
            steps.append(Step(finding, plan.text, "repaired"))
    return steps


async def _replicas(operator: Operator, findings: "Sequence[Finding]", *, apply: bool) -> list[Step]:
    """Copies of chunks: their targets are told to look, and fetch a good copy if there is one."""
    from shoalfs.fs.fsck import Kind
    from shoalfs.mds.messages import REPORT_REPLICAS, BadReplica, ReportReplicas
    from shoalfs.transport.errors import ChunkCorrupt, ChunkMissing

    codes = {
        Kind.MISSING_REPLICA: ChunkMissing.code,
        Kind.DAMAGED_REPLICA: ChunkCorrupt.code,
        Kind.WRONG_REPLICA: ChunkCorrupt.code,
    }
    steps: list[Step] = []
    bad: list[BadReplica] = []
    for found in findings:
        code = next((code for kind, code in codes.items() if kind == found.kind), None)
        if code is None or found.target is None or found.chunk is None:
            steps.append(Step(found, found.remedy, "reported"))
            continue
        text = f"have target {found.target} fetch a good copy"
        steps.append(Step(found, text, "ordered" if apply else "planned"))
        bad.append(BadReplica(found.target, found.chunk, code))
    for start in range(0, len(bad) if apply else 0, BAD_REPLICAS_MAX):
        request = ReportReplicas(tuple(bad[start : start + BAD_REPLICAS_MAX]))
        await operator.leader.call(REPORT_REPLICAS, request)
    return steps

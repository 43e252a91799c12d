"""The sub-verb ``lab programs``: real programs of the distribution in a guest, under any policy.

Every program first runs without a limit of its own; its memory.max under the policies is a share of
the most memory it then had.

Units: ticks of one second of guest time; MiB, pages per second, milliseconds, shares of time.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from memcg_gym.agents.registry import make_policy
from memcg_gym.agents.rollout import attach, step
from memcg_gym.configs.lab_programs import ProgramConfig, load_program, program_names
from memcg_gym.configs.loader import load_objective
from memcg_gym.envs.contract.signals import Sig
from memcg_gym.envs.lab.programs_figures import Figures, figures_of
from memcg_gym.envs.lab.programs_image import ProgramImage, with_programs
from memcg_gym.envs.lab.programs_packages import SUITE, fetch_programs
from memcg_gym.envs.lab.programs_session import MKFS, MKFS_PACKAGE, ProgramSession
from memcg_gym.envs.lab.protocol import GuestError
from memcg_gym.envs.lab.qemu import qemu_version
from memcg_gym.envs.lab.scale import scale_objective
from memcg_gym.envs.program_batch import MIB, ProgramBatch
from memcg_gym.training.cells import (
    PUBLISHED_FLOOR_MIB,
    Report,
    code_digest,
    policy_digest,
    stands_behind,
)
from memcg_gym.training.evaluate import count, positive, split_specs
from memcg_gym.training.files import safe_name, write_whole
from memcg_gym.training.kernel_cells import guest_image
from memcg_gym.training.lab_runs import FAMILY_FLOOR_DIVISOR

POLICIES = "kernel-default,senpai,tmo"
NO_LIMIT = "no limit"
"""Stands for the policy of the run that only measures how much memory a program takes."""

HEAD = """# Real programs in the kernel lab

Programs of Debian's packages, each in a managed cgroup of a guest, under policies of this project
by the path of [`lab run`](lab.md): the enforcer's readers and planner, a second of guest time a
tick. Made by `{command}`.

Kernel {kernel}, QEMU {qemu}, seed {seed}; {ticks} s scored after {settle} s. memory.max is
{ratio:g} of the most memory the program had without one ("{no_limit}"), sampled each second.
Throughput and p99 are the program's own figures, per round of its measured command; guest seconds
are seconds of 500 million emulated instructions, so they compare policies and not machines.

"""

TAIL = """
## What runs

{programs}
Each is described by a file in [configs/lab/programs](../configs/lab/programs), and
`--programs FILE.toml` takes one of your own. Packages are Debian {suite}'s, fetched and unpacked
without being installed, with the libraries they need. They are part of the guest's initial RAM disk
and cost it memory beside what a program's host has: {added}.

Programs work in `/data`, ext4 on a memory-backed `null_blk` device with the latency and bandwidth
of a drive, so that their page cache is one. Its storage is taken before they start and is not in
`MemTotal`. Libraries and binaries lie in the RAM disk: evicting *their* text is not part of what is
seen. A benchmark that is a client runs outside the managed cgroup and shares the one CPU.

Two runs with one seed are mostly the same to the last digit, as those of a policy that never acts
and of kernel-default show. Where the computer that runs the guest is busy, a program that computes
is now and then some 80 instructions late, for a reason that is not known: figures then differ by
about a tenth of a thousandth.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramRun:
    """One run.

    Attributes:
        program: What runs.
        policy: As :func:`~memcg_gym.agents.registry.make_policy` reads it.
        limit_bytes: Its memory.max; 0 = none.
        seed: Of the guest's random numbers.
        settle, ticks: How long under the policy's control before what counts, and what counts.
    """

    program: ProgramConfig
    policy: str
    limit_bytes: int
    seed: int
    settle: int
    ticks: int

    def made_from(self, image: ProgramImage) -> str:
        """A digest of all that decides what comes of it."""
        content = {
            "run": {name: getattr(self, name) for name in ("policy", "limit_bytes", "seed")},
            "ticks": [self.settle, self.ticks],
            "program": self.program.model_dump(mode="json"),
            "policy_files": policy_digest(self.policy),
            "image": image.image.digest,
            "code": code_digest(),
            "qemu": qemu_version(),
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of a run, over the ticks that count.

    Attributes:
        program, policy, seed: Of the run; the policy may be :data:`NO_LIMIT`.
        limit_mib: memory.max; 0 = none.
        unit: Of operations.
        rounds: Completed by the measured command.
        operations_per_s, p99_ms: The program's own figures; None where it has none.
        usage_mib: Mean of memory.current.
        peak_mib: Highest of it, settling included.
        refaults_per_s: Anonymous and file.
        psi_some: Share of time in which some task stalls on memory.
        oom_kills: Settling included.
        died: How the program ended before its time, by an OOM kill; else empty.
    """

    program: str
    policy: str
    seed: int
    limit_mib: float
    unit: str
    rounds: int
    operations_per_s: float | None
    p99_ms: float | None
    usage_mib: float
    peak_mib: float
    refaults_per_s: float
    psi_some: float
    oom_kills: int
    died: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the sub-verb's arguments."""
    parser.epilog = f"Programs: {', '.join(program_names())}. With --out, finished runs are kept."
    parser.add_argument(
        "--programs", default=",".join(program_names()), metavar="A,B", help="or by path [all]"
    )
    parser.add_argument(
        "--policies", default=POLICIES, metavar="A,B", help=f"see list [{POLICIES}]"
    )
    parser.add_argument("--ticks", type=positive, default=30, metavar="N", help="what counts [30]")
    parser.add_argument(
        "--settle", type=count, default=10, metavar="N", help="ticks before what counts [10]"
    )
    parser.add_argument(
        "--limit-ratio",
        type=share,
        default=0.7,
        metavar="R",
        help="memory.max as a share of the program's own peak [0.7]",
    )
    parser.add_argument("--seed", type=count, default=0, metavar="N", help="of the guest [0]")
    parser.add_argument("--out", type=Path, metavar="DIR", help="keep every run as JSON")
    parser.add_argument("--page", type=Path, metavar="FILE", help="write a Markdown page")
    parser.add_argument("--json", action="store_true", help="print the outcomes as JSON")


def share(text: str) -> float:
    """A number above 0 and at most 2; more than 1 is room to spare."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.0 < value <= 2.0:
        raise argparse.ArgumentTypeError(f"a number above 0 and at most 2, got {text!r}")
    return value


def run(args: argparse.Namespace) -> int:
    """Run every program under every policy, print a table, keep what was asked for.

    Raises:
        ConfigError: An unknown program or policy, or a file that cannot be written.
        LabError, GuestError: Packages or a guest cannot be had, or a program failed.
    """
    programs = [load_program(name) for name in args.programs.split(",")]
    policies = split_specs(args.policies)
    for policy in policies:
        make_policy(policy, host_kind="stock")
    outcomes: list[Outcome] = []
    images = {program.name: image_of(program) for program in programs}
    for program in programs:
        outcomes += run_program(program, images[program.name], policies, args)
    if args.json:
        print(json.dumps([asdict(outcome) for outcome in outcomes], indent=1))
    else:
        print("\n".join(table(outcomes)))
    if args.page:
        write_whole(args.page, page(outcomes, programs, images, args).encode())
    return 0


def image_of(program: ProgramConfig) -> ProgramImage:
    """The guest that has a program; fetched and built where it is not there yet.

    Raises:
        LabError: A package, the kernel or a tool cannot be had.
    """
    packages = (*program.packages, MKFS_PACKAGE)
    found = fetch_programs(packages, (*program.files, MKFS), progress=say)
    texts = {text.path: text.content for text in program.texts}
    return with_programs(guest_image(), found.root, texts)


def run_program(
    program: ProgramConfig, image: ProgramImage, policies: Sequence[str], args: argparse.Namespace
) -> list[Outcome]:
    """A program without a limit, then limited under each policy."""
    times = {"seed": args.seed, "settle": args.settle, "ticks": args.ticks}
    free = ProgramRun(program=program, policy="kernel-default", limit_bytes=0, **times)
    outcomes = [kept(free, image, args.out, NO_LIMIT)]
    limit = int(args.limit_ratio * outcomes[0].peak_mib * MIB) >> 12 << 12
    for policy in policies:
        limited = ProgramRun(program=program, policy=policy, limit_bytes=limit, **times)
        outcomes.append(kept(limited, image, args.out, policy))
    return outcomes


def kept(spec: ProgramRun, image: ProgramImage, folder: Path | None, policy: str) -> Outcome:
    """The outcome of a run, taken from its file where there is one of the same making."""
    made_from = spec.made_from(image)
    name = f"{safe_name(policy)}.seed{spec.seed}.json"
    path = folder / spec.program.name / name if folder else None
    if path is not None and path.is_file():
        found = read_outcome(path, made_from)
        if found is not None:
            return found
    say(f"{spec.program.name}: {policy}")
    outcome = measure(spec, image, policy)
    if path is not None:
        content = {"made_from": made_from} | asdict(outcome)
        write_whole(path, (json.dumps(content, indent=1) + "\n").encode())
    return outcome


def read_outcome(path: Path, made_from: str) -> Outcome | None:
    """A kept outcome; None where it is broken or of another making."""
    try:
        content = json.loads(path.read_text())
        return Outcome(**content) if content.pop("made_from") == made_from else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def measure(
    spec: ProgramRun,
    image: ProgramImage,
    shown_policy: str | None = None,
    report: Report = lambda ticks: None,
) -> Outcome:
    """Boot a guest, load the program, run it under the policy.

    Args:
        spec: The run.
        image: A guest that has the program.
        shown_policy: What the outcome calls the policy; None = its own name.
        report: Told how many more ticks are done.

    Raises:
        LabError, GuestError: The guest died, or the program did, other than by an OOM kill.
    """
    floor_mib = PUBLISHED_FLOOR_MIB / FAMILY_FLOOR_DIVISOR
    policy = make_policy(spec.policy, host_kind="stock", min_mib=floor_mib, limit_min_mib=floor_mib)
    batch = ProgramBatch(
        spec.program,
        scale_objective(load_objective(), FAMILY_FLOOR_DIVISOR),
        image,
        limit_bytes=spec.limit_bytes,
        shield=stands_behind(policy, "default"),
    )
    try:
        batch.reset_host(0, spec.seed)
        policy.reset((1, 1), batch.supported, spec.seed)
        attach(policy, batch)
        rows, scored_from_ns = [batch.signals[0, 0].copy()], batch.running.measured_from_ns
        for tick in range(spec.settle + spec.ticks):
            if tick == spec.settle and batch.snapshot is not None:
                scored_from_ns = batch.snapshot.report.time_ns
            step(batch, policy, tick)
            rows.append(batch.signals[0, 0].copy())
            report(1)
            if batch.running.died:
                break
        signals = np.stack(rows)
        check_death(batch.running, signals)
        done = [r for r in batch.running.rounds if r.end_ns > scored_from_ns]
        figures = figures_of(done, spec.program.measure)
        return outcome_of(spec, shown_policy or spec.policy, signals, figures, batch.running.died)
    finally:
        batch.close()


def check_death(session: ProgramSession, signals: np.ndarray) -> None:
    """A program may be killed for want of memory, which is an outcome; nothing else ends it.

    Raises:
        GuestError: It ended otherwise; with what it said last.
    """
    killed = signals[-1, Sig.EVENTS_OOM_KILL] > signals[0, Sig.EVENTS_OOM_KILL]
    if session.died and not killed:
        raise GuestError(
            f"{session.program.name}: {session.died} after {len(session.rounds)} rounds; "
            f"it said last:\n{session.last_words()}"
        )


def outcome_of(
    spec: ProgramRun, policy: str, signals: np.ndarray, figures: Figures, died: str
) -> Outcome:
    """Means over the ticks that count of ``signals``, float64 ``[1 + ticks, S]``."""
    first = min(spec.settle, len(signals) - 2)
    scored = signals[first + 1 :]
    gain = signals[-1] - signals[first]
    seconds = float(len(scored))
    return Outcome(
        program=spec.program.name,
        policy=policy,
        seed=spec.seed,
        limit_mib=spec.limit_bytes / MIB,
        unit=spec.program.measure.unit,
        rounds=figures.rounds,
        operations_per_s=none_for_nan(figures.operations_per_s),
        p99_ms=none_for_nan(figures.p99_ms),
        usage_mib=float(scored[:, Sig.USAGE_BYTES].mean()) / MIB,
        peak_mib=float(signals[:, Sig.USAGE_BYTES].max()) / MIB,
        refaults_per_s=float(gain[Sig.REFAULT_ANON] + gain[Sig.REFAULT_FILE]) / seconds,
        psi_some=float(gain[Sig.PSI_MEM_SOME_US]) * 1e-6 / seconds,
        oom_kills=int(signals[-1, Sig.EVENTS_OOM_KILL] - signals[0, Sig.EVENTS_OOM_KILL]),
        died=died,
    )


def none_for_nan(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else value


def table(outcomes: Iterable[Outcome]) -> list[str]:
    """A Markdown table."""
    return [
        "| program | policy | memory.max MiB | used MiB | throughput | p99 ms | refaults/s "
        "| PSI some % | OOM kills |",
        "|---|---|---|---|---|---|---|---|---|",
        *(f"| {' | '.join(cells(outcome))} |" for outcome in outcomes),
    ]


def cells(outcome: Outcome) -> list[str]:
    """One outcome as text."""
    rate = outcome.operations_per_s
    return [
        outcome.program,
        outcome.policy,
        f"{outcome.limit_mib:.1f}" if outcome.limit_mib else "none",
        f"{outcome.usage_mib:.1f}",
        "-" if rate is None else f"{rate:.{0 if rate >= 1000 else 2}f} {outcome.unit}/s",
        "-" if outcome.p99_ms is None else f"{outcome.p99_ms:.2f}",
        f"{outcome.refaults_per_s:.0f}",
        f"{100.0 * outcome.psi_some:.2f}",
        f"{outcome.oom_kills}{f' ({outcome.died})' if outcome.died else ''}",
    ]


def page(
    outcomes: Sequence[Outcome],
    programs: Sequence[ProgramConfig],
    images: dict[str, ProgramImage],
    args: argparse.Namespace,
) -> str:
    """The page that ``--page`` writes."""
    head = HEAD.format(
        command=command_of(args),
        kernel=guest_image().version,
        qemu=qemu_version(),
        seed=args.seed,
        ticks=args.ticks,
        settle=args.settle,
        ratio=args.limit_ratio,
        no_limit=NO_LIMIT,
    )
    what = "".join(f"* **{program.name}**: {program.summary}\n" for program in programs)
    added = ", ".join(f"{name} {i.added_bytes / MIB:.0f} MiB" for name, i in images.items())
    tail = TAIL.format(programs=what, suite=SUITE, added=added)
    return head + "\n".join(table(outcomes)) + "\n" + tail


def command_of(args: argparse.Namespace) -> str:
    """The command that makes the page again."""
    words = ["memcg-gym lab programs", f"--ticks {args.ticks} --settle {args.settle}"]
    if args.programs != ",".join(program_names()):
        words.append(f"--programs {args.programs}")
    if args.policies != POLICIES:
        words.append(f"--policies {args.policies}")
    words.append(f"--limit-ratio {args.limit_ratio:g} --seed {args.seed}")
    words.append("--page docs/lab_programs.md")
    return " ".join(words)


def say(text: str) -> None:
    """A line of progress."""
    print(text, file=sys.stderr)

"""Everything behind ``docs/results.md``, with one command: train, export, evaluate, write the page.

``python benchmarks/run_results.py --out runs/results --page docs/results.md``

For every scenario and host kind: a run of the preset for each training seed, a table from each run,
the best constant action found on the train ranges, and all of them with every hand policy on the
held-out ranges.  What is finished in ``--out`` is kept and a stopped run goes on, so the command
can be stopped and given again; if the code that decides a rollout has changed since, it says so and
wants another folder.  ``--smoke`` goes through every step with runs too short to mean anything.

Units: rows (active cgroup-ticks), ticks of one second, cgroup-steps.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from memcg_gym.agents.constant import search_best_constant
from memcg_gym.configs.loader import load_objective, load_scenario, names
from memcg_gym.training.cells import code_digest
from memcg_gym.training.evaluate import seeds as seeds_of

HAND = (
    "static-high,senpai,tmo,oomd,tpp,trim-tpp,agentcgroup,senpai+oomd+tpp,tmo+oomd+tpp,"
    "host-aware,random"
)
EXPORT = "--rounds 3 --hosts 10 --settle-ticks 600 --ticks 250 --validate-hosts 12 "
EXPORT += "--validate-ticks 400"
CONSTANT_STEPS = 2_000_000
"""Budget of the search over constant actions, small beside the 1e8 of a hand policy."""

SMOKE_TRAIN = ["total_rows=2000", "grow_cgroup_steps=60000", "settle_ticks=20", "ppo.n_steps=4"]
SMOKE_TRAIN += ["validate_hosts=2", "validate_ticks=10", "ppo.hosts=2"]
SMOKE_EXPORT = "--rounds 1 --hosts 2 --settle-ticks 10 --ticks 20 --validate-hosts 2 "
SMOKE_EXPORT += "--validate-ticks 10"


@dataclass(frozen=True, slots=True)
class Campaign:
    """What is to be run, and where."""

    out: Path
    preset: str
    settings: tuple[str, ...]
    seeds: tuple[int, ...]
    hosts: int
    settle: int
    ticks: int
    upper_hosts: int
    jobs: int
    smoke: bool

    def program(self, *arguments: str) -> None:
        """Run ``memcg-gym`` as a user would, and say so."""
        print(f"{time.strftime('%H:%M:%S')} memcg-gym {shlex.join(arguments)}", flush=True)
        command = [sys.executable, "-m", "memcg_gym.training", *arguments]
        subprocess.run(command, check=True)

    def train(self, scenario: str, kind: str, seed: int) -> Path:
        """A finished run folder."""
        folder = self.out / "runs" / f"{scenario}-{kind}-{seed}"
        if finished(folder):
            return folder
        if (folder / "checkpoints").is_dir() and any((folder / "checkpoints").iterdir()):
            self.program("train", "--resume", str(folder))
        else:
            shutil.rmtree(folder, ignore_errors=True)
            settings = itertools.chain.from_iterable(("--set", s) for s in self.settings)
            self.program(
                "train", self.preset, "--scenario", scenario, "--host-kind", kind,
                "--seed", str(seed), "--out", str(folder), *settings,
            )  # fmt: skip
        (folder / "finished").touch()
        return folder

    def export(self, run: Path) -> Path:
        """The run's table."""
        table = self.out / "tables" / f"{run.name}.mrt"
        if not Path(f"{table}.export.json").is_file():
            table.parent.mkdir(parents=True, exist_ok=True)
            options = SMOKE_EXPORT if self.smoke else EXPORT
            self.program("export", str(run), "--out", str(table), *options.split())
        return table

    def grown(self, run: Path) -> list[Path]:
        """The rules the run started from, under a name of their own."""
        source, target = run / "grown.mrt", self.out / "tables" / f"grown-{run.name}.mrt"
        if not source.is_file():
            return []
        shutil.copyfile(source, target)
        return [target]

    def constant(self, scenario: str, kind: str) -> str:
        """The best constant action found on the train ranges, as a policy's spec."""
        path = self.out / "constants.json"
        known = json.loads(path.read_text()) if path.is_file() else {}
        key = f"{scenario}-{kind}"
        if key not in known:
            found = search_best_constant(
                load_scenario(scenario),
                load_objective(),
                budget_cgroup_steps=30_000 if self.smoke else CONSTANT_STEPS,
                host_kind=kind,  # type: ignore[arg-type]
            )
            known[key] = found.spec
            path.write_text(json.dumps(known, indent=1) + "\n")
        spec: str = known[key]
        return spec

    def evaluate(self, scenario: str, kind: str, policies: list[str], upper: bool) -> Path:
        """Results of everybody on the held-out ranges."""
        folder = self.out / "results" / f"{scenario}-{kind}"
        line = ["--upper", "clairvoyant", "--upper-seeds", f"0:{self.upper_hosts}"]
        line += ["--upper-settle", "120"]
        self.program(
            "evaluate", "--scenarios", scenario, "--host-kind", kind, "--seeds", f"0:{self.hosts}",
            "--settle", str(self.settle), "--ticks", str(self.ticks), "--jobs", str(self.jobs),
            "--out", str(folder), "--policies", ",".join(policies), *(line if upper else []),
        )  # fmt: skip
        return folder / "results.json"


def finished(run: Path) -> bool:
    """Whether a run folder was trained to its end."""
    return (run / "finished").is_file()


def same_code(out: Path) -> bool:
    """Whether what is in the folder was made by the code at hand; an empty folder was."""
    stamp = out / "code"
    if not stamp.is_file():
        out.mkdir(parents=True, exist_ok=True)
        stamp.write_text(code_digest() + "\n")
    return stamp.read_text().strip() == code_digest()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--page", type=Path, metavar="FILE", help="the page to write")
    parser.add_argument("--preset", default="default")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--scenarios", default="all")
    parser.add_argument("--kinds", default="stock,bpf")
    parser.add_argument("--seeds", type=seeds_of, default=seeds_of("0:3"), metavar="A:B")
    parser.add_argument("--bpf-seeds", type=seeds_of, metavar="A:B", help="[--seeds]")
    parser.add_argument("--hosts", type=int, default=20, help="held-out hosts")
    parser.add_argument("--upper", default="", metavar="A,B", help="scenarios with the upper line")
    parser.add_argument("--upper-hosts", type=int, default=4)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--smoke", action="store_true")
    return parser.parse_args()


def main() -> int:
    args = parse()
    if not same_code(args.out):
        print(f"{args.out} holds runs of other code; give another --out", file=sys.stderr)
        return 2
    campaign = Campaign(
        args.out,
        args.preset,
        tuple([*(SMOKE_TRAIN if args.smoke else []), *args.set]),
        args.seeds,
        2 if args.smoke else args.hosts,
        30 if args.smoke else 1800,
        20 if args.smoke else 600,
        min(2, args.upper_hosts) if args.smoke else args.upper_hosts,
        args.jobs,
        args.smoke,
    )
    scenarios = names("scenarios") if args.scenarios == "all" else args.scenarios.split(",")
    pages = []
    for kind in args.kinds.split(","):
        seeds = args.bpf_seeds if kind == "bpf" and args.bpf_seeds else args.seeds
        for scenario in scenarios:
            policies = [*HAND.split(","), campaign.constant(scenario, kind)]
            for seed in seeds:
                run = campaign.train(scenario, kind, seed)
                made = [run, campaign.export(run), *campaign.grown(run)]
                policies += [str(path) for path in made]
            upper = kind == "stock" and scenario in args.upper.split(",")
            pages.append(campaign.evaluate(scenario, kind, policies, upper))
    if args.page:
        page = Path(__file__).with_name("results_page.py")
        command = [sys.executable, str(page), *map(str, pages), "--out", str(args.page)]
        subprocess.run(command, check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

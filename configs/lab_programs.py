"""Real programs that the lab runs: what they are made of, how they are loaded, what is measured.

One TOML file a program in ``configs/lab/programs``.  Commands are words separated by single blanks
and no shell reads them; nothing here knows where the files come from or how a guest runs them.

Units: in each name (``_mib``, ``_us``, ``_s``).
"""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from memcg_gym.configs.loader import names, validate
from memcg_gym.configs.schema import Frozen
from memcg_gym.envs.contract.errors import ConfigError, did_you_mean
from memcg_gym.envs.contract.heads import HEADS

PROGRAMS = "lab/programs"
MAX_WORDS = 60
"""Of a command; the guest's agent takes 64 with what it adds."""

PAGE_CACHE_HEADS = ("throttle", "reclaim", "protect", "flush")


def check_command(command: str) -> str:
    """The command, if the guest's agent can read it."""
    words = command.split(" ")
    if not command.startswith("/") or "" in words or len(words) > MAX_WORDS:
        raise ValueError(
            f"expected an absolute path and at most {MAX_WORDS - 1} arguments, separated by "
            f"single blanks, got {command[:80]!r}"
        )
    if not command.isprintable():
        raise ValueError(f"expected one line of printable text, got {command[:80]!r}")
    return command


Command = Annotated[str, AfterValidator(check_command)]


class ProgramText(Frozen):
    """A file of text that the program reads: ``text``, then ``times`` times ``block``."""

    path: str = Field(pattern=r"^/[\w./-]+$")
    text: str = ""
    block: str = ""
    times: int = Field(0, ge=0, le=1_000_000)

    @property
    def content(self) -> str:
        """All of it."""
        return self.text + self.block * self.times


class ProgramStep(Frozen):
    """A command, and where it runs.

    Attributes:
        command: Path and arguments.
        rounds: How often it is run; it must succeed each time.
        within_s: Guest time in which it must be done.
        place: ``managed``: in the cgroup that is looked at; ``host``: outside of it, as a client.
    """

    command: Command
    rounds: int = Field(1, ge=1, le=10_000)
    within_s: int = Field(120, ge=1, le=3600)
    place: Literal["managed", "host"] = "managed"


class ProgramMeasure(Frozen):
    """The command that is run again and again while a policy is in charge.

    Attributes:
        command: Path and arguments.
        place: As of a step.
        operations: What one round does, in the unit.
        unit: Of operations, for tables.
        figures: ``rounds``: operations over the time rounds took; ``redis-benchmark``: what its
            ``--csv`` says.
    """

    command: Command
    place: Literal["managed", "host"] = "managed"
    operations: float = Field(gt=0)
    unit: str
    figures: Literal["rounds", "redis-benchmark"] = "rounds"


class ProgramHost(Frozen):
    """The guest's host.

    Attributes:
        memory_mib: What is left for the program and its page cache.
        swap_mib: Swap space.
        data_mib: Size of the file system the program works in.
        iops: Operations of 4 KiB that swap's device does in a second.
        read_ahead_pages: Pages an operation on a file brings: its device's bandwidth over swap's.
        latency_us: Of both devices.
    """

    memory_mib: int = Field(ge=64, le=4096)
    swap_mib: int = Field(ge=16, le=2048)
    data_mib: int = Field(ge=32, le=2048)
    iops: int = Field(16384, ge=256)
    read_ahead_pages: int = Field(8, ge=1, le=64)
    latency_us: float = Field(100.0, gt=0)
    zswap_max_ratio: float = Field(0.0, ge=0, le=1)


class ProgramConfig(Frozen):
    """A program of the distribution as a workload.

    Attributes:
        name: Also of its cgroup.
        summary: What it is about.
        packages: Debian packages that have it.
        files: Programs and data taken of those packages; the libraries come by themselves.
        texts: Files that are written here.
        host: Its host.
        heads: Which decisions make sense for it.
        service: Started first and left running, e.g. a server.
        load: Done before any limit holds.
        measure: What runs under the policy.
    """

    name: str = Field(pattern=r"^[a-z][a-z0-9-]*$")
    summary: str
    packages: tuple[str, ...] = Field(min_length=1)
    files: tuple[str, ...] = Field(min_length=1)
    texts: tuple[ProgramText, ...] = ()
    host: ProgramHost
    heads: tuple[str, ...] = PAGE_CACHE_HEADS
    service: ProgramStep | None = None
    load: tuple[ProgramStep, ...] = ()
    measure: ProgramMeasure

    @model_validator(mode="after")
    def _has_what_it_runs(self) -> ProgramConfig:
        known = {head.name for head in HEADS}
        for head in self.heads:
            if head not in known:
                raise ValueError(f"heads: unknown head {head!r}{did_you_mean(head, sorted(known))}")
        commands = [self.measure.command, *(step.command for step in self.load)]
        commands += [self.service.command] if self.service else []
        for command in commands:
            program = command.partition(" ")[0]
            if program not in self.files:
                raise ValueError(f"files: {program} is run and not among them")
        return self


def program_names() -> list[str]:
    """Programs that ship."""
    return names(PROGRAMS)


def load_program(name: str) -> ProgramConfig:
    """A program that ships by its name, or a TOML file by its path.

    Raises:
        ConfigError: There is none, or it is not a valid description.
    """
    if name.endswith(".toml") or "/" in name:
        try:
            origin, text = name, Path(name).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{name}: cannot be read: {error}") from None
    else:
        known = program_names()
        if name not in known:
            raise ConfigError(f"no program {name!r}{did_you_mean(name, known)}")
        origin = f"{name}.toml"
        text = resources.files("memcg_gym.configs").joinpath(PROGRAMS, origin).read_text()
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{origin}: not valid TOML: {error}") from None
    return validate(ProgramConfig, data, origin)

"""``memcg_gym/Host-v0``: one host and its cgroups as a Gymnasium environment.

The env only conducts: the core steps the host, the contract names what is seen and set, the
objective prices it, ``envs/render.py`` draws it.

Units: the observation's are the contract's; rewards are per second; a step is one second.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from memcg_gym.configs.loader import load_objective, load_scenario
from memcg_gym.configs.schema import HostKindName, ObjectiveConfig, ScenarioConfig, Split
from memcg_gym.envs.contract.errors import ConfigError
from memcg_gym.envs.contract.features import FEATURES, N_FEATURES
from memcg_gym.envs.contract.heads import HEADS, LEVEL_COUNTS, N_HEADS
from memcg_gym.envs.core import HostBatch
from memcg_gym.envs.render import History, draw, write_ansi
from memcg_gym.envs.reward import METRIC_NAMES, TERM_NAMES
from memcg_gym.envs.settled import settle_host

Array = np.ndarray[Any, np.dtype[Any]]

WIDTH = N_FEATURES + 1
"""Columns of one cgroup in the observation: the features and the mask."""
QUANTUM = 2.0**-40
"""Grid of the host's reward terms: sums of multiples below 2**10 are exact in any order."""
MAX_SEED = 2**63 - 1


class HostEnv(gym.Env[Array, Array]):
    """One host with N managed cgroups of one scenario; one agent decides for all of them.

    Args:
        scenario: A shipped scenario, a TOML file, or a :class:`ScenarioConfig`.
        objective: What counts; the same three ways.
        host_kind: ``"stock"``: userspace writes cgroup files and a decision takes effect one tick
            later; ``"bpf"``: hooks decide within the tick.
        split: ``"train"`` or the held-out ``"test"`` ranges.
        settle_ticks: Seconds the host runs under its owner's configuration before the first
            observation; None = the scenario's.
        episode_ticks: Seconds of an episode; None = the scenario's.
        shield: False lets every decision through.
        render_mode: ``"rgb_array"``, ``"ansi"`` or None.

    Start: ``reset`` draws a host from the split's ranges and settles it.
    ``reset(options={"host_seed": n})`` takes exactly the host of seed ``n``.

    End: an episode is truncated after ``episode_ticks``; the env does that itself, because its
    length belongs to the scenario.  Nothing terminates: a killed cgroup restarts, at its cost.

    Reward: per term, the mean over the cgroups there are; the terms' sum.  Every term is rounded to
    a grid of 2**-40, so ``sum(info["reward_terms"].values()) == reward`` holds exactly, in any
    order.

    Info: ``reward_terms``, ``metrics`` (an array ``(N,)`` each), ``levels`` (what the shield
    accepted, ``(N, 7)``), ``interventions`` (its reasons, bit masks ``(N,)``), ``host_seed``.
    """

    metadata = {"render_modes": ["rgb_array", "ansi"], "render_fps": 10}

    def __init__(
        self,
        scenario: str | ScenarioConfig = "host-mix",
        objective: str | ObjectiveConfig = "default",
        *,
        host_kind: HostKindName = "stock",
        split: Split = "train",
        settle_ticks: int | None = None,
        episode_ticks: int | None = None,
        shield: bool = True,
        render_mode: str | None = None,
    ) -> None:
        self._conduct(
            make_batch(scenario, objective, 1, host_kind, shield),
            split,
            settle_ticks,
            episode_ticks,
            render_mode,
        )

    def _conduct(
        self,
        batch: HostBatch,
        split: Split,
        settle_ticks: int | None,
        episode_ticks: int | None,
        render_mode: str | None,
    ) -> None:
        """Take a batch of one host as the world behind this environment."""
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ConfigError(
                f"render_mode: got {render_mode!r}, needs one of "
                f"{', '.join(self.metadata['render_modes'])} or None"
            )
        self.batch = batch
        self.split: Split = split
        self.settle_ticks, self.episode_ticks = ticks_of(
            self.batch.scenario, settle_ticks, episode_ticks
        )
        self.render_mode = render_mode
        self.observation_space = host_space(self.batch.n_cgroups)
        self.action_space = action_space(self.batch.n_cgroups)
        self.tick = 0
        self._history = History(self.batch.layout.names)

    @property
    def rows(self) -> Array:
        """The present observation as ``(N, F)`` float32, without the mask."""
        rows: Array = self.batch.observation[0].copy()
        return rows

    @property
    def active(self) -> Array:
        """True where a slot holds a cgroup, ``(N,)``."""
        active: Array = self.batch.active[0].copy()
        return active

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Draw a host, settle it, and look at it."""
        super().reset(seed=seed)
        host_seed = choose_host(self.np_random, options)
        settle_host(self.batch, host_seed, self.split, self.settle_ticks)
        self.tick = 0
        self._history.clear()
        return observe(self.batch, 0), {"host_seed": host_seed}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """One second under levels, integers ``(N * 7,)``."""
        levels = np.asarray(action, dtype=np.int64).reshape(1, self.batch.n_cgroups, N_HEADS)
        self.batch.step_levels(levels)
        self.tick += 1
        if self.render_mode is not None:
            self._history.note(self.batch, 0)
        reward, info = outcome(self.batch, 0)
        return observe(self.batch, 0), reward, False, self.tick >= self.episode_ticks, info

    def render(self) -> Any:
        """The last minutes as a picture, uint8 ``(height, width, 3)``, or the host as text."""
        if self.render_mode is None:
            gym.logger.warn("render() without a render_mode; pass one to gymnasium.make")
            return None
        if self.render_mode == "ansi":
            return write_ansi(self.batch, 0, self.tick)
        return draw(self._history)


def make_batch(
    scenario: str | ScenarioConfig,
    objective: str | ObjectiveConfig,
    n_hosts: int,
    host_kind: HostKindName,
    shield: bool,
) -> HostBatch:
    """The core behind an environment, from names or configurations.

    Raises:
        ConfigError: No such scenario or objective, or a value that will not do.
    """
    if host_kind not in ("stock", "bpf"):
        raise ConfigError(f"host_kind: got {host_kind!r}, needs 'stock' or 'bpf'")
    loaded = load_scenario(scenario) if isinstance(scenario, str) else scenario
    goal = load_objective(objective) if isinstance(objective, str) else objective
    return HostBatch(loaded, goal, n_hosts=n_hosts, host_kind=host_kind, shield=shield)


def ticks_of(
    scenario: ScenarioConfig, settle_ticks: int | None, episode_ticks: int | None
) -> tuple[int, int]:
    """Settling and episode length, the scenario's where nothing else was asked for.

    Raises:
        ConfigError: A length that will not do.
    """
    settle = scenario.settle_ticks if settle_ticks is None else settle_ticks
    episode = scenario.episode_ticks if episode_ticks is None else episode_ticks
    if settle < 0 or episode < 1:
        raise ConfigError(
            f"settle_ticks must be 0 or more, episode_ticks 1 or more, got {settle} and {episode}"
        )
    return settle, episode


def host_space(n_cgroups: int) -> spaces.Box:
    """Flat observation space: per cgroup the features, then 1 where there is a cgroup."""
    low = np.array([*(f.low for f in FEATURES), 0.0], dtype=np.float32)
    high = np.array([*(f.high for f in FEATURES), 1.0], dtype=np.float32)
    return spaces.Box(np.tile(low, n_cgroups), np.tile(high, n_cgroups), dtype=np.float32)


def action_space(n_cgroups: int) -> spaces.MultiDiscrete[Any]:
    """Flat action space: per cgroup the level of each head."""
    return spaces.MultiDiscrete(np.tile(np.array(LEVEL_COUNTS), n_cgroups))


def choose_host(rng: np.random.Generator, options: dict[str, Any] | None) -> int:
    """The seed of the next host: the one asked for, or a draw.

    Raises:
        ConfigError: The seed asked for is not one.
    """
    drawn = int(rng.integers(MAX_SEED))
    wanted = (options or {}).get("host_seed", drawn)
    if not isinstance(wanted, int | np.integer) or not 0 <= wanted <= MAX_SEED:
        raise ConfigError(f"options['host_seed']: got {wanted!r}, needs 0 .. 2**63 - 1")
    return int(wanted)


def observe(batch: HostBatch, host: int) -> Array:
    """The flat observation of one host."""
    flat = np.empty((batch.n_cgroups, WIDTH), dtype=np.float32)
    flat[:, :N_FEATURES] = batch.observation[host]
    flat[:, N_FEATURES] = batch.active[host]
    return flat.reshape(-1)


def outcome(batch: HostBatch, host: int) -> tuple[float, dict[str, Any]]:
    """Reward and info of one host's tick."""
    n_active = max(int(batch.active[host].sum()), 1)
    means = np.round(batch.terms[host].sum(axis=0) / n_active / QUANTUM) * QUANTUM
    terms = {name: float(v) for name, v in zip(TERM_NAMES, means, strict=True)}
    return sum(terms.values()), {
        "reward_terms": terms,
        "metrics": {name: batch.metrics[host, :, k].copy() for k, name in enumerate(METRIC_NAMES)},
        "levels": batch.levels[host].copy(),
        "interventions": batch.interventions[host].copy(),
    }


def reference_page() -> str:
    """Tables of action, observation and reward, as they end the class's documentation."""
    actions = [
        f"    {k}  {h.name:<10}{h.n_levels}  {h.meaning} [{h.unit}]" for k, h in enumerate(HEADS)
    ]
    features = [
        f"    {k:>2}  {f.name:<23}{f.unit:<7}{f.low:>6g} .. {f.high:<5g}{f.meaning}"
        for k, f in enumerate(FEATURES)
    ]
    features.append(
        f"    {N_FEATURES:>2}  {'active':<23}{'flag':<7}{0:>6g} .. {1:<5g}a cgroup is there"
    )
    return "\n".join(
        [
            "    Action: ``MultiDiscrete``, N times these heads (index, name, levels, meaning); "
            "level 0 is\n    the owner's configuration everywhere::\n",
            *actions,
            "\n    Observation: ``Box``, N times these columns (index, name, unit, range, "
            "meaning); the kernel\n    file behind each is in docs/contract.md::\n",
            *features,
            "\n    Reward terms, in their order: " + ", ".join(TERM_NAMES[:6]) + ",",
            "    " + ", ".join(TERM_NAMES[6:]) + ".",
            "\n    Versions: v0, the first.\n    ",
        ]
    )


HostEnv.__doc__ = f"{(HostEnv.__doc__ or '').rstrip()}\n\n{reference_page()}"

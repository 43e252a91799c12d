from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from memcg_gym.agents.clairvoyant import Clairvoyant, ClairvoyantConfig
from memcg_gym.agents.policy import HEAD_KNOBS, Array, Policy, View, owner_knobs_from
from memcg_gym.agents.registry import make_policy, policy_names
from memcg_gym.agents.rollout import REASONS, attach, rollout, step, view_of
from memcg_gym.configs.loader import load_objective, load_scenario, names
from memcg_gym.envs.contract.errors import ConfigError
from memcg_gym.envs.contract.heads import N_HEADS, Head
from memcg_gym.envs.contract.knobs import N_KNOBS
from memcg_gym.envs.contract.shield_rules import Shielded
from memcg_gym.envs.core import HostBatch
from memcg_gym.envs.reward import SCORE_TERMS, Term

SPECS = [
    *(name for name in policy_names() if name != "clairvoyant"),
    "clairvoyant:horizon_s=4,decide_every_s=15,breadth=1",
    "constant:reclaim=2,protect=3,demote=2,shed=1",
    "senpai+oomd+tpp",
    "agentcgroup+senpai+tmo",
]
SCENARIOS = names("scenarios")


def host_batch(scenario: str, n_hosts: int = 2, **rest: Any) -> HostBatch:
    batch = HostBatch(load_scenario(scenario), load_objective(), n_hosts=n_hosts, **rest)
    batch.reset(seed=11)
    return batch


class Spy:
    """Passes a policy's answers on and checks each of them."""

    def __init__(self, policy: Policy, supported: Array) -> None:
        self.policy, self.supported = policy, supported
        self.name, self.speaks, self.shielded = policy.name, policy.speaks, policy.shielded
        self.answers: list[Array] = []

    def reset(self, batch_shape: tuple[int, int], supported: Array, seed: int) -> None:
        self.policy.reset(batch_shape, supported, seed)

    def attach(self, batch: HostBatch) -> None:
        attach(self.policy, batch)

    def act(self, view: View) -> Array:
        answer = self.policy.act(view)
        self.answers.append(answer.copy())
        lacking = [head for head in Head if not self.supported[head]]
        if self.speaks == "levels":
            assert answer.shape == (*view.active.shape, N_HEADS)
            assert answer.dtype == np.int64
            assert not answer[..., lacking].any()
        else:
            assert answer.shape == (*view.active.shape, N_KNOBS)
            assert np.isfinite(answer).all()
            assert (answer >= 0).all()
            writable = {
                int(k) for h, knobs in HEAD_KNOBS.items() if h not in lacking for k in knobs
            }
            others = [k for k in range(N_KNOBS) if k not in writable]
            assert np.array_equal(answer[..., others], owner_knobs_from(view)[..., others])
        return answer


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_policy_runs_on_every_scenario_and_repeats_itself(scenario: str, spec: str) -> None:
    runs = []
    for _ in range(2):
        policy = make_policy(spec)
        batch = host_batch(scenario, shield=policy.shielded)
        spy = Spy(policy, batch.supported)
        result = rollout(batch, spy, 30, seed=5)
        assert np.isfinite(result.terms).all()
        assert np.isfinite(result.metrics).all()
        assert np.isfinite(batch.signals).all()
        runs.append((result.terms, np.stack(spy.answers)))
    assert np.array_equal(runs[0][0], runs[1][0])
    assert np.array_equal(runs[0][1], runs[1][1])


@pytest.mark.parametrize("host_kind", ["stock", "bpf"])
def test_kernel_default_is_the_host_left_alone(host_kind: Any) -> None:
    batch = host_batch("lock-inversion", host_kind=host_kind)
    rollout(batch, make_policy("kernel-default"), 20)
    alone = host_batch("lock-inversion", host_kind=host_kind)
    for _ in range(20):
        alone.step_knobs(alone.owner_knobs())
    assert np.array_equal(batch.signals, alone.signals)
    assert np.array_equal(batch.terms, alone.terms)


def test_a_rollout_adds_up_what_the_batch_reports() -> None:
    policy = make_policy("constant:reclaim=3")
    result = rollout(host_batch("burst"), policy, 12, timeline=True)
    batch = host_batch("burst")
    policy.reset((2, batch.n_cgroups), batch.supported, 0)
    terms, score = np.zeros_like(batch.terms), np.zeros(2)
    for tick in range(12):
        step(batch, policy, tick)
        terms += batch.terms
        score += batch.terms[..., SCORE_TERMS].sum(axis=(1, 2)) / batch.n_cgroups
    assert np.array_equal(result.terms, terms)
    assert result.score == pytest.approx(score / 12)
    assert (result.cgroup_ticks == 12).all()
    assert result.timeline is not None
    assert result.timeline.score.sum(axis=0) == pytest.approx(score)
    assert (result.timeline.levels[..., Head.RECLAIM] == 3).all()
    assert not SCORE_TERMS[Term.HARM]


def test_a_rollout_in_two_parts_is_the_rollout_in_one() -> None:
    whole = rollout(host_batch("tier-stream"), make_policy("tmo"), 20)
    batch, policy = host_batch("tier-stream"), make_policy("tmo")
    first = rollout(batch, policy, 13)
    second = rollout(batch, policy, 7, reset=False, first_tick=first.next_tick)
    assert second.next_tick == whole.next_tick == 20
    assert first.terms + second.terms == pytest.approx(whole.terms, rel=1e-12)


def test_interventions_are_counted_by_reason() -> None:
    result = rollout(host_batch("host-mix"), make_policy("constant:kill=1"), 5)
    reason = REASONS.index(Shielded.KILL_PRESSURE)
    assert np.array_equal(result.interventions[..., reason], result.cgroup_ticks)


def test_the_view_shows_the_batch() -> None:
    batch = host_batch("burst")
    shown = view_of(batch, 7)
    assert shown.tick == 7
    assert shown.features is batch.features
    assert shown.signals_before is batch.signals_before


def test_the_search_knows_the_future_it_will_meet() -> None:
    batch = host_batch("burst", n_hosts=1)
    policy = Clairvoyant(ClairvoyantConfig(horizon_s=6, breadth=0))
    policy.reset((1, batch.n_cgroups), batch.supported, 0)
    policy.attach(batch)
    plans = policy.plans_to_try(np.array([1]))
    foretold = policy.score(plans)[0]
    for plan, expected in zip(plans[0, [0, 3, 7]], foretold[[0, 3, 7]], strict=True):
        real = batch.clone()
        total = 0.0
        for _ in range(6):
            real.step_levels(plan[None])
            total += float(real.terms[..., SCORE_TERMS].sum())
        assert total == pytest.approx(float(expected), rel=1e-12)
    assert policy.searched_cgroup_steps == plans.shape[1] * batch.n_cgroups * 6


def test_clairvoyant_beats_kernel_default_and_random_on_a_short_burst() -> None:
    scores = {}
    for spec in (
        "kernel-default",
        "random",
        "clairvoyant:horizon_s=40,decide_every_s=40,breadth=0",
    ):
        policy = make_policy(spec)
        batch = host_batch("burst", shield=policy.shielded)
        scores[policy.name.partition(":")[0]] = rollout(batch, policy, 40, seed=1).score.mean()
    assert scores["clairvoyant"] > scores["kernel-default"]
    assert scores["clairvoyant"] > scores["random"]


def test_clairvoyant_without_a_model_to_look_into_is_refused() -> None:
    policy = make_policy("clairvoyant")
    policy.reset((1, 1), np.ones(N_HEADS, dtype=np.int64), 0)
    batch = host_batch("burst", n_hosts=1)
    with pytest.raises(ConfigError, match="attach"):
        policy.act(view_of(batch))

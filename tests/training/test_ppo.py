from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnv

from memcg_gym.agents.learned import Start
from memcg_gym.agents.rules import Change, Rules
from memcg_gym.configs.schema import PpoConfig
from memcg_gym.envs.contract.features import N_FEATURES, SHIFT, F
from memcg_gym.envs.contract.heads import LEVEL_COUNTS, N_HEADS, Head
from memcg_gym.envs.sb3_vec_env import CgroupVecEnv, row_space
from memcg_gym.training.buffer import MaskedRolloutBuffer
from memcg_gym.training.checkpoint import to_learned
from memcg_gym.training.policies import WIDTH, LevelsPolicy
from memcg_gym.training.ppo import REWARD_SCALE, CgroupPPO, End, Held, make_ppo
from tests.envs.small import small_env

SUPPORTED = (1, 1, 0, 1, 0, 0, 1)
SMALL = PpoConfig(hosts=2, n_steps=16, batch_size=32, n_epochs=2, hidden=(16,), critic_hidden=(16,))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    # As the verb does: small networks lose by a second thread, badly where the machine is shared.
    th.set_num_threads(1)


def policy(supported: tuple[int, ...] = SUPPORTED, seed: int = 0) -> LevelsPolicy:
    th.manual_seed(seed)
    made = LevelsPolicy(
        row_space(),
        spaces.MultiDiscrete(np.array(LEVEL_COUNTS)),
        lambda _: 1e-3,
        supported=supported,
        hidden=(16,),
        critic_hidden=(16,),
    )
    with th.no_grad():  # the last layer starts near 0; make the logits say something
        made.actor[-1].weight.mul_(100.0)
    return made


def inputs(rows: int = 64) -> th.Tensor:
    return th.rand((rows, N_FEATURES), generator=th.Generator().manual_seed(1))


def quiet(model: CgroupPPO) -> CgroupPPO:
    model.set_logger(Logger(None, []))
    return model


class Nothing(BaseCallback):
    def _on_step(self) -> bool:
        return True


def reference(made: LevelsPolicy, x: th.Tensor) -> list[th.distributions.Categorical]:
    """One torch distribution a head, over the levels there are."""
    logits = made.actor(x).view(-1, N_HEADS, WIDTH)
    return [
        th.distributions.Categorical(logits=logits[:, head, : n if made.supported[head] else 1])
        for head, n in enumerate(LEVEL_COUNTS)
    ]


def test_log_probabilities_and_entropy_are_those_of_separate_heads() -> None:
    made, x = policy(), inputs()
    actions, _, log_prob = made.act(x, th.Generator().manual_seed(2))
    _, again, entropy = made.evaluate_inputs(x, actions)
    heads = reference(made, x)
    expected = sum(h.log_prob(actions[:, k]) for k, h in enumerate(heads))
    assert th.allclose(log_prob, expected, atol=1e-4)
    assert th.equal(log_prob, again)
    assert th.allclose(entropy, sum(h.entropy() for h in heads), atol=1e-4)


def test_sampling_follows_the_probabilities() -> None:
    made = policy()
    x = inputs(1).expand(20_000, -1)
    actions, _, _ = made.act(x, th.Generator().manual_seed(3))
    for k, head in enumerate(reference(made, x[:1])):
        shares = np.bincount(actions[:, k].numpy(), minlength=WIDTH) / len(actions)
        expected = np.zeros(WIDTH)
        expected[: head.probs.shape[1]] = head.probs[0].detach().numpy()
        assert np.abs(shares - expected).max() < 0.015


def test_unsupported_heads_stay_at_level_0_with_probability_1_and_no_entropy() -> None:
    made, x = policy((0,) * N_HEADS), inputs()
    actions, _, log_prob = made.act(x)
    _, _, entropy = made.evaluate_inputs(x, actions)
    assert not actions.any()
    assert (log_prob == 0.0).all()
    assert (entropy == 0.0).all()
    assert not made.best(x).any()


def test_unsupported_heads_get_no_gradient() -> None:
    made, x = policy(), inputs()
    actions, _, _ = made.act(x)
    _, log_prob, entropy = made.evaluate_inputs(x, actions)
    (log_prob.sum() + entropy.sum()).backward()
    grad = made.actor[-1].weight.grad.view(N_HEADS, WIDTH, -1).abs().sum(dim=(1, 2))
    assert (grad > 0).tolist() == [bool(s) for s in SUPPORTED]


def test_levels_that_do_not_exist_are_never_chosen() -> None:
    made = policy((1,) * N_HEADS)
    with th.no_grad():
        made.actor[-1].bias.view(N_HEADS, WIDTH)[:, -1] = 50.0
    actions = made.act(inputs(5000))[0]
    assert (actions < th.tensor(LEVEL_COUNTS)).all()
    assert (made.best(inputs()) < th.tensor(LEVEL_COUNTS)).all()


def test_extreme_logits_stay_finite() -> None:
    made, x = policy(), inputs()
    with th.no_grad():
        made.actor[-1].weight.mul_(1e6)
    actions, _, log_prob = made.act(x)
    _, _, entropy = made.evaluate_inputs(x, actions)
    assert th.isfinite(log_prob).all() and th.isfinite(entropy).all()


def test_training_starts_beside_the_owner_s_configuration() -> None:
    th.manual_seed(0)
    fresh = LevelsPolicy(row_space(), spaces.MultiDiscrete(np.array(LEVEL_COUNTS)), lambda _: 1e-3)
    assert not fresh.best(inputs()).any()
    share_of_owner = (fresh.act(inputs(4000))[0] == 0).float().mean(dim=0)
    assert (share_of_owner > 0.6).all() and (share_of_owner < 0.95).all()


def test_what_sb3_calls_agrees_with_what_training_calls() -> None:
    made = policy()
    obs = th.from_numpy(row_space().sample()[None]).repeat(8, 1)
    actions, values, log_prob = made(obs, deterministic=True)
    again, log_again, _ = made.evaluate_actions(obs, actions)
    assert th.equal(values, again) and th.equal(log_prob, log_again)
    assert th.equal(made.predict_values(obs).squeeze(-1), values)
    predicted, _ = made.predict(obs.numpy(), deterministic=True)
    assert np.array_equal(predicted, actions.numpy())


def filled(model: CgroupPPO) -> MaskedRolloutBuffer:
    rng = np.random.default_rng(0)
    buffer = model.rollout_buffer
    buffer.reset()
    rows = model.n_envs
    for _ in range(buffer.buffer_size):
        x = th.from_numpy(rng.random((rows, N_FEATURES), dtype=np.float32))
        with th.no_grad():
            actions, values, log_probs = model.policy.act(x, model.generator)
        active = rng.random(rows) < 0.7
        buffer.add(
            x.numpy(),
            actions.numpy(),
            rng.random(rows),
            np.zeros(rows),
            values,
            log_probs,
            active,
        )
    buffer.compute_returns_and_advantage(th.zeros(rows), np.zeros(rows, dtype=bool))
    return buffer


def test_masked_rows_change_no_gradient() -> None:
    results = []
    for spoil in (False, True):
        model = quiet(make_ppo(small_env(hosts=2), SMALL, seed=1))
        buffer = filled(model)
        if spoil:
            masked = buffer.active == 0.0
            assert masked.any()
            buffer.observations[masked] = 7.0
            buffer.actions[masked] = 0
            buffer.rewards[masked] = 1e6
            buffer.advantages[masked] = -1e6
            buffer.returns[masked] = 1e6
            buffer.log_probs[masked] = -9.0
        model.train()
        results.append({k: v.clone() for k, v in model.policy.state_dict().items()})
    assert all(th.equal(results[0][k], results[1][k]) for k in results[0])


def test_active_rows_do_change_the_networks() -> None:
    model = quiet(make_ppo(small_env(hosts=2), SMALL, seed=1))
    before = {k: v.clone() for k, v in model.policy.state_dict().items()}
    filled(model)
    model.train()
    after = model.policy.state_dict()
    assert all(not th.equal(before[k], after[k]) for k in before if k.endswith("weight"))


def test_timesteps_and_the_rate_count_active_rows_only() -> None:
    env = small_env(hosts=2)
    model = quiet(make_ppo(env, SMALL, seed=1))
    model.learn(1, callback=Nothing())
    counted = int(model.rollout_buffer.active.sum())
    assert counted < SMALL.n_steps * env.num_envs
    assert model.num_timesteps == counted


def test_a_rollout_holds_the_policy_s_own_actions_and_scaled_inputs() -> None:
    env = small_env(hosts=2)
    model = quiet(make_ppo(env, SMALL, seed=1))
    first = th.from_numpy(env.reset())
    model.learn(1, callback=Nothing())
    buffer = model.rollout_buffer
    # The rollout was made before the update, so its log-probabilities are the old policy's.
    old = quiet(make_ppo(small_env(hosts=2), SMALL, seed=1)).policy
    with th.no_grad():
        _, log_prob, _ = old.evaluate_inputs(
            th.from_numpy(buffer.observations[0]), th.from_numpy(buffer.actions[0])
        )
    assert np.allclose(log_prob.numpy(), buffer.log_probs[0], atol=1e-6)
    assert np.array_equal(buffer.observations[0], old.scale(first).numpy())


def value_of(model: CgroupPPO, observation: np.ndarray) -> float:
    return model.policy.predict_values(th.from_numpy(observation[None])).item()


def test_a_truncated_row_s_reward_holds_the_value_of_its_terminal_observation() -> None:
    model = quiet(make_ppo(small_env(hosts=2), SMALL, seed=1))
    terminal = row_space().sample()
    nothing = np.zeros((3, N_FEATURES), dtype=np.float32)
    dones, active = np.array([False, True, True]), np.ones(3, dtype=bool)
    ends = [End(1, terminal, 0.25)]
    rewards = model._bootstrap(Held(nothing, np.ones(3, np.float32), dones, active, ends, 3))
    assert rewards[0] == rewards[2] == 1.0
    assert rewards[1] == pytest.approx(1.0 + 0.25 * value_of(model, terminal))


class Lookup(VecEnv):
    """Rows whose best throttle and reclaim levels are written in two of their features."""

    def __init__(self, rows: int = 64) -> None:
        self.render_mode = None
        self.supported = np.array([1, 1, 0, 0, 0, 0, 0])
        self.active_rows = np.ones(rows, dtype=np.bool_)
        self.rng = np.random.default_rng(0)
        super().__init__(rows, row_space(), spaces.MultiDiscrete(np.array(LEVEL_COUNTS)))

    def look(self) -> np.ndarray:
        self.best = self.rng.integers(2, size=(self.num_envs, 2)) * np.array([3, 4])
        observation = np.zeros((self.num_envs, N_FEATURES), dtype=np.float32)
        observation[:, [F.PSI_MEM_SOME, F.USAGE_RATIO]] = self.best > 0
        return observation

    def reset(self) -> np.ndarray:
        return self.look()

    def step_async(self, actions: np.ndarray) -> None:
        self.asked = actions[:, [Head.THROTTLE, Head.RECLAIM]]

    def step_wait(self) -> Any:
        rewards = (self.asked == self.best).mean(axis=1).astype(np.float32) / REWARD_SCALE
        ends = np.ones(self.num_envs, dtype=np.bool_)
        return self.look(), rewards, ends, [{} for _ in range(self.num_envs)]

    def close(self) -> None: ...

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [getattr(self, attr_name)] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        setattr(self, attr_name, value)

    def env_method(self, method_name: str, *args: Any, **kwargs: Any) -> list[Any]:
        return []

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False] * self.num_envs

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        self.rng = np.random.default_rng(seed)
        return [seed] * self.num_envs


class Script(Lookup):
    """Rows whose every tick is written down: reward, done and whether the tick was a transition."""

    def __init__(self, rewards: Any, dones: Any, active: Any) -> None:
        self.rewards = np.array(rewards, dtype=np.float32)
        self.dones, self.active = np.array(dones, dtype=bool), np.array(active, dtype=bool)
        self.tick = 0
        super().__init__(self.rewards.shape[1])

    def at(self, tick: int) -> np.ndarray:
        return np.full((self.num_envs, N_FEATURES), 0.01 * tick, dtype=np.float32)

    def reset(self) -> np.ndarray:
        self.tick = 0
        return self.at(0)

    def step_wait(self) -> Any:
        at, self.tick = self.tick, self.tick + 1
        self.active_rows = self.active[at]
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for row in np.flatnonzero(self.dones[at]):
            infos[row] = {"terminal_observation": self.at(50 + at)[row]}
            infos[row]["TimeLimit.truncated"] = True
        return self.at(self.tick), self.rewards[at], self.dones[at], infos


HELD = SMALL.model_copy(update={"hold_ticks": 3, "gamma": 0.5})


def test_held_levels_earn_the_discounted_sum_until_the_row_ends() -> None:
    # Rows: nothing happens; the episode ends in tick 2; the tenant leaves in tick 2 (no
    # transition); leaves in tick 1; the slot is empty until somebody comes in tick 2.
    rewards = [[8.0, 8.0, 8.0, 0.0, 0.0], [8.0, 8.0, 0.0, 0.0, 0.0], [8.0, 8.0, 8.0, 8.0, 8.0]]
    dones = [[0, 0, 0, 1, 0], [0, 1, 1, 0, 0], [0, 0, 0, 0, 0]]
    active = [[1, 1, 1, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 1]]
    env: Any = Script(rewards, dones, active)
    model = quiet(make_ppo(env, HELD, seed=1))
    env.reset()

    held = model._hold(env, np.zeros((5, N_HEADS), dtype=np.int64))

    sums = np.array([8.0 + 4.0 + 2.0, 8.0 + 4.0, 8.0, 0.0, 0.0])
    assert held.rewards == pytest.approx(REWARD_SCALE * sums)
    assert held.active.tolist() == [True, True, True, False, False]
    assert held.dones.tolist() == [False, True, True, True, True]
    assert held.ticks == 3 + 2 + 1
    assert np.array_equal(held.observation, env.at(3))
    # Of a whole tick the row lived through, or of the one it was gone in.
    assert [(end.row, end.discount) for end in held.ends] == [(3, 1.0), (1, 0.25), (2, 0.5)]
    assert np.array_equal(held.ends[1].observation, env.at(51)[1])
    assert model.gamma == 0.5**3


def test_holding_for_one_tick_is_a_plain_step() -> None:
    env: Any = Script([[3.0, 5.0]], [[0, 1]], [[1, 1]])
    model = quiet(make_ppo(env, HELD.model_copy(update={"hold_ticks": 1}), seed=1))
    env.reset()
    held = model._hold(env, np.zeros((2, N_HEADS), dtype=np.int64))
    assert held.rewards == pytest.approx(REWARD_SCALE * np.array([3.0, 5.0]))
    assert held.dones.tolist() == [False, True] and held.active.all()
    assert [(end.row, end.discount) for end in held.ends] == [(1, 0.5)]


def start() -> Start:
    split = Change(0, F.PRIORITY, 1 << SHIFT, True, ((Head.RECLAIM, 3),))
    return Start(Rules().changed(split).changed(Change(0, -1, 0, False, ((Head.PROTECT, 2),))), 4.0)


def test_a_policy_that_starts_from_rules_answers_as_they_do() -> None:
    th.manual_seed(0)
    made = LevelsPolicy(
        row_space(), spaces.MultiDiscrete(np.array(LEVEL_COUNTS)), lambda _: 1e-3, preference=4.0
    )
    made.start_from(start())
    rng = np.random.default_rng(3)
    low, high = row_space().low, row_space().high
    fixed = (rng.uniform(low, high, (500, N_FEATURES)) * (1 << SHIFT)).astype(np.int32)
    fixed[:, F.PRIORITY] = rng.integers(0, 4, 500) << SHIFT
    rules = start().rules
    wanted = rules.levels[rules.rule_of(fixed)]
    observation = th.from_numpy(fixed.astype(np.float32) / np.float32(1 << SHIFT))
    assert np.array_equal(made.best(made.scale(observation)).numpy(), wanted)
    assert len(np.unique(wanted[:, Head.RECLAIM])) == 2
    # What is deployed is the same network on integers.
    assert np.array_equal(to_learned(made).logits(fixed).argmax(axis=-1), wanted)


def test_the_owner_s_configuration_can_be_had_from_any_policy() -> None:
    made = policy()
    made.start_from(start())
    assert made.best(inputs()).any()
    made.always((0,) * N_HEADS)
    assert not made.best(inputs()).any()


def test_learns_what_is_known_to_be_best() -> None:
    env: Any = Lookup()
    config = SMALL.model_copy(
        update={"n_steps": 16, "batch_size": 256, "n_epochs": 4, "learning_rate": 1e-2}
    )
    model = quiet(make_ppo(env, config, seed=0))
    model.learn(30_000, callback=Nothing())
    x = model.policy.scale(th.from_numpy(env.look()))
    chosen = model.policy.best(x)[:, :2].numpy()
    assert (chosen == env.best).mean() > 0.98


def test_the_same_seed_trains_the_same_network() -> None:
    def weights(env: CgroupVecEnv) -> bytes:
        model = quiet(make_ppo(env, SMALL, seed=5))
        model.learn(200, callback=Nothing())
        return b"".join(v.numpy().tobytes() for v in model.policy.state_dict().values())

    assert weights(small_env(hosts=2)) == weights(small_env(hosts=2, threads=2))

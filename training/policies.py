"""The actor-critic that all rows share, and its distribution over levels.

Seven heads of two to five levels sit in one logit matrix ``(rows, 7 * 5)``; levels that do not
exist, and all but level 0 of heads the scenario has no knob for, have probability 0.  Sums over a
head are products with a constant matrix, which serves all heads at once and is twice as fast as
seven small softmaxes.  An unsupported head has level 0, log-probability 0 and entropy 0, exactly.

Log-probabilities are those of the policy's own action: what the shield makes of it is the
environment's business.

At the start the policy prefers level 0 ("as if we were not there") in every head, so that training
begins beside the owner's configuration and not from random reclaim.

Units: inputs as ``agents/inputs.py`` scales them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from memcg_gym.agents.inputs import FACTOR, GAIN
from memcg_gym.agents.learned import LOGIT_BOUND, WIDTH, Start, level_mask
from memcg_gym.envs.contract.features import N_FEATURES
from memcg_gym.envs.contract.heads import LEVEL_COUNTS, N_HEADS

Array = np.ndarray[Any, np.dtype[Any]]


class LevelsPolicy(ActorCriticPolicy):
    """Two networks, no shared trunk: actor to masked logits, critic to a value.

    Args:
        observation_space, action_space, lr_schedule: As SB3 passes them.
        supported: 1 where the scenario has a knob for the head, length ``N_HEADS``.
        hidden, critic_hidden: Widths of the hidden layers.
        activation: ``"relu"`` or ``"tanh"``.
        preference: Logit of the preferred level at the start: 2 is 65 % where a head has five
            levels, 88 % where it has two.
        **kwargs: Passed on to SB3.
    """

    keep: th.Tensor
    mask: th.Tensor
    per_head: th.Tensor
    up_to: th.Tensor
    first: th.Tensor
    top_level: th.Tensor
    gain: th.Tensor
    factor: th.Tensor

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        *,
        supported: tuple[int, ...] = (1,) * N_HEADS,
        hidden: tuple[int, ...] = (64, 64),
        critic_hidden: tuple[int, ...] = (64, 64),
        activation: str = "relu",
        preference: float = 2.0,
        **kwargs: Any,
    ) -> None:
        self.preference = preference
        self.supported = tuple(int(s) for s in supported)
        self.hidden, self.critic_hidden = tuple(hidden), tuple(critic_hidden)
        self.activation = activation
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)

    def _build(self, lr_schedule: Schedule) -> None:
        for name, array in distribution_constants(np.array(self.supported)).items():
            self.register_buffer(name, th.from_numpy(array), persistent=False)
        self.register_buffer("gain", th.from_numpy(GAIN), persistent=False)
        self.register_buffer("factor", th.from_numpy(FACTOR), persistent=False)
        self.actor = make_mlp(self.hidden, N_HEADS * WIDTH, self.activation, 0.01)
        self.critic = make_mlp(self.critic_hidden, 1, self.activation, 1.0)
        self.start: Start | None = None
        self.prefer((0,) * N_HEADS)
        self.optimizer = th.optim.Adam(
            self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs
        )

    def prefer(self, levels: Sequence[int] | None) -> None:
        """Start out preferring one level of each head, whatever the observation.

        Args:
            levels: One level a head; all zero is the owner's configuration; None = no preference.
        """
        with th.no_grad():
            last = self.actor[-1]
            assert isinstance(last, nn.Linear)  # by construction
            bias = last.bias.view(N_HEADS, WIDTH)
            bias.zero_()
            for head, level in enumerate(levels or ()):
                bias[head, level] = self.preference

    def start_from(self, start: Start | None) -> None:
        """Start out preferring what rules answer; the network learns to correct them."""
        self.start = start
        if start is not None:
            self.prefer(None)
            self.thresholds = [float(t) for t in start.rules.scaled_thresholds()]
            self.rule_logits = th.from_numpy(start.rule_logits())

    def start_logits(self, inputs: th.Tensor) -> th.Tensor:
        """What the rules add to the logits, ``(rows, 35)``."""
        assert self.start is not None  # asked only then
        rule = th.zeros(len(inputs), dtype=th.int64)
        for split, threshold in zip(self.start.rules.splits, self.thresholds, strict=True):
            moved = (rule == split.rule) & (inputs[:, split.feature] > threshold)
            rule.masked_fill_(moved, split.above)
        return self.rule_logits.index_select(0, rule)

    def always(self, levels: Sequence[int]) -> None:
        """Choose these levels, by argmax, whatever the observation."""
        with th.no_grad():
            last = self.actor[-1]
            assert isinstance(last, nn.Linear)  # by construction
            last.weight.zero_()
        self.start_from(None)
        self.prefer(levels)

    def scale(self, obs: th.Tensor) -> th.Tensor:
        """Network inputs of observations in units; needs no gradient."""
        return th.copysign(th.log1p(self.gain * obs.abs()) * self.factor, obs)

    def logits(self, inputs: th.Tensor) -> th.Tensor:
        """Masked logits ``(rows, 35)``; bounded, but for what rules add."""
        logits = self.actor(inputs).clamp(-LOGIT_BOUND, LOGIT_BOUND)
        if self.start is not None:
            logits = logits + self.start_logits(inputs)
        masked: th.Tensor = logits * self.keep + self.mask
        return masked

    def weights(self, inputs: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """Masked logits, their exponentials ``(rows, 35)``, and each head's sum ``(rows, 7)``.

        Logits are bounded, so exponentials can neither overflow nor vanish for a whole head.
        """
        logits = self.logits(inputs)
        exponentials = logits.exp()
        return logits, exponentials, exponentials @ self.per_head

    def log_prob_of(self, logits: th.Tensor, log_sums: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """Log-probability of the chosen levels, summed over heads, ``(rows,)``."""
        return logits.gather(1, actions + self.first).sum(dim=1) - log_sums.sum(dim=1)

    def act(
        self, inputs: th.Tensor, generator: th.Generator | None = None
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """Sample levels; returns actions ``(rows, N_HEADS)``, values and log-probabilities."""
        logits, exponentials, sums = self.weights(inputs)
        # The level is how many of the head's partial sums lie below a uniform share of the whole.
        share = th.rand(sums.shape, generator=generator) * sums
        passed = (exponentials @ self.up_to) <= share @ self.per_head.T
        actions = th.minimum((passed.float() @ self.per_head).long(), self.top_level)
        return (
            actions,
            self.critic(inputs).squeeze(-1),
            self.log_prob_of(logits, sums.log(), actions),
        )

    def best(self, inputs: th.Tensor) -> th.Tensor:
        """The most probable level of every head, ``(rows, N_HEADS)``: what is deployed."""
        logits = self.logits(inputs)
        levels: th.Tensor = logits.view(-1, N_HEADS, WIDTH).argmax(dim=-1)
        return levels

    def evaluate_inputs(
        self, inputs: th.Tensor, actions: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """Values, log-probabilities and entropies of scaled inputs, ``(rows,)`` each."""
        logits, exponentials, sums = self.weights(inputs)
        log_sums = sums.log()
        entropy = (log_sums - (exponentials * logits) @ self.per_head / sums).sum(dim=1)
        log_prob = self.log_prob_of(logits, log_sums, actions)
        return self.critic(inputs).squeeze(-1), log_prob, entropy

    def forward(
        self, obs: th.Tensor, deterministic: bool = False
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """Actions, values and log-probabilities of observations in units."""
        inputs = self.scale(obs)
        if not deterministic:
            return self.act(inputs)
        actions = self.best(inputs)
        values, log_prob, _ = self.evaluate_inputs(inputs, actions)
        return actions, values, log_prob

    def evaluate_actions(
        self, obs: PyTorchObs, actions: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor | None]:
        """The same as :meth:`evaluate_inputs` for observations in units."""
        return self.evaluate_inputs(self.scale(as_tensor(obs)), actions.long())

    def predict_values(self, obs: PyTorchObs) -> th.Tensor:
        """Values of observations in units, ``(rows, 1)``."""
        value: th.Tensor = self.critic(self.scale(as_tensor(obs)))
        return value

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        return self.forward(as_tensor(observation), deterministic)[0]

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | {
            "supported": self.supported,
            "hidden": self.hidden,
            "critic_hidden": self.critic_hidden,
            "activation": self.activation,
            "preference": self.preference,
        }


def distribution_constants(supported: Array) -> dict[str, Array]:
    """Constant arrays of the distribution, for a scenario's supported heads.

    ``keep`` and ``mask`` turn logits into masked ones; ``per_head`` adds up the levels of a head,
    ``up_to`` those up to each level; ``first`` is each head's first column, ``top_level`` its
    highest level.
    """
    mask = level_mask(supported)
    head_of = np.repeat(np.arange(N_HEADS), WIDTH)
    level_of = np.tile(np.arange(WIDTH), N_HEADS)
    same_head = head_of[:, None] == head_of[None, :]
    top_level = np.where(supported, np.array(LEVEL_COUNTS) - 1, 0)
    return {
        "keep": np.repeat(np.asarray(supported, dtype=np.float32), WIDTH),
        "mask": mask.reshape(-1),
        "per_head": (head_of[:, None] == np.arange(N_HEADS)[None, :]).astype(np.float32),
        "up_to": (same_head & (level_of[:, None] <= level_of[None, :])).astype(np.float32),
        "first": np.arange(N_HEADS, dtype=np.int64) * WIDTH,
        "top_level": top_level.astype(np.int64),
    }


def as_tensor(obs: PyTorchObs) -> th.Tensor:
    """The observation, which is never a dictionary here."""
    if isinstance(obs, dict):
        raise TypeError("LevelsPolicy takes one tensor of features, got a dictionary")
    return obs


def make_mlp(
    hidden: tuple[int, ...], outputs: int, activation: str, gain: float, width: int = N_FEATURES
) -> nn.Sequential:
    """A plain network, initialised orthogonally, the last layer with its own gain."""
    layers: list[nn.Module] = []
    for size in hidden:
        layers += [nn.Linear(width, size), nn.ReLU() if activation == "relu" else nn.Tanh()]
        width = size
    layers.append(nn.Linear(width, outputs))
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    for layer in linear:
        last = layer is linear[-1]
        nn.init.orthogonal_(layer.weight, gain if last else np.sqrt(2.0))
        nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers)

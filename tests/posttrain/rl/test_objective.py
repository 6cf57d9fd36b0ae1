"""K2's policy objective against numbers worked out by hand."""

from __future__ import annotations

import torch

from openk2.posttrain.rl.objective import advantages, regularised_squared_error, sequence_log_prob


def test_an_advantage_is_the_reward_less_its_groups_mean() -> None:
    rewards = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.5, 0.5, -0.5])
    groups = torch.tensor([0, 0, 0, 0, 2, 2, 2])  # group 1 lost all its rollouts
    expected = torch.tensor([0.75, -0.25, -0.25, -0.25, 1 / 3, 1 / 3, -2 / 3])
    assert torch.allclose(advantages(rewards, groups), expected)


def test_the_loss_is_the_squared_regularised_error() -> None:
    # advantage 0.5, log-ratio 2, tau 0.1: (0.5 - 0.2)^2; advantage -0.5, log-ratio -1: (-0.5 + 0.1)^2
    loss = regularised_squared_error(
        torch.tensor([-3.0, -6.0]), torch.tensor([-5.0, -5.0]), torch.tensor([0.5, -0.5]), 0.1
    )
    assert torch.allclose(loss, torch.tensor([0.09, 0.16]))


def test_descent_raises_better_samples_and_stops_where_the_ratio_has_paid_for_the_advantage() -> None:
    log_prob = torch.tensor([-5.0, -5.0, -3.0], requires_grad=True)
    advantage = torch.tensor([0.5, -0.5, 0.2])
    regularised_squared_error(log_prob, torch.tensor([-5.0, -5.0, -5.0]), advantage, 0.1).sum().backward()
    assert log_prob.grad is not None
    # d/dx (a - tau (x - old))^2 = -2 tau (a - tau (x - old)); the third one has log-ratio a / tau = 2.
    assert torch.allclose(log_prob.grad, torch.tensor([-0.1, 0.1, 0.0]), atol=1e-7)


def test_log_probabilities_add_up_by_example_and_padding_counts_nowhere() -> None:
    log_probs = torch.tensor([[-1.0, -2.0, -4.0, -100.0], [-8.0, 0.0, -16.0, -100.0]])
    example_ids = torch.tensor([[0, 0, 2, -1], [2, 2, 1, -1]])
    assert sequence_log_prob(log_probs, example_ids, 4).tolist() == [-3.0, -16.0, -12.0, 0.0]

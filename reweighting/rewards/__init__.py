"""Rewards for reinforcement learning with the reward model.

``judging`` turns responses into scores and rewards, ``trl`` is called by TRL's ``GRPOTrainer`` and
``verl`` by verl. Neither library is imported here: they call.
"""

from .trl import trl_reward

__all__ = ["trl_reward"]

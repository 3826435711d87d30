"""From prompts to scores: encoder, prefix trees, the network, and what is made of its log-odds."""

from .model import RewardModel

__all__ = ["RewardModel"]

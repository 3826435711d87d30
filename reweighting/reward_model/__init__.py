"""The process reward model: from an image, a question and a chain of steps to scores.

A record's way through this package: :mod:`.encoder` makes token ids and pixels of it,
:mod:`.prefix_tree` packs many prompts into one sequence, :mod:`.network` gives a log-odds z for
each, and :mod:`.aggregation` makes one number of the z of a chain. :class:`RewardModel` is all of
it behind one name.
"""

from .model import RewardModel

__all__ = ["RewardModel"]

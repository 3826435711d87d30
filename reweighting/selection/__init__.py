"""Best-of-N: pick one of N candidate chains per question, and measure what that is worth.

Read in this order: ``best_of_n`` (every method on the same candidates, with error bars),
``results`` (a line per question, tables from the lines), ``scorers`` (the model on this machine),
``server`` (the model behind a server), ``identity`` (which results a second run may continue),
``command`` (what it shares with :mod:`reweighting.evaluate`), ``__main__`` (the command). Scores
and their aggregation are the reward model's, see :mod:`reweighting.reward_model`.
"""

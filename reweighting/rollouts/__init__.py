"""From questions to training data: chains of thought and Monte-Carlo labels from any reasoner.

Read in this order: ``reasoner`` (what a reasoner is asked and what it returns), ``chains`` and
``labels`` (what becomes of its rollouts), ``schedules`` (when a prefix has been sampled enough),
``sampler`` (each rollout is sampled once and kept), then the two reasoners: ``local_checkpoint``,
and ``openai_server`` with ``completion``, over :mod:`reweighting.system.server`. ``flags`` and
``__main__`` are the command line.
"""

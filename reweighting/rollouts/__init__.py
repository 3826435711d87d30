"""From questions to training data: chains of thought and Monte-Carlo labels from any reasoner.

Read in this order: ``reasoner`` (what a reasoner is asked and what it returns), ``chains`` and
``labels`` (what becomes of its rollouts), ``schedules`` (when a prefix has been sampled enough),
``sampler`` and ``journal`` (each rollout is sampled once and kept), then the two reasoners:
``local_checkpoint``, and ``openai_server`` with ``http_client``, ``completion`` and ``scrubbing``
for a server that is slow, faulty or hostile. ``flags`` and ``__main__`` are the command line.
"""

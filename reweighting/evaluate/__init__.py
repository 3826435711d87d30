"""A reward model judged step by step, on benchmarks with a label for every step.

Read in this order: ``layouts`` (from files to labelled steps), ``metrics`` (right steps against
wrong ones), ``results`` (by source and over all, with intervals), ``figure`` (a picture of them),
``__main__`` (the command). Scoring, and going on after a kill, are those of
:mod:`reweighting.selection`.
"""

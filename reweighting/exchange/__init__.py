"""Candidates from, and choices to, the result files of other evaluation tools.

``vlmevalkit`` and ``lm_eval`` know the formats, ``choices`` reads what a selection wrote.
"""

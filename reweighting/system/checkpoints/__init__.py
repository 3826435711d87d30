"""Checkpoints on disk: where they are, how they are opened, and how they are written.

:mod:`.finding` knows the layout of a run's directory and finds its newest complete checkpoint;
:mod:`.opening` reads what is in it and names what is damaged; :mod:`.saving` writes one so that it
takes effect as a whole; :mod:`.weight_tables` holds the learned weights of domains and records;
:mod:`.fingerprint` tells checkpoints apart without reading them whole.
"""

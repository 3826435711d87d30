"""A run of ``main.py``: its flags, its parts, the loop, and what it writes and says.

Read in this order: :mod:`.arguments` (with :mod:`.flags` and :mod:`.presets`), :mod:`.build` (the
parts that main.py puts together), :mod:`.engine` (the loop), :mod:`.resume` and :mod:`.progress`,
:mod:`.monitors` and :mod:`.statistics` (whether the weights mean anything), :mod:`.reports` and
:mod:`.outcome` (what the user reads), :mod:`.validation`, and :mod:`.dry_run` with :mod:`.memory`.
"""

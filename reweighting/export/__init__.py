"""Checkpoints that others load without this package.

``checkpoint`` folds head and vocabulary into one row and writes the weights, ``recipe`` says how
prompts are made, ``vllm`` what is asked of a server, ``card`` describes the run,
``modeling_dreamprm`` is written beside the weights and runs in other people's programs,
``__main__`` is the command.
"""

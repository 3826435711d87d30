"""Figures of a training run: ``__main__`` reads what the run wrote, ``drawing`` draws it."""

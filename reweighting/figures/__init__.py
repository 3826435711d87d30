"""Figures of a training run: ``reading`` reads what the run wrote, ``drawing`` draws it."""

"""A page to look at: one HTML file with the choices of a selection and the course of a run.

``choices`` reads a selection, ``course`` a run, ``page`` makes the file of what they found from
``page.html``, ``page.css`` and ``page.js``; ``__main__`` is the command.
"""

"""Published training data as train and meta records; docs/published-data.md describes the sets.

``rows`` reads their files one row at a time, ``formats`` and ``texts_only`` know their layouts,
``chains`` makes records of what a row says, ``choice`` decides which rows are used for what, and
``command`` has the flags.
"""

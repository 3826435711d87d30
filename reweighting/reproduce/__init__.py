"""The papers' tables: several trainings over several seeds, compared on the same candidates.

``configs`` holds the settings, ``study`` runs and scores them, ``tables`` writes what was found.
"""

"""The demo world: its scenes, its questions and their wording, and a reasoner that errs."""

"""The small world: scenes, questions, a simulated reasoner, and the demo data drawn from them."""

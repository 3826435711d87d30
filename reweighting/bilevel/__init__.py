"""The papers' method: two levels that meet in the weights of the training records.

Read in this order: :mod:`.objectives` (the losses of both levels), :mod:`.weighting` (what the
upper level learns, :mod:`.row_adamw` its optimizer for tables), :mod:`.problems` (the pair
``Lower`` and ``Upper``), :mod:`.hypergradient` (how the meta loss reaches the weights, with
:mod:`.adamw_step` and :mod:`.largest_group`). :mod:`.batches` feeds both levels.
"""

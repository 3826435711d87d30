"""Is there a signal? What the meta loss says about every domain, before weights are learned.

``sampling`` draws the records, ``derivative`` measures s_d on them at a moment of training,
``estimates`` says how sure that is and what explains it, ``report`` tells it.
"""

"""What files of records say: steps, answers, images and the data of a run; no model and no torch.

A file is read by :mod:`.reader`, field by field (:mod:`.fields`), into :mod:`.samples`. Those of
training lie in tables (:mod:`.tables`), which :mod:`.checking` has made and keeps.
:mod:`.steps` finds the steps of a chain, :mod:`.answers` judges its final answer, and
:mod:`.dataset` puts the files of a training run together.
"""

"""DreamPRM: multimodal process reward models trained by bilevel data reweighting."""

import logging

# transformers imports torchao wherever it is installed, and torch then warns twice of how torchao
# registers its constants.
logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)

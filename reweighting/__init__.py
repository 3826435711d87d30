"""DreamPRM: multimodal process reward models trained by bilevel data reweighting."""

"""A model in memory: sequences, scheduler, sampler, tokens and text. Importing it imports no torch."""

from edged.engine.engine import Engine
from edged.engine.load import load_model
from edged.engine.model import Model

__all__ = ["Engine", "Model", "load_model"]

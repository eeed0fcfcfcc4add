"""A stacked GRU, optionally bidirectional (Cho et al., 2014; Schuster and Paliwal, 1997).

It carries a hidden state alone, and has a quarter fewer parameters than an LSTM as wide. That need not make it faster:
for an LSTM torch has a kernel of its own on CPUs. `models/recurrent.py` gives the shapes.
"""

from models import recurrent
from models.core import Core, Shape
from models.layers.stack import GRUStack


class Config(recurrent.Config):
    def build(self, shape: Shape) -> Core:
        return recurrent.build(self, shape, GRUStack)

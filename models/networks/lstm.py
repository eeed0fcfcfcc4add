"""A stacked LSTM, optionally bidirectional (Hochreiter and Schmidhuber, 1997; Schuster and Paliwal, 1997).

It carries hidden and cell state; `models/recurrent.py` says how, and gives its shapes.
"""

from models import recurrent
from models.core import Core, Shape
from models.layers.stack import LSTMStack


class Config(recurrent.Config):
    def build(self, shape: Shape) -> Core:
        return recurrent.build(self, shape, LSTMStack)

"""How a model is made: data -> windows -> fit -> evaluate -> publish. Offline only; imports models, never app."""

"""The errors that whoever trains can put right: each is told in one line, without a traceback."""


class TrainingError(Exception):
    """Something about the recipe, the data or the run, and where."""


class RecipeError(TrainingError):
    """A recipe that cannot be read or does not fit together."""


class DataError(TrainingError):
    """A file that cannot be read, or rows that do not suit the recipe."""


class DivergedError(TrainingError):
    """The loss stopped being a number."""

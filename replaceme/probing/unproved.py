"""Say what a probe found where it cannot prove that a model can be shortened."""


class Unproved(Exception):
    """A model type that the probe cannot do; the text is the finding."""

"""The exception of the data layer."""


class DataError(ValueError):
    """Invalid data; the message names the location, what was expected and what was found."""

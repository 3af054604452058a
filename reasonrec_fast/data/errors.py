"""The one error of the data layer."""


class DataError(ValueError):
    """The data is not what it should be; the message names the place, what was expected and what came."""

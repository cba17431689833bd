"""What checkers raise, and nobody else does: so a planted bug that merely crashes does not count as found."""


class Broken(AssertionError):
    """A promise was broken."""

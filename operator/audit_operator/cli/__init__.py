"""The command line. Reads files, calls the pure core, prints; the only layer that talks to a person."""


def main() -> None:
    """Console script ``audit-operator``."""

"""The `tidegate` command."""


def main() -> None:
    """Entry point."""

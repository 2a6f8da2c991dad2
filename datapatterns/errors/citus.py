"""Growing out to Citus."""

from datapatterns.errors.families import ConfigurationError


class CitusUnfitError(ConfigurationError):
    """Citus would refuse tables as they are declared.

    Attributes:
        problems: What it would refuse, one line each.
    """

    def __init__(self, problems: tuple[str, ...]) -> None:
        more = f"; and {len(problems) - 1} more, see check_citus()" if len(problems) > 1 else ""
        super().__init__(f"Citus would refuse {problems[0]}{more}")
        self.problems = problems

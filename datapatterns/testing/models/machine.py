"""What the state machines of this package have in common."""

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine


class Machine(RuleBasedStateMachine):
    """A Hypothesis state machine whose failures are found, shrunk and told in good time.

    Subclasses keep that unless ``TestCase.settings`` says otherwise: no deadline for a step, for
    servers stutter; no ``explain`` phase, which takes longer than all else and explains nothing
    that a sequence of commands does not say.
    """

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.TestCase.settings = settings(
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
        )

"""Draw shares as text: bars for a few names, a histogram for many."""

from collections.abc import Sequence

_EIGHTHS = " ▏▎▍▌▋▊▉"
_HEIGHTS = " ▁▂▃▄▅▆▇█"


def bar(value: float, largest: float, *, cells: int = 24) -> str:
    """Return a bar as long as ``value`` is compared with ``largest``; what is there is seen.

    >>> bar(3, 4, cells=8), bar(0, 4), bar(1, 1_000_000)
    ('██████', '', '▏')
    """
    if largest <= 0 or value <= 0:
        return ""
    eighths = max(1, round(8 * cells * min(1.0, value / largest)))
    return ("█" * (eighths // 8) + _EIGHTHS[eighths % 8]).rstrip()


def histogram(values: Sequence[float], *, columns: int = 64) -> str:
    """Return a line of bars for ``values`` in their order; each may stand for several.

    The height of a bar is the largest of its values, so that no peak is lost among others.

    >>> histogram([0, 1, 2, 4, 8])
    ' ▁▂▄█'
    >>> histogram([1, 1, 8, 1], columns=2)
    '▁█'
    """
    if not values:
        return ""
    width = -(-len(values) // columns)
    peaks = [max(values[at : at + width]) for at in range(0, len(values), width)]
    highest = max(peaks)
    if highest <= 0:
        return " " * len(peaks)
    return "".join(
        _HEIGHTS[max(1, round(8 * peak / highest))] if peak > 0 else " " for peak in peaks
    )

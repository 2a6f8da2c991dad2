"""How much of something is meant at the prompt: a share, or so many rows."""

import click


class Amount(click.ParamType[float]):
    """A share such as ``0.05`` or ``5%``, as a float up to 1; or an int, of rows."""

    name = "SHARE|ROWS"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return what ``value`` says, or fail as click does."""
        text = str(value)
        try:
            if text.isdecimal() and int(text):
                return int(text)
            share = float(text[:-1]) / 100 if text.endswith("%") else float(text)
        except ValueError:
            share = 0
        if not 0 < share <= 1:
            self.fail(
                f"{text!r} is neither a share, such as 0.05 or 5%, nor a number of rows", param, ctx
            )
        return share

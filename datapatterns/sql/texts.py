"""What PostgreSQL can store as text."""


def is_text(text: str) -> bool:
    """Tell whether PostgreSQL can store ``text``."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text

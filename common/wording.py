"""Words in messages: nouns that agree with their number."""


def counted(number: int, noun: str, *, plural: str | None = None) -> str:
    """Return the number and the noun in the singular or plural, such as "1 rank" or "1,024 ranks".

    Args:
        number: how many there are.
        noun: in the singular.
        plural: of the noun, if an s is not enough.
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"

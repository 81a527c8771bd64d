"""The scripts (Unicode's word for writing systems) by which languages are told apart."""

LATIN = ("Latin",)
SCRIPTS: dict[str, tuple[str, ...]] = {
    "ar": ("Arabic",), "el": ("Greek",), "he": ("Hebrew",), "hi": ("Devanagari",),
    "ja": ("Han", "Hiragana", "Katakana"), "ko": ("Hangul",), "ru": ("Cyrillic",), "th": ("Thai",),
    "uk": ("Cyrillic",), "zh": ("Han",),
    **dict.fromkeys(("de", "en", "es", "fr", "it", "nl", "pl", "pt", "tr", "vi"), LATIN)}
"""Of each language; English with German is one script, so a mix of the two is not seen."""
WORD_PER_CHARACTER = ("Han", "Hiragana", "Katakana", "Hangul")
"""Scripts whose every character counts as a word."""
NAME_PREFIXES = {"Han": "CJK"}
"""How the Unicode names of a script's characters begin, if not with the script's name."""


def pattern(scripts: tuple[str, ...]) -> str:
    """A regular expression (Rust's) of one word in `scripts`."""
    letters = "".join(f"\\p{{{script}}}" for script in scripts)
    return f"[{letters}]" if set(scripts) <= set(WORD_PER_CHARACTER) else f"[{letters}]+"


def name_prefixes(scripts: tuple[str, ...]) -> tuple[str, ...]:
    """What the Unicode names of the characters of `scripts` begin with."""
    return tuple(NAME_PREFIXES.get(script, script.upper()) for script in scripts)

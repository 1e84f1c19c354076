"""``python -m shadow_defense.cli``: the same as the command ``shadow-defense``."""

from shadow_defense.cli import main

if __name__ == "__main__":
    main()

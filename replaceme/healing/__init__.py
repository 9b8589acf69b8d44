"""Healing: the short training after a shortening that others need and the paper compares with (A.14, Tables 13, 15).

`parameters` says what is trained (a T in each carrier, adapters, all weights), `loop` trains it, `heal` makes a
checkpoint of it.
"""

from replaceme.healing.heal import Output, heal_checkpoint

__all__ = ["Output", "heal_checkpoint"]

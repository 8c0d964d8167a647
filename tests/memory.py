"""What this process holds in memory."""

from __future__ import annotations

import gc


def holds(part: str) -> bool:
    """Return whether some text in memory, other than this one itself, has this in it. Asks no object for anything."""
    gc.collect()
    objects = gc.get_objects()
    while objects:
        found = gc.get_referents(*objects)
        if any(part in one and one != part for one in found if type(one) is str):
            return True
        # The collector forgets tuples and dicts that cannot be in a cycle; what they hold is held all the same.
        objects = [one for one in found if type(one) in (tuple, dict) and not gc.is_tracked(one)]
    return False

"""Every layout that can be imported, by name, and which of them a state dict has."""

from __future__ import annotations

from jaxgen.errors import UsageError, invalid, unknown
from jaxgen.pretrained import adm, autoencoder_kl, dit, edm, llamagen, uvit
from jaxgen.pretrained.layout import Layout, State

_ROOMS = (dit, uvit, edm, adm, llamagen, autoencoder_kl)
LAYOUTS: dict[str, Layout] = {layout.name: layout for room in _ROOMS for layout in room.LAYOUTS}


def layout_of(state: State, name: str | None = None) -> Layout:
    """The layout called `name`, or the only one that names like these have.

    Raises UsageError for a name that is none, with the closest; for names of no layout, with the
    one of whose marks the most are there; and where several fit.
    """
    if name is not None:
        if name not in LAYOUTS:
            raise unknown("--layout", name, LAYOUTS)
        return LAYOUTS[name]
    found = [layout for layout in LAYOUTS.values() if layout.fits(state)]
    if len(found) == 1:
        return found[0]
    if found:
        names = " or ".join(f"--layout {layout.name}" for layout in found)
        raise invalid("--layout", None, names, "Their weights have the same names.")
    raise _unlike(state)


def _unlike(state: State) -> UsageError:
    some = ", ".join(sorted(state)[:3])
    ranked = sorted(LAYOUTS.values(), key=lambda each: -each.share(state))
    near = ranked[0] if ranked[0].share(state) > 0 else None
    fix = None
    if near is not None:
        lacks = ", ".join(near.lacking(state))
        fix = f"The closest is {near.name!r}, {near.what}, which would have {lacks}."
    given = f"{len(state)} weights such as {some}"
    return invalid("SOURCE", given, f"one of the layouts {', '.join(LAYOUTS)}", fix)

# SPDX-License-Identifier: Apache-2.0
"""Fixes, previews, outcomes and the errors of fixers as D-Bus values: between a client and triaged, and triaged and its helper."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from triaged.bus.codec import text, variant
from triaged.bus.seam import Variant, plain
from triaged.errors import (
    BusError,
    FixBusy,
    FixError,
    FixFailed,
    FixRefused,
    FixRepeated,
    FixStale,
    FixUnknown,
    TriagedError,
)
from triaged.fixers.fixer import Caller, Outcome, Preview, RecordState
from triaged.model.fix import Fix, ManualStep, fix_as_dict, fix_from_dict

ERROR_NAMES: Mapping[type[FixError], str] = {
    FixUnknown: "NoSuchFix",
    FixRefused: "FixRefused",
    FixStale: "FixStale",
    FixRepeated: "FixAlreadyApplied",
    FixBusy: "FixBusy",
    FixFailed: "FixFailed",
}


def bus_error(prefix: str, error: TriagedError) -> BusError:
    """The D-Bus error `prefix`.NAME for an error of a fixer; what is no FixError came before anything was changed."""
    if not isinstance(error, FixError):
        return BusError(f"{prefix}.FixFailed", f"nothing was changed: {error.shown()}")
    return BusError(f"{prefix}.{ERROR_NAMES.get(type(error), 'FixFailed')}", error.shown())


def fix_error(error: BusError) -> TriagedError:
    """The error of a fixer that a D-Bus error stands for; itself if it stands for none."""
    last = error.name.rsplit(".", 1)[-1]
    return next((kind(str(error)) for kind, name in ERROR_NAMES.items() if name == last), error)


def fix_to_bus(fix: Fix) -> dict[str, Any]:
    """A fix as a{sv}: `type`, and its fields by their own names."""
    if isinstance(fix, ManualStep):
        raise FixRefused(f"triaged does not do this itself: {fix.title}", "see its commands")
    fields = fix_as_dict(fix)
    return {name: variant(value) for name, value in fields.items() if name not in ("key", "title", "commands")}


def fix_from_bus(values: Mapping[str, Any]) -> Fix:
    """The fix that `fix_to_bus` wrote.

    Raises: FixRefused for anything else: an unknown type or field, a field that is missing or of another type.
    """
    given = {name: plain(value) for name, value in values.items()}
    try:
        fix = fix_from_dict(given)
    except ValueError as error:
        raise FixRefused(f"this is no fix: {error}") from error
    unknown = set(given) - {"type", *fix.__dataclass_fields__}
    if unknown:
        raise FixRefused(f"this is no fix: a {fix.type} has no {sorted(unknown)[0][:80]!r}")
    return fix


def preview_to_bus(preview: Preview) -> dict[str, Any]:
    """A preview as a{sv}."""
    return _to_bus(preview.as_dict())


def preview_from_bus(values: Mapping[str, Any]) -> Preview:
    """The preview that `preview_to_bus` wrote. Raises: BusError."""
    given = {name: plain(value) for name, value in values.items()}
    try:
        given["files"], given["notes"] = tuple(given["files"]), tuple(given["notes"])
        given["commands"] = tuple(tuple(argv) for argv in given["commands"])
        return Preview(**{name: given[name] for name in Preview.__dataclass_fields__})
    except (KeyError, TypeError) as error:
        raise BusError("", f"triaged-helper answered what is no preview: {error!r}", "are both of the same version?") from error


def outcome_to_bus(outcome: Outcome) -> dict[str, Any]:
    """An outcome as a{sv}."""
    return _to_bus(outcome.as_dict())


def outcome_from_bus(values: Mapping[str, Any]) -> Outcome:
    """The outcome that `outcome_to_bus` wrote. Raises: BusError."""
    given = {name: plain(value) for name, value in values.items()}
    try:
        return Outcome(
            given["record"], given["finding"], given["key"], given["title"], RecordState(given["state"]), given["message"],
            given["old"], given["new"], given["verification"], Caller(given["caller_uid"], given["caller_bus_name"]),
            given["time_usec"],
        )  # fmt: skip
    except (KeyError, ValueError) as error:
        raise BusError("", f"triaged-helper answered what is no outcome: {error!r}", "are both of the same version?") from error


def _to_bus(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: any_variant(name, value) for name, value in values.items()}


def any_variant(name: str, value: Any) -> Any:
    """A plain value of a preview or outcome as a variant: lists are `as`, but `aas` for commands."""
    if isinstance(value, list):
        if name == "commands":
            return Variant("aas", [[text(word) for word in words] for words in value])
        return Variant("as", [text(word) for word in value])
    return variant(value)

"""The state of a feed: where it is, as a plain dict that outlives the process.

A state names everything that the sequence of batches depends on, and is refused where any of it differs: a training
that was resumed with another seed would see samples twice and others never, and nobody would notice.
"""

import logging
from collections.abc import Mapping
from typing import Any, Final

from feedmill_protocol import limits
from feedmill_protocol.arguments import integer
from feedmill_protocol.errors import UsageError
from feedmill_protocol.messages import Welcome
from feedmill_protocol.plan import Plan

from .course import Course, Position

__all__ = ["VERSION", "read", "terms", "write"]

VERSION: Final = 1

_OF_THE_PLAN: Final = ("batch_size", "seed", "shuffle", "window", "run", "last")
_SAME: Final = ("stream", "catalog", *_OF_THE_PLAN)
_KEYS: Final = frozenset({"version", "fingerprint", *_SAME, "epoch", "batches", "samples"})
_SHARE: Final = ("rank", "world_size", "part", "parts")
_SHARE_KEYS: Final = frozenset({*_SHARE, "done", "beyond"})

_log = logging.getLogger("feedmill")


def terms(plan: Plan, contract: Welcome) -> dict[str, str | int]:
    """Return what must be the same for a feed and whoever goes on with it, or takes part in it."""
    return {
        "stream": contract.stream,
        "catalog": contract.catalog,
        "fingerprint": contract.fingerprint,
        **{name: getattr(plan, name) for name in _OF_THE_PLAN},
    }


def write(course: Course, contract: Welcome) -> dict[str, Any]:
    """Return the state of a feed.

    ``version`` is that of this layout. ``stream``, ``catalog`` (a digest of the shards), ``batch_size``, ``seed``,
    ``shuffle``, ``window``, ``run`` and ``last`` must be the same where it goes on; ``fingerprint`` (also of pipeline
    and libraries) is compared, and a difference logged. ``epoch`` goes on after ``batches`` batches with ``samples``
    samples, both of all ranks together.

    ``share`` is there only where a feed has handed out what others have not: ``rank`` of ``world_size``, ``part`` of
    ``parts`` say whose it is; counted from that position, the first ``done`` of its own batches and those numbered
    ``beyond`` have been handed out.
    """
    position = course.position
    state: dict[str, Any] = {
        "version": VERSION,
        **terms(course.plan, contract),
        "epoch": position.epoch,
        "batches": position.batches,
        "samples": position.samples,
    }
    if position.done or position.beyond:
        state["share"] = _whose(course) | {"done": position.done, "beyond": list(position.beyond)}
    return state


def read(state: Mapping[str, Any], course: Course, contract: Welcome) -> Position:
    """Return where a state goes on. Raises UsageError for one that is none, or not of this feed."""
    if not isinstance(state, Mapping):
        raise UsageError(f"state={state!r}: expected what state_dict() returned")
    if state.get("version") != VERSION:
        raise UsageError(f"the state has version {state.get('version')!r}, this release reads version {VERSION}")
    _check_keys("the state", state, _KEYS, frozenset({"share"}))
    here = write(course, contract)
    if different := [name for name in _SAME if state[name] != here[name]]:
        said = ", ".join(f"{name}={state[name]!r} (here {here[name]!r})" for name in different)
        raise UsageError(
            f"the state is of a feed with {said}; connect to the same shards with the same arguments, "
            "or begin an epoch with set_epoch() instead"
        )
    if state["fingerprint"] != here["fingerprint"]:
        _log.warning(
            "the state was taken with fingerprint %s, the servers have %s: the same samples, but another pipeline or "
            "other libraries make tensors of them",
            state["fingerprint"],
            here["fingerprint"],
        )
    position = Position(
        integer("state: epoch", state["epoch"], 0, limits.INT63),
        integer("state: batches", state["batches"], 0, limits.INT63),
        integer("state: samples", state["samples"], 0, course.plan.samples),
    )
    left = course.of(position)
    return _read_share(state["share"], course, position, left) if "share" in state else position


def _read_share(share: Mapping[str, Any], course: Course, position: Position, left: int) -> Position:
    if not isinstance(share, Mapping):
        raise UsageError(f"state: share={share!r}: expected a dict")
    _check_keys("the state's share", share, _SHARE_KEYS)
    ours = _whose(course)
    if any(share[name] != ours[name] for name in _SHARE):
        theirs = ", ".join(
            f"{name}={share[name]!r} (here {ours[name]!r})" for name in _SHARE if share[name] != ours[name]
        )
        raise UsageError(
            "the state says which batches one feed has handed out, out of order or of its share, and that one has "
            f"{theirs}; give each feed its own state, or take states at the end of an epoch, or use order='plan'"
        )
    done = integer("state: share: done", share["done"], 0, left)
    beyond = share["beyond"]
    if not isinstance(beyond, (list, tuple)):
        raise UsageError(f"state: share: beyond={beyond!r}: expected a list")
    later = {integer("state: share: beyond", number, done + 1, left - 1) for number in beyond}
    return Position(position.epoch, position.batches, position.samples, done, tuple(sorted(later)))


def _whose(course: Course) -> dict[str, int]:
    return {
        "rank": course.plan.rank,
        "world_size": course.plan.world_size,
        "part": course.part,
        "parts": course.parts,
    }


def _check_keys(
    what: str, given: Mapping[str, Any], needed: frozenset[str], optional: frozenset[str] = frozenset()
) -> None:
    if missing := sorted(needed - given.keys()):
        raise UsageError(f"{what} lacks {', '.join(missing)}; it is not what state_dict() returned")
    if unknown := sorted(map(str, given.keys() - needed - optional)):
        raise UsageError(f"{what} has {', '.join(unknown)}, which no state of version {VERSION} has")

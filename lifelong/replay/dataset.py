"""Training rows step by step: new blocks and replayed ones in exact shares.

The order of everything is a pure function of (seed, stage, epoch) and of the shares in force, so a stage that
is resumed asks for the same rows again and nothing has to be skipped.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lifelong.errors import InputError
from lifelong.replay.memory import ReplayMemory
from lifelong.stream.blocks import Blocks
from lifelong.stream.collator import PackedRow
from lifelong.stream.joint import JointBlocks, domain_of
from lifelong.stream.ordering import key_of, permuted, uniforms
from lifelong.stream.shards import drawn, has_blocks


@dataclass(frozen=True)
class _Segment:
    """Steps from `first_step` on with one share and one set of weights; what was drawn before it.

    What an earlier share or weight still owes is carried over, in rows: `owed` in [0, 1) of replay, `credit`
    of each domain. Without it, a mix that changes every few steps would never draw a small share at all.
    """

    first_step: int
    share: float
    weights: tuple[float, ...]
    new_before: int
    drawn_before: tuple[int, ...]
    owed: float
    credit: tuple[float, ...]


class StageDataset:
    """Rows of a stage, `num_steps * blocks_per_step` of them: row i belongs to step i // blocks_per_step.

    After n steps, floor(sum of share * blocks_per_step over them) rows were replayed: no step is a whole block
    away from its share, and neither is their sum, however often the share changes. Among the replayed rows
    every domain is at most about one block away from its weight at any time. New text and each domain of the memory are
    walked through in a fresh permutation per epoch, so within an epoch nothing comes twice; where domains share a stage
    by weights, each of them on its own.

    Args:
        new_blocks: blocks of the stage's domain; None: replay alone, as a recovery after growth.
        memory: of earlier stages; None or empty: nothing is replayed.
        num_steps: optimizer steps of the stage.
        blocks_per_step: rows of one optimizer step over all devices and accumulation.
        share: of replayed rows among all, in [0, 1).
        weights: how replay is divided among domains, by name; equal if absent.
        domain_ids: domain name to its column in the stream.
        domain: name of the stage's own domain.
        seed: of the run.
        stage_index: position in the stream.

    Raises:
        InputError: the share or a weight cannot be, or there is nothing to train on.
    """

    def __init__(
        self,
        new_blocks: Blocks | None,
        memory: ReplayMemory | None,
        *,
        num_steps: int,
        blocks_per_step: int,
        share: float = 0.0,
        weights: Mapping[str, float] | None = None,
        domain_ids: Mapping[str, int] | None = None,
        domain: str = "",
        seed: int = 0,
        stage_index: int = 0,
    ) -> None:
        replay_only = new_blocks is None
        if (memory is None or not memory.domains) if new_blocks is None else not has_blocks(new_blocks):
            raise InputError(f"stage {stage_index}: domain {domain!r} has no block to train on")
        self.num_steps, self.blocks_per_step = num_steps, blocks_per_step
        self.seed, self.stage_index = seed, stage_index
        self.replay_domains = tuple(memory.domains) if memory is not None else ()
        self._new: Blocks = new_blocks if new_blocks is not None else ()
        self._replay_only = replay_only
        self._replay = [memory.blocks(name) for name in self.replay_domains] if memory is not None else []
        names = dict.fromkeys([*self.replay_domains, domain])
        columns = domain_ids or {name: column for column, name in enumerate(names)}
        self._columns, self._domain = columns, domain
        self._new_column = columns.get(domain, -1) if replay_only else columns[domain]
        self._replay_columns = [columns[name] for name in self.replay_domains]
        self._segments = [self._changed(self._beginning, 0, share, weights)]
        self._step_shuffled = -1
        self._places = np.zeros(0, dtype=np.int64)
        self._draws: dict[int, tuple[NDArray[np.int16], NDArray[np.int64]]] = {}

    def __len__(self) -> int:
        return self.num_steps * self.blocks_per_step

    def __getitem__(self, index: int) -> PackedRow:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of a stage of {len(self)}")
        step, slot = divmod(index, self.blocks_per_step)
        number = self._segment_of(step)
        segment = self._segments[number]
        before, count = self._replayed(segment, step)
        if step != self._step_shuffled:
            self._places, self._step_shuffled = self._shuffled(step), step
        rank = int(self._places[slot])
        if rank >= count:
            done = (step - segment.first_step) * self.blocks_per_step - before
            return self._new_row(segment.new_before + done + rank - count)
        domains, cursors = self._drawn(number)
        drawn = before + rank
        return self._replay_row(int(domains[drawn]), int(cursors[drawn]))

    def set_mix(self, step: int, share: float, weights: Mapping[str, float] | None = None) -> None:
        """Changes the share and the weights from `step` on; earlier steps stay as they were.

        Rows that a loader has already fetched are not recalled: choose a step after them.

        Raises:
            InputError: the share or a weight cannot be, or `step` is before the last change.
        """
        last = self._segments[-1]
        if step < last.first_step:
            raise InputError(f"the mix was last changed at step {last.first_step}; step {step} is over")
        changed = self._changed(last, step, share, weights)
        if step == last.first_step:
            self._segments.pop()
            self._draws.pop(len(self._segments), None)
        self._segments.append(changed)

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimizer step of full blocks."""
        longest = self._replay[0] if self._replay_only else self._new
        return self.blocks_per_step * len(longest[0].ids)

    @property
    def share(self) -> float:
        """The replay share of the last steps."""
        return self._segments[-1].share

    @property
    def weights(self) -> dict[str, float]:
        """Replay weights of the domains in the last steps."""
        return dict(zip(self.replay_domains, self._segments[-1].weights, strict=True))

    def replay_blocks_of_step(self, step: int) -> int:
        """Replayed rows of one optimizer step."""
        return self._replayed(self._segments[self._segment_of(step)], step)[1]

    def replay_domains_of_step(self, step: int) -> dict[str, int]:
        """Replayed rows of one optimizer step, by domain."""
        number = self._segment_of(step)
        before, count = self._replayed(self._segments[number], step)
        drawn = self._drawn(number)[0][before : before + count] if count else np.zeros(0, np.int16)
        return {name: int((drawn == i).sum()) for i, name in enumerate(self.replay_domains)}

    def state_dict(self) -> dict[str, Any]:
        """The changes of the mix so far; all there is to save."""
        return {"segments": [[s.first_step, s.share, list(s.weights)] for s in self._segments]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Repeats the changes of a saved stage."""
        saved = state["segments"]
        self._draws.clear()
        self._segments = []
        for first_step, share, weights in saved:
            previous = self._segments[-1] if self._segments else self._beginning
            changed = self._changed(previous, int(first_step), float(share), None)
            # as they were, to the last bit: dividing by their sum again could move a row
            self._segments.append(replace(changed, weights=tuple(float(value) for value in weights)))

    @property
    def _beginning(self) -> _Segment:
        none = (0,) * len(self._replay)
        return _Segment(0, 0.0, tuple(float(value) for value in none), 0, none, 0.0, (0.0,) * len(none))

    def _changed(self, last: _Segment, step: int, share: float, weights: Mapping[str, float] | None) -> _Segment:
        if self._replay_only:
            share = 1.0
        elif not 0.0 <= share < 1.0:
            raise InputError(f"replay.share: {share!r} is not in [0, 1)")
        share = share if self._replay else 0.0
        steps = step - last.first_step
        owed = last.owed + steps * last.share * self.blocks_per_step
        replayed = _floor(owed)
        drawn, credit = np.array(last.drawn_before, dtype=np.int64), np.array(last.credit)
        if replayed:
            counts = np.bincount(_interleaved(last.weights, replayed, last.credit), minlength=len(drawn))
            drawn += counts
            credit += np.array(last.weights) * replayed - counts
        return _Segment(
            first_step=step,
            share=share,
            weights=self._normalised(weights),
            new_before=last.new_before + steps * self.blocks_per_step - replayed,
            drawn_before=tuple(int(count) for count in drawn),
            owed=max(0.0, owed - replayed),
            credit=tuple(float(value) for value in credit),
        )

    def _normalised(self, weights: Mapping[str, float] | None) -> tuple[float, ...]:
        if not self.replay_domains:
            return ()
        raw = [1.0 if weights is None else float(weights.get(name, 0.0)) for name in self.replay_domains]
        if not all(math.isfinite(value) and value >= 0 for value in raw) or sum(raw) <= 0:
            raise InputError(f"replay weights must be numbers >= 0, not all 0; given: {dict(weights or {})}")
        return tuple(value / sum(raw) for value in raw)

    def _segment_of(self, step: int) -> int:
        return bisect_right([segment.first_step for segment in self._segments], step) - 1

    def _replayed(self, segment: _Segment, step: int) -> tuple[int, int]:
        """Replayed rows of the segment before `step`, and in it."""
        per_step = segment.share * self.blocks_per_step
        before = _floor(segment.owed + (step - segment.first_step) * per_step)
        return before, _floor(segment.owed + (step + 1 - segment.first_step) * per_step) - before

    def _shuffled(self, step: int) -> NDArray[np.int64]:
        """Places of the rows inside a step: replayed ones are spread over devices and micro-batches."""
        chance = uniforms(key_of(self.seed, "places", self.stage_index, step), self.blocks_per_step)
        return np.argsort(np.argsort(chance, kind="stable"), kind="stable")

    def _drawn(self, number: int) -> tuple[NDArray[np.int16], NDArray[np.int64]]:
        """Domain of every replayed row of a segment, and how many of that domain came before it."""
        if number not in self._draws:
            segment = self._segments[number]
            later = self._segments[number + 1 :]
            end = later[0].first_step if later else self.num_steps
            count = self._replayed(segment, max(end, segment.first_step))[0]
            domains = _interleaved(segment.weights, count, segment.credit)
            cursors = np.zeros(count, dtype=np.int64)
            for i, before in enumerate(segment.drawn_before):
                places = np.flatnonzero(domains == i)
                cursors[places] = before + np.arange(len(places))
            self._draws[number] = domains.astype(np.int16), cursors
        return self._draws[number]

    def _new_row(self, cursor: int) -> PackedRow:
        if isinstance(self._new, JointBlocks) and self._new.shares is not None:
            return self._row_of_share(self._new, cursor)
        epoch, row = drawn(self._new, cursor, lambda epoch: key_of(self.seed, "new", self.stage_index, epoch))
        return PackedRow(
            block=self._new[row],
            domain_id=self._columns.get(domain_of(self._new, row, self._domain), self._new_column),
            is_replay=False,
            mask_key=key_of(self.seed, "mask", self.stage_index, epoch, row),
        )

    def _row_of_share(self, joint: JointBlocks, cursor: int) -> PackedRow:
        """Each domain is walked through on its own: an epoch of one has nothing to do with that of another."""
        which, own = joint.owner(cursor)
        blocks, name = joint.corpora[which], joint.domains[which]
        epoch, row = drawn(blocks, own, lambda epoch: key_of(self.seed, "share", self.stage_index, name, epoch))
        return PackedRow(
            block=blocks[row],
            domain_id=self._columns.get(name, self._new_column),
            is_replay=False,
            mask_key=key_of(self.seed, "mask of share", self.stage_index, name, epoch, row),
        )

    def _replay_row(self, domain: int, cursor: int) -> PackedRow:
        blocks, name = self._replay[domain], self.replay_domains[domain]
        epoch, place = divmod(cursor, len(blocks))
        row = permuted(place, len(blocks), key_of(self.seed, "replay", self.stage_index, name, epoch))
        return PackedRow(
            block=blocks[row],
            domain_id=self._replay_columns[domain],
            is_replay=True,
            mask_key=key_of(self.seed, "mask of replay", self.stage_index, name, epoch, row),
        )


def _floor(value: float) -> int:
    # 10 * 0.3 * 100 must be 300 rows, not 299 because of binary fractions
    return math.floor(value + 1e-9)


def _interleaved(weights: Sequence[float], count: int, credit: Sequence[float]) -> NDArray[np.int64]:
    """`count` domains in proportion to the weights, as evenly spread as whole numbers allow.

    The k-th row of a domain of weight w is due at (k + 1/2 - credit) / w, where the credit is what earlier
    weights still owe it, in rows; rows are taken as they are due.
    """
    if not count:
        return np.zeros(0, dtype=np.int64)
    owners, dues = [], []
    for i, (weight, owed) in enumerate(zip(weights, credit, strict=True)):
        if weight > 0:
            own = np.arange(min(count, math.ceil(weight * count + max(0.0, owed)) + 1))
            dues.append((own + 0.5 - owed) / weight)
            owners.append(np.full(len(own), i, dtype=np.int64))
    order = np.argsort(np.concatenate(dues), kind="stable")
    return np.concatenate(owners)[order][:count]

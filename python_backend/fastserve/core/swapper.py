"""Where the keys and values of preempted sequences go when the pool has no room for them. Ids only, like ``BlockPool``: the
bytes are in ``worker/kv_tiers.py``.

::

    pool: blocks ──out──► host: slots, or file: slots ──in──► pool: blocks
           held until the copy has ended            held until the copy has ended

A sequence moves as a whole, between the pool and one tier. Its blocks and slots belong to the transfer from its beginning to
its end: nobody else gets them, and the sequence does not run. When it ends meanwhile, the transfer frees both at its end.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable, Mapping

from fastserve.core.block_pool import BlockPool
from fastserve.core.sequence import Sequence, SequenceStatus
from fastserve.core.swap_choice import SwapPace


class Tier(enum.Enum):
    """Memory below the pool, the fastest first."""

    HOST = "host"
    FILE = "file"


class SlotPool:
    """Allocates slot ids 0..num_slots-1; a slot holds the bytes of one block and has one owner."""

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self._free = list(range(num_slots - 1, -1, -1))
        self._closed = False

    @property
    def num_free(self) -> int:
        """Slots that can be allocated."""
        return 0 if self._closed else len(self._free)

    @property
    def num_used(self) -> int:
        return self.num_slots - len(self._free)

    def allocate(self, count: int) -> tuple[int, ...]:
        """Raises MemoryError, with nothing allocated, when too few are free."""
        if count > self.num_free:
            raise MemoryError(f"{count} slots wanted, {self.num_free} of {self.num_slots} are free")
        return tuple(self._free.pop() for _ in range(count))

    def release(self, slots: Iterable[int]) -> None:
        self._free.extend(slots)

    def close(self) -> None:
        """Give out no more slots: their memory failed."""
        self._closed = True

    def free_slots(self) -> tuple[int, ...]:
        """A snapshot of the free list."""
        return tuple(self._free)


@dataclasses.dataclass(frozen=True, slots=True)
class Transfer:
    """Copy the bytes of ``blocks`` to ``slots`` of a tier (``outward``), or of the slots to the blocks; pair by pair."""

    number: int
    tier: Tier
    outward: bool
    blocks: tuple[int, ...]
    slots: tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class TransferEnded:
    """The copy is over. ``seconds``: it took. ``error``: why the bytes are not where they should be; None: all is well."""

    number: int
    seconds: float
    error: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Stored:
    """Slots of a sequence at rest, one for each block that its computed tokens take."""

    tier: Tier
    slots: tuple[int, ...]


@dataclasses.dataclass(slots=True, eq=False)
class Moving:
    """A transfer in flight. ``sequence``: whose, None when it has ended meanwhile. ``held``: all blocks of the pool it holds; one
    on its way out may hold more than is copied."""

    transfer: Transfer
    sequence: Sequence | None
    held: tuple[int, ...]


@dataclasses.dataclass(slots=True)
class SwapCounts:
    """What was begun so far; they only grow."""

    outs: int = 0
    ins: int = 0
    file_moves: int = 0
    blocks_out: int = 0
    blocks_in: int = 0
    failures: int = 0


class Swapper:
    """The ledger of slots and of transfers in flight. Owned by the scheduler, on the engine thread."""

    def __init__(self, pool: BlockPool, num_slots: Mapping[Tier, int], *, proactive: bool = True) -> None:
        """``num_slots``: of each tier; none at all: preempted sequences are computed again. ``proactive``: transfers run beside
        the iterations and ahead of need; else an iteration waits for those it begins."""
        self.proactive = proactive
        self.slots = {tier: SlotPool(num_slots.get(tier, 0)) for tier in Tier}
        self.stored: dict[Sequence, Stored] = {}
        self.moving: dict[Sequence, Moving] = {}
        self._stays: dict[Sequence, int] = {}  # until which iteration
        self.in_flight: dict[int, Moving] = {}
        """By number; also those of sequences that have ended."""
        self.counts = SwapCounts()
        self.pace = SwapPace(pool.num_blocks, pool.block_size)
        self._pool = pool
        self._numbers = 0

    @property
    def num_swapped(self) -> int:
        """Sequences that are in a lower tier or on their way."""
        return len(self.stored) + len(self.moving)

    @property
    def num_leaving(self) -> int:
        """Blocks that come free when the transfers in flight have ended, if nobody else refers to them."""
        return sum(len(moving.held) for moving in self.in_flight.values() if moving.transfer.outward)

    def room(self) -> dict[Tier, int]:
        """Free slots of each tier."""
        return {tier: slots.num_free for tier, slots in self.slots.items()}

    def arriving(self, sequence: Sequence) -> tuple[int, ...]:
        """Blocks that a sequence on its way into the pool has there."""
        moving = self.moving.get(sequence)
        return () if moving is None or moving.transfer.outward else moving.held

    def stays(self, sequence: Sequence) -> bool:
        """Whether it came into the pool so lately that nobody who is still out should take its place."""
        return self._stays.get(sequence, 0) > self.pace.steps

    def begin_out(self, sequence: Sequence) -> Transfer:
        """Take a sequence's blocks for a copy to the first tier with room. Raises MemoryError when none has any."""
        held = tuple(sequence.block_table)
        copied = held[: self._pool.blocks_for(sequence.num_computed)]
        tier = first_tier(self.room(), len(copied))
        if tier is None:
            raise MemoryError(f"no tier has {len(copied)} free slots")
        sequence.block_table.clear()
        self._stays.pop(sequence, None)
        self.counts.outs += 1
        self.counts.blocks_out += len(copied)
        slots = self.slots[tier].allocate(len(copied))
        return self._begin(sequence, Transfer(self._next_number(), tier, True, copied, slots), held)

    def begin_in(self, sequence: Sequence) -> Transfer:
        """Allocate blocks for a stored sequence and take its slots for the copy back. Raises MemoryError when the pool has too
        few."""
        stored = self.stored[sequence]
        blocks = tuple(self._pool.allocate(len(stored.slots)))
        del self.stored[sequence]
        self.counts.ins += 1
        self.counts.blocks_in += len(blocks)
        return self._begin(sequence, Transfer(self._next_number(), stored.tier, False, blocks, stored.slots), blocks)

    def _next_number(self) -> int:
        self._numbers += 1
        return self._numbers

    def _begin(self, sequence: Sequence, transfer: Transfer, held: tuple[int, ...]) -> Transfer:
        self.counts.file_moves += transfer.tier is Tier.FILE
        self.moving[sequence] = self.in_flight[transfer.number] = Moving(transfer, sequence, held)
        sequence.status = SequenceStatus.SWAPPED
        return transfer

    def end(self, ended: TransferEnded) -> Sequence | None:
        """Settle a transfer: who owns what it held. Returns the sequence, unless it has ended.

        Bytes that could not be copied out are still in the pool, and the sequence keeps its blocks; one whose bytes could not
        be copied back has lost them and waits to be computed again. Their tier gets no more sequences.
        """
        moving = self.in_flight.pop(ended.number)
        transfer, sequence = moving.transfer, moving.sequence
        slots = self.slots[transfer.tier]
        if ended.error is None:
            self.pace.copied(len(transfer.blocks), ended.seconds)
        else:
            slots.close()
            self.counts.failures += 1
        if sequence is not None:
            del self.moving[sequence]
        stays_out = sequence is not None and transfer.outward and ended.error is None
        stays_in = sequence is not None and transfer.outward == (ended.error is not None)
        if sequence is not None and stays_in:
            sequence.block_table.extend(moving.held)
            sequence.status = SequenceStatus.RUNNING
            self._stays[sequence] = self.pace.steps + self.pace.stay_steps(len(moving.held))
        else:
            self._pool.release(reversed(moving.held))
        if sequence is not None and stays_out:
            self.stored[sequence] = Stored(transfer.tier, transfer.slots)
        else:
            slots.release(transfer.slots)
        if sequence is not None and not (stays_in or stays_out):
            sequence.num_computed = 0
            sequence.status = SequenceStatus.WAITING
        return sequence

    def forget(self, sequence: Sequence) -> None:
        """A sequence ended: what it has in a tier is free now, what is in flight when its copy has ended."""
        self._stays.pop(sequence, None)
        moving = self.moving.pop(sequence, None)
        if moving is not None:
            moving.sequence = None
        stored = self.stored.pop(sequence, None)
        if stored is not None:
            self.slots[stored.tier].release(stored.slots)


def first_tier(room: Mapping[Tier, int], num_blocks: int) -> Tier | None:
    """The fastest tier with so much room. Pure."""
    return next((tier for tier in Tier if 0 < num_blocks <= room[tier]), None)

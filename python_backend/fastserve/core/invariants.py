"""What must be true between iterations, as code: tests call :func:`violations` after every step of random schedules."""

from __future__ import annotations

from collections import Counter

from fastserve.core.scheduler import Scheduler
from fastserve.core.sequence import Sequence, SequenceStatus
from fastserve.core.swapper import Swapper, Tier


def violations(scheduler: Scheduler) -> list[str]:
    """Every broken invariant in words; empty when all hold."""
    found = _pool_violations(scheduler) + _cache_violations(scheduler) + _sequence_violations(scheduler)
    return found + _beam_violations(scheduler) + _tier_violations(scheduler)


def _pool_violations(scheduler: Scheduler) -> list[str]:
    pool = scheduler.pool
    found: list[str] = []
    held = Counter(block for sequence in scheduler.sequences for block in sequence.block_table)
    in_flight = Counter(block for moving in scheduler.swapper.in_flight.values() for block in moving.held)
    for block, count in enumerate(pool.ref_counts()):
        if count != held[block] + in_flight[block]:
            tables = f"{held[block]} block tables and {in_flight[block]} transfers"
            found.append(f"block {block} has {count} references but stands in {tables}")
    held += in_flight
    owners: dict[int, set[int]] = {}
    for sequence in scheduler.sequences:
        for block in sequence.block_table:
            owners.setdefault(block, set()).add(sequence.request.request_id)
    for block, ids in owners.items():
        if len(ids) > 1 and pool.digest(block) is None:
            found.append(f"block {block} is shared by requests {ids} without standing for any contents")
    free = pool.blank_blocks() + pool.cached_blocks()
    if len(set(free)) != len(free):
        found.append("a block is free twice")
    if len(free) != pool.num_free:
        found.append(f"{len(free)} blocks are free, the pool says {pool.num_free}")
    if both := set(free) & set(held):
        found.append(f"blocks {sorted(both)} are free and held at once")
    if len(set(free) | set(held)) != pool.num_blocks:
        found.append(f"{pool.num_blocks - len(set(free) | set(held))} blocks are lost: neither free nor held")
    return found


def _cache_violations(scheduler: Scheduler) -> list[str]:
    """Contents and blocks are one to one, a free block is cached if and only if it has contents, and nobody writes to such."""
    pool = scheduler.pool
    digests = pool.digests()
    found = [f"block {block} is not found by its digest" for block, digest in digests.items() if pool.find(digest) != block]
    for digest, blocks in pool.whole_prefixes():
        if pool.find(digest) != blocks[-1] or any(block not in digests for block in blocks):
            found.append(f"blocks {blocks} are found at once, though not all can be found")
    if len(set(digests.values())) != len(digests):
        found.append("two blocks have the same digest")
    if named := set(pool.blank_blocks()) & set(digests):
        found.append(f"blocks {sorted(named)} are blank, but can be found")
    if blank := set(pool.cached_blocks()) - set(digests):
        found.append(f"blocks {sorted(blank)} are cached, but cannot be found")
    if held := [block for block in pool.cached_blocks() if pool.ref_count(block)]:
        found.append(f"blocks {held} are up for eviction, but held")
    for sequence in scheduler.sequences:
        name = f"request {sequence.request.request_id}"
        if sequence.next_write(pool.block_size) in digests:
            found.append(f"{name} is about to write to a block that others can find")
        num_full = sequence.num_computed // pool.block_size
        for number, block in enumerate(sequence.block_table):
            if block in digests and number >= num_full:
                found.append(f"block {number} of {name} can be found, but is not complete")
            elif block in digests and digests[block] != sequence.block_digests[number]:
                found.append(f"block {number} of {name} holds something else than its tokens")
    return found


def _sequence_violations(scheduler: Scheduler) -> list[str]:
    found: list[str] = []
    if set(scheduler.holders) != {sequence for sequence in scheduler.sequences if sequence.block_table}:
        found.append("the scheduler's list of those that hold blocks is wrong")
    for sequence in scheduler.sequences:
        name = f"request {sequence.request.request_id}"
        if sequence.status is SequenceStatus.FINISHED:
            found.append(f"{name} is finished but still scheduled")
        if (sequence.status is SequenceStatus.RUNNING) != bool(sequence.block_table):
            found.append(f"{name} is {sequence.status.value} with {len(sequence.block_table)} blocks")
        num_blocks = len(sequence.block_table) + _num_swapped_blocks(scheduler.swapper, sequence)
        if sequence.num_computed > num_blocks * scheduler.pool.block_size:
            found.append(f"{name} has {sequence.num_computed} computed tokens in {num_blocks} blocks")
        if not 0 <= sequence.num_computed < sequence.num_tokens + sequence.rests:
            found.append(f"{name} has computed {sequence.num_computed} of {sequence.num_tokens} tokens")
        if len(sequence.block_table) > scheduler.pool.blocks_for(sequence.num_tokens):
            found.append(f"{name} holds more blocks than its tokens need")
        if not 0 <= sequence.num_cached < sequence.num_tokens:
            found.append(f"{name} hopes for {sequence.num_cached} of {sequence.num_tokens} tokens from the prefix cache")
        if len(sequence.output_token_ids) >= sequence.request.params.max_tokens:
            found.append(f"{name} went past max_tokens")
    return found


def _beam_violations(scheduler: Scheduler) -> list[str]:
    found: list[str] = []
    searches = {sequence.request.request_id: sequence.search for sequence in scheduler.sequences if sequence.search is not None}
    if searches != scheduler.searches:
        found.append("the scheduler's list of beam searches is wrong")
    for search in searches.values():
        request = search.beams[0].request
        name = f"request {request.request_id}"
        if search.beams != [sequence for sequence in scheduler.sequences if sequence.request is request]:
            found.append(f"the beams of {name} are not its sequences")
        if search.is_complete or search.is_over:
            found.append(f"{name} has nothing to wait for, but its beams rest")
        if len({len(beam.output_token_ids) for beam in search.beams if not beam.rests or beam.block_table}) > 1:
            found.append(f"beams of {name} are of different lengths")
        if len(search.beams) not in (1, request.params.num_beams):
            found.append(f"{name} has {len(search.beams)} of {request.params.num_beams} beams")
    return found


def _tier_violations(scheduler: Scheduler) -> list[str]:
    swapper = scheduler.swapper
    found: list[str] = []
    for tier in Tier:
        owned = Counter(slot for stored in swapper.stored.values() if stored.tier is tier for slot in stored.slots)
        transfers = [moving.transfer for moving in swapper.in_flight.values() if moving.transfer.tier is tier]
        owned.update(slot for transfer in transfers for slot in transfer.slots)
        slots = swapper.slots[tier]
        owned.update(free := slots.free_slots())
        found += [f"{tier.value} slot {slot} has {count} owners" for slot, count in owned.items() if count > 1]
        if len(owned) != slots.num_slots:
            found.append(f"{slots.num_slots - len(owned)} {tier.value} slots are lost: neither free nor owned")
        if slots.num_used != slots.num_slots - len(free):
            found.append(f"{slots.num_used} {tier.value} slots are said to be used, {len(free)} of {slots.num_slots} are free")
    swapped = {sequence for sequence in scheduler.sequences if sequence.status is SequenceStatus.SWAPPED}
    known = [*swapper.stored, *swapper.moving]
    if swapped != set(known) or len(known) != len(swapped):
        found.append(f"{len(swapped)} sequences are swapped, {len(known)} are in tiers or on their way")
    for moving in swapper.in_flight.values():
        if moving.sequence is not None and swapper.moving.get(moving.sequence) is not moving:
            found.append(f"transfer {moving.transfer.number} is of a sequence that does not know it")
    return found


def _num_swapped_blocks(swapper: Swapper, sequence: Sequence) -> int:
    """Blocks of a sequence whose bytes are in a tier, or on their way."""
    if sequence in swapper.moving:
        return len(swapper.moving[sequence].transfer.slots)
    return len(swapper.stored[sequence].slots) if sequence in swapper.stored else 0

"""Captures of KV event batches, written by msgspec from the struct definitions that vLLM and SGLang publish.

    pip install msgspec==0.23.0 && python make.py > captures.txt

Each line: a name, and the bytes of one message in hex. `golden.rs` holds what we read in them.
"""
from typing import Any, Optional, Union

import msgspec


def family(array_like: bool, stored: list, removed: list, batch: list):
    """A batch type with its three events, as one release of an engine defines them."""
    style = dict(array_like=array_like, omit_defaults=True, gc=False)
    event = msgspec.defstruct("KVCacheEvent", [], tag=True, **style)
    make = lambda name, fields: msgspec.defstruct(name, fields, bases=(event,), tag=True, **style)
    stored, removed = make("BlockStored", stored), make("BlockRemoved", removed)
    cleared = make("AllBlocksCleared", [])
    batch = msgspec.defstruct("KVEventBatch", batch, **style)
    return batch, stored, removed, cleared


Hash = Union[bytes, int]
CORE = [("block_hashes", list[Hash]), ("parent_block_hash", Optional[Hash]), ("token_ids", list[Any]),
        ("block_size", int), ("lora_id", Optional[int])]
MEDIUM = [("medium", Optional[str])]
LORA = [("lora_name", Optional[str])]
EXTRA = [("extra_keys", Optional[list[Any]], None)]
GROUP = [("group_idx", Optional[int], None), ("kv_cache_spec_kind", Optional[str], None),
         ("kv_cache_spec_sliding_window", Optional[int], None)]
PLACE = [("locality", Optional[str], None), ("ownership", Optional[str], None)]
SALT = [("cache_salt", Optional[str], None)]
BATCH = [("ts", float), ("events", list[Any])]
RANK = [("data_parallel_rank", Optional[int], None)]
REMOVED = [("block_hashes", list[Hash])]
GROUP_OF_REMOVED = [("group_idx", Optional[int], None)]

FAMILIES = {
    # The first form of both engines: lists, no medium, no rank.
    "v0": family(True, CORE, REMOVED, BATCH),
    # vLLM 0.9 to 0.2x: lists with medium, adapters, further keys and groups.
    "list": family(True, CORE + MEDIUM + LORA + EXTRA + GROUP + PLACE,
                   REMOVED + MEDIUM + GROUP + PLACE, BATCH + RANK),
    # vLLM after it: maps, the batch too.
    "map": family(False, CORE + MEDIUM + LORA + EXTRA + GROUP + SALT + PLACE,
                  REMOVED + MEDIUM + GROUP_OF_REMOVED, BATCH + RANK),
    # Our own servers: a list of maps.
    "ours": (family(True, CORE, REMOVED, BATCH + RANK)[0],
             *family(False, CORE + MEDIUM, REMOVED + MEDIUM, BATCH)[1:]),
}

digest = lambda n: bytes([n]) * 24 + (0x1122334455667700 + n).to_bytes(8, "big")
out = msgspec.msgpack.Encoder()


def capture(name: str, value: Any) -> None:
    print(name, out.encode(value).hex())


for name, (Batch, Stored, Removed, Cleared) in FAMILIES.items():
    core = dict(token_ids=[1, 300, 70000, 4], block_size=2, lora_id=None)
    if name != "v0":
        core |= dict(medium="GPU")
    if name in ("list", "map"):
        core |= dict(lora_name=None)
    at = dict(ts=1717171717.25)
    medium = dict(medium="CPU_PINNED") if name != "v0" else {}
    capture(f"{name}/int", Batch(events=[
        Stored(block_hashes=[-5, 2**63 + 1], parent_block_hash=None, **core),
        Stored(block_hashes=[7, 8], parent_block_hash=-5, **core),
        Removed(block_hashes=[8, -5], **medium), Cleared()], **at))
    capture(f"{name}/bytes", Batch(events=[
        Stored(block_hashes=[digest(1), digest(2)], parent_block_hash=digest(9), **core),
        Removed(block_hashes=[digest(2)], **medium)], **at))
    capture(f"{name}/empty", Batch(events=[], **at))
    if name in ("list", "map"):
        full = core | dict(lora_id=3, lora_name="sql", extra_keys=[("sql", "salt", ("image", 4)), None],
                           group_idx=1, kv_cache_spec_kind="sliding_window",
                           kv_cache_spec_sliding_window=1024, locality="LOCAL")
        if name == "map":
            full |= dict(cache_salt="salt")
        capture(f"{name}/full", Batch(events=[
            Stored(block_hashes=[1, 2], parent_block_hash=None, **full),
            Removed(block_hashes=[1], medium=None, group_idx=1)], data_parallel_rank=3, **at))
        capture(f"{name}/pairs", Batch(events=[Stored(
            block_hashes=[1], parent_block_hash=None, **(core | dict(token_ids=[(5, 6), (6, 7)])))], **at))

# SGLang writes the salt as a map in the adapter's place.
capture("sglang/salt", [1.5, [["BlockStored", [-1, -2], None, [1, 2, 3, 4], 2, None, "GPU", {"cache_salt": "s"}]], 0])
# A writer that left unused fields of the tail out.
capture("list/legacy", [1.5, [["BlockStored", [1], None, [1, 2], 2, None, None, None, None, 0, "full_attention"],
                              ["BlockRemoved", [1], None, 2]], None])
# A writer of a later version: a field more at the end and in the map.
capture("later/list", [1.5, [["BlockStored", [1], None, [1, 2], 2, None, "GPU", None, None, 0, None, None, None, None, "x", [1]]], 0, "y"])
capture("later/map", {"ts": 2, "epoch": 7, "events": [{"type": "BlockStored", "new": {"a": [None]}, "block_hashes": [1],
        "parent_block_hash": None, "token_ids": [1, 2], "block_size": 2}]})

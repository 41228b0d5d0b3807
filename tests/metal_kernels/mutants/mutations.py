# SPDX-License-Identifier: MIT
"""Mistakes in the Metal kernels that the tests must notice; those in gradients are in
gradient_mutations.py.

Each is a text of a kernel file, which must occur there (`nth` says which of several), and what
stands there instead. A text that ends in ";" is a statement, which may be left out; others are
expressions. Barriers are not listed: mutate.py finds every one.
"""

from __future__ import annotations

from typing import NamedTuple


class Mutation(NamedTuple):
    name: str
    file: str
    old: str
    new: str  # of a statement: empty, it is left out
    nth: int = 0
    witness: str = ""  # part of the name of a case that notices: tried first


MUTATIONS = [
    # Lanes and fragments.
    Mutation(
        "lane map: rows from another bit", "tile.h", "(lane >> 4 & 1) * 4", "(lane >> 3 & 1) * 4"
    ),
    Mutation(
        "lane map: columns from another bit", "tile.h", "(lane & 1) * 2", "(lane >> 1 & 1) * 2"
    ),
    Mutation(
        "lane map: half a column for half a row",
        "tile.h",
        "(lane >> 3 & 1) * 4",
        "(lane >> 4 & 1) * 4",
    ),
    Mutation(
        "maximum of half a row", "tile.h", "max(value, simd_shuffle_xor(value, ushort(8)))", "value"
    ),
    Mutation(
        "sum of a row with the wrong lanes",
        "tile.h",
        "value + simd_shuffle_xor(value, ushort(8))",
        "value + simd_shuffle_xor(value, ushort(4))",
    ),
    Mutation(
        "sum of a column without its second half",
        "tile.h",
        "value + simd_shuffle_xor(value, ushort(16))",
        "value",
        witness="fp16 keys",
    ),
    Mutation(
        "matrix product without the sum so far",
        "tile.h",
        "reinterpret_cast<thread Fragment&>(c.thread_elements()) = sum;",
        "reinterpret_cast<thread Fragment&>(c.thread_elements()) = Fragment(0.0f, 0.0f);",
    ),
    # Tails and paddings.
    Mutation(
        "one column too many",
        "tile.h",
        "!S::has(kRaggedDim) || column < columns",
        "!S::has(kRaggedDim) || column <= columns",
        witness="D8/1",
    ),
    Mutation(
        "rows that nobody sees are read",
        "tile.h",
        "(alive >> mine & 1) == 0",
        "false",
        witness="tail",
    ),
    Mutation(
        "first row past the tile",
        "tile.h",
        "min(row + at.column, tile.rows - 1)",
        "min(row + at.column, tile.rows)",
    ),
    Mutation(
        "second row past the tile",
        "tile.h",
        "min(row + at.column + 1, tile.rows - 1)",
        "min(row + at.column + 1, tile.rows)",
    ),
    Mutation("staging: one row too many", "tile.h", "row < source.rows", "row <= source.rows"),
    Mutation(
        "staging: one column too many",
        "tile.h",
        "column < source.columns",
        "column <= source.columns",
        witness="D8/1",
    ),
    Mutation(
        "staging: the last row is left out",
        "tile.h",
        "S::tile() * kSide * width",
        "(S::tile() * kSide - 1) * width",
    ),
    Mutation(
        "staging: one thread does two threads' work",
        "tile.h",
        "int(thread_index)",
        "int(thread_index) / 2 * 2",
    ),
    Mutation(
        "staged tiles overlap",
        "tile.h",
        "S::tile() * kSide * (fragments * kSide + kPadElements)",
        "S::tile() * kSide * (fragments * kSide)",
    ),
    Mutation(
        "stored row: one column too many",
        "tile.h",
        "if (column < columns) row[column] = Element(sums[d].x * factor);",
        "if (column <= columns) row[column] = Element(sums[d].x * factor);",
        witness="D36/20",
    ),
    Mutation(
        "stored row: second column unchecked",
        "tile.h",
        "column + 1 < columns",
        "column < columns",
        witness="D8/1",
    ),
    Mutation(
        "chunk of columns stored in the wrong place",
        "tile.h",
        "(first + d) * kSide",
        "d * kSide",
        1,
        witness="D192/128",
    ),
    Mutation(
        "chunk of columns read from the wrong place",
        "tile.h",
        "(first + d) * kSide",
        "d * kSide",
        witness="D192/128",
    ),
    Mutation(
        "head stride for batch stride",
        "tile.h",
        "batch * strides.batch + head * strides.head + row * strides.row",
        "batch * strides.head + head * strides.head + row * strides.row",
        0,
    ),
    Mutation(
        "mask: head stride for batch stride",
        "tile.h",
        "batch * strides.batch + head * strides.head + row * strides.row",
        "batch * strides.head + head * strides.head + row * strides.row",
        1,
    ),
    # What a query sees.
    Mutation(
        "window starts one key late",
        "sight.h",
        "query + p.diagonal - p.left",
        "query + p.diagonal - p.left + 1",
    ),
    Mutation(
        "keys end one early",
        "sight.h",
        "last_query + p.diagonal + p.right + 1",
        "last_query + p.diagonal + p.right",
    ),
    Mutation(
        "queries start one late",
        "sight.h",
        "key - p.diagonal - p.right",
        "key - p.diagonal - p.right + 1",
    ),
    Mutation(
        "queries end one early",
        "sight.h",
        "last_key - p.diagonal + p.left + 1",
        "last_key - p.diagonal + p.left",
        witness="window(9,3)",
    ),
    Mutation(
        "a block with one key too many counts as full",
        "sight.h",
        "block.last_key >= p.kv_len",
        "block.last_key > p.kv_len",
        witness="L4x127",
    ),
    Mutation(
        "a block with one query too many counts as full",
        "sight.h",
        "block.last_query >= p.q_len",
        "block.last_query > p.q_len",
        witness="L31x65",
    ),
    Mutation(
        "a block one key right of the band counts as full",
        "sight.h",
        "block.last_key > last_of_first",
        "block.last_key > last_of_first + 1",
        witness="window(-1,6)",
    ),
    Mutation(
        "a block one key left of the band counts as full",
        "sight.h",
        "block.key < first_of_last",
        "block.key < first_of_last - 1",
        witness="window(6,-1)",
    ),
    Mutation(
        "a block whose first key is the last seen is skipped",
        "sight.h",
        "block.key >= any.last",
        "block.key + 1 >= any.last",
    ),
    Mutation(
        "a block whose last key is the first seen is skipped",
        "sight.h",
        "block.last_key < any.first",
        "block.last_key <= any.first",
    ),
    Mutation(
        "mask classes: rows and columns swapped",
        "sight.h",
        "row * p.class_columns + column",
        "column * p.class_columns + row",
        witness="L21x41",
    ),
    Mutation(
        "mask classes: those of the first batch entry",
        "sight.h",
        "batch * p.class_batch",
        "0 * p.class_batch",
        witness="blocks",
    ),
    Mutation("mask classes are not looked at", "sight.h", "min(kind, found)", "kind"),
    Mutation(
        "mask: column stride for row stride",
        "sight.h",
        "pair.key * p.mask.column",
        "pair.key * p.mask.row",
    ),
    Mutation("bool mask inverted", "sight.h", "mask[element] != 0", "mask[element] == 0"),
    Mutation(
        "float mask added in the wrong base",
        "sight.h",
        "((const device float*)mask)[element] * kLog2OfE",
        "((const device float*)mask)[element]",
    ),
    Mutation(
        "causality hides the diagonal", "sight.h", "distance > p.right", "distance >= p.right"
    ),
    Mutation("window loses its last key", "sight.h", "distance < -p.left", "distance <= -p.left"),
    Mutation(
        "one key beyond the last is seen",
        "sight.h",
        "pair.key >= p.kv_len",
        "pair.key > p.kv_len",
        witness="L37x53 D16 mask",
    ),
    Mutation(
        "one query beyond the last is seen",
        "sight.h",
        "pair.query >= p.q_len",
        "pair.query > p.q_len",
    ),
    Mutation(
        "soft cap divided out twice",
        "sight.h",
        "r.scale / r.softcap",
        "r.scale / (r.softcap * r.softcap)",
    ),
    Mutation("soft cap without its slope", "sight.h", "1 - bent * bent", "1.0f"),
    Mutation(
        "keys that one of the eight queries sees: the lane's own only",
        "sight.h",
        "simd_or(seen)",
        "seen",
    ),
    # Dropout.
    Mutation(
        "dropout: eight keys share a block", "sight.h", "uint(pair.key) >> 2", "uint(pair.key) >> 3"
    ),
    Mutation(
        "dropout: heads of all batch entries alike",
        "sight.h",
        "pair.batch * p.q_heads + pair.head",
        "pair.head + 0 * p.q_heads",
    ),
    Mutation(
        "dropout: the neighbour's draw is not used", "sight.h", "(second ? other : mine)", "mine"
    ),
    Mutation(
        "dropout: the neighbour's second draw is not used",
        "sight.h",
        "(second ? mine : other)",
        "mine",
    ),
    Mutation("dropout: four lanes take the same bits", "sight.h", "all >> turn", "all"),
    Mutation(
        "dropout: bits of four lanes, not exchanged",
        "sight.h",
        "all |= simd_shuffle_xor(all, ushort(4));",
        "",
    ),
    # Forward.
    Mutation("the sink counts once a lane", "forward.h", "at.column == 0 ? 1.0f : 0.0f", "1.0f"),
    Mutation(
        "the sum is not brought to the new maximum", "forward.h", "walk.softmax.sum *= factor;", ""
    ),
    Mutation(
        "the output is not brought to the new maximum", "forward.h", "walk.out[d] *= factor;", ""
    ),
    Mutation("the maximum is the last tile's", "forward.h", "walk.softmax.max = highest;", ""),
    Mutation(
        "grouped heads: the wrong key head",
        "forward.h",
        "head / (p.q_heads / p.kv_heads)",
        "head % p.kv_heads",
        witness="H4/2 L3x16",
    ),
    Mutation(
        "a row that is not there is stored",
        "forward.h",
        "query + at.row < p.q_len",
        "query + at.row <= p.q_len",
    ),
    Mutation(
        "every chunk stores the log-sum-exp",
        "forward.h",
        "chunk == 0 && at.column == 0",
        "at.column == 0",
        witness="D64/512",
    ),
    Mutation(
        "every lane stores the log-sum-exp",
        "forward.h",
        "S::has(kLse) && chunk == 0 && at.column == 0",
        "S::has(kLse) && chunk == 0",
    ),
    Mutation("kept probabilities are not scaled up", "forward.h", "r.dropout_rescale", "1.0f"),
    # Decode.
    Mutation(
        "a part loses its last tile",
        "decode.h",
        "(split + 1) * p.split_keys",
        "(split + 1) * p.split_keys - 32",
        witness="x1000",
    ),
    Mutation(
        "a part begins one tile early",
        "decode.h",
        "split * p.split_keys",
        "split * p.split_keys - 1",
        witness="x1000",
    ),
    Mutation(
        "every part counts the sink",
        "decode.h",
        "S::has(kSinks) && split == 0",
        "S::has(kSinks)",
        witness="L8x128 D40",
    ),
    Mutation(
        "merge takes all parts from the first",
        "decode.h",
        "(first + split) * p.v_dim + d",
        "first * p.v_dim + d",
        witness="x1000",
    ),
    Mutation(
        "merge weighs all parts alike",
        "decode.h",
        "exp2(partial_lse[first + split] * kLog2OfE - base)",
        "exp2(partial_lse[first] * kLog2OfE - base)",
        1,
        witness="x1000",
    ),
    Mutation(
        "a part too many", "decode.h", "split >= p.splits", "split > p.splits", witness="x1000"
    ),
    Mutation(
        "queries of one head only",
        "decode.h",
        "one_head ? last % p.q_len : p.q_len - 1",
        "last % p.q_len",
    ),
    # Mask classification.
    Mutation(
        "classify: the last query of a tile is not read",
        "classify.h",
        "row < last",
        "row + 1 < last",
        witness="L3x16",
    ),
    Mutation(
        "classify: one key too many", "classify.h", "key < p.mask_columns", "key <= p.mask_columns"
    ),
    Mutation(
        "classify: one lane decides about skipping",
        "classify.h",
        "simd_any(any_seen)",
        "any_seen",
        witness="fp16 keys",
    ),
    Mutation(
        "classify: one lane decides about fullness",
        "classify.h",
        "simd_all(all_plain)",
        "all_plain",
        witness="mask(bool heads)",
    ),
    Mutation(
        "classify: what adds something counts as full",
        "classify.h",
        "bias == 0",
        "bias != -INFINITY",
        witness="matrix soft",
    ),
    # The naive kernel.
    Mutation(
        "proto: the last key is left out",
        "proto.h",
        "pair.key < p.kv_len",
        "pair.key < p.kv_len - 1",
        1,
    ),
    Mutation(
        "proto: a query that is not there",
        "proto.h",
        "pair.query >= p.q_len",
        "pair.query > p.q_len",
    ),
]

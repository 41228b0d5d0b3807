// SPDX-License-Identifier: MIT
#pragma once

// What one attention call tells a GPU kernel besides its tensors. This file compiles as C++, MSL
// and CUDA alike, so that host and kernel share the layout.
//
// Whole numbers are all 64-bit and floats all 32-bit, in two blocks: a launcher that can pass only
// lists of integers and lists of floats can pass both.

namespace sdpa {

/// Distances in elements between neighbours of one tensor; columns are 1 apart.
struct RowStrides {
  long batch, head, row;
};

/// The same where columns may be any distance apart; 0 broadcasts.
struct MaskStrides {
  long batch, head, row, column;
};

/// Whole numbers of a call.
struct AttentionParams {
  long batch, q_heads, kv_heads, q_len, kv_len, qk_dim, v_dim;

  /// Query i sees keys i + diagonal - left ... i + diagonal + right.
  long diagonal, left, right;

  /// Dropout: see dropout.h.
  long dropout_threshold, seed_low, seed_high, dropout_offset, first_head;

  /// Split keys: how many parts, and keys a part.
  long splits, split_keys;

  /// Sinks: an ElementKind, and the distance between heads.
  long sinks_kind, sinks_stride;

  /// Mask tiles: how many along the queries and the keys, and the bytes between heads and batches.
  long class_rows, class_columns, class_head, class_batch;

  /// How far the mask itself reaches in each dimension; 1 where it broadcasts.
  long mask_batches, mask_heads, mask_rows, mask_columns;

  MaskStrides mask, grad_mask;
  RowStrides query, key, value, out, lse;
  RowStrides grad_out, grad_lse, grad_query, grad_key, grad_value;
  long grad_sinks_stride;
};

/// Real numbers of a call.
struct AttentionScalars {
  float scale;            ///< of the scores
  float softcap;          ///< 0: none
  float dropout_rescale;  ///< of a probability that is kept
};

/// Element types as kernels name them.
enum ElementKind { kKindNone, kKindBool, kKindFloat32, kKindFloat16, kKindBFloat16 };

/// What a specialization of a kernel can do; bits of one number, above the mask's ElementKind.
enum Feature {
  kMaskKindBits = 7,
  kBand = 8,         ///< causality or a window bounds the keys of a query
  kSoftcap = 16,     ///< scores are capped
  kSinks = 32,       ///< one more logit a head
  kDropout = 64,     ///< probabilities are dropped
  kLse = 128,        ///< forward: writes the log-sum-exp
  kClasses = 256,    ///< mask tiles were classified
  kRaggedDim = 512,  ///< a head dimension is not a multiple of 8
  kStaged = 1024,    ///< walked tiles are copied to threadgroup memory
  kGradLse = 2048,   ///< delta: the log-sum-exp has a gradient
  kGradQuery = 4096,
  kGradKey = 8192,
  kGradValue = 16384,
};

/// What a mask tile holds.
enum TileClass { kSkip, kPartial, kFull };

/// Queries and keys of a mask tile that is classified as one.
enum { kClassTile = 32 };

}  // namespace sdpa

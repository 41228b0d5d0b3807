// SPDX-License-Identifier: MIT
#pragma once

// Dropout by a counter-based generator: Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random
// numbers: as easy as 1, 2, 3", SC 2011).
//
// Whether the probability of (batch, head, query, key) is kept depends on its place and on the seed
// alone, so that every tiling, every back end and both passes agree bit for bit, and nothing is
// stored. One block of four words serves four neighbouring keys of one query:
//
//   counter = (key >> 2, query, batch * q_heads + head, offset)     key = the 64-bit seed
//   word    = key & 3
//   kept    = word >= threshold,  threshold = round(p * 2^32)
//
// This file compiles as C++, MSL and CUDA alike: plain integers, values in and values out. `long`
// has 64 bits in all of them; MSL has no `long long`.

namespace sdpa {

/// One output block, or one counter: four 32-bit words.
struct PhiloxBlock {
  unsigned int x, y, z, w;
};

/// One round: two 32x32 -> 64 bit products, crossed, and mixed with the round's key.
inline PhiloxBlock philox_round(PhiloxBlock c, unsigned int key_low, unsigned int key_high) {
  const unsigned long first = 0xD2511F53ul * c.x;
  const unsigned long second = 0xCD9E8D57ul * c.z;
  PhiloxBlock next;
  next.x = static_cast<unsigned int>(second >> 32) ^ c.y ^ key_low;
  next.y = static_cast<unsigned int>(second);
  next.z = static_cast<unsigned int>(first >> 32) ^ c.w ^ key_high;
  next.w = static_cast<unsigned int>(first);
  return next;
}

/// Ten rounds; the key grows by two odd constants (Weyl sequences) from round to round.
inline PhiloxBlock philox(PhiloxBlock counter, unsigned int key_low, unsigned int key_high) {
  for (int round = 0; round < 10; ++round) {
    counter = philox_round(counter, key_low, key_high);
    key_low += 0x9E3779B9u;
    key_high += 0xBB67AE85u;
  }
  return counter;
}

/// The random word that decides about one key of one query.
inline unsigned int dropout_word(unsigned int key, unsigned int query, unsigned int batch_head,
                                 unsigned int offset, unsigned int seed_low,
                                 unsigned int seed_high) {
  PhiloxBlock counter;
  counter.x = key >> 2;
  counter.y = query;
  counter.z = batch_head;
  counter.w = offset;
  const PhiloxBlock block = philox(counter, seed_low, seed_high);
  const unsigned int lane = key & 3u;
  return lane == 0 ? block.x : lane == 1 ? block.y : lane == 2 ? block.z : block.w;
}

}  // namespace sdpa

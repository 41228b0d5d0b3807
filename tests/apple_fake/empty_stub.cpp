// SPDX-License-Identifier: MIT
// A libobjc without a single function.

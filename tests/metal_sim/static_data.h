// SPDX-License-Identifier: MIT
// Which addresses belong to the program's constants and variables.
#pragma once

namespace sim {

/// Is this address inside a loaded program or shared library?
bool is_static_data(const void* address);

}  // namespace sim

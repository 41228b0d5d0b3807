// SPDX-License-Identifier: MIT
#pragma once

#include <span>
#include <string_view>

#include "sdpa/backend.h"

namespace sdpa {

/// Every back end of this build in order of preference, available or not.
std::span<const Backend* const> backends();

/// The back end of that name, or nullptr.
const Backend* find_backend(std::string_view name);

}  // namespace sdpa

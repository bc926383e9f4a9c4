// Numbers in the files of /proc and /sys.
#pragma once

#include <cstdint>
#include <limits>
#include <string>

namespace sardine {

constexpr uint64_t kUnlimited = std::numeric_limits<uint64_t>::max();

// The number that a file holds; kUnlimited for "max", another word or no file.
uint64_t read_number(const std::string& path);
// The number after a word in a file of "word number" lines.
uint64_t read_entry(const std::string& path, const std::string& word, uint64_t fallback);

inline uint64_t saturating_minus(uint64_t a, uint64_t b) {
    return a > b ? a - b : 0;
}

}  // namespace sardine

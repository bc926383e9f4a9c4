#include "read_number.h"

#include <fstream>

namespace sardine {

uint64_t read_number(const std::string& path) {
    std::ifstream in(path);
    uint64_t value = 0;
    return in >> value ? value : kUnlimited;
}

uint64_t read_entry(const std::string& path, const std::string& word, uint64_t fallback) {
    std::ifstream in(path);
    std::string key;
    uint64_t value;
    while (in >> key >> value) {
        if (key == word) return value;
        in.ignore(256, '\n');
    }
    return fallback;
}

}  // namespace sardine

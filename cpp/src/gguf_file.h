// Strict, memory-mapped GGUF v3 reader: every count, length, offset and product is checked before use.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "sardine/error.h"

namespace sardine {

enum class GgufType : uint32_t { u8, i8, u16, i16, u32, i32, f32, boolean, string, array, u64, i64, f64 };

const char* gguf_type_name(GgufType type);

// A read-only mapping of a whole file; unmapped on destruction. Reading a page that the file no longer has
// ends the process (SIGBUS).
class MappedFile {
 public:
    explicit MappedFile(const std::string& path);
    ~MappedFile();
    // Throws ModelChanged if the file's size or time of change is no longer that of its opening. A file that
    // another one has replaced under its name is still there, and is not changed.
    void check_unchanged() const;
    MappedFile(const MappedFile&) = delete;
    MappedFile& operator=(const MappedFile&) = delete;
    std::span<const uint8_t> bytes() const { return {data_, size_}; }
    const std::string& path() const { return path_; }

 private:
    std::string path_;
    int fd_ = -1;
    const uint8_t* data_ = nullptr;
    size_t size_ = 0;
    int64_t changed_ns_ = 0;
};

// One metadata entry. `data` points at the value (an array's first element) inside the mapping.
struct GgufValue {
    GgufType type;
    GgufType elem;   // of an array
    uint64_t count;  // of an array, else 1
    const uint8_t* data;
};

struct GgufTensor {
    std::string name;
    int type;  // ggml_type, checked
    int n_dims;
    int64_t ne[4];    // ne[0] is contiguous; unused ones are 1
    uint64_t offset;  // from the start of the file
    uint64_t nbytes;
};

class GgufFile {
 public:
    explicit GgufFile(const std::string& path);

    const std::string& path() const { return file_.path(); }
    std::span<const uint8_t> bytes() const { return file_.bytes(); }
    void check_unchanged() const { file_.check_unchanged(); }
    uint64_t alignment() const { return alignment_; }
    uint64_t data_offset() const { return data_offset_; }
    const std::vector<GgufTensor>& tensors() const { return tensors_; }
    const std::vector<std::pair<std::string, GgufValue>>& values() const { return values_; }

    const GgufTensor* find_tensor(std::string_view name) const;
    const uint8_t* data(const GgufTensor& t) const { return file_.bytes().data() + t.offset; }

    bool has(std::string_view key) const { return find(key) != nullptr; }
    const GgufValue* find(std::string_view key) const;

    // Typed getters: a missing key or another type is a FormatError that names both.
    uint32_t u32(std::string_view key) const;
    float f32(std::string_view key) const;
    bool boolean(std::string_view key) const;
    std::string_view string(std::string_view key) const;
    std::vector<uint32_t> u32_array(std::string_view key) const;
    std::vector<std::string_view> string_array(std::string_view key) const;
    // The same with a default for a missing key.
    uint32_t u32(std::string_view key, uint32_t fallback) const { return has(key) ? u32(key) : fallback; }
    float f32(std::string_view key, float fallback) const { return has(key) ? f32(key) : fallback; }

    [[noreturn]] void fail(std::string_view field, const std::string& what) const;

 private:
    const GgufValue& require(std::string_view key, GgufType type) const;
    const GgufValue& require_array(std::string_view key, GgufType elem) const;

    MappedFile file_;
    uint64_t alignment_ = 32;
    uint64_t data_offset_ = 0;
    std::vector<std::pair<std::string, GgufValue>> values_;
    std::vector<GgufTensor> tensors_;
    std::unordered_map<std::string_view, size_t> value_index_, tensor_index_;
};

}  // namespace sardine

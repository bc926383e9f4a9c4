#include "gguf_file.h"

#include <fcntl.h>
#include <ggml.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <ctime>

static_assert(std::endian::native == std::endian::little, "GGUF is read in place: a little-endian machine");

namespace sardine {
namespace {

constexpr size_t kMaxNameBytes = 63;  // GGML_MAX_NAME less its terminator
// An entry takes several times its bytes in memory. Published files have some dozen keys and some thousand
// tensors.
constexpr uint64_t kMaxKeys = 1 << 16, kMaxTensors = 1 << 18;

size_t scalar_size(GgufType t) {
    switch (t) {
        case GgufType::u8:
        case GgufType::i8:
        case GgufType::boolean:
            return 1;
        case GgufType::u16:
        case GgufType::i16:
            return 2;
        case GgufType::u32:
        case GgufType::i32:
        case GgufType::f32:
            return 4;
        case GgufType::u64:
        case GgufType::i64:
        case GgufType::f64:
            return 8;
        case GgufType::string:
        case GgufType::array:
            break;
    }
    return 0;
}

template <typename T>
T load(const uint8_t* p) {
    T v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

// Names and keys: UTF-8 without overlong forms, surrogates or NUL.
bool valid_name(std::string_view s) {
    size_t i = 0;
    while (i < s.size()) {
        const auto c = static_cast<uint8_t>(s[i]);
        if (c == 0) return false;
        if (c < 0x80) {
            i += 1;
            continue;
        }
        const int n = c >= 0xF0 ? 4 : c >= 0xE0 ? 3 : 2;
        if (c < 0xC2 || c > 0xF4 || i + n > s.size()) return false;
        uint32_t cp = c & (0xFF >> (n + 1));
        for (int k = 1; k < n; ++k) {
            const auto d = static_cast<uint8_t>(s[i + k]);
            if ((d & 0xC0) != 0x80) return false;
            cp = cp << 6 | (d & 0x3F);
        }
        if ((n == 3 && cp < 0x800) || (n == 4 && (cp < 0x10000 || cp > 0x10FFFF)) ||
            (cp >= 0xD800 && cp <= 0xDFFF))
            return false;
        i += n;
    }
    return true;
}

std::string printable(std::string_view s) {
    std::string out;
    for (const char c : s.substr(0, 80)) out += (c >= 0x20 && c < 0x7F) ? c : '?';
    return out;
}

// Reads forward inside [pos, size); every step says how many bytes it needs first.
class Cursor {
 public:
    Cursor(const GgufFile& f, std::span<const uint8_t> b) : file_(f), bytes_(b) {}

    uint64_t remaining() const { return bytes_.size() - pos_; }
    uint64_t pos() const { return pos_; }

    const uint8_t* take(uint64_t n, std::string_view what) {
        if (n > remaining())
            file_.fail(what, "'" + std::string(what) + "' needs " + std::to_string(n) + " bytes at offset " +
                                 std::to_string(pos_) + " but " + std::to_string(remaining()) +
                                 " are left: the file is truncated or damaged");
        const uint8_t* p = bytes_.data() + pos_;
        pos_ += n;
        return p;
    }
    template <typename T>
    T read(std::string_view what) {
        return load<T>(take(sizeof(T), what));
    }
    std::string_view string(std::string_view what) {
        const auto n = read<uint64_t>(what);
        return {reinterpret_cast<const char*>(take(n, what)), static_cast<size_t>(n)};
    }
    // A count of items of at least min_size bytes each.
    uint64_t count(uint64_t n, uint64_t min_size, std::string_view what) {
        if (n > remaining() / min_size)
            file_.fail(what, "'" + std::string(what) + "' is " + std::to_string(n) + " but only " +
                                 std::to_string(remaining()) + " bytes are left in the file");
        return n;
    }

 private:
    const GgufFile& file_;
    std::span<const uint8_t> bytes_;
    uint64_t pos_ = 0;
};

GgufType checked_type(const GgufFile& f, std::string_view key, uint32_t t) {
    if (t > static_cast<uint32_t>(GgufType::f64))
        f.fail(key, "key '" + std::string(key) + "' has unknown value type " + std::to_string(t));
    return static_cast<GgufType>(t);
}

GgufValue read_value(const GgufFile& f, Cursor& in, std::string_view key) {
    GgufValue v{checked_type(f, key, in.read<uint32_t>(key)), GgufType::u8, 1, nullptr};
    auto check_bools = [&](const uint8_t* p, uint64_t n) {
        for (uint64_t i = 0; i < n; ++i)
            if (p[i] > 1)
                f.fail(key, "key '" + std::string(key) + "' has a bool of value " + std::to_string(p[i]));
    };
    if (v.type == GgufType::string) {
        v.data = in.take(0, key);
        in.string(key);
    } else if (v.type == GgufType::array) {
        v.elem = checked_type(f, key, in.read<uint32_t>(key));
        if (v.elem == GgufType::array)
            f.fail(key, "key '" + std::string(key) + "' is an array of arrays, which is not supported");
        const auto n = in.read<uint64_t>(key);
        v.count = in.count(n, v.elem == GgufType::string ? 8 : scalar_size(v.elem), key);
        if (v.elem == GgufType::string) {
            v.data = in.take(0, key);
            for (uint64_t i = 0; i < v.count; ++i) in.string(key);
        } else {
            v.data = in.take(v.count * scalar_size(v.elem), key);
            if (v.elem == GgufType::boolean) check_bools(v.data, v.count);
        }
    } else {
        v.data = in.take(scalar_size(v.type), key);
        if (v.type == GgufType::boolean) check_bools(v.data, 1);
    }
    return v;
}

GgufTensor read_tensor_info(const GgufFile& f, Cursor& in) {
    const std::string_view name = in.string("tensor name");
    if (name.empty() || name.size() > kMaxNameBytes || !valid_name(name))
        f.fail("tensor name", "tensor name '" + printable(name) + "' (" + std::to_string(name.size()) +
                                  " bytes) is empty, longer than 63 bytes, or not clean UTF-8");
    GgufTensor t{std::string(name), 0, 0, {1, 1, 1, 1}, 0, 0};
    const auto n_dims = in.read<uint32_t>(t.name);
    if (n_dims < 1 || n_dims > 4)
        f.fail(t.name,
               "tensor '" + t.name + "' has " + std::to_string(n_dims) + " dimensions, expected 1 to 4");
    t.n_dims = static_cast<int>(n_dims);
    int64_t n_elements = 1;
    for (uint32_t d = 0; d < n_dims; ++d) {
        t.ne[d] = in.read<int64_t>(t.name);
        if (t.ne[d] <= 0 || __builtin_mul_overflow(n_elements, t.ne[d], &n_elements))
            f.fail(t.name, "tensor '" + t.name + "' has an impossible dimension " + std::to_string(t.ne[d]));
    }
    const auto type = in.read<uint32_t>(t.name);
    const auto known = type < GGML_TYPE_COUNT && ggml_type_size(static_cast<ggml_type>(type)) > 0 &&
                       ggml_blck_size(static_cast<ggml_type>(type)) > 0;
    if (!known) f.fail(t.name, "tensor '" + t.name + "' has unknown type " + std::to_string(type));
    t.type = static_cast<int>(type);
    const auto gt = static_cast<ggml_type>(type);
    const int64_t block = ggml_blck_size(gt);
    if (t.ne[0] % block != 0)
        f.fail(t.name, "tensor '" + t.name + "' has rows of " + std::to_string(t.ne[0]) +
                           " elements, not whole " + ggml_type_name(gt) + " blocks of " +
                           std::to_string(block));
    uint64_t nbytes;
    if (__builtin_mul_overflow(static_cast<uint64_t>(n_elements / block),
                               static_cast<uint64_t>(ggml_type_size(gt)), &nbytes) ||
        nbytes > f.bytes().size())
        f.fail(t.name, "tensor '" + t.name + "' is larger than the file");
    t.nbytes = nbytes;
    t.offset = in.read<uint64_t>(t.name);
    return t;
}

}  // namespace

const char* gguf_type_name(GgufType type) {
    static constexpr const char* kNames[] = {"u8",   "i8",  "u16", "i16", "u32", "i32", "f32",
                                             "bool", "str", "arr", "u64", "i64", "f64"};
    return kNames[static_cast<uint32_t>(type)];
}

namespace {

int64_t change_ns(const struct stat& st) {
    return int64_t{st.st_mtim.tv_sec} * 1'000'000'000 + st.st_mtim.tv_nsec;
}

std::string date_of(int64_t ns) {
    const time_t seconds = ns / 1'000'000'000;
    std::tm parts{};
    char text[40];
    ::gmtime_r(&seconds, &parts);
    const size_t n = std::strftime(text, sizeof text, "%F %T", &parts);
    return std::string(text, n) + "." + std::to_string(1'000'000'000 + ns % 1'000'000'000).substr(1) + " UTC";
}

}  // namespace

MappedFile::MappedFile(const std::string& path) : path_(path) {
    fd_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd_ < 0) throw IoError(errno, path, std::strerror(errno));
    try {
        struct stat st{};
        if (::fstat(fd_, &st) != 0) throw IoError(errno, path, std::strerror(errno));
        if (S_ISDIR(st.st_mode)) throw IoError(EISDIR, path, std::strerror(EISDIR));
        if (!S_ISREG(st.st_mode)) throw FormatError(path, "file", "not a regular file, expected a GGUF file");
        if (st.st_size == 0) throw FormatError(path, "file", "the file is empty, expected a GGUF file");
        size_ = static_cast<size_t>(st.st_size);
        changed_ns_ = change_ns(st);
        void* p = ::mmap(nullptr, size_, PROT_READ, MAP_SHARED, fd_, 0);
        if (p == MAP_FAILED) throw IoError(errno, path, std::string("cannot map: ") + std::strerror(errno));
        data_ = static_cast<const uint8_t*>(p);
    } catch (...) {
        ::close(fd_);
        throw;
    }
}

MappedFile::~MappedFile() {
    ::munmap(const_cast<uint8_t*>(data_), size_);
    ::close(fd_);
}

void MappedFile::check_unchanged() const {
    struct stat st{};
    if (::fstat(fd_, &st) != 0) throw IoError(errno, path_, std::strerror(errno));
    const auto size = static_cast<size_t>(st.st_size);
    const int64_t changed = change_ns(st);
    if (size == size_ && changed == changed_ns_) return;
    throw ModelChanged(
        path_, path_ + ": the file changed while it was in use: it had " + std::to_string(size_) +
                   " bytes of " + date_of(changed_ns_) + ", now " + std::to_string(size) + " bytes of " +
                   date_of(changed) +
                   ". Load it again; put a new version in a file's place by renaming, never by "
                   "writing into it");
}

void GgufFile::fail(std::string_view field, const std::string& what) const {
    throw FormatError(file_.path(), printable(field), what);
}

GgufFile::GgufFile(const std::string& path) : file_(path) {
    Cursor in(*this, file_.bytes());
    const uint8_t* magic = in.take(4, "magic");
    if (std::memcmp(magic, "GGUF", 4) != 0)
        fail("magic", "not a GGUF file: it starts with '" +
                          printable({reinterpret_cast<const char*>(magic), 4}) + "', expected 'GGUF'");
    const auto version = in.read<uint32_t>("version");
    if (version != 3)
        fail("version", "GGUF version " + std::to_string(version) +
                            (version == 0x03000000 ? " (big-endian file)" : "") +
                            " is not supported, expected 3");
    const auto n_tensors = in.read<uint64_t>("tensor count");
    const auto n_values = in.read<uint64_t>("key count");
    in.count(n_values, 8 + 4 + 1, "key count");
    in.count(n_tensors, 8 + 1 + 4 + 8 + 4 + 8, "tensor count");
    if (n_values > kMaxKeys || n_tensors > kMaxTensors)
        fail("key count", "the file has " + std::to_string(n_values) + " keys and " +
                              std::to_string(n_tensors) + " tensors, expected at most " +
                              std::to_string(kMaxKeys) + " and " + std::to_string(kMaxTensors));

    values_.reserve(std::min<uint64_t>(n_values, 1024));
    for (uint64_t i = 0; i < n_values; ++i) {
        const std::string_view key = in.string("key");
        if (key.empty() || key.size() > 65535 || !valid_name(key))
            fail("key", "key '" + printable(key) + "' is empty, too long, or not clean UTF-8");
        values_.emplace_back(std::string(key), read_value(*this, in, key));
    }
    for (size_t i = 0; i < values_.size(); ++i)
        if (!value_index_.emplace(values_[i].first, i).second)
            fail(values_[i].first, "key '" + printable(values_[i].first) + "' stands twice");

    alignment_ = u32("general.alignment", 32);
    if (!std::has_single_bit(alignment_) || alignment_ < 32)
        fail("general.alignment", "general.alignment is " + std::to_string(alignment_) +
                                      ", expected a power of two of at least 32");

    tensors_.reserve(std::min<uint64_t>(n_tensors, 4096));
    for (uint64_t i = 0; i < n_tensors; ++i) tensors_.push_back(read_tensor_info(*this, in));
    for (size_t i = 0; i < tensors_.size(); ++i)
        if (!tensor_index_.emplace(tensors_[i].name, i).second)
            fail(tensors_[i].name, "tensor '" + tensors_[i].name + "' stands twice");

    // Sizes are bounded by the file and counts by its bytes, so these sums cannot wrap.
    const auto pad = [this](uint64_t n) { return (n + alignment_ - 1) & ~(alignment_ - 1); };
    data_offset_ = pad(in.pos());
    uint64_t end = 0;
    for (auto& t : tensors_) {
        const uint64_t expected = pad(end);
        if (t.offset != expected)
            fail(t.name, "tensor '" + t.name + "' starts at offset " + std::to_string(t.offset) +
                             ", expected " + std::to_string(expected) + " (tensors must follow each other)");
        end = expected + t.nbytes;
        if (data_offset_ + end > file_.bytes().size())
            fail(t.name, "tensor '" + t.name + "' ends at byte " + std::to_string(data_offset_ + end) +
                             " but the file has " + std::to_string(file_.bytes().size()) +
                             ": it is truncated (an incomplete download?)");
        t.offset += data_offset_;
    }
    const uint64_t size = file_.bytes().size();
    const uint64_t header_end = tensors_.empty() ? in.pos() : data_offset_ + end;
    if (size != header_end && size != data_offset_ + pad(end))
        fail("file", "the file has " + std::to_string(size) + " bytes, expected " +
                         std::to_string(data_offset_ + pad(end)) + ": there are bytes after the last tensor");
}

const GgufTensor* GgufFile::find_tensor(std::string_view name) const {
    const auto it = tensor_index_.find(name);
    return it == tensor_index_.end() ? nullptr : &tensors_[it->second];
}

const GgufValue* GgufFile::find(std::string_view key) const {
    const auto it = value_index_.find(key);
    return it == value_index_.end() ? nullptr : &values_[it->second].second;
}

const GgufValue& GgufFile::require(std::string_view key, GgufType type) const {
    const GgufValue* v = find(key);
    if (!v) fail(key, "key '" + std::string(key) + "' is missing");
    if (v->type != type)
        fail(key, "key '" + std::string(key) + "' has type " + gguf_type_name(v->type) + ", expected " +
                      gguf_type_name(type));
    return *v;
}

const GgufValue& GgufFile::require_array(std::string_view key, GgufType elem) const {
    const GgufValue& v = require(key, GgufType::array);
    if (v.elem != elem)
        fail(key, "key '" + std::string(key) + "' is an array of " + gguf_type_name(v.elem) +
                      ", expected of " + gguf_type_name(elem));
    return v;
}

uint32_t GgufFile::u32(std::string_view key) const {
    return load<uint32_t>(require(key, GgufType::u32).data);
}

float GgufFile::f32(std::string_view key) const {
    const auto v = load<float>(require(key, GgufType::f32).data);
    if (!std::isfinite(v)) fail(key, "key '" + std::string(key) + "' is not finite");
    return v;
}

bool GgufFile::boolean(std::string_view key) const {
    return *require(key, GgufType::boolean).data != 0;
}

namespace {
std::string_view string_at(const uint8_t* p) {
    return {reinterpret_cast<const char*>(p + 8), static_cast<size_t>(load<uint64_t>(p))};
}
}  // namespace

std::string_view GgufFile::string(std::string_view key) const {
    return string_at(require(key, GgufType::string).data);
}

std::vector<uint32_t> GgufFile::u32_array(std::string_view key) const {
    const GgufValue& v = require_array(key, GgufType::u32);
    std::vector<uint32_t> out(v.count);
    if (v.count) std::memcpy(out.data(), v.data, v.count * sizeof(uint32_t));
    return out;
}

std::vector<std::string_view> GgufFile::string_array(std::string_view key) const {
    const GgufValue& v = require_array(key, GgufType::string);
    std::vector<std::string_view> out;
    out.reserve(v.count);
    const uint8_t* p = v.data;
    for (uint64_t i = 0; i < v.count; ++i) {
        out.push_back(string_at(p));
        p += 8 + out.back().size();
    }
    return out;
}

}  // namespace sardine

// An adapter file: the experts alone, with the shape of the base that they belong to (docs/format.md).
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "gguf_file.h"
#include "hparams.h"

namespace sardine {

// Throws FormatError if the file is an adapter where a model belongs.
void refuse_adapter(const GgufFile& file);

// The base's shape that an adapter file was made for. Only what addresses the experts' tensors and what
// check_adapter compares is set. Throws FormatError if it is no sardine adapter.
HParams read_adapter_shape(const GgufFile& adapter);

// Null without a path. Throws FormatError unless the adapter was made for a base of this shape, and the base
// has no experts of its own.
std::unique_ptr<GgufFile> open_adapter(const std::optional<std::string>& path, const GgufFile& base,
                                       const HParams& h);

// CRC-32 (that of zlib) of the norms' bytes: attn_norm and ffn_norm layer by layer, then output_norm. They
// are F32 in every quantization of a model, so it tells models of one shape apart. The tensors must be there.
uint32_t norm_checksum(const GgufFile& base, const HParams& h);

// The checksum that an adapter expects. False where the base's is another.
bool fits_norms(const GgufFile& adapter, const GgufFile& base, const HParams& h);

}  // namespace sardine

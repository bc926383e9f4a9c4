// A loaded model file, with an adapter file or without: mapped weights, metadata, tokenizer. Immutable, so
// threads may share it.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "gguf_file.h"
#include "hparams.h"
#include "tokenizer.h"
#include "weights.h"

namespace sardine {

struct ModelOptions {
    int n_threads = 0;                   // for checking the file; 0: all processors
    std::optional<std::string> adapter;  // path of an adapter file, whose experts a plain base then has
};

class Model {
 public:
    // Throws FormatError, IoError or InsufficientMemory.
    explicit Model(const std::string& path, const ModelOptions& options = {});

    const std::string& path() const { return file_.path(); }
    const GgufFile& file() const { return file_; }
    const GgufFile* adapter() const { return adapter_.get(); }  // null without one
    // False if the adapter was made for a model of this shape with other norms: perhaps another finetune.
    bool adapter_fits_norms() const;
    const HParams& hparams() const { return hparams_; }
    const ExpertParams& experts() const { return experts_; }
    const Weights& weights() const { return weights_; }
    const Tokenizer& tokenizer() const { return tokenizer_; }

 private:
    GgufFile file_;  // first: everything below views it
    HParams hparams_;
    std::unique_ptr<GgufFile> adapter_;
    ExpertParams experts_;
    Weights weights_;
    Tokenizer tokenizer_;
};

int default_threads();
// 0 becomes default_threads(); throws InvalidArgument beyond 512.
int checked_threads(int n_threads);

}  // namespace sardine

// A loaded model file, with an adapter file or without: mapped weights, metadata, tokenizer. Immutable, so
// threads may share it.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "gguf_file.h"
#include "hparams.h"
#include "offload/device_weights.h"
#include "repack.h"
#include "sardine/progress.h"
#include "tokenizer.h"
#include "weights.h"

namespace sardine {

struct ModelOptions {
    int n_threads = 0;                   // for checking the file; 0: all processors
    std::optional<std::string> adapter;  // path of an adapter file, whose experts a plain base then has
    // Layers on the GPU, counted as llama.cpp does: the output, then layers from the last one. kAllLayers, or
    // kAutoLayers: as many as leave room for a context of this plan (n_ctx 0 or less: the default).
    int64_t n_gpu_layers = 0;
    ContextPlan plan;
    // Weights on the CPU are copied into layouts that are multiplied with faster, as libllama does by
    // default.
    bool repack = false;
    Progress progress;  // what it throws, the constructor throws
};

class Model {
 public:
    // Throws FormatError, IoError or InsufficientMemory; DeviceError if layers are asked for and there is no
    // GPU; ModelChanged if a file changes meanwhile.
    explicit Model(const std::string& path, const ModelOptions& options = {});

    const std::string& path() const { return file_.path(); }
    const GgufFile& file() const { return file_; }
    const GgufFile* adapter() const { return adapter_.get(); }  // null without one
    // Throws ModelChanged if a file is not what it was when it was opened. What changes later, while its
    // pages are read, is not seen: where it became shorter, the process ends (SIGBUS).
    void check_unchanged() const;
    // False if the adapter was made for a model of this shape with other norms: perhaps another finetune.
    bool adapter_fits_norms() const;
    const HParams& hparams() const { return hparams_; }
    const ExpertParams& experts() const { return experts_; }
    const Weights& weights() const { return weights_; }
    const Tokenizer& tokenizer() const { return tokenizer_; }
    const DeviceWeights* device_weights() const { return device_weights_.get(); }  // null without a GPU
    // What is offloaded, 0 to n_layer + 1, and the GPU's name, "" without one.
    int64_t n_gpu_layers() const {
        return device_weights_ ? hparams_.n_layer + 1 - device_weights_->first() : 0;
    }
    const std::string& gpu() const { return gpu_; }
    const RepackedWeights* repacked() const { return repacked_.get(); }  // null unless asked for

 private:
    void offload(const ModelOptions& options);
    void repack(const ModelOptions& options);

    GgufFile file_;  // first: everything below views it
    HParams hparams_;
    std::unique_ptr<GgufFile> adapter_;
    ExpertParams experts_;
    Weights weights_;
    Tokenizer tokenizer_;
    std::unique_ptr<DeviceWeights> device_weights_;
    std::string gpu_;
    std::unique_ptr<RepackedWeights> repacked_;
};

int default_threads();
// 0 becomes default_threads(); throws InvalidArgument beyond 512.
int checked_threads(int n_threads);

}  // namespace sardine

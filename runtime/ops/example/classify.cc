// Classifies images with a bundle's packed model, from C++.
//
//     classify [--onnxruntime FILE] [--ops FILE] [--model FILE] BUNDLE IMAGE...
//
// IMAGE is a binary PGM or PPM file of 8 bits, of the model's own size: preprocessing is part of the model. Prints a
// line an image: its class, the class's probability, and the file.
#include <dlfcn.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "onnxruntime.h"

namespace {

struct Error : std::runtime_error {
    using std::runtime_error::runtime_error;
};

struct Image {
    int64_t height, width, channels;
    std::vector<uint8_t> pixels;  // [height, width, channels]
};

std::vector<char> read_file(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) throw Error(path + ": cannot be opened");
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

// One number of the header, behind white space and comments.
int64_t header_number(const std::vector<char>& data, size_t& at, const std::string& path) {
    while (at < data.size() && (std::isspace(static_cast<unsigned char>(data[at])) || data[at] == '#')) {
        if (data[at] == '#')
            while (at < data.size() && data[at] != '\n') ++at;
        else
            ++at;
    }
    int64_t value = -1;
    for (; at < data.size() && std::isdigit(static_cast<unsigned char>(data[at])); ++at) {
        value = std::max<int64_t>(value, 0) * 10 + (data[at] - '0');
        if (value > 65535) throw Error(path + ": a number of its header is above 65535");
    }
    if (value <= 0) throw Error(path + ": its header is not that of a PGM or PPM file");
    return value;
}

Image read_image(const std::string& path) {
    const std::vector<char> data = read_file(path);
    if (data.size() < 2 || data[0] != 'P' || (data[1] != '5' && data[1] != '6'))
        throw Error(path + ": neither a binary PGM (P5) nor a binary PPM (P6) file");
    size_t at = 2;
    Image image;
    image.channels = data[1] == '5' ? 1 : 3;
    image.width = header_number(data, at, path);
    image.height = header_number(data, at, path);
    if (header_number(data, at, path) != 255) throw Error(path + ": its brightest value is not 255");
    const size_t size = static_cast<size_t>(image.height * image.width * image.channels);
    if (data.size() < at + 1 + size) throw Error(path + ": the file ends before its last pixel");
    image.pixels.assign(data.begin() + static_cast<std::ptrdiff_t>(at + 1),
                        data.begin() + static_cast<std::ptrdiff_t>(at + 1 + size));
    return image;
}

std::vector<std::string> read_lines(const std::string& path) {
    std::ifstream file(path);
    if (!file) throw Error(path + ": cannot be opened");
    std::vector<std::string> lines;
    for (std::string line; std::getline(file, line);) lines.push_back(line);
    return lines;
}

class OnnxRuntime {
   public:
    explicit OnnxRuntime(const std::string& path) {
        void* library = dlopen(path.c_str(), RTLD_NOW);
        if (library == nullptr) throw Error(dlerror());
        const auto get_base = reinterpret_cast<const OrtApiBase* (*)()>(dlsym(library, "OrtGetApiBase"));
        api_ = get_base == nullptr ? nullptr : get_base()->GetApi(ORT_VERSION_WANTED);
        if (api_ == nullptr) throw Error(path + ": no ONNX Runtime from 1.17 on");
    }

    const OrtApi* operator->() const { return api_; }

    void check(OrtStatus* status) const {
        if (status == nullptr) return;
        const std::string message = api_->GetErrorMessage(status);
        api_->ReleaseStatus(status);
        throw Error(message);
    }

   private:
    const OrtApi* api_;
};

template <typename T>
using Owned = std::unique_ptr<T, void (*)(T*)>;

class Classifier {
   public:
    Classifier(const OnnxRuntime& ort, const std::string& operators, const std::string& model)
        : ort_(ort),
          env_(nullptr, ort->ReleaseEnv),
          session_(nullptr, ort->ReleaseSession),
          memory_(nullptr, ort->ReleaseMemoryInfo) {
        OrtEnv* env = nullptr;
        ort_.check(ort_->CreateEnv(ORT_WARNING, "edgefold", &env));
        env_.reset(env);

        OrtSessionOptions* options = nullptr;
        ort_.check(ort_->CreateSessionOptions(&options));
        const Owned<OrtSessionOptions> owned_options(options, ort_->ReleaseSessionOptions);
        ort_.check(ort_->SetIntraOpNumThreads(options, 1));
        void* handle = nullptr;  // stays open: the session runs the code that is in it
        ort_.check(ort_->RegisterCustomOpsLibrary(options, operators.c_str(), &handle));
        OrtSession* session = nullptr;
        ort_.check(ort_->CreateSession(env, model.c_str(), options, &session));
        session_.reset(session);

        OrtMemoryInfo* memory = nullptr;
        ort_.check(ort_->CreateCpuMemoryInfo(ORT_ARENA_ALLOCATOR, ORT_MEMORY_DEFAULT, &memory));
        memory_.reset(memory);
        read_names();
        read_input_shape();
    }

    // Returns the probability of each class.
    std::vector<float> operator()(const Image& image) const {
        if (shape_[1] != image.height || shape_[2] != image.width || shape_[3] != image.channels)
            throw Error("the image is " + in_words({image.height, image.width, image.channels}) +
                        " (height, width, channels), the model takes " + in_words({shape_.begin() + 1, shape_.end()}));
        OrtValue* input = nullptr;
        ort_.check(ort_->CreateTensorWithDataAsOrtValue(memory_.get(), const_cast<uint8_t*>(image.pixels.data()),
                                                        image.pixels.size(), shape_.data(), shape_.size(), ORT_UINT8,
                                                        &input));
        const Owned<OrtValue> owned_input(input, ort_->ReleaseValue);
        OrtValue* output = nullptr;
        const char *input_name = input_name_.c_str(), *output_name = output_name_.c_str();
        ort_.check(ort_->Run(session_.get(), nullptr, &input_name, &input, 1, &output_name, 1, &output));
        const Owned<OrtValue> owned_output(output, ort_->ReleaseValue);
        return softmax(logits_of(output));
    }

   private:
    static std::string in_words(const std::vector<int64_t>& shape) {
        std::string text;
        for (const int64_t size : shape) text += (text.empty() ? "" : "x") + std::to_string(size);
        return text;
    }

    void read_names() {
        OrtAllocator* allocator = nullptr;
        ort_.check(ort_->GetAllocatorWithDefaultOptions(&allocator));
        char* name = nullptr;
        ort_.check(ort_->SessionGetInputName(session_.get(), 0, allocator, &name));
        input_name_ = name;
        ort_.check(ort_->AllocatorFree(allocator, name));
        ort_.check(ort_->SessionGetOutputName(session_.get(), 0, allocator, &name));
        output_name_ = name;
        ort_.check(ort_->AllocatorFree(allocator, name));
    }

    void read_input_shape() {
        OrtTypeInfo* type_info = nullptr;
        ort_.check(ort_->SessionGetInputTypeInfo(session_.get(), 0, &type_info));
        const Owned<OrtTypeInfo> owned(type_info, ort_->ReleaseTypeInfo);
        const OrtTensorInfo* info = nullptr;
        ort_.check(ort_->CastTypeInfoToTensorInfo(type_info, &info));
        int type = 0;
        size_t rank = 0;
        ort_.check(ort_->GetTensorElementType(info, &type));
        ort_.check(ort_->GetDimensionsCount(info, &rank));
        shape_.resize(rank);
        ort_.check(ort_->GetDimensions(info, shape_.data(), rank));
        if (type != ORT_UINT8 || rank != 4) throw Error("the model takes no images: expected uint8 [N, H, W, C]");
        shape_[0] = 1;
    }

    std::vector<float> logits_of(OrtValue* output) const {
        OrtTensorInfo* info = nullptr;
        ort_.check(ort_->GetTensorTypeAndShape(output, &info));
        const Owned<OrtTensorInfo> owned(info, ort_->ReleaseTensorInfo);
        int type = 0;
        size_t count = 0;
        void* data = nullptr;
        ort_.check(ort_->GetTensorElementType(info, &type));
        ort_.check(ort_->GetTensorShapeElementCount(info, &count));
        ort_.check(ort_->GetTensorMutableData(output, &data));
        if (type != ORT_FLOAT || count == 0) throw Error("the model's first output is not float32 logits");
        const float* logits = static_cast<const float*>(data);
        return {logits, logits + count};
    }

    static std::vector<float> softmax(std::vector<float> values) {
        const float most = *std::max_element(values.begin(), values.end());
        float sum = 0;
        for (float& value : values) sum += value = std::exp(value - most);
        for (float& value : values) value /= sum;
        return values;
    }

    const OnnxRuntime& ort_;
    Owned<OrtEnv> env_;
    Owned<OrtSession> session_;
    Owned<OrtMemoryInfo> memory_;
    std::string input_name_, output_name_;
    std::vector<int64_t> shape_;  // [1, height, width, channels]
};

struct Options {
    std::string onnxruntime = "libonnxruntime.so.1", operators = "libedgefold_ops.so", model = "model.packed.onnx";
    std::vector<std::string> rest;
};

Options parse(int argc, char** argv) {
    Options options;
    if (const char* given = std::getenv("EDGEFOLD_OPS_LIBRARY")) options.operators = given;
    for (int i = 1; i < argc; ++i) {
        const std::string word = argv[i];
        std::string* option = word == "--onnxruntime" ? &options.onnxruntime
                              : word == "--ops"       ? &options.operators
                              : word == "--model"     ? &options.model
                                                      : nullptr;
        if (option == nullptr)
            options.rest.push_back(word);
        else if (++i < argc)
            *option = argv[i];
        else
            throw Error(word + " needs a file");
    }
    if (options.rest.size() < 2)
        throw Error("usage: classify [--onnxruntime FILE] [--ops FILE] [--model FILE] BUNDLE IMAGE...");
    return options;
}

void run(const Options& options) {
    const std::string& bundle = options.rest[0];
    const std::vector<std::string> labels = read_lines(bundle + "/labels.txt");
    const OnnxRuntime ort(options.onnxruntime);
    const Classifier classify(ort, options.operators, bundle + "/" + options.model);
    for (size_t i = 1; i < options.rest.size(); ++i) {
        const std::vector<float> probabilities = classify(read_image(options.rest[i]));
        if (probabilities.size() != labels.size()) throw Error("labels.txt has not a line for each class of the model");
        const auto best = std::max_element(probabilities.begin(), probabilities.end());
        std::cout << labels[static_cast<size_t>(best - probabilities.begin())] << '\t' << *best << '\t'
                  << options.rest[i] << '\n';
    }
}

}  // namespace

int main(int argc, char** argv) {
    try {
        run(parse(argc, argv));
    } catch (const std::exception& error) {
        std::cerr << "error: " << error.what() << '\n';
        return 1;
    }
    return 0;
}

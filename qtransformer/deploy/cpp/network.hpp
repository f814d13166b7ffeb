// policy.onnx in memory of its own: all tensors are made when it is loaded, and a step writes into them.
//
// The history has two places, that of the input and that of the output. A run reads one and writes the other; `commit`
// swaps them, so that a step that is refused leaves no trace.
#pragma once

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bundle.hpp"
#include "onnxruntime_abi.hpp"

namespace qtransformer {

/// One input or output, as the card describes it, with memory for its numbers.
struct Tensor {
    explicit Tensor(const Json& spec) : name(spec.at("name").text()), dtype(dtype_named(spec.at("dtype").text())) {
        for (const auto& size : spec.at("shape").items()) {
            if (!(size.number() >= 0 && size.number() < 1e9)) throw ControllerError("tensor " + name + ": has no size");
            shape.push_back(static_cast<std::int64_t>(size.number()));
        }
        count = num_elements(shape);
        if (count > 1000000000) throw ControllerError("tensor " + name + ": is too large");
        memory.resize(count * facts(dtype).size / sizeof(std::uint64_t) + 1);
    }
    template <class T>
    T* data() {
        return reinterpret_cast<T*>(memory.data());
    }
    template <class T>
    const T* data() const {
        return reinterpret_cast<const T*>(memory.data());
    }
    std::size_t num_bytes() const { return count * facts(dtype).size; }

    std::string name;
    Dtype dtype;
    std::vector<std::int64_t> shape;
    std::size_t count;                  // elements
    std::vector<std::uint64_t> memory;  // 64 bits each, so that every type is aligned
};

class Network {
public:
    /// Loads the graph on one thread of the CPU that waits without spinning, and runs it once: the first is the
    /// slowest.
    Network(const Bundle& bundle, const std::string& onnxruntime) : library_(onnxruntime) {
        open(bundle.read("policy.onnx"));
        for (const auto& spec : bundle.card().at("inputs").items()) inputs_.emplace_back(spec);
        for (const auto& spec : bundle.card().at("outputs").items()) outputs_.emplace_back(spec);
        expect("ok", Dtype::boolean);
        expect("actions", Dtype::float32);
        expect("tokens", Dtype::int64);
        expect("q_max", Dtype::float32);
        bind();
        forget();
        if (const std::string problem = run(); !problem.empty())
            throw ControllerError("policy.onnx: onnxruntime " + library_.version + " says: " + problem);
    }
    Network(const Network&) = delete;
    Network& operator=(const Network&) = delete;

    /// Where to write an input; throws where the graph has none of that name.
    Tensor& input(const std::string& name) { return named(inputs_, name); }
    const Tensor& output(const std::string& name) { return named(outputs_, name); }

    /// Starts an episode.
    void forget() {
        for (const std::string name : {"history", "num_frames"})
            for (Tensor* tensor : {&input(name + "_in"), &named(outputs_, name + "_out")})
                std::fill(tensor->memory.begin(), tensor->memory.end(), 0);
    }

    /// Decides on what the inputs hold; returns what went wrong, or "".
    std::string run() {
        auto& values = values_[is_swapped_];
        ort::Status* status =
            library_.api->Run(session_.get(), nullptr, input_names_.data(), values.inputs.data(), input_names_.size(),
                              output_names_.data(), output_names_.size(), values.outputs.data());
        if (!status) return "";
        const std::string message = library_.api->GetErrorMessage(status);
        library_.api->ReleaseStatus(status);
        return message;
    }

    /// Makes the history of the last run that of the next.
    void commit() { is_swapped_ = !is_swapped_; }

private:
    using OwnedValue = std::unique_ptr<ort::Value, ort::Deleter<ort::Value>>;
    struct Values {
        std::vector<ort::Value*> inputs, outputs;
    };

    static Tensor& named(std::vector<Tensor>& tensors, const std::string& name) {
        for (auto& tensor : tensors)
            if (tensor.name == name) return tensor;
        throw ControllerError("policy.json: inputs and outputs must have " + name + "; export the bundle again");
    }
    void expect(const char* name, Dtype dtype) {
        if (output(name).dtype != dtype)
            throw ControllerError(std::string("policy.json: output ") + name + " must be " + facts(dtype).name);
    }

    void open(const std::string& model) {
        const ort::Api* api = library_.api;
        const auto check = [this](ort::Status* status) { library_.check(status, "policy.onnx"); };
        ort::Env* env = nullptr;
        check(api->CreateEnv(2, "qtransformer", &env));  // 2: warnings and worse
        env_ = {env, {api, &ort::Api::ReleaseEnv}};
        ort::SessionOptions* made = nullptr;
        check(api->CreateSessionOptions(&made));
        const std::unique_ptr<ort::SessionOptions, ort::Deleter<ort::SessionOptions>> options(
            made, {api, &ort::Api::ReleaseSessionOptions});
        check(api->SetIntraOpNumThreads(made, 1));
        check(api->SetInterOpNumThreads(made, 1));
        check(api->AddSessionConfigEntry(made, "session.intra_op.allow_spinning", "0"));
        check(api->AddSessionConfigEntry(made, "session.inter_op.allow_spinning", "0"));
        ort::Session* session = nullptr;
        check(api->CreateSessionFromArray(env, model.data(), model.size(), made, &session));
        session_ = {session, {api, &ort::Api::ReleaseSession}};
        ort::MemoryInfo* memory = nullptr;
        check(api->CreateCpuMemoryInfo(0, 0, &memory));  // a plain allocator, plain memory
        memory_ = {memory, {api, &ort::Api::ReleaseMemoryInfo}};
    }

    ort::Value* wrapped(Tensor& tensor) {
        ort::Value* value = nullptr;
        library_.check(library_.api->CreateTensorWithDataAsOrtValue(
                           memory_.get(), tensor.memory.data(), tensor.num_bytes(), tensor.shape.data(),
                           tensor.shape.size(), static_cast<int>(tensor.dtype), &value),
                       "tensor " + tensor.name);
        owned_.emplace_back(value, ort::Deleter<ort::Value>{library_.api, &ort::Api::ReleaseValue});
        return value;
    }

    /// Makes both sets of values: in the second, the history is read where the first writes it.
    void bind() {
        for (auto& tensor : inputs_) {
            input_names_.push_back(tensor.name.c_str());
            values_[0].inputs.push_back(wrapped(tensor));
        }
        for (auto& tensor : outputs_) {
            output_names_.push_back(tensor.name.c_str());
            values_[0].outputs.push_back(wrapped(tensor));
        }
        values_[1] = values_[0];
        for (const std::string name : {"history", "num_frames"}) {
            const auto &before = input(name + "_in"), &after = output(name + "_out");
            if (after.shape != before.shape || after.dtype != before.dtype)
                throw ControllerError("policy.json: " + name + "_out must be like " + name + "_in");
            std::swap(values_[1].inputs[&before - inputs_.data()], values_[1].outputs[&after - outputs_.data()]);
        }
    }

    ort::Library library_;
    std::unique_ptr<ort::Env, ort::Deleter<ort::Env>> env_;
    std::unique_ptr<ort::Session, ort::Deleter<ort::Session>> session_;
    std::unique_ptr<ort::MemoryInfo, ort::Deleter<ort::MemoryInfo>> memory_;
    std::vector<Tensor> inputs_, outputs_;
    std::vector<OwnedValue> owned_;
    std::vector<const char*> input_names_, output_names_;
    Values values_[2];
    bool is_swapped_ = false;
};

}  // namespace qtransformer

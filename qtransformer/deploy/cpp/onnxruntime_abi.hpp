// As much of ONNX Runtime's C interface as a controller needs, opened when the program starts.
//
// The interface is a table of functions whose order never changes: each release appends, and its own build asserts the
// place of what was shipped. So these places are good for any release from 1.15 on, the library can be any that the
// robot has (a release, a package, the one inside Python's wheel, which brings no headers), and there is one way to
// build. What stands between the named functions is not looked at.
#pragma once

#include <dlfcn.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "common.hpp"

namespace qtransformer::ort {

struct Env;
struct Status;
struct MemoryInfo;
struct Session;
struct Value;
struct RunOptions;
struct SessionOptions;

using Function = void (*)();

struct Api {  // the number is the place in the table
    Function f0, f1;
    const char* (*GetErrorMessage)(const Status*);  // 2
    Status* (*CreateEnv)(int severity, const char* name, Env**);
    Function f4, f5, f6, f7;
    Status* (*CreateSessionFromArray)(const Env*, const void* model, std::size_t, const SessionOptions*,
                                      Session**);  // 8
    Status* (*Run)(Session*, const RunOptions*, const char* const* input_names, const Value* const* inputs, std::size_t,
                   const char* const* output_names, std::size_t, Value** outputs);
    Status* (*CreateSessionOptions)(SessionOptions**);
    Function f11, f12, f13, f14, f15, f16, f17, f18, f19, f20, f21, f22, f23;
    Status* (*SetIntraOpNumThreads)(SessionOptions*, int);  // 24
    Status* (*SetInterOpNumThreads)(SessionOptions*, int);
    Function f26_48[23];
    Status* (*CreateTensorWithDataAsOrtValue)(const MemoryInfo*, void* data, std::size_t size,
                                              const std::int64_t* shape, std::size_t rank, int dtype, Value**);  // 49
    Function f50_68[19];
    Status* (*CreateCpuMemoryInfo)(int allocator_type, int memory_type, MemoryInfo**);  // 69
    Function f70_91[22];
    void (*ReleaseEnv)(Env*);  // 92
    void (*ReleaseStatus)(Status*);
    void (*ReleaseMemoryInfo)(MemoryInfo*);
    void (*ReleaseSession)(Session*);
    void (*ReleaseValue)(Value*);
    Function f97_99[3];
    void (*ReleaseSessionOptions)(SessionOptions*);  // 100
    Function f101_129[29];
    Status* (*AddSessionConfigEntry)(SessionOptions*, const char* key, const char* value);  // 130
};
static_assert(offsetof(Api, CreateSessionFromArray) == 8 * sizeof(Function));
static_assert(offsetof(Api, SetIntraOpNumThreads) == 24 * sizeof(Function));
static_assert(offsetof(Api, CreateTensorWithDataAsOrtValue) == 49 * sizeof(Function));
static_assert(offsetof(Api, CreateCpuMemoryInfo) == 69 * sizeof(Function));
static_assert(offsetof(Api, ReleaseEnv) == 92 * sizeof(Function));
static_assert(offsetof(Api, ReleaseSessionOptions) == 100 * sizeof(Function));
static_assert(offsetof(Api, AddSessionConfigEntry) == 130 * sizeof(Function));

struct ApiBase {
    const Api* (*GetApi)(std::uint32_t version);
    const char* (*GetVersionString)();
};

constexpr std::uint32_t api_version = 15;  // the first release that runs opset 18

/// The library; it stays loaded until the process ends, since its threads may outlive whoever used it.
class Library {
public:
    explicit Library(const std::string& path) {
        void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
        if (!handle) throw ControllerError(path + ": cannot be opened (" + dlerror() + "); say where " + hint);
        const auto get_base = reinterpret_cast<const ApiBase* (*)()>(dlsym(handle, "OrtGetApiBase"));
        if (!get_base) throw ControllerError(path + ": has no OrtGetApiBase; say where " + hint);
        version = get_base()->GetVersionString();
        api = get_base()->GetApi(api_version);
        if (!api) throw ControllerError(path + ": is ONNX Runtime " + version + ", must be 1.15 or newer; install one");
    }

    /// Throws what `status` says, if anything; `doing` is how the message begins.
    void check(Status* status, const std::string& doing) const {
        if (!status) return;
        const std::string message = api->GetErrorMessage(status);
        api->ReleaseStatus(status);
        throw ControllerError(doing + ": onnxruntime " + version + " says: " + message);
    }

    const Api* api;
    std::string version;

private:
    static constexpr const char* hint =
        "libonnxruntime.so is: -DONNXRUNTIME_ROOT=FOLDER at the build, or --onnxruntime";
};

template <class T>
struct Deleter {
    const Api* api;
    void (*const Api::*release)(T*);
    void operator()(T* owned) const { (api->*release)(owned); }
};

}  // namespace qtransformer::ort

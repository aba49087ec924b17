/* Runs any model that uses the operators, from C: raw inputs in, raw outputs out.
 *
 *     run ONNXRUNTIME OPERATORS MODEL INPUT... > OUTPUTS
 *
 * ONNXRUNTIME  ONNX Runtime's shared library, such as capi/libonnxruntime.so.1.31.1 of its Python package
 * OPERATORS    libedgefold_ops.so
 * INPUT        one file for each of the model's inputs: its numbers as they lie in memory. An axis without a fixed size
 *              has 1.
 *
 * All outputs are written one behind the other. EDGEFOLD_THREADS is the number of threads (1).
 */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "onnxruntime.h"

#define MOST_TENSORS 16
#define MOST_AXES 8

static const OrtApi* api;

static void fail(const char* what, const char* why) {
    fprintf(stderr, "error: %s: %s\n", what, why);
    exit(1);
}

static void check(const char* what, OrtStatus* status) {
    if (status != NULL) fail(what, api->GetErrorMessage(status));
}

static const OrtApiBase* load_onnxruntime(const char* path) {
    void* library = dlopen(path, RTLD_NOW);
    if (library == NULL) fail(path, dlerror());
    const OrtApiBase* (*get_base)(void);
    void* symbol = dlsym(library, "OrtGetApiBase");
    if (symbol == NULL) fail(path, "it has no OrtGetApiBase");
    memcpy(&get_base, &symbol, sizeof get_base); /* ISO C has no cast from an object to a function */
    return get_base();
}

static size_t size_of_element(int type) {
    switch (type) {
        case ORT_UINT8:
        case ORT_INT8:
            return 1;
        case ORT_FLOAT:
        case ORT_INT32:
        case ORT_UINT32:
            return 4;
        case ORT_INT64:
        case ORT_DOUBLE:
            return 8;
        default:
            fail("model", "a tensor of a type that this example does not know");
            return 0;
    }
}

static OrtValue* read_input(const char* path, const OrtSession* session, size_t index, const OrtMemoryInfo* memory) {
    OrtTypeInfo* type_info;
    const OrtTensorInfo* info;
    int type;
    size_t rank, bytes;
    int64_t shape[MOST_AXES];
    check("input", api->SessionGetInputTypeInfo(session, index, &type_info));
    check("input", api->CastTypeInfoToTensorInfo(type_info, &info));
    check("input", api->GetTensorElementType(info, &type));
    check("input", api->GetDimensionsCount(info, &rank));
    if (rank > MOST_AXES) fail("input", "too many axes");
    check("input", api->GetDimensions(info, shape, rank));
    api->ReleaseTypeInfo(type_info);

    bytes = size_of_element(type);
    for (size_t i = 0; i < rank; ++i) {
        if (shape[i] < 0) shape[i] = 1;
        bytes *= (size_t)shape[i];
    }
    FILE* file = fopen(path, "rb");
    if (file == NULL) fail(path, "cannot be opened");
    void* data = malloc(bytes + 1);
    if (data == NULL) fail(path, "no memory for it");
    if (fread(data, 1, bytes + 1, file) != bytes) fail(path, "not as many bytes as the input has");
    fclose(file);

    OrtValue* value; /* it uses the data where they are, so these stay until the program ends */
    check(path, api->CreateTensorWithDataAsOrtValue(memory, data, bytes, shape, rank, type, &value));
    return value;
}

static void write_output(OrtValue* value) {
    OrtTensorInfo* info;
    int type;
    size_t count;
    void* data;
    check("output", api->GetTensorTypeAndShape(value, &info));
    check("output", api->GetTensorElementType(info, &type));
    check("output", api->GetTensorShapeElementCount(info, &count));
    check("output", api->GetTensorMutableData(value, &data));
    if (fwrite(data, size_of_element(type), count, stdout) != count) fail("output", "cannot be written");
    api->ReleaseTensorInfo(info);
    api->ReleaseValue(value);
}

int main(int argc, char** argv) {
    if (argc < 5) {
        fprintf(stderr, "usage: run ONNXRUNTIME OPERATORS MODEL INPUT... > OUTPUTS\n");
        return 2;
    }
    const OrtApiBase* base = load_onnxruntime(argv[1]);
    api = base->GetApi(ORT_VERSION_WANTED);
    if (api == NULL) fail(argv[1], "older than ONNX Runtime 1.17");

    const char* threads = getenv("EDGEFOLD_THREADS");
    OrtEnv* env;
    OrtSessionOptions* options;
    OrtSession* session;
    OrtAllocator* allocator;
    OrtMemoryInfo* memory;
    void* handle; /* closing it would pull the operators out from under the session */
    check("environment", api->CreateEnv(ORT_WARNING, "edgefold", &env));
    check("options", api->CreateSessionOptions(&options));
    check("threads", api->SetIntraOpNumThreads(options, threads == NULL ? 1 : atoi(threads)));
    check(argv[2], api->RegisterCustomOpsLibrary(options, argv[2], &handle));
    check(argv[3], api->CreateSession(env, argv[3], options, &session));
    check("allocator", api->GetAllocatorWithDefaultOptions(&allocator));
    check("memory", api->CreateCpuMemoryInfo(ORT_ARENA_ALLOCATOR, ORT_MEMORY_DEFAULT, &memory));

    size_t inputs_count, outputs_count;
    check("inputs", api->SessionGetInputCount(session, &inputs_count));
    check("outputs", api->SessionGetOutputCount(session, &outputs_count));
    if (inputs_count > MOST_TENSORS || outputs_count > MOST_TENSORS) fail(argv[3], "too many inputs or outputs");
    if (inputs_count != (size_t)argc - 4) fail(argv[3], "another number of inputs than files were given");

    char *input_names[MOST_TENSORS], *output_names[MOST_TENSORS];
    OrtValue *inputs[MOST_TENSORS], *outputs[MOST_TENSORS] = {NULL};
    for (size_t i = 0; i < inputs_count; ++i) {
        check("name", api->SessionGetInputName(session, i, allocator, &input_names[i]));
        inputs[i] = read_input(argv[4 + i], session, i, memory);
    }
    for (size_t i = 0; i < outputs_count; ++i)
        check("name", api->SessionGetOutputName(session, i, allocator, &output_names[i]));

    check("run", api->Run(session, NULL, (const char* const*)input_names, (const OrtValue* const*)inputs, inputs_count,
                          (const char* const*)output_names, outputs_count, outputs));
    for (size_t i = 0; i < outputs_count; ++i) write_output(outputs[i]);

    for (size_t i = 0; i < inputs_count; ++i) {
        api->ReleaseValue(inputs[i]);
        check("name", api->AllocatorFree(allocator, input_names[i]));
    }
    for (size_t i = 0; i < outputs_count; ++i) check("name", api->AllocatorFree(allocator, output_names[i]));
    api->ReleaseMemoryInfo(memory);
    api->ReleaseSession(session);
    api->ReleaseSessionOptions(options);
    api->ReleaseEnv(env);
    return fclose(stdout) == 0 ? 0 : 1;
}

/* The few parts of ONNX Runtime's C interface that the examples need, declared by hand from its published order: the
 * packages of PyPI and npm carry the library and no header. The table of functions only ever grows at its end, so this
 * serves every version from 1.17 on. For Linux and macOS; on Windows paths are wchar_t. */
#ifndef EDGEFOLD_EXAMPLE_ONNXRUNTIME_H
#define EDGEFOLD_EXAMPLE_ONNXRUNTIME_H

#include <stddef.h>
#include <stdint.h>

#define ORT_VERSION_WANTED 17

typedef struct OrtStatus OrtStatus; /* null: success */
typedef struct OrtEnv OrtEnv;
typedef struct OrtSession OrtSession;
typedef struct OrtSessionOptions OrtSessionOptions;
typedef struct OrtRunOptions OrtRunOptions;
typedef struct OrtValue OrtValue;
typedef struct OrtMemoryInfo OrtMemoryInfo;
typedef struct OrtAllocator OrtAllocator;
typedef struct OrtTypeInfo OrtTypeInfo;
typedef struct OrtTensorInfo OrtTensorInfo;

typedef void (*OrtUnused)(void);

/* The number behind a field is its place in the table. */
typedef struct OrtApi {
    OrtUnused unused_0[2];
    const char* (*GetErrorMessage)(const OrtStatus*);                   /* 2 */
    OrtStatus* (*CreateEnv)(int log_level, const char* name, OrtEnv**); /* 3 */
    OrtUnused unused_4[3];
    OrtStatus* (*CreateSession)(const OrtEnv*, const char* path, const OrtSessionOptions*, OrtSession**); /* 7 */
    OrtStatus* (*CreateSessionFromArray)(const OrtEnv*, const void* model, size_t bytes, const OrtSessionOptions*,
                                         OrtSession**); /* 8 */
    OrtStatus* (*Run)(OrtSession*, const OrtRunOptions*, const char* const* input_names, const OrtValue* const* inputs,
                      size_t inputs_count, const char* const* output_names, size_t outputs_count,
                      OrtValue** outputs);                   /* 9 */
    OrtStatus* (*CreateSessionOptions)(OrtSessionOptions**); /* 10 */
    OrtUnused unused_11[13];
    OrtStatus* (*SetIntraOpNumThreads)(OrtSessionOptions*, int); /* 24 */
    OrtUnused unused_25[4];
    OrtStatus* (*RegisterCustomOpsLibrary)(OrtSessionOptions*, const char* path, void** handle); /* 29 */
    OrtStatus* (*SessionGetInputCount)(const OrtSession*, size_t*);                              /* 30 */
    OrtStatus* (*SessionGetOutputCount)(const OrtSession*, size_t*);                             /* 31 */
    OrtUnused unused_32[1];
    OrtStatus* (*SessionGetInputTypeInfo)(const OrtSession*, size_t, OrtTypeInfo**); /* 33 */
    OrtUnused unused_34[2];
    OrtStatus* (*SessionGetInputName)(const OrtSession*, size_t, OrtAllocator*, char**);  /* 36 */
    OrtStatus* (*SessionGetOutputName)(const OrtSession*, size_t, OrtAllocator*, char**); /* 37 */
    OrtUnused unused_38[11];
    OrtStatus* (*CreateTensorWithDataAsOrtValue)(const OrtMemoryInfo*, void* data, size_t bytes, const int64_t* shape,
                                                 size_t rank, int element_type, OrtValue**); /* 49 */
    OrtUnused unused_50[1];
    OrtStatus* (*GetTensorMutableData)(OrtValue*, void**); /* 51 */
    OrtUnused unused_52[3];
    OrtStatus* (*CastTypeInfoToTensorInfo)(const OrtTypeInfo*, const OrtTensorInfo**); /* 55 */
    OrtUnused unused_56[4];
    OrtStatus* (*GetTensorElementType)(const OrtTensorInfo*, int*);           /* 60 */
    OrtStatus* (*GetDimensionsCount)(const OrtTensorInfo*, size_t*);          /* 61 */
    OrtStatus* (*GetDimensions)(const OrtTensorInfo*, int64_t*, size_t rank); /* 62 */
    OrtUnused unused_63[1];
    OrtStatus* (*GetTensorShapeElementCount)(const OrtTensorInfo*, size_t*); /* 64 */
    OrtStatus* (*GetTensorTypeAndShape)(const OrtValue*, OrtTensorInfo**);   /* 65 */
    OrtUnused unused_66[3];
    OrtStatus* (*CreateCpuMemoryInfo)(int allocator_type, int memory_type, OrtMemoryInfo**); /* 69 */
    OrtUnused unused_70[6];
    OrtStatus* (*AllocatorFree)(OrtAllocator*, void*); /* 76 */
    OrtUnused unused_77[1];
    OrtStatus* (*GetAllocatorWithDefaultOptions)(OrtAllocator**); /* 78 */
    OrtUnused unused_79[13];
    void (*ReleaseEnv)(OrtEnv*);               /* 92 */
    void (*ReleaseStatus)(OrtStatus*);         /* 93 */
    void (*ReleaseMemoryInfo)(OrtMemoryInfo*); /* 94 */
    void (*ReleaseSession)(OrtSession*);       /* 95 */
    void (*ReleaseValue)(OrtValue*);           /* 96 */
    OrtUnused unused_97[1];
    void (*ReleaseTypeInfo)(OrtTypeInfo*);             /* 98 */
    void (*ReleaseTensorInfo)(OrtTensorInfo*);         /* 99 */
    void (*ReleaseSessionOptions)(OrtSessionOptions*); /* 100 */
} OrtApi;

typedef struct OrtApiBase {
    const OrtApi* (*GetApi)(uint32_t version); /* null for a version that the library does not know */
    const char* (*GetVersionString)(void);
} OrtApiBase;

enum { ORT_WARNING = 2, ORT_ARENA_ALLOCATOR = 1, ORT_MEMORY_DEFAULT = 0 };
enum { ORT_FLOAT = 1, ORT_UINT8 = 2, ORT_INT8 = 3, ORT_INT32 = 6, ORT_INT64 = 7, ORT_DOUBLE = 11, ORT_UINT32 = 12 };

#endif

/* Makes every session that onnxruntime-node opens know the operators, as its own interface has no way to register them.
 *
 * Loaded behind onnxruntime-node, this addon puts a function of its own before the two of ONNX Runtime's table that
 * create sessions. They call `RegisterCustomOps` of the library that EDGEFOLD_OPS_LIBRARY names on the session's
 * options, as the registration call of the other languages does, and go on to the original. For Linux and macOS. */
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../onnxruntime.h"

#ifdef __APPLE__
#define ONNXRUNTIME "libonnxruntime.1.dylib"
#else
#define ONNXRUNTIME "libonnxruntime.so.1"
#endif

/* Of node's C interface, whose functions the node program itself has. */
typedef struct napi_env__* napi_env;
typedef struct napi_value__* napi_value;
extern int napi_throw_error(napi_env, const char* code, const char* message);

static const OrtApiBase* base;
static OrtApi original;
static OrtStatus* (*register_operators)(OrtSessionOptions*, const OrtApiBase*);

static OrtStatus* create_session(const OrtEnv* env, const char* path, const OrtSessionOptions* options,
                                 OrtSession** session) {
    OrtStatus* status = register_operators((OrtSessionOptions*)options, base);
    return status != NULL ? status : original.CreateSession(env, path, options, session);
}

static OrtStatus* create_session_from_array(const OrtEnv* env, const void* model, size_t bytes,
                                            const OrtSessionOptions* options, OrtSession** session) {
    OrtStatus* status = register_operators((OrtSessionOptions*)options, base);
    return status != NULL ? status : original.CreateSessionFromArray(env, model, bytes, options, session);
}

static void* symbol_of(void* library, const char* name) { return library == NULL ? NULL : dlsym(library, name); }

/* The table is constant data, in pages that are only readable. */
static int replace_functions(OrtApi* api) {
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    const uintptr_t first = (uintptr_t)&api->CreateSession / page * page;
    const size_t size = (uintptr_t)(&api->CreateSessionFromArray + 1) - first;
    if (mprotect((void*)first, size, PROT_READ | PROT_WRITE) != 0) return 0;
    api->CreateSession = create_session;
    api->CreateSessionFromArray = create_session_from_array;
    return mprotect((void*)first, size, PROT_READ) == 0;
}

static const char* install(const char* operators) {
    static char message[512];
    const OrtApiBase* (*get_base)(void);
    if (register_operators != NULL) return NULL; /* a second worker thread of the same process */
    if (operators == NULL) return "EDGEFOLD_OPS_LIBRARY does not name the operators' library";
    void* symbol = symbol_of(dlopen(ONNXRUNTIME, RTLD_NOW | RTLD_NOLOAD), "OrtGetApiBase");
    if (symbol == NULL) return "require('onnxruntime-node') comes first: " ONNXRUNTIME " is not loaded yet";
    memcpy(&get_base, &symbol, sizeof get_base);
    base = get_base();
    const OrtApi* api = base->GetApi(ORT_VERSION_WANTED);
    if (api == NULL) return "onnxruntime-node is older than 1.17";

    symbol = symbol_of(dlopen(operators, RTLD_NOW), "RegisterCustomOps");
    if (symbol == NULL) {
        const char* why = dlerror();
        snprintf(message, sizeof message, "%s cannot be loaded: %s", operators,
                 why == NULL ? "no operators in it" : why);
        return message;
    }
    original = *api;
    memcpy(&register_operators, &symbol, sizeof register_operators);
    return replace_functions((OrtApi*)api) ? NULL : "the pages of ONNX Runtime's table cannot be made writable";
}

__attribute__((visibility("default"))) napi_value napi_register_module_v1(napi_env env, napi_value exports) {
    const char* problem = install(getenv("EDGEFOLD_OPS_LIBRARY"));
    if (problem != NULL) napi_throw_error(env, "EDGEFOLD", problem);
    return exports;
}

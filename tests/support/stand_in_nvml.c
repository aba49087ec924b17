/* A libnvidia-ml.so.1 of two GPUs, by the declarations of NVIDIA's nvml.h. The first one has everything; the second one
 * says NOT_SUPPORTED of all that a GPU may lack. -DOLD: a driver before R535 and MIG. -DNO_DRIVER: one that does not start.
 */
#include <stddef.h>
#include <string.h>

typedef enum {
    NVML_SUCCESS = 0,
    NVML_ERROR_UNINITIALIZED = 1,
    NVML_ERROR_INVALID_ARGUMENT = 2,
    NVML_ERROR_NOT_SUPPORTED = 3,
    NVML_ERROR_INSUFFICIENT_SIZE = 7,
    NVML_ERROR_DRIVER_NOT_LOADED = 9
} nvmlReturn_t;
typedef struct nvmlDevice_st *nvmlDevice_t;
typedef enum { NVML_CLOCK_GRAPHICS = 0, NVML_CLOCK_SM = 1, NVML_CLOCK_MEM = 2 } nvmlClockType_t;
typedef enum { NVML_TEMPERATURE_GPU = 0 } nvmlTemperatureSensors_t;
typedef enum { NVML_FEATURE_DISABLED = 0, NVML_FEATURE_ENABLED = 1 } nvmlEnableState_t;
typedef enum { NVML_COMPUTEMODE_DEFAULT = 0, NVML_COMPUTEMODE_EXCLUSIVE_PROCESS = 3 } nvmlComputeMode_t;
typedef enum { NVML_PERF_POLICY_POWER = 0, NVML_PERF_POLICY_THERMAL = 1 } nvmlPerfPolicyType_t;
typedef struct { unsigned long long total, free, used; } nvmlMemory_t;
typedef struct { unsigned int gpu, memory; } nvmlUtilization_t;
typedef struct { unsigned long long referenceTime, violationTime; } nvmlViolationTime_t;

/* A handle is an address: where only its lower 32 bits come back, it is refused. */
struct nvmlDevice_st { const char *name, *uuid; unsigned long long energy_mj, capped_ns; };
static struct nvmlDevice_st devices[2] = {
    {"NVIDIA Stand-in 100", "GPU-00112233-4455-6677-8899-aabbccddeeff", 5000000000000ULL, 0},
    {"NVIDIA Stand-in 10", "GPU-ffffffff-4455-6677-8899-aabbccddeeff", 0, 0},
};
static int started;

#define CHECKED(device) \
    if (!started) return NVML_ERROR_UNINITIALIZED; \
    if ((device) != &devices[0] && (device) != &devices[1]) return NVML_ERROR_INVALID_ARGUMENT;
#define FULL(device) CHECKED(device) if ((device) == &devices[1]) return NVML_ERROR_NOT_SUPPORTED;

static nvmlReturn_t answer(const char *text, char *buffer, unsigned int length) {
    if (length <= strlen(text)) return NVML_ERROR_INSUFFICIENT_SIZE;
    strcpy(buffer, text);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlInit_v2(void) {
#ifdef NO_DRIVER
    return NVML_ERROR_DRIVER_NOT_LOADED;
#endif
    started = 1;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlSystemGetDriverVersion(char *version, unsigned int length) {
    return started ? answer("570.86.15", version, length) : NVML_ERROR_UNINITIALIZED;
}

nvmlReturn_t nvmlSystemGetCudaDriverVersion_v2(int *version) {
    *version = 12080;
    return started ? NVML_SUCCESS : NVML_ERROR_UNINITIALIZED;
}

nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int *count) {
    *count = 2;
    return started ? NVML_SUCCESS : NVML_ERROR_UNINITIALIZED;
}

nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t *device) {
    if (index > 1) return NVML_ERROR_INVALID_ARGUMENT;
    *device = &devices[index];
    return started ? NVML_SUCCESS : NVML_ERROR_UNINITIALIZED;
}

nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char *name, unsigned int length) {
    CHECKED(device)
    return answer(device->name, name, length);
}

nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char *uuid, unsigned int length) {
    CHECKED(device)
    return answer(device->uuid, uuid, length);
}

nvmlReturn_t nvmlDeviceGetClockInfo(nvmlDevice_t device, nvmlClockType_t type, unsigned int *clock) {
    CHECKED(device)
    *clock = type == NVML_CLOCK_SM ? 1980 : type == NVML_CLOCK_MEM ? 2619 : 1;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMaxClockInfo(nvmlDevice_t device, nvmlClockType_t type, unsigned int *clock) {
    FULL(device)
    *clock = type == NVML_CLOCK_SM ? 2100 : 1;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t device, nvmlTemperatureSensors_t sensor, unsigned int *celsius) {
    CHECKED(device)
    if (sensor != NVML_TEMPERATURE_GPU) return NVML_ERROR_INVALID_ARGUMENT;
    *celsius = 41;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetPowerUsage(nvmlDevice_t device, unsigned int *milliwatts) {
    FULL(device)
    *milliwatts = 70250;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetEnforcedPowerLimit(nvmlDevice_t device, unsigned int *milliwatts) {
    FULL(device)
    *milliwatts = 700000;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory) {
    FULL(device)
    memory->total = 85899345920ULL;
    memory->free = 85899345920ULL - 6442450944ULL;
    memory->used = 6442450944ULL;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device, nvmlUtilization_t *utilization) {
    FULL(device)
    utilization->gpu = 97;
    utilization->memory = 12;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetPersistenceMode(nvmlDevice_t device, nvmlEnableState_t *mode) {
    FULL(device)
    *mode = NVML_FEATURE_ENABLED;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetComputeMode(nvmlDevice_t device, nvmlComputeMode_t *mode) {
    FULL(device)
    *mode = NVML_COMPUTEMODE_EXCLUSIVE_PROCESS;
    return NVML_SUCCESS;
}

/* Idle, and its clocks held by the software's power cap and by a bit that has no name yet. */
nvmlReturn_t nvmlDeviceGetCurrentClocksThrottleReasons(nvmlDevice_t device, unsigned long long *reasons) {
    FULL(device)
    *reasons = 0x0000000100000005ULL;
    return NVML_SUCCESS;
}

/* Five milliseconds more at every question. */
nvmlReturn_t nvmlDeviceGetViolationStatus(nvmlDevice_t device, nvmlPerfPolicyType_t policy, nvmlViolationTime_t *time) {
    FULL(device)
    if (policy > NVML_PERF_POLICY_THERMAL) return NVML_ERROR_NOT_SUPPORTED;
    time->referenceTime = 1;
    time->violationTime = policy == NVML_PERF_POLICY_POWER ? (device->capped_ns += 5000000ULL) : 7ULL << 32;
    return NVML_SUCCESS;
}

#ifndef OLD
nvmlReturn_t nvmlDeviceGetCurrentClocksEventReasons(nvmlDevice_t device, unsigned long long *reasons) {
    return nvmlDeviceGetCurrentClocksThrottleReasons(device, reasons);
}

nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t device, unsigned int *now, unsigned int *pending) {
    FULL(device)
    *now = 0;
    *pending = 1;
    return NVML_SUCCESS;
}

/* Millijoules since the driver was loaded, more than 32 bits hold: 1.5 J more at every question. */
nvmlReturn_t nvmlDeviceGetTotalEnergyConsumption(nvmlDevice_t device, unsigned long long *millijoules) {
    FULL(device)
    *millijoules = device->energy_mj += 1500;
    return NVML_SUCCESS;
}
#endif

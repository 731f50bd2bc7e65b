/* libcuda.so.1 of the tests' own: one H100 in the host's memory, for the real cuda-bindings and cuda-core.
 *
 * Everything is done when it is asked for, which is one of the orders that a GPU may choose. Streams record copies while
 * they are captured. A launch runs the kernel of that name of the host shim's libraries (SHIMS, a list as in PATH); the
 * kernel `fault` loses the device, and any other does nothing. What is not here fails with NOT_SUPPORTED and says so.
 * The API is that of CUDA 13.0: "CUDA Driver API", whose functions are found by cuGetProcAddress.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

enum { INVALID_VALUE = 1, NO_MEMORY = 2, NO_IMAGE = 200, NO_CONTEXT = 201, INVALID_HANDLE = 400, NOT_FOUND = 500,
       LAUNCH_FAILED = 719, NOT_SUPPORTED = 801, CAPTURE_UNSUPPORTED = 900, CAPTURE_INVALIDATED = 901 };
typedef uint64_t u64;
typedef struct { void *to; const void *from; int value; size_t size; char kinds[2]; } Step; /* from: null to fill */
enum { HOST = 1, DEVICE = 2 }; /* CUmemorytype, of from and to */
typedef struct { int count; Step *steps; } Graph;
typedef struct { size_t at[4]; int kind; const void *host; u64 device; void *array, *reserved; size_t pitch, height; } End;
typedef struct { End from, to; size_t width, height, depth; } Copy; /* CUDA_MEMCPY3D */
typedef struct { int known, capturing, broken; Graph *graph; } Stream;
typedef struct { int known, untimed, recorded; double at; } Event;
typedef struct { char name[64]; const char *(*run)(const char *, unsigned *, unsigned *, size_t, void **, int); } Kernel;

static const size_t TOTAL = (size_t)80 << 30, HEAD = 4096;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static size_t taken;
static int lost, context;
static __thread void *current;
static __thread int mode;
static Stream by_default = {1};

static int usable(void) { return lost ? LAUNCH_FAILED : current ? 0 : NO_CONTEXT; }
static Stream *stream_of(void *handle) {
  Stream *found = (uintptr_t)handle > 2 ? handle : &by_default;
  if (!found->known) abort();
  return found;
}

/* --- devices and contexts --- */
int cuInit(unsigned flags) { return 0; }
int cuDriverGetVersion(int *version) { *version = 13000; return 0; }
int cuDeviceGetCount(int *count) { *count = 1; return 0; }
int cuDeviceGet(int *device, int index) { *device = index; return index ? 101 : 0; }
int cuDeviceGetName(char *name, int size, int device) { snprintf(name, size, "H100 of the tests"); return 0; }
int cuDeviceGetUuid_v2(unsigned char *uuid, int device) { for (int i = 0; i < 16; i++) uuid[i] = i; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
  switch (attribute) {
    case 75: *value = 9; break;  /* compute capability, major */
    case 76: *value = 0; break;
    case 1: case 2: case 3: *value = 1024; break; /* threads of a block, its x and y */
    case 5: *value = 2147483647; break; /* blocks of a grid in x */
    case 16: *value = 132; break; /* multiprocessors */
    default: *value = 64;
  }
  return 0;
}
int cuDevicePrimaryCtxSetFlags_v2(int device, unsigned flags) { return 0; }
int cuDevicePrimaryCtxRetain(void **made, int device) { *made = &context; return 0; }
int cuDevicePrimaryCtxRelease_v2(int device) { return 0; }
int cuCtxSetCurrent(void *given) { current = given; return 0; }
int cuCtxGetCurrent(void **found) { *found = current; return 0; }
int cuCtxGetDevice(int *device) { *device = 0; return usable(); }
int cuCtxGetStreamPriorityRange(int *least, int *greatest) { *least = 0, *greatest = -5; return usable(); }
int cuCtxSynchronize(void) { return usable(); }
int cuThreadExchangeStreamCaptureMode(int *given) { int before = mode; mode = *given; *given = before; return 0; }
int cuGetErrorString(int error, const char **text) { *text = "as the tests' driver has it"; return 0; }
int cuGetErrorName(int error, const char **text) { *text = "ERROR"; return 0; }

/* --- memory --- */
static int allocate(void **made, size_t size, size_t counted) {
  if (usable()) return usable();
  pthread_mutex_lock(&lock);
  size_t *head = MAP_FAILED;
  if (taken + counted <= TOTAL)
    head = mmap(0, size + HEAD, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (head != MAP_FAILED) head[0] = size + HEAD, head[1] = counted, head[2] = TOTAL, taken += counted;
  pthread_mutex_unlock(&lock);
  if (head == MAP_FAILED) return NO_MEMORY;
  *made = (char *)head + HEAD;
  return 0;
}
static int release(void *memory) {
  if (lost) return LAUNCH_FAILED;
  size_t *head = (size_t *)((char *)memory - HEAD);
  if (head[2] != TOTAL) abort(); /* freed twice, or never allocated */
  pthread_mutex_lock(&lock);
  taken -= head[1];
  pthread_mutex_unlock(&lock);
  return munmap(head, head[0]);
}
int cuMemGetInfo_v2(size_t *left, size_t *total) { *left = TOTAL - taken, *total = TOTAL; return usable(); }
int cuMemAlloc_v2(void **made, size_t size) { return allocate(made, size, size); }
int cuMemFree_v2(void *memory) { return release(memory); }
int cuMemHostAlloc(void **made, size_t size, unsigned flags) { return allocate(made, size, 0); }
int cuMemFreeHost(void *memory) { return release(memory); }

static int put(void *handle, Step step) {
  Stream *stream = stream_of(handle);
  if (usable()) return usable();
  if (stream->capturing) {
    Graph *graph = stream->graph;
    graph->steps = realloc(graph->steps, (graph->count + 1) * sizeof(Step));
    graph->steps[graph->count++] = step;
  } else if (step.from) memcpy(step.to, step.from, step.size);
  else memset(step.to, step.value, step.size);
  return 0;
}
int cuMemcpyHtoD_v2(void *to, const void *from, size_t size) { return put(0, (Step){to, from, 0, size}); }
int cuMemcpyDtoH_v2(void *to, const void *from, size_t size) { return put(0, (Step){to, from, 0, size}); }
#define COPY(name, source, target) \
  int name(void *to, const void *from, size_t size, void *stream) { \
    return put(stream, (Step){to, from, 0, size, {source, target}}); \
  }
COPY(cuMemcpyHtoDAsync_v2, HOST, DEVICE)
COPY(cuMemcpyDtoHAsync_v2, DEVICE, HOST)
COPY(cuMemcpyDtoDAsync_v2, DEVICE, DEVICE)
int cuMemsetD8_v2(void *to, unsigned char value, size_t size) { return put(0, (Step){to, 0, value, size}); }

/* --- streams, events, graphs --- */
int cuStreamCreate(void **made, unsigned flags) {
  Stream *stream = calloc(1, sizeof *stream);
  stream->known = 1;
  *made = stream;
  return usable();
}
int cuStreamCreateWithPriority(void **made, unsigned flags, int priority) { return cuStreamCreate(made, flags); }
int cuStreamDestroy_v2(void *handle) { stream_of(handle)->known = 0; return lost ? LAUNCH_FAILED : 0; }
int cuStreamGetCtx(void *handle, void **found) { stream_of(handle); *found = &context; return 0; }
int cuStreamSynchronize(void *handle) {
  Stream *stream = stream_of(handle);
  stream->broken |= stream->capturing;
  return usable() ? usable() : stream->capturing ? CAPTURE_UNSUPPORTED : 0;
}
int cuStreamBeginCapture_v2(void *handle, int how) {
  Stream *stream = stream_of(handle);
  stream->capturing = 1, stream->broken = 0, stream->graph = calloc(1, sizeof(Graph));
  return usable();
}
int cuStreamEndCapture(void *handle, void **graph) {
  Stream *stream = stream_of(handle);
  stream->capturing = 0;
  *graph = stream->broken ? 0 : stream->graph;
  return stream->broken ? CAPTURE_INVALIDATED : usable();
}
int cuGraphInstantiateWithFlags(void **made, void *graph, u64 flags) { *made = graph; return usable(); }
int cuGraphDestroy(void *graph) { return 0; }
int cuGraphGetNodes(Graph *graph, void **nodes, size_t *count) {
  for (size_t at = 0; nodes && at < *count; at++) nodes[at] = at < (size_t)graph->count ? &graph->steps[at] : 0;
  if (!nodes || *count > (size_t)graph->count) *count = graph->count;
  return 0;
}
int cuGraphNodeGetType(Step *step, int *kind) { *kind = step->from ? 1 : 2; return 0; } /* a copy, or to fill */
int cuGraphMemcpyNodeGetParams(Step *step, Copy *copy) {
  memset(copy, 0, sizeof *copy);
  copy->from.kind = step->kinds[0], copy->to.kind = step->kinds[1], copy->width = step->size;
  if (step->kinds[0] == HOST) copy->from.host = step->from; else copy->from.device = (u64)step->from;
  if (step->kinds[1] == HOST) copy->to.host = step->to; else copy->to.device = (u64)step->to;
  copy->height = copy->depth = 1;
  return 0;
}
int cuGraphExecDestroy(void *graph) { return 0; }
int cuGraphLaunch(Graph *graph, void *handle) {
  int wrong = 0;
  for (int at = 0; at < graph->count && !wrong; at++) wrong = put(handle, graph->steps[at]);
  return wrong;
}
static Event *event_of(Event *event) { if (!event->known) abort(); return event; }
int cuEventCreate(Event **made, unsigned flags) {
  *made = calloc(1, sizeof **made);
  (*made)->known = 1, (*made)->untimed = flags & 2;
  return usable();
}
int cuEventDestroy_v2(Event *event) { event_of(event)->known = 0; return 0; }
int cuEventRecord(Event *event, void *handle) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  stream_of(handle);
  event_of(event)->recorded = 1, event->at = now.tv_sec * 1e3 + now.tv_nsec / 1e6;
  return usable();
}
int cuEventSynchronize(Event *event) { event_of(event); return usable(); }
int cuStreamWaitEvent(void *handle, Event *event, unsigned flags) { stream_of(handle), event_of(event); return usable(); }
int cuEventElapsedTime_v2(float *milliseconds, Event *from, Event *to) {
  if (event_of(from)->untimed || event_of(to)->untimed || !from->recorded || !to->recorded) return INVALID_HANDLE;
  *milliseconds = to->at - from->at;
  return usable();
}

/* --- kernels --- */
static int kernel_of(Kernel **made, const char *name) {
  Kernel *kernel = *made = calloc(1, sizeof *kernel);
  char *list = strdup(getenv("SHIMS") ? getenv("SHIMS") : "");
  snprintf(kernel->name, sizeof kernel->name, "%s", name);
  for (char *path = strtok(list, ":"); path && !kernel->run; path = strtok(0, ":")) {
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    const char *(*signature)(const char *) = library ? dlsym(library, "kernel_signature") : 0;
    if (signature && signature(name)) kernel->run = dlsym(library, "kernel_run");
  }
  free(list);
  return 0;
}
int cuModuleLoadData(void **made, const void *image) { *made = &context; return usable(); }
int cuModuleGetFunction(Kernel **made, void *module, const char *name) { return kernel_of(made, name); }
int cuLibraryLoadData(void **made, const char *code, void *a, void *b, unsigned c, void *d, void *e, unsigned f) {
  *made = &context;
  return usable() ? usable() : memcmp(code, "\177ELF", 4) ? NO_IMAGE : 0;
}
int cuLibraryUnload(void *library) { return 0; }
int cuLibraryGetKernel(Kernel **made, void *library, const char *name) { return kernel_of(made, name); }
int cuLaunchKernel(Kernel *kernel, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void *handle, void **arguments, void **extra) {
  unsigned grid[] = {gx, gy, gz}, block[] = {bx, by, bz};
  stream_of(handle);
  if (usable()) return usable();
  lost |= !strcmp(kernel->name, "fault");
  const char *wrong = kernel->run ? kernel->run(kernel->name, grid, block, shared, arguments, 0) : 0;
  if (wrong) fprintf(stderr, "%s: %s\n", kernel->name, wrong);
  return wrong ? LAUNCH_FAILED : 0;
}
typedef struct { unsigned gx, gy, gz, bx, by, bz, shared; void *stream, *attributes; unsigned count; } Launch;
int cuLaunchKernelEx(const Launch *how, Kernel *kernel, void **arguments, void **extra) {
  return cuLaunchKernel(kernel, how->gx, how->gy, how->gz, how->bx, how->by, how->bz, how->shared, how->stream,
                        arguments, extra);
}

static int missing(void) { fprintf(stderr, "the tests' driver lacks what was called\n"); return NOT_SUPPORTED; }
int cuGetProcAddress_v2(const char *symbol, void **found, int version, u64 flags, int *status) {
  static const char *suffixes[] = {"_v2", ""};
  char name[128];
  Dl_info own;
  dladdr((void *)cuInit, &own);
  *found = 0;
  for (int at = 0; at < 2 && !*found && version <= 13000; at++) {
    snprintf(name, sizeof name, "%s%s", symbol, suffixes[at]);
    *found = dlsym(dlopen(own.dli_fname, RTLD_NOW), name);
  }
  if (!*found && version <= 13000) *found = (void *)missing;
  if (status) *status = *found ? 0 : 2;
  return 0;
}

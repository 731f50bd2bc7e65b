/* The calls of CUDA's runtime that must do something: device memory is the host's, streams and graphs are names. */
int cudaGetDeviceCount(int *count) { *count = 1; return 0; }
int cudaGetDevice(int *device) { *device = 0; return 0; }
int cudaMemGetInfo(size_t *free, size_t *total) { *free = *total = (size_t)80 << 30; return 0; }
int cudaDriverGetVersion(int *version) { *version = 13000; return 0; }
int cudaRuntimeGetVersion(int *version) { *version = 13000; return 0; }
int cudaDeviceGetAttribute(int *value, int attribute, int device) {
  *value = attribute == 75 ? 9 : attribute == 76 ? 0 : 1; /* compute capability 9.0 */
  return 0;
}
int cudaGetDeviceProperties(char *properties, int device) { /* cudaDeviceProp of CUDA 13 */
  memset(properties, 0, 600);
  *(size_t *)(properties + 288) = (size_t)80 << 30;                       /* totalGlobalMem */
  *(size_t *)(properties + 296) = 49152;                                  /* sharedMemPerBlock */
  *(int *)(properties + 304) = 65536, *(int *)(properties + 308) = 32;    /* regsPerBlock, warpSize */
  *(int *)(properties + 320) = 1024;                                      /* maxThreadsPerBlock */
  for (int axis = 0; axis < 3; axis++) *(int *)(properties + 324 + 4 * axis) = *(int *)(properties + 336 + 4 * axis) = 1024;
  *(int *)(properties + 360) = 9, *(int *)(properties + 384) = 132;       /* major, multiProcessorCount */
  return 0;
}
static int take(const char *name, void **memory, size_t size) {
  trace("%s", name);
  *memory = aligned_alloc(256, (size + 255) / 256 * 256);
  return *memory ? 0 : 2;
}
int cudaMalloc(void **memory, size_t size) { return take("cudaMalloc", memory, size); }
int cudaMallocHost(void **memory, size_t size) { return take("cudaMallocHost", memory, size); }
int cudaHostAlloc(void **memory, size_t size, int flags) { return take("cudaHostAlloc", memory, size); }
int cudaFree(void *memory) { trace("cudaFree"); free(memory); return 0; }
int cudaFreeHost(void *memory) { trace("cudaFreeHost"); free(memory); return 0; }
int cudaMemcpy(void *to, void *from, size_t size, int kind) { trace("cudaMemcpy"); memcpy(to, from, size); return 0; }
int cudaMemcpyAsync(void *to, void *from, size_t size, int kind, void *stream) {
  trace("cudaMemcpyAsync %p kind %d", stream, kind);
  memcpy(to, from, size);
  return 0;
}
int cudaStreamCreateWithFlags(void **made, int flags) { trace("cudaStreamCreateWithFlags"); *made = malloc(8); return 0; }
int cudaEventCreateWithFlags(void **made, int flags) { *made = malloc(8); return 0; }
int cudaStreamSynchronize(void *stream) { trace("cudaStreamSynchronize %p", stream); return 0; }
int cudaStreamBeginCapture(void *stream, int mode) { trace("cudaStreamBeginCapture %p %d", stream, mode); return 0; }
int cudaStreamEndCapture(void *stream, void **graph) { *graph = malloc(8); return 0; }
int cudaGraphInstantiate(void **made, void *graph) { *made = malloc(8); return 0; }
int cudaGraphLaunch(void *graph, void *stream) { trace("cudaGraphLaunch %p", stream); return 0; }
const char *cudaGetErrorString(int error) { return "of the stub"; }
const char *cudaGetErrorName(int error) { return "stub"; }
void **__cudaRegisterFatBinary(void *binary) { static void *handle; return &handle; }

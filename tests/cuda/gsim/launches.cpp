// Stands for CUDA's runtime where no device is wanted: a launch prints which kernel of which object file it is, and
// does nothing else. Device memory is the host's.

#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>

namespace {

// The names of kernels by their addresses on the host. They are registered before main.
std::map<const void*, std::string>& names() {
    static std::map<const void*, std::string> all;
    return all;
}

cudaError_t print(const void* kernel) {
    printf("KERNEL %s\n", names()[kernel].c_str());
    return cudaSuccess;
}

} // namespace

extern "C" {

void** __cudaRegisterFatBinary(void* /*binary*/) {
    static size_t objects = 0;
    return reinterpret_cast<void**>(++objects);
}

void __cudaRegisterFunction(void** object, const char* kernel, char* /*name*/, const char* name, int /*thread_limit*/,
                            uint3* /*thread*/, uint3* /*block*/, dim3* /*threads*/, dim3* /*blocks*/, int* /*size*/) {
    names()[kernel] = std::to_string(reinterpret_cast<size_t>(object)) + " " + name;
}

void __cudaRegisterFatBinaryEnd(void** /*object*/) {}
void __cudaUnregisterFatBinary(void** /*object*/) {}
char __cudaInitModule(void** /*object*/) { return 1; }
unsigned __cudaPushCallConfiguration(dim3 /*blocks*/, dim3 /*threads*/, size_t /*bytes*/, void* /*stream*/) {
    return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* /*blocks*/, dim3* /*threads*/, size_t* /*bytes*/, void* /*stream*/) {
    return cudaSuccess;
}
cudaError_t __cudaGetKernel(const void** kernel, const void* function) {
    *kernel = function;
    return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(const void* kernel, dim3 /*blocks*/, dim3 /*threads*/, void** /*arguments*/,
                               size_t /*bytes*/, cudaStream_t /*stream*/) {
    return print(kernel);
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* /*config*/, const void* kernel, void** /*arguments*/) {
    return print(kernel);
}
cudaError_t cudaFuncSetAttribute(const void* /*kernel*/, cudaFuncAttribute /*attribute*/, int /*value*/) {
    return cudaSuccess;
}
cudaError_t cudaMalloc(void** memory, size_t size) {
    *memory = malloc(size);
    return *memory ? cudaSuccess : cudaErrorMemoryAllocation;
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t size, cudaMemcpyKind /*kind*/) {
    memcpy(to, from, size);
    return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
cudaError_t cudaGetLastError() { return cudaSuccess; }
}

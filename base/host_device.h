// Marks a function that the host and kernels call.
#pragma once

#if defined(__CUDACC__)
#define SINKLORA_HOST_DEVICE __host__ __device__
#else
#define SINKLORA_HOST_DEVICE
#endif

// Declares a kernel, `void name(params, ...)`, for every backend and instruction set that it is compiled for, and chooses among
// them at run time.
//
// A CPU kernel processes the items [begin, end) and is compiled once per instruction set. A CUDA kernel processes everything, on
// the given stream. Both take the same plain struct.
#pragma once

#include <cstdint>
#include <stdexcept>

// For member functions of parameter structs. They must be inlined everywhere, because otherwise the object files of the
// instruction sets would share one copy.
#define DGMFAST_ALWAYS_INLINE __attribute__((always_inline)) constexpr

namespace dgmfast {

enum class Isa : int { baseline, avx2, avx512 };

Isa active_isa();   // the set that kernels run with: DGMFAST_CPU if set, else the default
Isa default_isa();  // the widest set that the processor has
bool isa_available(Isa isa);
const char* isa_name(Isa isa);
Isa isa_by_name(const char* name);  // throws std::invalid_argument if the name is unknown or the set not available
void set_isa(Isa isa);              // for tests, which run every set

template <class Params>
using CpuKernel = void (*)(const Params&, int64_t begin, int64_t end);
template <class Params>
using CudaKernel = void (*)(const Params&, void* stream);

#ifdef DGMFAST_X86
#define DGMFAST_SELECT_ISA(name) \
  (active_isa() == Isa::avx512 ? avx512::name : active_isa() == Isa::avx2 ? avx2::name : baseline::name)
#else
#define DGMFAST_SELECT_ISA(name) baseline::name
#endif

#ifdef DGMFAST_CUDA
#define DGMFAST_CUDA_BODY ;
#else
#define DGMFAST_CUDA_BODY                                                                             \
  {                                                                                                   \
    throw std::runtime_error("dgmfast was built without CUDA; rebuild it where nvcc is on the PATH"); \
  }
#endif

#define DGMFAST_KERNEL(name, Params)                                                                         \
  namespace cpu {                                                                                            \
  namespace baseline {                                                                                       \
  void name(const Params&, int64_t begin, int64_t end);                                                      \
  }                                                                                                          \
  namespace avx2 {                                                                                           \
  void name(const Params&, int64_t begin, int64_t end);                                                      \
  }                                                                                                          \
  namespace avx512 {                                                                                         \
  void name(const Params&, int64_t begin, int64_t end);                                                      \
  }                                                                                                          \
  inline void name(const Params& p, int64_t begin, int64_t end) { DGMFAST_SELECT_ISA(name)(p, begin, end); } \
  }                                                                                                          \
  namespace cuda {                                                                                           \
  DGMFAST_CUDA_INLINE void name(const Params&, [[maybe_unused]] void* stream) DGMFAST_CUDA_BODY              \
  }

#ifdef DGMFAST_CUDA
#define DGMFAST_CUDA_INLINE
#else
#define DGMFAST_CUDA_INLINE inline
#endif

}  // namespace dgmfast

#include <cstdlib>
#include <cstring>
#include <string>

#include "kernels/kernel.h"

namespace dgmfast {
namespace {

constexpr const char* kNames[] = {"baseline", "avx2", "avx512"};

Isa& active() {
  static Isa isa = [] {
    const char* wanted = std::getenv("DGMFAST_CPU");
    return wanted && *wanted ? isa_by_name(wanted) : default_isa();
  }();
  return isa;
}

}  // namespace

bool isa_available(Isa isa) {
#ifdef DGMFAST_X86
  if (isa == Isa::avx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (isa == Isa::avx512) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl");
  }
#endif
  return isa == Isa::baseline;
}

Isa default_isa() {
  for (const Isa isa : {Isa::avx512, Isa::avx2}) {
    if (isa_available(isa)) return isa;
  }
  return Isa::baseline;
}

Isa isa_by_name(const char* name) {
  for (int i = 0; i < 3; ++i) {
    if (std::strcmp(name, kNames[i])) continue;
    if (isa_available(Isa(i))) return Isa(i);
    throw std::invalid_argument(std::string("DGMFAST_CPU=") + name + ": this processor does not have these instructions");
  }
  throw std::invalid_argument(std::string("DGMFAST_CPU must be baseline, avx2 or avx512; got ") + name);
}

const char* isa_name(Isa isa) { return kNames[int(isa)]; }
Isa active_isa() { return active(); }
void set_isa(Isa isa) { active() = isa; }

}  // namespace dgmfast

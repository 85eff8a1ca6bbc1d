// `with_isa ISA PROGRAM` runs a program whose every instruction may be of that set, or skips it (77) where the processor lacks
// it.
#include <unistd.h>

#include <cstdio>

#include "kernels/kernel.h"

int main(int count, char** arguments) {
  if (count != 3) return 2;
  try {
    dgmfast::isa_by_name(arguments[1]);
  } catch (const std::invalid_argument&) {
    std::printf("this processor has no %s\n", arguments[1]);
    return 77;
  }
  execv(arguments[2], arguments + 2);
  std::perror(arguments[2]);
  return 1;
}

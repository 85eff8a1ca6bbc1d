// Runs a grid block by block, with the threads of a block as fibers. A thread runs until it reaches a barrier or a shuffle. When
// no thread can go on, the emulator releases the shuffles and barriers that are complete. What CUDA leaves undefined is reported:
// a barrier that some threads did not reach, or reached at another place in the code; a shuffle without a lane of its mask; a
// lane that reads a lane outside its mask. An impossible grid is reported as CUDA does.
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "cuda_runtime.h"
#include "emulator.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace emu {

Thread* thread;
uint3 block;
dim3 block_dim, grid_dim;

namespace {

constexpr size_t kStack = 64 << 10;
enum class State : unsigned char { fresh, running, at_barrier, at_shuffle, done };

// The place where a fiber or the scheduler continues.
#if defined(__x86_64__)
struct Place {
  void* stack_pointer;
};
extern "C" void emu_switch(void** from, void* to);  // like swapcontext, but without its system calls
asm(R"(
.text
.type emu_switch, @function
emu_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");
void go(Place& from, Place& to) { emu_switch(&from.stack_pointer, to.stack_pointer); }
void begin(Place& place, char* stack, size_t size, void (*entry)()) {
  void** top = reinterpret_cast<void**>((reinterpret_cast<uintptr_t>(stack) + size) / 16 * 16) - 1;
  *--top = reinterpret_cast<void*>(entry);
  place.stack_pointer = top - 6;  // room for the registers that `emu_switch` restores
}
#else
struct Place {
  ucontext_t context;
};
void go(Place& from, Place& to) { swapcontext(&from.context, &to.context); }
void begin(Place& place, char* stack, size_t size, void (*entry)()) {
  getcontext(&place.context);
  place.context.uc_stack.ss_sp = stack, place.context.uc_stack.ss_size = size, place.context.uc_link = nullptr;
  makecontext(&place.context, entry, 0);
}
#endif

struct Fiber {
  Place context;
  std::unique_ptr<char[]> stack{new char[kStack]};
  void* fake_stack = nullptr;
};

struct Lane : Thread {
  State state;
  Fiber* fiber;
  const char* file;
  int line;
  unsigned mask;
  int from;
  alignas(16) char left[kSlot], seen[kSlot];
};

struct Machine {
  std::vector<Lane> lanes;
  std::vector<int> order;
  size_t next;  // position in `order` of the next thread to begin
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<Fiber*> idle;
  std::vector<void*> arrays;  // shared arrays that the block has used so far
  Place scheduler;
  const void* scheduler_stack = nullptr;
  size_t scheduler_size = 0;
  void* scheduler_fake = nullptr;
  Fiber* current = nullptr;
  Body body;
  const void* closure;
  const char* kernel;
  bool broken;  // true if the block cannot go on
};

Machine m;
std::mutex one_launch;
cudaError_t last_error = cudaSuccess;
Counts counted;
std::set<std::string> told;
Schedule schedule = Schedule::forward;
uint64_t random_state = 1;
uint64_t first_block = 0, last_block = ~uint64_t(0);

void complain(const std::string& what) {
  ++counted.errors;
  if (told.insert(std::string(m.kernel) + what).second) std::fprintf(stderr, "emulator: %s: %s\n", m.kernel, what.c_str());
}

std::string place(const Lane& lane) {
  const std::string file = lane.file;
  return file.substr(file.rfind('/') + 1) + ":" + std::to_string(lane.line);
}

void to_scheduler() {
  Fiber* self = m.current;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&self->fake_stack, m.scheduler_stack, m.scheduler_size);
#endif
  go(self->context, m.scheduler);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(self->fake_stack, &m.scheduler_stack, &m.scheduler_size);
#endif
}

void to_fiber(Fiber* fiber) {
  m.current = fiber;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&m.scheduler_fake, fiber->stack.get(), kStack);
#endif
  go(m.scheduler, fiber->context);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(m.scheduler_fake, nullptr, nullptr);
#endif
}

// A fiber runs one thread after the other, until a thread has to wait. From then on the fiber belongs to that thread.
void fiber_main() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &m.scheduler_stack, &m.scheduler_size);
#endif
  for (;;) {
    while (m.next < m.order.size()) {
      Lane& lane = m.lanes[m.order[m.next++]];
      lane.state = State::running, lane.fiber = m.current;
      thread = &lane;
      m.body(m.closure);
      static_cast<Lane*>(thread)->state = State::done;
    }
    m.idle.push_back(m.current);
    to_scheduler();
  }
}

Fiber* idle_fiber() {
  if (m.idle.empty()) {
    m.fibers.push_back(std::make_unique<Fiber>());
    Fiber* made = m.fibers.back().get();
    begin(made->context, made->stack.get(), kStack, fiber_main);
    return made;
  }
  Fiber* fiber = m.idle.back();
  m.idle.pop_back();
  return fiber;
}

void wait(State state, const char* file, int line) {
  Lane* self = static_cast<Lane*>(thread);
  self->state = state, self->file = file, self->line = line;
  to_scheduler();
  thread = self;
}

// Releases the shuffles of one warp that all lanes of their mask have reached. Returns whether there was one.
bool open_shuffles(size_t first, size_t end) {
  bool opened = false;
  for (size_t i = first; i < end; ++i) {
    Lane& lane = m.lanes[i];
    if (lane.state != State::at_shuffle) continue;
    bool all = true, gone = false, elsewhere = false;
    for (size_t j = first; j < first + 32; ++j) {
      if (!(lane.mask >> (j - first) & 1u)) continue;
      if (j >= end || m.lanes[j].state == State::done) {
        gone = true;
      } else if (m.lanes[j].state != State::at_shuffle) {
        all = false;
      } else if (m.lanes[j].line != lane.line || m.lanes[j].file != lane.file || m.lanes[j].mask != lane.mask) {
        elsewhere = true;
      }
    }
    if (!all) continue;
    if (gone) complain("shuffle at " + place(lane) + " without lanes of its mask, which have returned");
    if (elsewhere) complain("shuffle at " + place(lane) + " while lanes of its mask are at another one");
    for (size_t j = first; j < end; ++j) {
      Lane& other = m.lanes[j];
      if (!(lane.mask >> (j - first) & 1u) || other.state != State::at_shuffle) continue;
      const size_t from = first + other.from;
      if (!(other.mask >> other.from & 1u)) complain("shuffle at " + place(other) + " reads a lane outside its mask");
      if (from < end && m.lanes[from].state == State::at_shuffle) {
        std::memcpy(other.seen, m.lanes[from].left, kSlot);
      } else {
        std::memset(other.seen, 0xFF, kSlot);
      }
    }
    for (size_t j = first; j < end; ++j) {
      if (lane.mask >> (j - first) & 1u && m.lanes[j].state == State::at_shuffle)
        m.lanes[j].state = State::running, m.lanes[j].from = -1;
    }
    ++counted.shuffles;
    opened = true;
  }
  return opened;
}

bool open_barrier() {
  const Lane* first = nullptr;
  bool gone = false, elsewhere = false;
  for (const Lane& lane : m.lanes) {
    if (lane.state == State::done) gone = true;
    if (lane.state == State::at_shuffle) return false;
    if (lane.state != State::at_barrier) continue;
    if (!first) first = &lane;
    elsewhere |= first->line != lane.line || first->file != lane.file;
  }
  if (!first) return false;
  if (gone) complain("barrier at " + place(*first) + " that threads of the block have returned before");
  if (elsewhere) complain("barrier at " + place(*first) + " while threads of the block are at another one");
  for (Lane& lane : m.lanes) {
    if (lane.state == State::at_barrier) lane.state = State::running;
  }
  ++counted.barriers;
  return true;
}

void order_threads() {
  for (size_t i = 0; i < m.order.size(); ++i) m.order[i] = int(schedule == Schedule::reverse ? m.order.size() - 1 - i : i);
  if (schedule != Schedule::random) return;
  for (size_t i = m.order.size(); i-- > 1;) {
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    std::swap(m.order[i], m.order[(random_state >> 33) % (i + 1)]);
  }
}

void run_block() {
  m.next = 0, m.broken = false;
  m.arrays.clear();
  for (Lane& lane : m.lanes) lane.state = State::fresh;
  order_threads();
  for (;;) {
    bool moved = false;
    while (m.next < m.order.size()) to_fiber(idle_fiber()), moved = true;
    for (const int i : m.order) {
      if (m.lanes[i].state == State::running) to_fiber(m.lanes[i].fiber), moved = true;
    }
    if (moved) continue;
    for (size_t warp = 0; warp < m.lanes.size(); warp += 32) moved |= open_shuffles(warp, std::min(warp + 32, m.lanes.size()));
    if (moved || open_barrier()) continue;
    if (std::all_of(m.lanes.begin(), m.lanes.end(), [](const Lane& l) { return l.state == State::done; })) return;
    complain("a deadlock: threads wait for a shuffle that others never reach");
    std::abort();
  }
}

}  // namespace

void barrier(const char* file, int line) { wait(State::at_barrier, file, line); }

void exchange(unsigned mask, const void* value, void* result, size_t size, int from, const char* file, int line) {
  Lane* self = static_cast<Lane*>(thread);
  std::memcpy(self->left, value, size);
  self->mask = mask, self->from = from;
  if (!(mask >> (self->linear % 32) & 1u)) complain("a lane shuffles that is not in its mask");
  wait(State::at_shuffle, file, line);
  std::memcpy(result, self->seen, size);
}

void shared(void* array, size_t size) {
  if (std::find(m.arrays.begin(), m.arrays.end(), array) != m.arrays.end()) return;
  m.arrays.push_back(array);
  counted.shared_bytes = std::max(counted.shared_bytes, size);
  std::memset(array, 0xFF, size);
}

void run_grid(const char* kernel, dim3 grid, dim3 threads, size_t shared_bytes, Body body, const void* closure) {
  const std::lock_guard lock(one_launch);
  m.kernel = kernel, m.body = body, m.closure = closure;
  ++counted.launches;
  const uint64_t per_block = uint64_t(threads.x) * threads.y * threads.z;
  const bool possible = grid.x >= 1 && grid.x <= 0x7FFFFFFFu && grid.y >= 1 && grid.y <= 65535 && grid.z >= 1 &&
                        grid.z <= 65535 && per_block >= 1 && per_block <= 1024 && shared_bytes <= 48 << 10;
  if (!possible) {
    last_error = cudaErrorInvalidConfiguration;
    return;
  }
  grid_dim = grid, block_dim = threads;
  m.lanes.assign(per_block, Lane{});
  m.order.resize(per_block);
  for (size_t i = 0; i < per_block; ++i) {
    m.lanes[i].linear = int(i);
    m.lanes[i].index = {unsigned(i % threads.x), unsigned(i / threads.x % threads.y), unsigned(i / threads.x / threads.y)};
  }
  const uint64_t blocks = uint64_t(grid.x) * grid.y * grid.z;
  const uint64_t begin = std::min(first_block, blocks), end = std::min(last_block, blocks);
  for (uint64_t i = begin; i < end; ++i) {
    const uint64_t b = schedule == Schedule::reverse ? begin + end - 1 - i : i;
    block = {unsigned(b % grid.x), unsigned(b / grid.x % grid.y), unsigned(b / grid.x / grid.y)};
    run_block();
  }
  counted.threads += (end - begin) * per_block;
}

Counts& counts() { return counted; }
void set_schedule(Schedule s) { schedule = s; }
void only_blocks(uint64_t begin, uint64_t end) { first_block = begin, last_block = end; }

}  // namespace emu

cudaError_t cudaGetLastError() { return std::exchange(emu::last_error, cudaSuccess); }
const char* cudaGetErrorString(cudaError_t e) { return e == cudaSuccess ? "no error" : "invalid configuration argument"; }

// Splits independent work over std::thread. Threads live for one call only, so a process may fork
// between calls (a pool, or OpenMP beside torch, deadlocks there). Results must not depend on the
// split: each task writes to its own place. The first exception of any task is rethrown.
#pragma once

#include <cstddef>
#include <functional>

namespace delfsearch {

// n_threads < 1 means all hardware threads; more than 1024 mean 1024.
int resolve_threads(int n_threads);

// Calls body(task, thread) for every task in [0, n_tasks); tasks are handed out one at a time in
// rising order. `thread` is in [0, threads used) and may index scratch memory.
void parallel_for(std::size_t n_tasks, int n_threads,
                  const std::function<void(std::size_t task, int thread)>& body);

}  // namespace delfsearch

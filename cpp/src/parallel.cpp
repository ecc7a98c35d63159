#include "delfsearch/parallel.hpp"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace delfsearch {

int resolve_threads(int n_threads) {
  constexpr int kMost = 1024;  // more only cost memory
  if (n_threads >= 1) return std::min(n_threads, kMost);
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

void parallel_for(std::size_t n_tasks, int n_threads,
                  const std::function<void(std::size_t, int)>& body) {
  const int threads = static_cast<int>(
      std::min<std::size_t>(n_tasks, static_cast<std::size_t>(resolve_threads(n_threads))));
  if (threads <= 1) {
    for (std::size_t task = 0; task < n_tasks; ++task) body(task, 0);
    return;
  }
  std::atomic<std::size_t> next{0};
  std::exception_ptr error;
  std::mutex error_mutex;
  const auto run = [&](int thread) {
    try {
      for (std::size_t task = next++; task < n_tasks; task = next++) body(task, thread);
    } catch (...) {
      next = n_tasks;
      const std::lock_guard<std::mutex> lock(error_mutex);
      if (!error) error = std::current_exception();
    }
  };
  std::vector<std::thread> pool;
  pool.reserve(static_cast<std::size_t>(threads - 1));
  try {
    for (int t = 1; t < threads; ++t) pool.emplace_back(run, t);
  } catch (...) {
    // No more threads to be had: the ones there are, and this one, do the work.
  }
  run(0);
  for (auto& thread : pool) thread.join();
  if (error) std::rethrow_exception(error);
}

}  // namespace delfsearch

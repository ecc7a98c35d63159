// Packed ids of posting lists.
#include "delfsearch/packed_ids.hpp"

#include <algorithm>
#include <stdexcept>

#include "bindings.hpp"
#include "delfsearch/parallel.hpp"

namespace delfsearch::bindings {
namespace {

// Borrowed arrays and the sizes that they were packed with.
struct Packed {
  PackedIdsView ids;
  Span<const std::uint64_t> firsts;

  std::size_t n_sequences() const { return firsts.size() - 1; }
  std::size_t size(std::size_t s) const {
    return static_cast<std::size_t>(firsts[s + 1] - firsts[s]);
  }
};

}  // namespace

void bind_packed_ids(py::module_& m) {
  m.def(
      "pack_ids",
      [](const Array<std::uint32_t>& values, const Array<std::uint64_t>& firsts,
         std::uint64_t universe, int n_threads) {
        PackedIds packed;
        {
          py::gil_scoped_release release;
          packed = pack_ids(view(values), view(firsts), universe, n_threads);
        }
        return py::make_tuple(to_numpy(std::move(packed.words)),
                              to_numpy(std::move(packed.starts)));
      },
      py::arg("values").noconvert(), py::arg("firsts").noconvert(), py::arg("universe"),
      py::arg("n_threads"));

  py::class_<Packed>(m, "PackedIdsView", "Borrows its arrays and keeps them alive.")
      .def(py::init([](const Array<std::uint64_t>& words, const Array<std::uint64_t>& starts,
                       const Array<std::uint64_t>& firsts, std::uint64_t universe, bool check) {
             Packed packed;
             packed.ids.words = view(words);
             packed.ids.starts = view(starts);
             packed.ids.universe = universe;
             packed.firsts = view(firsts);
             if (firsts.size() == 0 || starts.size() != firsts.size())
               throw std::invalid_argument("starts and firsts must have one more than sequences");
             packed.ids.check_sizes(packed.firsts);
             if (check) packed.ids.check(packed.firsts);
             return packed;
           }),
           py::arg("words").noconvert(), py::arg("starts").noconvert(),
           py::arg("firsts").noconvert(), py::arg("universe"), py::arg("check"),
           py::keep_alive<1, 2>(), py::keep_alive<1, 3>(), py::keep_alive<1, 4>())
      .def(
          "get_range",
          [](const Packed& packed, std::size_t begin, std::size_t end, int n_threads) {
            if (begin > end || end > packed.n_sequences())
              throw std::invalid_argument("sequences must be a range of those that there are");
            const std::uint64_t first = packed.firsts[begin];
            std::vector<std::uint32_t> found(static_cast<std::size_t>(packed.firsts[end] - first));
            {
              py::gil_scoped_release release;
              constexpr std::size_t kTask = 64;
              parallel_for((end - begin + kTask - 1) / kTask, n_threads,
                           [&](std::size_t task, int) {
                             for (std::size_t s = begin + task * kTask;
                                  s < std::min(end, begin + (task + 1) * kTask); ++s)
                               packed.ids.get_all(s, packed.size(s),
                                                  found.data() + (packed.firsts[s] - first));
                           });
            }
            return to_numpy(std::move(found));
          },
          py::arg("begin"), py::arg("end"), py::arg("n_threads"))
      .def(
          "select",
          [](const Packed& packed, const Array<std::uint64_t>& wanted,
             const Array<std::uint64_t>& places, std::size_t n_words, int n_threads) {
            std::vector<std::uint64_t> bits;
            {
              py::gil_scoped_release release;
              bits =
                  packed.ids.select(packed.firsts, view(wanted), view(places), n_words, n_threads);
            }
            return to_numpy(std::move(bits));
          },
          py::arg("wanted").noconvert(), py::arg("places").noconvert(), py::arg("n_words"),
          py::arg("n_threads"));
}

}  // namespace delfsearch::bindings

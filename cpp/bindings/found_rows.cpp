// What becomes of the places that a scan of posting lists finds.
#include "delfsearch/found_rows.hpp"

#include "bindings.hpp"
#include "delfsearch/rerank.hpp"

namespace delfsearch::bindings {

void bind_found_rows(py::module_& m) {
  m.def(
      "rows_of_places",
      [](const InvertedFileView& file, const Array<std::uint64_t>& words,
         const Array<std::uint64_t>& starts, const Array<std::uint64_t>& firsts,
         std::uint64_t universe, const Array<std::uint32_t>& probes,
         const Array<float>& squared_distances, const Array<std::int64_t>& places, int n_threads) {
        ListIdsView ids;
        ids.ids.words = view(words);
        ids.ids.starts = view(starts);
        ids.ids.universe = universe;
        ids.firsts = view(firsts);
        std::vector<std::int64_t> rows;
        {
          py::gil_scoped_release release;
          rows = rows_of_places(file, ids, view(probes), static_cast<std::size_t>(places.shape(0)),
                                view(squared_distances), view(places), n_threads);
        }
        return to_numpy(std::move(rows), {places.shape(0), places.shape(1)});
      },
      py::arg("file"), py::arg("words").noconvert(), py::arg("starts").noconvert(),
      py::arg("firsts").noconvert(), py::arg("universe"), py::arg("probes").noconvert(),
      py::arg("squared_distances").noconvert(), py::arg("places").noconvert(),
      py::arg("n_threads"));
  m.def(
      "rerank",
      [](const Array<std::uint8_t>& exact, const Array<float>& lower, const Array<float>& step,
         const Array<float>& queries, const Array<std::int64_t>& candidates, std::size_t k,
         int n_threads) {
        Reranked found;
        {
          py::gil_scoped_release release;
          found = rerank(view(exact), view(lower), view(step), view(queries), view(candidates), k,
                         n_threads);
        }
        const std::vector<py::ssize_t> shape{queries.shape(0), static_cast<py::ssize_t>(k)};
        return py::make_tuple(to_numpy(std::move(found.squared_distances), shape),
                              to_numpy(std::move(found.rows), shape));
      },
      py::arg("exact").noconvert(), py::arg("lower").noconvert(), py::arg("step").noconvert(),
      py::arg("queries").noconvert(), py::arg("candidates").noconvert(), py::arg("k"),
      py::arg("n_threads"));
}

}  // namespace delfsearch::bindings

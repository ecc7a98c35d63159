#include "delfsearch/aggregate.hpp"

#include "bindings.hpp"
#include "delfsearch/rematch.hpp"

namespace delfsearch::bindings {
namespace {

using Rows = Array<std::int64_t>;
using Distances = Array<float>;

PhotoRows photo_rows(const Rows& offsets, const Rows& image_ids, const Array<std::int32_t>& first) {
  return {view(offsets), view(image_ids), view(first)};
}

py::tuple to_tuple(NeighborLists&& lists, py::ssize_t m, py::ssize_t k) {
  return py::make_tuple(to_numpy(std::move(lists.rows), {m, k}),
                        to_numpy(std::move(lists.squared_distances), {m, k}),
                        to_numpy(std::move(lists.kept)));
}

}  // namespace

void bind_aggregate(py::module_& m) {
  m.def(
      "first_photo_of_buckets",
      [](const Rows& offsets) { return to_numpy(first_photo_of_buckets(view(offsets))); },
      py::arg("offsets").noconvert());
  m.def(
      "filter_neighbors",
      [](const Rows& rows, const Distances& squared_distances, std::size_t k, const Rows& begin,
         const Rows& end) {
        const auto n_queries = static_cast<std::size_t>(rows.shape(0));
        NeighborLists lists;
        {
          py::gil_scoped_release release;
          lists = filter_neighbors(view(rows), view(squared_distances), n_queries, k, view(begin),
                                   view(end));
        }
        return to_tuple(std::move(lists), rows.shape(0), static_cast<py::ssize_t>(k));
      },
      py::arg("rows").noconvert(), py::arg("squared_distances").noconvert(), py::arg("k"),
      py::arg("excluded_begin").noconvert(), py::arg("excluded_end").noconvert());
  m.def(
      "merge_neighbors",
      [](const Rows& rows, const Distances& squared_distances, const Rows& offsets,
         const Rows& image_ids, const Array<std::int32_t>& first) {
        const auto n_segments = static_cast<std::size_t>(rows.shape(0));
        const auto n_queries = static_cast<std::size_t>(rows.shape(1));
        const auto k = static_cast<std::size_t>(rows.shape(2));
        const PhotoRows photos = photo_rows(offsets, image_ids, first);
        NeighborLists lists;
        {
          py::gil_scoped_release release;
          lists = merge_neighbors(view(rows), view(squared_distances), n_segments, n_queries, k,
                                  photos);
        }
        return to_tuple(std::move(lists), rows.shape(1), rows.shape(2));
      },
      py::arg("rows").noconvert(), py::arg("squared_distances").noconvert(),
      py::arg("offsets").noconvert(), py::arg("image_ids").noconvert(),
      py::arg("first").noconvert());
  m.def(
      "group_by_photo",
      [](const Rows& rows, const Distances& squared_distances, const Rows& offsets,
         const Rows& image_ids, const Array<std::int32_t>& first, std::size_t max_candidates,
         bool weigh_by_distance) {
        const auto n_queries = static_cast<std::size_t>(rows.shape(0));
        const auto k = static_cast<std::size_t>(rows.shape(1));
        const PhotoRows photos = photo_rows(offsets, image_ids, first);
        GroupedMatches out;
        {
          py::gil_scoped_release release;
          out = group_by_photo(view(rows), view(squared_distances), n_queries, k, photos,
                               max_candidates, weigh_by_distance);
        }
        return py::make_tuple(
            to_numpy(std::move(out.image_ids)), to_numpy(std::move(out.offsets)),
            to_numpy(std::move(out.query_indices)), to_numpy(std::move(out.database_indices)),
            to_numpy(std::move(out.rows)), to_numpy(std::move(out.squared_distances)));
      },
      py::arg("rows").noconvert(), py::arg("squared_distances").noconvert(),
      py::arg("offsets").noconvert(), py::arg("image_ids").noconvert(),
      py::arg("first").noconvert(), py::arg("max_candidates"), py::arg("weigh_by_distance"));
  m.def(
      "rematch",
      [](const Array<float>& lower, const Array<float>& step, const Array<std::uint8_t>& codes,
         const Array<float>& queries, const Array<std::int32_t>& query_of, const Rows& begin,
         const Rows& end, int n_threads) {
        Rematched found;
        {
          py::gil_scoped_release release;
          const Quantizer quantizer{{lower.data(), lower.data() + lower.size()},
                                    {step.data(), step.data() + step.size()}};
          found = rematch(quantizer, view(codes), view(queries), view(query_of), view(begin),
                          view(end), n_threads);
        }
        return py::make_tuple(to_numpy(std::move(found.rows)),
                              to_numpy(std::move(found.squared_distances)));
      },
      py::arg("lower").noconvert(), py::arg("step").noconvert(), py::arg("codes").noconvert(),
      py::arg("queries").noconvert(), py::arg("query_of").noconvert(), py::arg("begin").noconvert(),
      py::arg("end").noconvert(), py::arg("n_threads"));
}

}  // namespace delfsearch::bindings

#include "delfsearch/ransac.hpp"

#include "bindings.hpp"

namespace delfsearch::bindings {

void bind_ransac(py::module_& m) {
  m.def(
      "ransac_affine",
      [](const Array<float>& query_xy, const Array<float>& database_xy,
         const Array<float>& squared_distances, const Array<std::int64_t>& offsets,
         const Array<std::int64_t>& ids, double max_error, double min_separation,
         int max_iterations, double confidence, int min_support, double min_scale, double max_scale,
         double max_stretch, double max_rotation_deg, std::uint64_t seed, int n_threads) {
        RansacOptions options;
        options.max_error = max_error;
        options.min_separation = min_separation;
        options.max_iterations = max_iterations;
        options.confidence = confidence;
        options.min_support = min_support;
        options.limits = {min_scale, max_scale, max_stretch, max_rotation_deg};
        options.seed = seed;
        const RansacMatches matches{view(query_xy), view(database_xy), view(squared_distances),
                                    view(offsets), view(ids)};
        RansacResults results;
        {
          py::gil_scoped_release release;
          results = ransac_affine(matches, options, n_threads);
        }
        const auto n = static_cast<py::ssize_t>(results.n_inliers.size());
        return py::make_tuple(
            to_numpy(std::move(results.n_inliers)), to_numpy(std::move(results.affines), {n, 2, 3}),
            to_numpy(std::move(results.inlier_offsets)), to_numpy(std::move(results.inlier_rows)),
            to_numpy(std::move(results.n_iterations)));
      },
      py::arg("query_xy").noconvert(), py::arg("database_xy").noconvert(),
      py::arg("squared_distances").noconvert(), py::arg("offsets").noconvert(),
      py::arg("ids").noconvert(), py::kw_only(), py::arg("max_error"), py::arg("min_separation"),
      py::arg("max_iterations"), py::arg("confidence"), py::arg("min_support"),
      py::arg("min_scale"), py::arg("max_scale"), py::arg("max_stretch"),
      py::arg("max_rotation_deg"), py::arg("seed"), py::arg("n_threads"),
      "RANSAC of every candidate: n_inliers, affines, inlier_offsets, inlier_rows, n_iterations.");
}

}  // namespace delfsearch::bindings

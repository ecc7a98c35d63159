// Quantizer and KD-tree. The tree is a handful of arrays that Python holds, so that it can map them
// from a file, pickle them and share them; each call builds a view.
#include "delfsearch/kdtree.hpp"

#include "bindings.hpp"

namespace delfsearch::bindings {
namespace {

Quantizer make_quantizer(const Array<float>& lower, const Array<float>& step) {
  return {{lower.data(), lower.data() + lower.size()}, {step.data(), step.data() + step.size()}};
}

py::ssize_t rows_of(std::size_t size, std::size_t d) {
  return static_cast<py::ssize_t>(d == 0 ? 0 : size / d);
}

KdTreeView make_view(std::size_t n, std::size_t leaf_size, const Array<float>& lower,
                     const Array<float>& step, const Array<std::uint8_t>& codes,
                     const Array<float>& norms, const Array<std::uint8_t>& ids,
                     const Array<std::uint8_t>& leaf_codes, const Array<float>& leaf_norms) {
  KdTreeView tree;
  tree.n = n;
  tree.leaf_size = leaf_size;
  tree.lower = view(lower);
  tree.step = view(step);
  tree.codes = view(codes);
  tree.norms = view(norms);
  tree.ids = view(ids);
  tree.leaf_codes = view(leaf_codes);
  tree.leaf_norms = view(leaf_norms);
  return tree;
}

}  // namespace

void bind_kdtree(py::module_& m) {
  m.def(
      "fit_quantizer",
      [](const Array<float>& X, double clip_quantile) {
        const auto d = static_cast<std::size_t>(X.shape(1));
        Quantizer quantizer;
        {
          py::gil_scoped_release release;
          quantizer = fit_quantizer(view(X), d, clip_quantile);
        }
        return py::make_tuple(to_numpy(std::move(quantizer.lower)),
                              to_numpy(std::move(quantizer.step)));
      },
      py::arg("X").noconvert(), py::arg("clip_quantile"));
  m.def(
      "quantize",
      [](const Array<float>& lower, const Array<float>& step, const Array<float>& X) {
        const Quantizer quantizer = make_quantizer(lower, step);
        std::vector<std::uint8_t> codes;
        {
          py::gil_scoped_release release;
          codes = quantize(quantizer, view(X));
        }
        return to_numpy(std::move(codes), {X.shape(0), X.shape(1)});
      },
      py::arg("lower").noconvert(), py::arg("step").noconvert(), py::arg("X").noconvert());
  m.def(
      "decode",
      [](const Array<float>& lower, const Array<float>& step, const Array<std::uint8_t>& codes) {
        const Quantizer quantizer = make_quantizer(lower, step);
        std::vector<float> X;
        {
          py::gil_scoped_release release;
          X = decode(quantizer, view(codes));
        }
        return to_numpy(std::move(X), {codes.shape(0), codes.shape(1)});
      },
      py::arg("lower").noconvert(), py::arg("step").noconvert(), py::arg("codes").noconvert());
  m.def(
      "build_kdtree",
      [](const Array<float>& lower, const Array<float>& step, const Array<std::uint8_t>& codes,
         std::size_t leaf_size, bool axis_splits, int refine_steps, int n_threads) {
        const Quantizer quantizer = make_quantizer(lower, step);
        KdTreeArrays arrays;
        {
          py::gil_scoped_release release;
          arrays =
              build_kdtree(view(codes), quantizer, leaf_size,
                           axis_splits ? Splits::kAxis : Splits::kMeans, refine_steps, n_threads);
        }
        return py::make_tuple(to_numpy(std::move(arrays.codes)), to_numpy(std::move(arrays.norms)),
                              to_numpy(std::move(arrays.ids)),
                              to_numpy(std::move(arrays.leaf_codes)),
                              to_numpy(std::move(arrays.leaf_norms)));
      },
      py::arg("lower").noconvert(), py::arg("step").noconvert(), py::arg("codes").noconvert(),
      py::arg("leaf_size"), py::arg("axis_splits"), py::arg("refine_steps"), py::arg("n_threads"));

  py::class_<KdTreeView>(
      m, "KdTreeView",
      "Borrows its arrays and keeps them alive; checks what a damaged file could "
      "hold.")
      .def(py::init([](std::size_t n, std::size_t leaf_size, const Array<float>& lower,
                       const Array<float>& step, const Array<std::uint8_t>& codes,
                       const Array<float>& norms, const Array<std::uint8_t>& ids,
                       const Array<std::uint8_t>& leaf_codes, const Array<float>& leaf_norms,
                       bool check) {
             const KdTreeView tree =
                 make_view(n, leaf_size, lower, step, codes, norms, ids, leaf_codes, leaf_norms);
             if (check) {
               py::gil_scoped_release release;
               tree.check();
             }
             return tree;
           }),
           py::arg("n"), py::arg("leaf_size"), py::arg("lower").noconvert(),
           py::arg("step").noconvert(), py::arg("codes").noconvert(), py::arg("norms").noconvert(),
           py::arg("ids").noconvert(), py::arg("leaf_codes").noconvert(),
           py::arg("leaf_norms").noconvert(), py::arg("check"), py::keep_alive<1, 4>(),
           py::keep_alive<1, 5>(), py::keep_alive<1, 6>(), py::keep_alive<1, 7>(),
           py::keep_alive<1, 8>(), py::keep_alive<1, 9>(), py::keep_alive<1, 10>())
      .def(
          "search",
          [](const KdTreeView& tree, const Array<float>& queries, std::size_t k,
             std::size_t max_leaves, int n_threads) {
            Neighbours found;
            {
              py::gil_scoped_release release;
              found = search_kdtree(tree, view(queries), k, max_leaves, n_threads);
            }
            const py::ssize_t m_rows = rows_of(found.ids.size(), k);
            const auto k_columns = static_cast<py::ssize_t>(k);
            return py::make_tuple(to_numpy(std::move(found.squared_distances), {m_rows, k_columns}),
                                  to_numpy(std::move(found.ids), {m_rows, k_columns}));
          },
          py::arg("queries").noconvert(), py::arg("k"), py::arg("max_leaves"), py::arg("n_threads"))
      .def(
          "norms_of_wanted",
          [](const KdTreeView& tree, const Array<std::uint8_t>& wanted) {
            KdTreeNorms made;
            {
              py::gil_scoped_release release;
              made = norms_of_wanted(tree, view(wanted));
            }
            return py::make_tuple(to_numpy(std::move(made.norms)),
                                  to_numpy(std::move(made.leaf_norms)));
          },
          py::arg("wanted").noconvert())
      .def(
          "unpack_codes",
          [](const KdTreeView& tree, std::size_t begin, std::size_t end) {
            std::vector<std::uint8_t> codes;
            {
              py::gil_scoped_release release;
              codes = unpack_codes(tree, begin, end);
            }
            const py::ssize_t rows = rows_of(codes.size(), tree.dimension());
            return to_numpy(std::move(codes), {rows, static_cast<py::ssize_t>(tree.dimension())});
          },
          py::arg("begin"), py::arg("end"));
}

}  // namespace delfsearch::bindings

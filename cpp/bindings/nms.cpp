#include "delfsearch/nms.hpp"

#include "bindings.hpp"

namespace delfsearch::bindings {

void bind_nms(py::module_& m) {
  m.def(
      "non_maximum_suppression",
      [](const Array<float>& boxes, const Array<float>& scores, float iou_threshold,
         std::size_t max_kept) {
        std::vector<std::int64_t> kept;
        {
          py::gil_scoped_release release;
          kept = non_maximum_suppression(view(boxes), view(scores), iou_threshold, max_kept);
        }
        return to_numpy(std::move(kept));
      },
      py::arg("boxes").noconvert(), py::arg("scores").noconvert(), py::arg("iou_threshold"),
      py::arg("max_kept"),
      "Greedy NMS by IoU: indices kept, best score first, ties by lower index.");
}

}  // namespace delfsearch::bindings

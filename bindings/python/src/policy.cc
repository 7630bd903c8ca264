// Calls of the library to an eviction policy in Python: with the interpreter lock, errors reported and never passed on.
#include "policy.h"

#include <nanobind/stl/string.h>

#include <string>
#include <utility>

#include "errors.h"
#include "threads.h"

namespace nb = nanobind;

namespace pagedkv::python {
namespace {

class PythonPolicy final : public EvictionPolicy {
 public:
  explicit PythonPolicy(nb::object policy) : policy_(std::move(policy)) {}
  PythonPolicy(const PythonPolicy&) = delete;
  PythonPolicy& operator=(const PythonPolicy&) = delete;
  ~PythonPolicy() override {
    if (!nb::is_alive()) {
      policy_.release();  // the interpreter is gone, and its objects with it
      return;
    }
    const nb::gil_scoped_acquire locked;
    policy_.reset();
  }

  Result<void> attach(std::uint64_t num_pages) noexcept override {
    if (call("attach", num_pages)) return {};
    return Error{Errc::kInvalidArgument, "the eviction policy's attach raised an exception"};
  }
  void on_published(const PublishedPage& page) noexcept override {
    call("on_published", to_index(page.page), page.hash, page.index);
  }
  void on_hit(PageId page) noexcept override { call("on_hit", to_index(page)); }
  void on_evictable(PageId page) noexcept override { call("on_evictable", to_index(page)); }
  void on_withdrawn(PageId page) noexcept override { call("on_withdrawn", to_index(page)); }
  PageId choose() noexcept override {
    const nb::gil_scoped_acquire locked;
    const LibraryCall::Callback callback;
    std::int32_t page = to_index(kNullPage);  // replaced by a candidate
    report([&] { page = nb::cast<std::int32_t>(policy_.attr("choose")()); });
    return PageId{page};
  }
  [[nodiscard]] const char* name() const noexcept override { return "python"; }

 private:
  template <class... Values>
  bool call(const char* method, Values... values) noexcept {
    const nb::gil_scoped_acquire locked;
    const LibraryCall::Callback callback;
    return report([&] { policy_.attr(method)(values...); });
  }

  /// False if `function` raised, which sys.unraisablehook is told.
  template <class Function>
  static bool report(Function&& function) noexcept {
    try {
      function();
      return true;
    } catch (nb::python_error& error) {
      error.discard_as_unraisable("pagedkv eviction policy");
    } catch (const std::exception& error) {
      PyErr_SetString(PyExc_TypeError, error.what());
      PyErr_WriteUnraisable(nullptr);
    }
    return false;
  }

  nb::object policy_;
};

}  // namespace

std::shared_ptr<EvictionPolicy> policy_of(nb::handle given) {
  std::string name;
  if (!nb::try_cast(given, name)) {
    for (const char* method : {"attach", "on_published", "on_hit", "on_evictable", "on_withdrawn", "choose"}) {
      if (!nb::hasattr(given, method)) {
        throw nb::type_error("eviction_policy: expected a name or an object with the methods of EvictionPolicy");
      }
    }
    return std::make_shared<PythonPolicy>(nb::borrow(given));
  }
  if (name == "lru") return unwrap(make_lru_policy());
  if (name == "arc") return unwrap(make_arc_policy());
  if (name == "s3fifo") return unwrap(make_s3fifo_policy());
  throw nb::value_error("eviction_policy must be \"lru\", \"arc\", \"s3fifo\" or an object");
}

}  // namespace pagedkv::python

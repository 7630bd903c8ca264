// Packs the layers of groups into pages of equal size.
#include "cache/layer_map.h"

#include <algorithm>
#include <cstddef>
#include <span>

#include "core/align.h"

namespace pagedkv::cache {
namespace {

Error invalid(const char* what) noexcept { return {Errc::kInvalidArgument, what}; }

std::uint64_t num_tables(std::span<const KvLayerGroup> groups, std::uint32_t layers_per_page) noexcept {
  std::uint64_t count = 0;
  for (const KvLayerGroup& group : groups) count += ceil_div(group.layers.size(), layers_per_page);
  return count;
}

/// Places without a layer that a twentieth of all allows: those of groups without a window weigh most in long
/// sequences, so that they must keep the bound alone too.
bool wastes_little(std::span<const KvLayerGroup> groups, std::uint32_t layers_per_page) noexcept {
  std::uint64_t num_full = 0, full_places = 0, num_all = 0, all_places = 0;
  for (const KvLayerGroup& group : groups) {
    const std::uint64_t places = ceil_div(group.layers.size(), layers_per_page) * layers_per_page;
    num_all += group.layers.size();
    all_places += places;
    num_full += group.window_left < 0 ? group.layers.size() : 0;
    full_places += group.window_left < 0 ? places : 0;
  }
  return (all_places - num_all) * 20 <= all_places && (full_places - num_full) * 20 <= full_places;
}

/// As few page tables as waste little, and then as few layers a page as make that many. If none wastes little, as many
/// tables as there may be.
std::uint32_t choose_layers_per_page(std::span<const KvLayerGroup> groups, std::uint32_t num_layers) noexcept {
  std::uint32_t best = num_layers;
  bool is_good = false;
  for (std::uint32_t candidate = num_layers; candidate >= 1; --candidate) {
    const std::uint64_t tables = num_tables(groups, candidate);
    if (tables > kMaxLayerGroups || (is_good && tables > num_tables(groups, best))) break;
    best = candidate;
    is_good = is_good || wastes_little(groups, candidate);
  }
  return best;
}

Result<void> check_groups(std::span<const KvLayerGroup> groups, std::uint32_t num_layers) {
  std::vector<bool> seen(num_layers, false);
  std::size_t num_seen = 0;
  for (const KvLayerGroup& group : groups) {
    if (group.layers.empty()) return invalid("a layer group has no layers");
    if (group.window_left < -1) return invalid("window_left of a layer group must be -1 (all) or more");
    for (const std::uint32_t layer : group.layers) {
      if (layer >= num_layers) return invalid("a layer group names a layer that the shape does not have");
      if (seen[layer]) return invalid("a layer is in two layer groups");
      seen[layer] = true;
      ++num_seen;
    }
  }
  return num_seen == num_layers ? Result<void>() : invalid("a layer is in no layer group");
}

}  // namespace

Result<void> LayerMap::assign(const KvCacheOptions& options) {
  const std::uint32_t num_layers = options.shape.num_layers;
  if (options.layers_per_page > num_layers) return invalid("layers_per_page is more than num_layers");
  if (options.layer_groups.empty()) {
    if (options.layers_per_page != 0) return invalid("layers_per_page is given without layer_groups");
    layers_per_page_ = num_layers;
    tables_ = {LayerGroup{.window_left = options.attention.window_left, .sink_tokens = options.attention.sink_tokens}};
    places_.resize(num_layers);
    for (std::uint32_t layer = 0; layer < num_layers; ++layer) places_[layer] = {0, layer};
    return {};
  }
  if (options.attention.sink_tokens != 0) return invalid("give sink_tokens to the layer groups, not to all layers");
  if (options.attention.window_left != -1) return invalid("give window_left to the layer groups, not to all layers");
  if (Result<void> checked = check_groups(options.layer_groups, num_layers); !checked) return checked;
  layers_per_page_ =
      options.layers_per_page != 0 ? options.layers_per_page : choose_layers_per_page(options.layer_groups, num_layers);
  if (num_tables(options.layer_groups, layers_per_page_) > kMaxLayerGroups) {
    return invalid("the layer groups need more than 64 page tables; raise layers_per_page");
  }
  places_.resize(num_layers);
  for (const KvLayerGroup& group : options.layer_groups) {
    for (std::size_t i = 0; i < group.layers.size(); ++i) {
      if (i % layers_per_page_ == 0)
        tables_.push_back({.window_left = group.window_left, .sink_tokens = group.sink_tokens});
      places_[group.layers[i]] = {static_cast<std::uint32_t>(tables_.size() - 1),
                                  static_cast<std::uint32_t>(i % layers_per_page_)};
    }
  }
  return {};
}

}  // namespace pagedkv::cache

// What the index knows of one published page.
#pragma once

#include <boost/intrusive/list.hpp>
#include <boost/intrusive/set.hpp>
#include <cstdint>

namespace pagedkv::prefix {

struct Namespace;

namespace intrusive = boost::intrusive;
using ListHook = intrusive::list_member_hook<intrusive::link_mode<intrusive::normal_link>>;
using SetHook =
    intrusive::set_member_hook<intrusive::link_mode<intrusive::normal_link>, intrusive::optimize_size<true>>;

/// Where an unreferenced page waits to be taken.
enum class Place : std::uint8_t {
  kNowhere,  ///< Referenced, or being taken.
  kPolicy,   ///< A candidate of the eviction policy.
  kClass,    ///< In the list of its retention priority.
  kParked,   ///< Chosen already, but pages that continue it are published.
  kReady,    ///< Chosen already, and a leaf by now.
};

/// One published page. Links to other pages are ids, -1 for none.
struct Entry {
  std::uint64_t hash = 0;  ///< Of the tokens from the beginning of the prefix to the end of this page.
  Namespace* name_space = nullptr;
  std::int32_t page = -1;
  std::int32_t parent = -1;  ///< Page of the tokens before; -1: the first page of a prefix.
  std::int32_t next_in_bucket = -1;
  std::int32_t first_child = -1, next_sibling = -1, previous_sibling = -1;
  std::uint32_t num_pins = 0;
  std::uint8_t priority = 0;
  Place place = Place::kNowhere;
  std::uint64_t expires_ms = 0;  ///< When the priority falls back to the default; 0 = never.
  ListHook list_hook;            ///< Of the list of its class, of the parked or of the ready pages.
  SetHook expiry_hook;           ///< Linked in a class while expires_ms is not 0.
};

using EntryList = intrusive::list<Entry, intrusive::member_hook<Entry, ListHook, &Entry::list_hook>,
                                  intrusive::constant_time_size<false>>;

struct ExpiresEarlier {
  bool operator()(const Entry& a, const Entry& b) const noexcept { return a.expires_ms < b.expires_ms; }
};
using ExpirySet = intrusive::multiset<Entry, intrusive::member_hook<Entry, SetHook, &Entry::expiry_hook>,
                                      intrusive::compare<ExpiresEarlier>, intrusive::constant_time_size<false>>;

}  // namespace pagedkv::prefix

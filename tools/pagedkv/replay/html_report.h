// One self-contained HTML page with plots of one or more replays.
#pragma once

#include <string>
#include <vector>

#include "json_file.h"
#include "replay/replay_run.h"

namespace pagedkv::tool {

/// Writes the page; it needs no network and no other file. `about` describes the source, see make_about in replay.cc.
/// Throws BadInput if the file cannot be written.
void write_html_report(const std::string& path, const Json& about, const std::vector<ReplayReport>& reports);

}  // namespace pagedkv::tool

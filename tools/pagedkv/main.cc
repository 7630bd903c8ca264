// Entry of the program `pagedkv`; everything it does is in run_tool, where tests can reach it.
#include "tool.h"

int main(int argc, char** argv) { return pagedkv::tool::run_tool(argc, argv); }

// Which instruction sets are compiled in, and which one is in use.
#pragma once

#include <string>
#include <vector>

namespace steepest {

std::vector<std::string> compiled_instruction_sets();
std::string instruction_set_in_use();

}  // namespace steepest

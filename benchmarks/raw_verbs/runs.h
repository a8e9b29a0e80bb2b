#pragma once

// The runs of program.h over bare verbs.

#include <cstdint>
#include <vector>

#include "endpoint.h"
#include "plan.h"

namespace raw_verbs {

std::vector<int64_t> ping(Endpoint& endpoint, const Plan& plan);
void pong(Endpoint& endpoint, const Plan& plan);
double stream(Endpoint& endpoint, const Plan& plan);
void drain(Endpoint& endpoint, const Plan& plan);

}  // namespace raw_verbs

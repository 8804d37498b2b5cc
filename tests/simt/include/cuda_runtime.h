#pragma once

#include <algorithm>

#include "cuda_runtime_api.h"
#include "simt.h"

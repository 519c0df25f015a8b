#include "trace/trace-hw_swapper.h"
